"""The anchor: the frozen public base model that every expert is a difference to.

`Anchor.load` reads every byte once and refuses an anchor that is not the one asked for, so that what follows
needs no further check.

    anchor = Anchor.load(Path("anchor"), expect=charter.anchor)
    model = anchor.model(dtype=torch.float32)
    public = anchor.statistics()
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from motet.moe.families import Family, family_of
from motet.moe.statistics import Statistics
from motet.protocols.anchor_manifest import AnchorManifest, checkpoint_files
from motet.protocols.errors import AnchorError, AnchorMismatch
from motet.protocols.tensor_files import TensorReader, read_header

STATISTICS_FILE = "statistics.safetensors"
FFN_DTYPES = ("BF16", "F16", "F32")
"""What the feed-forward tensors of an anchor may be stored in, as safetensors calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A directory whose content was read and named: the same digest means the same model and tokenizer.

    `config` is the content of config.json, `files` maps each tensor's name to the safetensors file that holds it.
    """

    directory: Path
    manifest: AnchorManifest
    config: dict[str, Any]
    files: dict[str, Path] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        files = {name: path for path in checkpoint_files(self.directory) for name in read_header(path)}
        object.__setattr__(self, "files", files)

    @classmethod
    def load(cls, directory: Path, *, expect: str | None = None) -> Self:
        """Read and check the anchor in `directory`.

        Raises:
            AnchorError: it cannot be read, or its architecture is not supported, or not with these settings.
            AnchorMismatch: its digest is not `expect`.
        """
        config = _read_configuration(directory / "config.json")
        family_of(str(config.get("model_type"))).require(_typed(config, directory))
        manifest = AnchorManifest.of(directory)
        _require_floats(manifest)
        if expect is not None and manifest.digest != expect:
            raise AnchorMismatch(
                f"saw anchor {manifest.digest} in {directory}, wanted {expect}; fetch the one that the charter names",
                expected=expect,
                actual=manifest.digest,
            )
        return cls(directory=directory, manifest=manifest, config=config)

    @property
    def digest(self) -> str:
        """The digest that charters and contributions name this anchor by."""
        return self.manifest.digest

    @property
    def family(self) -> Family:
        """What the composite has to know about its architecture."""
        return family_of(str(self.config.get("model_type")))

    def model(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """A fresh copy of the model in evaluation mode; None keeps the stored dtype."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.directory, dtype=dtype or "auto", local_files_only=True
        )
        model.train(False)
        return model

    def tokenizer(self) -> Any:  # noqa: ANN401 - one of transformers' many classes
        """The anchor's tokenizer."""
        return AutoTokenizer.from_pretrained(self.directory, local_files_only=True)

    def ffn(self) -> dict[str, Tensor]:
        """The feed-forward tensors in their stored dtype, in layer order: shapes as in `manifest.ffn()`."""
        return {spec.name: self.tensor(spec.name) for spec in self.manifest.ffn()}

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""
        with TensorReader(self.file_of(name)) as reader:
            return reader.tensor(name)

    def file_of(self, name: str) -> Path:
        """The safetensors file that holds a tensor; raises AnchorError when there is no such tensor."""
        if name not in self.files:
            raise AnchorError(
                f"saw no tensor {name} in {self.directory}, only {len(self.files)} others; check the name"
            )
        return self.files[name]

    def statistics(self) -> Statistics:
        """The public calibration statistics that lie beside the model.

        Raises StatisticsError when there are none or they belong to another anchor.
        """
        return Statistics.load(self.directory / STATISTICS_FILE, expect=self.digest)


def _require_floats(manifest: AnchorManifest) -> None:
    spec = manifest.ffn()[0]
    if spec.dtype not in FFN_DTYPES:
        raise AnchorError(
            f"saw {spec.name} in {spec.dtype}, wanted one of {', '.join(FFN_DTYPES)}; save the anchor in one of these"
        )


def _typed(config: dict[str, Any], directory: Path) -> PreTrainedConfig:
    """The configuration as transformers understands it, with every default filled in."""
    try:
        return AutoConfig.for_model(**config)
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise AnchorError(
            f"cannot read the configuration of the anchor in {directory}: {error}; fetch it again or name another"
        ) from error


def _read_configuration(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnchorError(f"cannot read an anchor's {path}: {error}; fetch the anchor again or name another") from error
    return config
