"""A composite in memory, ready to generate.

composite = load_composite(Path("composite"))          # every byte checked against its manifest first
composite.roster.every()
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from motet.moe import MotetForCausalLM
from motet.protocols.composite_manifest import verify_composite
from motet.protocols.errors import AssemblyError
from motet.protocols.expert_sizes import ExpertSize
from motet.serving.expert_sets import Roster


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Composite:
    """A model with its tokenizer; `digest` names what it is, `ends` are the tokens that end an answer."""

    model: MotetForCausalLM
    tokenizer: Any
    roster: Roster
    digest: str
    ends: frozenset[int]

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return int(self.model.config.max_position_embeddings)

    @property
    def sizes(self) -> tuple[ExpertSize, ...]:
        """Kind, rank, parameters and bytes in memory of every expert, by expert id."""
        return self.model.experts

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below this."""
        return int(self.model.config.vocab_size)


def load_composite(directory: Path) -> Composite:
    """Loads a native composite: on a GPU in the dtype of its files, on a processor in float32.

    Raises AssemblyError when the folder is not what its manifest says, or holds no native composite.
    """
    manifest = verify_composite(directory)
    on_gpu = torch.cuda.is_available()
    try:
        model: MotetForCausalLM = MotetForCausalLM.from_pretrained(
            directory, dtype="auto" if on_gpu else torch.float32, local_files_only=True
        )
        if on_gpu:
            model.to(torch.device("cuda"))  # type: ignore[arg-type]
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AssemblyError(f"cannot load a composite from {directory}: {error}; fetch or assemble it again") from error
    return in_memory(model, tokenizer, anchor=manifest.anchor, digest=manifest.digest)


def in_memory(model: MotetForCausalLM, tokenizer: Any, *, anchor: str, digest: str) -> Composite:  # noqa: ANN401
    """A composite of a model at hand; `anchor` and `digest` are the digests of its anchor and of itself."""
    model.train(False)
    model.requires_grad_(False)
    roster = Roster(names=model.config.names, contributions=tuple(model.config.contributions or ()), anchor=anchor)
    return Composite(model=model, tokenizer=tokenizer, roster=roster, digest=digest, ends=_ends(model, tokenizer))


def _ends(model: MotetForCausalLM, tokenizer: Any) -> frozenset[int]:  # noqa: ANN401
    """The end tokens that generation knows, or else the tokenizer's."""
    given = getattr(model.generation_config, "eos_token_id", None)
    given = tokenizer.eos_token_id if given is None else given
    return frozenset(() if given is None else (given,) if isinstance(given, int) else given)
