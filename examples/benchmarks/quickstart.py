"""What the benchmark's corpora share with the quickstart, whose modules stand in the neighbouring folder.

Guarantees one pinning of packages and one rendering of a source, here as there.

    from quickstart import Document, Package, grouped
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "quickstart"))

from gather import FACTBOOK, ICD, METAMATH, STRUCTURED, WORDNET, Package
from render import Document, factbook, grouped, icd, metamath, well_sized, wordnet
from structured import factbook_forms, package_text, wordnet_lines

__all__ = [
    "FACTBOOK",
    "ICD",
    "METAMATH",
    "STRUCTURED",
    "WORDNET",
    "Document",
    "Package",
    "factbook",
    "factbook_forms",
    "grouped",
    "icd",
    "metamath",
    "package_text",
    "well_sized",
    "wordnet",
    "wordnet_lines",
]
