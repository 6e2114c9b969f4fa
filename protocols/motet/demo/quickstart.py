"""Where the demonstration's files lie: the tiny anchor and the text slices that Motet ships.

directory() / "anchor" / "model.safetensors"
play(Path("motet-demo"), view, cast())
"""

import sysconfig
from pathlib import Path

from motet.demo.cast import Cast, OwnerText
from motet.protocols.errors import ConfigurationError

_INSTALLED = Path(__file__).with_name("quickstart_files")
_CHECKOUT = Path(__file__).parents[3] / "examples" / "quickstart"
CODE_BYTES = 300_000
SETTINGS = (
    "training.steps=150",
    "training.batch_size=4",
    "training.sequence_length=256",
    "training.learning_rate=5e-3",
    "training.checkpoint_every=75",
    "contribution.consent=automatic",
)
PROMPTS = {"medicine": "S52 Fracture of", "mathematics": "|- ( ph ->", "code": "    def __init__(self"}
"""How each of the quickstart's domains begins a line."""


def cast() -> Cast:
    """What `motet demo` plays; the run takes one to two minutes on two cores."""
    files = directory()
    return Cast(
        name="quickstart",
        anchor=files / "anchor",
        public_text=files / "text" / "public.jsonl",
        owners=owners(),
        settings=SETTINGS,
        prompts=PROMPTS,
    )


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
