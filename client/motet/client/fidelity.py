"""What every encoding costs and keeps, measured on an owner's own trained expert: `motet bench fidelity`.

Scales are tuned on one part of the held-out text and the gain that survives is measured on the other, then the parts
change places; the two figures are averaged by how much gain each part has. The last rows are of low-rank factors (the
truncated singular value decomposition of each difference; PHLoRA, arXiv 2509.10971), relative to the same factors
unquantised. Of a low-rank expert there are rows of its own factors alone.

    for row in fidelity(OwnerHome.load(Path("owner"))):
        row.method, row.bits_per_parameter, row.gain_kept
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from motet.client.encoding import scoring_model
from motet.client.lowrank import Expansion, factors_of
from motet.client.owner import OwnerHome
from motet.client.preparation import Material
from motet.client.training import TrainedExpert
from motet.client.tuning import split, tuned
from motet.client.worker import trained_expert
from motet.moe.experts import read_update, swap_ffn, write_update
from motet.moe.lowrank import Factors, FactorSource
from motet.moe.scoring import Windows, bits_per_byte, score_windows, windows_of
from motet.moe.squeeze import changes, decompose
from motet.protocols.codec import CodecSettings, Method, UpdateReader, encode
from motet.protocols.documents import Strict
from motet.protocols.errors import DataError
from motet.protocols.expert_files import factor_specs

SETTINGS = (
    CodecSettings(method="ternary", density=0.01, balance=0.9),
    CodecSettings(method="ternary", density=0.05),
    CodecSettings(method="ternary", density=0.05, balance=0.9),
    CodecSettings(method="ternary", density=0.2),
    CodecSettings(method="ternary", density=0.2, row_scales=True),
    CodecSettings(method="ternary", density=0.2, balance=0.9),
    CodecSettings(method="ternary", density=0.5, balance=0.9),
    CodecSettings(method="levels", step=2.0),
    CodecSettings(method="levels", step=1.0),
    CodecSettings(method="int4"),
    CodecSettings(method="int8"),
    CodecSettings(method="lossless"),
)
FACTOR_SETTINGS = (CodecSettings(method="int4"), CodecSettings(method="int8"), CodecSettings(method="lossless"))
RANKS = (8, 32)

Networks = Mapping[str, Tensor]


class FidelityRow(Strict):
    """One encoding of one expert."""

    method: Method
    options: str
    bits_per_parameter: float
    """The file over the parameters of the expert's matrices, routing rows and header included; for low rank, the
    factors' file over the parameters of the factors."""
    gain_kept: float
    """The share of the gain in bits per byte that is left; for low rank, of the gain of the factors unquantised."""
    factor: float | None
    """What the scales were multiplied with, the mean over both parts; None if there is nothing to tune."""


class Part:
    """One half of the held-out text, and what the expert gains there."""

    def __init__(self, windows: Windows, score: Callable[[Networks | None, Windows], float], trained: Networks) -> None:
        self.windows = windows
        self.anchor, self.trained = score(None, windows), score(trained, windows)
        self.weight = (self.anchor - self.trained) * sum(windows.sizes)


def fidelity(
    home: OwnerHome, *, tell: Callable[[str], None] = lambda line: None, folder: Path | None = None
) -> Iterator[FidelityRow]:
    """Measure every encoding; trains the expert first unless that is done.

    Args:
        home: the owner's home.
        tell: told what is measured next.
        folder: where temporary files go; the system's when None.

    Raises:
        DataError: fewer than two documents are held out.
        MotetError: as training raises it.
    """
    material, trained = trained_expert(home, report=lambda share, line: tell(line))
    with tempfile.TemporaryDirectory(prefix="motet-fidelity-", dir=folder) as work:
        bench = _Bench(home, material, trained, Path(work))
        if trained.factors is not None:
            for settings in FACTOR_SETTINGS:
                tell(f"{settings.method}, trained factors")
                yield bench.low_rank(trained.factors, settings, "rank {} as trained")
            return
        for settings in SETTINGS:
            tell(f"{settings.method} {_options(settings)}")
            yield bench.row(settings)
        narrowest = min(min(spec.shape) for spec in material.anchor.manifest.ffn())
        ranks = [rank for rank in RANKS if rank <= narrowest]
        found = decompose(changes(material.anchor, trained.ffn), rank=max(ranks, default=1))
        for rank in ranks:
            factors = found.factors(rank)
            for settings in FACTOR_SETTINGS[:2]:
                tell(f"{settings.method}, rank {rank}")
                yield bench.low_rank(factors, settings, "rank {}")


