"""A composite in EleutherAI's lm-evaluation-harness: the registered model "motet", and runs that ask no network.

Guarantees: only the experts asked for, and the anchor, take part in any call of the model; the report names the
composite by the digest of the very files that were loaded; task files, their data and the composite are read from
this machine. The arithmetic is in float32 unless `dtype` says otherwise.

    report = run_harness(composite, ["quickstart_choice"], task_files=Path("examples/harness"), excluded=["code"])
    report.tasks["quickstart_choice"].metrics["acc"]

With the model registered, the harness's own command line and all its options:

    python -m motet.moe.harness run --model motet --model_args pretrained=composite,experts=medicine+code --tasks ...
"""

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager, nullcontext
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import huggingface_hub.constants
import torch
from datasets.exceptions import DatasetsError  # type: ignore[import-untyped]
from lm_eval import simple_evaluate  # type: ignore[import-untyped]
from lm_eval.api.registry import register_model  # type: ignore[import-untyped]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
from torch import Tensor

from motet.moe.config import ANCHOR
from motet.moe.expert_sets import expert_mask_of, only, without
from motet.protocols.canonical import Digest
from motet.protocols.composite_manifest import CompositeManifest, read_composite_manifest, verify_composite
from motet.protocols.documents import Strict
from motet.protocols.errors import AssemblyError, ConfigurationError, DataError

RESAMPLES = 1000
"""Bootstrap resamples behind the standard errors that the harness has no formula for."""
_LISTED = 20


class TaskResult(Strict):
    """What the harness found for one task, or for a group of them."""

    metrics: dict[str, float]
    """By the harness's names, standard errors under NAME_stderr; NAME,FILTER where a filter other than "none" was used.
    What has no finite value is left out."""
    documents: int | None
    """None for a group."""
    version: str | None
    """The version that the task file gives itself."""


class HarnessReport(Strict):
    """A run of the harness, and what it was a run of."""

    composite: Digest
    experts: tuple[str, ...]
    """Who took part, the anchor included, in the order of their ids."""
    tasks: dict[str, TaskResult]
    limit: int | None
    """How many documents of each task were scored at most; None: all."""
    harness: str
    """The version of lm_eval."""
    chat: bool = False
    """Whether prompts were rendered by the anchor's chat template, which changes every figure."""
    anchor: dict[str, TaskResult] | None = None
    """What the anchor alone reaches on the same tasks; None where that was not asked for."""


