"""How often each token occurs in the public text to train on: what evidence by token divides by.

Counted once, when a federation that counts evidence is founded, as every owner counts it, and kept beside the
charter, which pins tokenizer and text. Admission reads the counts without torch and without tokenizing.

    keep_public_tokens(home.public_tokens_file, home.anchor_directory, home.anchor_manifest.vocabulary_size)
    read_public_tokens(home.public_tokens_file)             # (vocabulary,) int64, `OPENING` for one token
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from motet.coordinator.found_evidence import OPENING
from motet.coordinator.home import PUBLIC_TEXT_FILE
from motet.coordinator.public_text import PublicText
from motet.protocols.canonical import write_atomically


def keep_public_tokens(path: Path, anchor_directory: Path, vocabulary_size: int) -> None:
    """Count the public text in the anchor's folder, unless that is done. Imports torch; takes as long as tokenizing.

    Raises:
        StorageError: the disk is full.
    """
    if path.exists():
        return
    from transformers import AutoTokenizer

    from motet.moe.token_evidence import TokenCounts, opening_token

    tokenizer = AutoTokenizer.from_pretrained(anchor_directory, local_files_only=True)
    counts = np.zeros(vocabulary_size, np.int64)
    found = TokenCounts.of(tokenizer, PublicText(anchor_directory / PUBLIC_TEXT_FILE).train()).tokens
    counts[list(found)] = list(found.values())
    if 0 <= (opening := opening_token(tokenizer)) < vocabulary_size:
        counts[opening] = OPENING
    data = io.BytesIO()
    np.save(data, counts, allow_pickle=False)
    write_atomically(path, data.getvalue())


def read_public_tokens(path: Path) -> NDArray[Any]:
    """The counts: (vocabulary,), `OPENING` for the token that opens every text."""
    counts: NDArray[Any] = np.load(path, allow_pickle=False)
    return counts
