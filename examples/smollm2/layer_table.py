"""How well routing separates own from public text in the federation that was played, layer by layer.

table = separations(Path("out/federation"), composite, stock, {"law": "out/text/law.jsonl"}, sequence_length=128)
table["law"]["anchor"][12], table["law"]["composite"][12], table["law"]["export"][12], table["law"]["posterior"]
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from motet.client.data import load_corpus, load_public
from motet.client.owner import OwnerHome
from motet.moe.config import ANCHOR
from motet.moe.evidence import Evidence
from motet.moe.members import rows_of_member
from motet.moe.scoring import dense_model, load_composite
from motet.moe.separation import evidence_separation, separation

Table = dict[str, dict[str, Any]]


STATES = ("anchor", "composite", "export")
"""Whose: the anchor's, the composite's, which a filter routes, and the stock export's, which these very rows route."""


def separations(
    federation: Path, composite: Path, stock: Path, texts: Mapping[str, str], *, sequence_length: int
) -> Table:
    """By expert: AUC by layer on each of STATES, and of the evidence by token; `texts` has the owners' files."""
    model = load_composite(composite, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(composite, local_files_only=True)
    names = model.config.names[1:]
    rows = {name: rows_of_member(model, number) for number, name in enumerate(names, start=1)}
    homes = {name: OwnerHome.load(federation / "owners" / name) for name in names}
    data = {name: home.config.data.model_copy(update={"files": (texts[name],)}) for name, home in homes.items()}
    own = {name: load_corpus(data[name], home.path).held_out for name, home in homes.items()}
    public = load_public(federation / "coordinator" / "anchor" / "public.jsonl").held_out
    options: dict[str, Any] = {"own": own, "public": public, "sequence_length": sequence_length}
    models = (
        lambda: dense_model(model, model.expert_ffn(ANCHOR)),
        lambda: model,
        lambda: AutoModelForCausalLM.from_pretrained(stock, dtype=torch.float32, local_files_only=True),
    )
    found = {
        states: separation(make(), rows, tokenizer, **options) for states, make in zip(STATES, models, strict=True)
    }
    table: Table = {}
    for number, name in enumerate(names, start=1):
        first = found["anchor"][name]
        table[name] = {
            **{states: _rounded(found[states][name].layers) for states in STATES},
            **{f"{states}_documents": _rounded(found[states][name].documents) for states in STATES},
            "documents": {"own": len(own[name]), "public": len(public)},
            "positions": {"own": first.own_positions, "public": first.public_positions},
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
