"""Stages: what is made of what, named by content, so that equal work is done once.

    text = File.of(Path("public.jsonl"))
    anchor = Stage("anchor", {"steps": 900, "seed": 0}, {"text": text}, "anchor, seed 0", weight=60)
    expert = Stage("expert", {"steps": 330}, {"anchor": anchor, "text": own}, "expert:medicine, seed 0", weight=20)
    expert.digest               # changes with the kind, its version, the spec, and whatever it is made of

A kind of stage is a function that any room offers under the entry point group `motet.quality_stages`:

    def expert(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Callable[[str], None]) -> None:

It reads what its inputs are (a stage's folder, a file), writes files into the new folder `out`, and depends on nothing
else, not on the random state that another stage left either. Every random generator that it uses, it seeds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Self

from motet.protocols.canonical import digest_of, file_digest, hex_of
from motet.protocols.errors import ConfigurationError

GROUP = "motet.quality_stages"

Tell = Callable[[str], None]
Work = Callable[[Mapping[str, Any], Mapping[str, Path], Path, Tell], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that stages read, named by its content."""

    path: Path
    digest: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file at `path`.

        Raises:
            ConfigurationError: there is none.
        """
        if not path.is_file():
            raise ConfigurationError(
                f"saw no file {path}, wanted a corpus there; make it, or name its folder with --corpora"
            )
        return cls(path=path.absolute(), digest=file_digest(path))


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One piece of work, and what it is made of."""

    kind: str
    """The entry point whose function does it."""
    spec: Mapping[str, Any]
    """What the function is told: a JSON object. Paths do not belong in it."""
    inputs: Mapping[str, "Stage | File"]
    """What it reads: the function is given a path under the same name."""
    label: str
    """What people are told it is."""
    version: int = field(default=1, kw_only=True)
    """Raised when the kind's code changes what it writes, so that the cache forgets what it wrote before."""
    weight: float = field(default=1.0, kw_only=True)
    """About how many seconds it takes on one core; once stages have run, only the proportions matter."""
    digest: str = field(init=False)
    """Names the result."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_of(self.identity()))

    def identity(self) -> dict[str, Any]:
        """What the digest is of."""
        inputs = {name: each.digest for name, each in self.inputs.items()}
        return {"kind": self.kind, "version": self.version, "spec": dict(self.spec), "inputs": inputs}

    @property
    def name(self) -> str:
        """The digest as a file name."""
        return hex_of(self.digest)

    def made_of(self) -> Iterator["Stage"]:
        """The inputs that are stages."""
        yield from (each for each in self.inputs.values() if isinstance(each, Stage))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a measurement needs."""

    stages: Sequence[Stage]
    """All stages."""
    scores: Sequence[Sequence[Stage]]
    """Seed by seed, those that leave `scores.json`, see `motet.bench.quality.results`."""


def in_order(stages: Iterable[Stage], *, have: Callable[[Stage], bool] = lambda stage: False) -> list[Stage]:
    """The stages and what they are made of, each after its inputs and each once.

    Args:
        stages: what is wanted.
        have: whether a stage is there already; its inputs are then not looked for.
    """
    order: dict[str, Stage] = {}
    waiting = list(reversed(list(stages)))
    while waiting:
        stage = waiting[-1]
        missing = [] if have(stage) else [each for each in stage.made_of() if each.digest not in order]
        if missing and stage.digest not in order:
            waiting.extend(reversed(missing))
            continue
        order.setdefault(stage.digest, waiting.pop())
    return list(order.values())


def kinds() -> dict[str, EntryPoint]:
    """Every kind of stage that this installation knows."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def check_kinds(stages: Iterable[Stage]) -> None:
    """Raise a ConfigurationError if this installation lacks a kind of stage."""
    known = kinds()
    if unknown := sorted({stage.kind for stage in stages} - set(known)):
        raise ConfigurationError(
            f"saw stages of the kind {', '.join(unknown)}, wanted any of {', '.join(sorted(known)) or 'none'}; install "
            "Motet anew with the extras client and coordinator"
        )


def work_of(kind: str) -> Work:
    """The function behind a kind of stage."""
    work: Work = kinds()[kind].load()
    return work
