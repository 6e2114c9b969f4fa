"""How well routing separates own from public text in the federation that was played, layer by layer.

table = separations(Path("out/federation"), composite, sequence_length=128)
table["law"]["anchor"][12], table["law"]["composite"][12], table["law"]["posterior"]
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from motet.client.data import load_corpus, load_public
from motet.client.owner import OwnerHome
from motet.moe.config import ANCHOR
from motet.moe.evidence import Evidence
from motet.moe.members import rows_of_member
from motet.moe.scoring import dense_model, load_composite
from motet.moe.separation import evidence_separation, separation

Table = dict[str, dict[str, Any]]


def separations(federation: Path, composite: Path, *, sequence_length: int) -> Table:
    """By expert: AUC by layer on the anchor's and the composite's states, and of the evidence by token."""
    model = load_composite(composite, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(composite, local_files_only=True)
    names = model.config.names[1:]
    rows = {name: rows_of_member(model, number) for number, name in enumerate(names, start=1)}
    homes = {name: OwnerHome.load(federation / "owners" / name) for name in names}
    own = {name: load_corpus(home.config.data, home.path).held_out for name, home in homes.items()}
    public = load_public(federation / "coordinator" / "anchor" / "public.jsonl").held_out
    options: dict[str, Any] = {"own": own, "public": public, "sequence_length": sequence_length}
    on_anchor = separation(dense_model(model, model.expert_ffn(ANCHOR)), rows, tokenizer, **options)
    on_composite = separation(model, rows, tokenizer, **options)
    table: Table = {}
    for number, name in enumerate(names, start=1):
        before, after = on_anchor[name], on_composite[name]
        table[name] = {
            "anchor": _rounded(before.layers),
            "composite": _rounded(after.layers),
            "anchor_documents": _rounded(before.documents),
            "composite_documents": _rounded(after.documents),
            "documents": {"own": len(own[name]), "public": len(public)},
            "positions": {"own": before.own_positions, "public": before.public_positions},
        }
        evidence, priors = model.config.prefix, model.config.priors
        if isinstance(evidence, Evidence) and rows[name].tokens is not None:
            heard = evidence_separation(
                rows[name].evidence(model.config.vocab_size),
                evidence,
                tokenizer,
                own=own[name],
                public=public,
                sequence_length=sequence_length,
                log_priors=(priors[0], priors[number]),
            )
            table[name] |= {"token": round(heard.token, 4), "posterior": round(heard.posterior, 4)}
    return table


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]