class _Bench:
    def __init__(self, home: OwnerHome, material: Material, trained: TrainedExpert, work: Path) -> None:
        self._material, self._trained, self._work = material, trained, work
        self._model = scoring_model(material, home)
        settings, halves = home.config.training, split(material.corpus.held_out, at_most=None)
        if not all(halves):
            raise DataError("saw one held-out document, wanted two at least; hold out more under [data]")
        self._parts = [
            Part(
                windows_of(
                    material.anchor.tokenizer(),
                    half,
                    sequence_length=settings.sequence_length,
                    batch_size=settings.batch_size,
                    answers=material.corpus.answers,
                ),
                self._score,
                trained.ffn,
            )
            for half in halves
        ]
        self._parameters = sum(tensor.numel() for tensor in trained.ffn.values())

    def row(self, settings: CodecSettings) -> FidelityRow:
        """One encoding of the whole expert."""
        path, anchor = self._work / "update", self._material.anchor
        made = write_update(path, anchor, self._trained.ffn, self._trained.rows, settings)
        experts: dict[float, Networks] = {}

        def expert(factor: float) -> Networks:
            if factor not in experts:
                experts.clear()
                experts[factor] = read_update(path, anchor, name="", contribution="", factor=factor).ffn
            return experts[factor]

        factors = [1.0, 1.0]
        if settings.surveyed:
            factors = [
                tuned(lambda f, part=part: self._score(expert(f), part.windows), around=made.factor)[0]  # type: ignore[misc]
                for part in self._parts
            ]
        kept = self._kept([expert(factor) for factor in factors])
        return FidelityRow(
            method=settings.method,
            options=_options(settings),
            bits_per_parameter=8 * path.stat().st_size / self._parameters,
            gain_kept=kept,
            factor=math.fsum(factors) / 2 if settings.surveyed else None,
        )

    def low_rank(self, factors: Mapping[str, Factors], settings: CodecSettings, options: str) -> FidelityRow:
        """Factors encoded, against the same factors unquantised; `options` is told their rank."""
        anchor, path = self._material.anchor, self._work / "factors"
        source = FactorSource(factors, self._trained.rows, anchor.manifest)
        specs = factor_specs(anchor.manifest, source.rank)
        encode(path, source, specs, settings, anchor=anchor.digest)
        with UpdateReader(path, wanted=specs) as update:
            read = {spec.name: torch.from_numpy(update.tensor(spec.name)).bfloat16() for spec in specs}
        quantised = Expansion(anchor, factors_of(read, anchor.manifest, scale=1.0))
        return FidelityRow(
            method=settings.method,
            options=options.format(source.rank),
            bits_per_parameter=8 * path.stat().st_size / sum(math.prod(spec.shape) for spec in specs),
            gain_kept=self._kept([quantised] * 2) / self._kept([Expansion(anchor, factors)] * 2),
            factor=None,
        )

    def _kept(self, experts: list[Networks]) -> float:
        """The share of the gain left; the first expert was tuned on the first part, and counts on the second."""
        kept = 0.0
        for expert, part in zip(experts, reversed(self._parts), strict=True):
            gain = part.anchor - self._score(expert, part.windows)
            kept += part.weight * gain / (part.anchor - part.trained)
        return kept / sum(part.weight for part in self._parts)

    def _score(self, ffn: Networks | None, windows: Windows) -> float:
        if ffn is None:
            return bits_per_byte(score_windows(self._model, windows))
        with swap_ffn(self._model, ffn):
            return bits_per_byte(score_windows(self._model, windows))


def _options(settings: CodecSettings) -> str:
    match settings.method:
        case "ternary":
            parts = [f"k = {100 * settings.density:g} %"]
            parts += [f"balance {settings.balance:g}"] if settings.balance else []
            parts += ["row scales"] if settings.row_scales else []
            return ", ".join(parts)
        case "levels":
            return f"step {settings.step:g}"
        case "int8" | "int4":
            return f"blocks of {settings.block}"
        case "lossless" | "raw":
            return ""
