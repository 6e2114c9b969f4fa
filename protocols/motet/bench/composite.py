"""What a composite of many experts takes: memory beside the sum of its parts, and speed beside a loop of dense experts.

An anchor, low-rank experts and the same expanded are random; what is measured does not depend on values. Each composite
is loaded and run in a process of its own.

    report = run_composite(Settings(), tell=note)
    report.memory_ratio, report.speedup
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from motet.bench.memory import MemoryWatch
from motet.protocols.canonical import storage_errors
from motet.protocols.documents import Strict
from motet.protocols.processes import Troupe, ending_as_interrupt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from motet.moe.lowrank import AnyExpert

Kind = Literal["anchor", "lowrank", "full"]
KINDS: tuple[Kind, ...] = ("anchor", "lowrank", "full")
ROUNDS, TOKENS = 7, 256
_SECONDS = 1800


class Settings(Strict):
    """The sizes of the anchor, and of the experts."""

    hidden_size: int = Field(512, ge=8)
    intermediate_size: int = Field(2048, ge=8)
    layers: int = Field(8, ge=1)
    vocabulary_size: int = Field(8192, ge=8)
    experts: int = Field(8, ge=1, le=64)
    rank: int = Field(16, ge=1)
    batch: int = Field(4, ge=1)
    """Rows of 256 tokens that are run at a time."""


class Job(Strict):
    """What one process does: load and run the composite in a folder."""

    settings: Settings
    folder: str


class Measured(Strict):
    """One composite in one process."""

    parts_bytes: int
    """Of the tensors in its files: the anchor's, the experts', the router's."""
    resident_bytes: int
    """What the process grew by when it had loaded the composite and run it once."""
    peak_bytes: int
    """The most that it grew by, loading and activations included."""
    seconds: float
    """A forward pass without gradients, the median of the rounds."""
    exact_memory: bool


class Report(Strict):
    """The composites side by side; the anchor's is one without experts."""

    settings: Settings
    composites: dict[Kind, Measured]

    @property
    def memory_ratio(self) -> float:
        """Resident bytes of the low-rank composite over the sum of its parts."""
        low = self.composites["lowrank"]
        return low.resident_bytes / low.parts_bytes

    @property
    def cost(self) -> float:
        """Seconds of the low-rank composite over those of the anchor."""
        return self.composites["lowrank"].seconds / self.composites["anchor"].seconds

    @property
    def speedup(self) -> float:
        """Seconds of as many dense experts, one after the other, over those of the low-rank ones."""
        return self.composites["full"].seconds / self.composites["lowrank"].seconds


def run_composite(settings: Settings, *, tell: Callable[[str], None]) -> Report:
    """Measure the anchor alone, its low-rank experts, and as many full ones.

    Raises:
        FederationError: a measurement failed; the message ends with its log.
        StorageError: the disk is full.
    """
    measured: dict[Kind, Measured] = {}
    with (
        ending_as_interrupt(),
        TemporaryDirectory(prefix="motet-bench-") as name,
        Troupe(logs=Path(name) / "logs") as troupe,
    ):
        for kind in KINDS:
            tell(f"{kind}: {'no experts' if kind == 'anchor' else f'{settings.experts} experts'}")
            folder = Path(name) / kind
            with storage_errors(folder):
                write_composite(settings, kind, folder)
            measured[kind] = _measured(troupe, Job(settings=settings, folder=str(folder)), folder / "result.json")
    return Report(settings=settings, composites=measured)


def _measured(troupe: Troupe, job: Job, result: Path) -> Measured:
    arguments = [job.model_dump_json(), str(result)]
    troupe.start("measure", [sys.executable, "-m", "motet.bench.composite", *arguments])
    troupe.wait("measure", timeout=_SECONDS)
    return Measured.model_validate_json(result.read_bytes())


def main() -> None:
    """The child: `JOB RESULT`."""
    job = Job.model_validate_json(sys.argv[1])
    Path(sys.argv[2]).write_text(measure(job).model_dump_json())


def write_composite(settings: Settings, kind: Kind, folder: Path) -> None:
    """A random composite of this kind, as a checkpoint."""
    from transformers.utils.logging import disable_progress_bar

    from motet.moe import compose

    disable_progress_bar()  # type: ignore[no-untyped-call]
    anchor = _anchor(settings)
    number = 0 if kind == "anchor" else settings.experts
    experts = [_expert(anchor, settings.rank, each, dense=kind == "full") for each in range(number)]
    compose(anchor, experts).save_pretrained(folder)


def _anchor(settings: Settings) -> "PreTrainedModel":
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    torch.manual_seed(0)
    config = Olmo2Config(
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        vocab_size=settings.vocabulary_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=max(1, settings.hidden_size // 64),
        max_position_embeddings=TOKENS,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: PreTrainedModel = Olmo2ForCausalLM(config).requires_grad_(False)
    return model


def _expert(anchor: "PreTrainedModel", rank: int, number: int, *, dense: bool) -> "AnyExpert":
    import torch

    from motet.moe import Expert, Factors, LowRankExpert, RoutingRows

    draw = torch.Generator().manual_seed(number)
    ffn = {name: tensor.detach() for name, tensor in anchor.named_parameters() if ".mlp." in name}
    factors = {
        name: Factors(
            a=torch.randn(rank, own.shape[1], generator=draw) / 50, b=torch.randn(own.shape[0], rank, generator=draw)
        )
        for name, own in ffn.items()
    }
    layers, hidden = anchor.config.num_hidden_layers, anchor.config.hidden_size
    rows = RoutingRows(weight=torch.randn(layers, hidden, generator=draw) / 50, bias=torch.zeros(layers))
    name, contribution = f"expert-{number}", f"sha256:{number:064x}"
    if not dense:
        return LowRankExpert(name=name, contribution=contribution, factors=factors, rows=rows)
    whole = {each: factors[each].expanded(own) for each, own in ffn.items()}
    return Expert(name=name, contribution=contribution, ffn=whole, rows=rows)


def measure(job: Job) -> Measured:
    """Load the composite and run it: once for its memory, and so many rounds for the time."""
    import torch

    from motet.moe import MotetForCausalLM
    from motet.protocols.tensor_files import TensorReader

    warm = Settings(hidden_size=64, intermediate_size=64, layers=1, vocabulary_size=64)
    ids = torch.arange(job.settings.batch * TOKENS).reshape(-1, TOKENS) % job.settings.vocabulary_size
    with torch.no_grad():
        _anchor(warm)(ids % 64)  # what torch makes once
        watch = MemoryWatch.begin()
        model: MotetForCausalLM = MotetForCausalLM.from_pretrained(job.folder)
        model.train(False)
        model(ids, logits_to_keep=1)
        peak, resident = watch.extra_mb() * 1e6, MemoryWatch.begin().before - watch.before
        seconds = [_timed(lambda: model(ids, logits_to_keep=1)) for _ in range(ROUNDS)]
    parts = 0
    for path in sorted(Path(job.folder).glob("*.safetensors")):
        with TensorReader(path) as reader:
            parts += sum(spec.nbytes for spec in reader.specs)
    return Measured(
        parts_bytes=parts,
        resident_bytes=resident,
        peak_bytes=int(peak),
        seconds=median(seconds),
        exact_memory=watch.exact,
    )


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
