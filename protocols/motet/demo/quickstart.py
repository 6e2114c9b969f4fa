"""Where the demonstration's files lie: the tiny anchor and the text slices that Motet ships.

directory() / "anchor" / "model.safetensors"
"""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

from motet.protocols.errors import ConfigurationError

_INSTALLED = Path(__file__).with_name("quickstart_files")
_CHECKOUT = Path(__file__).parents[3] / "examples" / "quickstart"
CODE_BYTES = 300_000


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnerText:
    """What one owner of the demonstration trains on."""

    name: str
    files: str
    """A path or a glob."""
    licence: str
    max_bytes: int | None


def directory() -> Path:
    """The folder with `anchor/` and `text/`: inside an installed wheel, else in the checkout.

    Raises:
        ConfigurationError: it is in neither place.
    """
    for candidate in (_INSTALLED, _CHECKOUT):
        if (candidate / "anchor" / "config.json").exists():
            return candidate
    raise ConfigurationError(f"saw no quickstart files in {_INSTALLED} or {_CHECKOUT}; install motet again")


def owners() -> tuple[OwnerText, ...]:
    """The three owners: two read a shipped slice, one the running interpreter's standard library in place."""
    text = directory() / "text"
    stdlib = Path(sysconfig.get_path("stdlib"))
    return (
        OwnerText(
            name="medicine", files=str(text / "medicine.jsonl"), licence="LicenseRef-public-domain", max_bytes=None
        ),
        OwnerText(name="mathematics", files=str(text / "mathematics.jsonl"), licence="CC0-1.0", max_bytes=None),
        OwnerText(name="code", files=str(stdlib / "*.py"), licence="PSF-2.0", max_bytes=CODE_BYTES),
    )