@register_model("motet")
class MotetLM(HFLM):  # type: ignore[misc]
    """A composite as a model of the harness: its "hf" with experts.

    `pretrained` is the composite's folder. `experts` are names, or one string with "+" between them, which take part
    beside the anchor; None leaves that to the blocks `only` and `without` around a call. `settings` are the harness's.

    Raises:
        ExpertSetError: the composite has no such expert.
        AssemblyError: the folder holds no composite.
    """

    def __init__(
        self,
        pretrained: str,
        experts: str | Sequence[str] | None = None,
        device: str | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int | str = 8,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        manifest = read_composite_manifest(Path(pretrained))
        names = experts.split("+") if isinstance(experts, str) else experts
        self.folder, self.composite = Path(pretrained), manifest.digest
        self.experts = None if names is None else experts_allowed(_known(manifest), experts=names)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        settings |= {"backend": "causal", "device": device, "dtype": dtype, "batch_size": batch_size}
        try:
            super().__init__(str(pretrained), **settings)
        except (OSError, ValueError) as error:
            raise AssemblyError(
                f"cannot load a composite from {pretrained}: {error}; fetch or assemble it again"
            ) from error

    def get_model_info(self) -> dict[str, Any]:
        """What the harness keeps about the model; its own version asks the Hub."""
        return {"composite": self.composite, "experts": self.experts, "model_dtype": str(self.model.dtype)}

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        with self._allowed():
            logits: Tensor = super()._model_call(inps, *args, **kwargs)  # (batch, seq, vocabulary)
        return logits

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        with self._allowed():
            tokens: Tensor = super()._model_generate(*args, **kwargs)  # (batch, seq)
        return tokens

    def _allowed(self) -> Any:  # noqa: ANN401 - a context manager
        return nullcontext() if self.experts is None else only(*self.experts)


def run_harness(
    composite: Path,
    tasks: Sequence[str],
    *,
    task_files: Path | None = None,
    experts: Sequence[str] = (),
    excluded: Sequence[str] = (),
    limit: int | None = None,
    chat: bool = False,
) -> HarnessReport:
    """Score a composite on tasks of the harness, without the network.

    Args:
        composite: its folder, every byte of which is checked first.
        tasks: names of tasks, groups or tags.
        task_files: a folder of task files, where the run takes place: paths in them start from it. None: the harness's
            own tasks, whose data must already lie in the cache of `datasets`.
        experts: who takes part beside the anchor; empty: all.
        excluded: who does not, whatever `experts` says.
        limit: documents of each task at most; None: all.
        chat: whether prompts are rendered by the anchor's chat template, as questions to an instruct model.

    Raises:
        AssemblyError: the composite is not what its manifest says.
        ExpertSetError: it has no such expert.
        ConfigurationError: there is no such task, or no such folder, or no chat template.
        DataError: a task's data cannot be read from this machine.
    """
    manifest, composite = verify_composite(composite), composite.resolve()
    allowed = experts_allowed(_known(manifest), experts=experts, excluded=excluded)
    if task_files is not None and not task_files.is_dir():
        raise ConfigurationError(f"saw no folder {task_files}, wanted one with task files (*.yaml)")
    with _offline(), chdir(task_files or os.curdir):
        manager = TaskManager(include_path=task_files and ".", include_defaults=task_files is None)
        chosen = _loaded(manager, tasks)
        found = _results(_evaluated(MotetLM(str(composite), experts=allowed), chosen, manager, limit=limit, chat=chat))
    return HarnessReport(
        composite=manifest.digest, experts=allowed, tasks=found, limit=limit, harness=version("lm_eval"), chat=chat
    )


def experts_allowed(
    known: Sequence[str], *, experts: Sequence[str] = (), excluded: Sequence[str] = ()
) -> tuple[str, ...]:
    """The names of `known` that take part, in that order: `experts` (empty: all) and the anchor, but not `excluded`.

    Raises ExpertSetError for an unknown name, and for the anchor among `excluded`.
    """
    with ExitStack() as blocks:
        if experts:
            blocks.enter_context(only(*experts))
        if excluded:
            blocks.enter_context(without(*excluded))
        mask = expert_mask_of(known, 1)  # (1, experts)
    return tuple(known) if mask is None else tuple(compress(known, mask[0].tolist()))


def _evaluated(
    model: MotetLM,
    tasks: Sequence[Any],
    manager: Any,  # noqa: ANN401 - the harness is untyped
    *,
    limit: int | None,
    chat: bool,
) -> Mapping[str, Any]:
    """What the harness itself returns."""
    if chat and not getattr(model.tokenizer, "chat_template", None):
        raise ConfigurationError(
            f"saw no chat template in {model.folder}, wanted a composite of an instruct anchor; score without --chat"
        )
    found: Mapping[str, Any] = simple_evaluate(
        model,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        bootstrap_iters=RESAMPLES,
        log_samples=False,
        apply_chat_template=chat,
    )
    return found


def _known(manifest: CompositeManifest) -> tuple[str, ...]:
    return ANCHOR, *(member.name for member in manifest.members)


@contextmanager
def _offline() -> Iterator[None]:
    """What Hugging Face's libraries read of HF_HUB_OFFLINE once, when they are imported, set for this block."""
    places: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _loaded(manager: Any, names: Sequence[str]) -> list[Any]:  # noqa: ANN401 - the harness is untyped
    """The harness's tasks and groups of these names, their data read."""
    for name in names:
        if name not in manager.task_index:
            raise ConfigurationError(f"saw no task {name!r}, wanted {_choice(name, manager.all_tasks)}")
    try:
        loaded = manager.load(list(dict.fromkeys(names)))
    except (DatasetsError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"cannot read the tasks {', '.join(names)} and their data: {error}; nothing is fetched for them, so put "
            "the data on this machine and name them in the task file, relative to the folder of task files"
        ) from error
    groups = [loaded["groups"][name] for name in names if name in loaded["groups"]]
    grouped = {task.task_name for group in groups for task in group.get_all_tasks()}
    return groups + [task for name, task in loaded["tasks"].items() if name not in grouped]


def _choice(name: str, known: Sequence[str]) -> str:
    if not known:
        return "a folder with task files (*.yaml), and this one has none that parses"
    near = known if len(known) <= _LISTED else difflib.get_close_matches(name, known, n=_LISTED, cutoff=0.4)
    return f"one of {len(known)}, such as {', '.join(near or known[:_LISTED])}"


def _results(found: Mapping[str, Any]) -> dict[str, TaskResult]:
    tables = found["results"] | found.get("groups", {})  # in no order of its own, where a tag was asked for
    return {
        name: TaskResult(
            metrics={
                key.removesuffix(",none"): value
                for key, value in table.items()
                if "," in key and isinstance(value, (int, float)) and math.isfinite(value)
            },
            documents=found["n-samples"].get(name, {}).get("effective"),
            version=None if (given := found["versions"].get(name)) is None else str(given),
        )
        for name, table in sorted(tables.items())
    }


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # type: ignore[import-untyped]

    cli_evaluate()
