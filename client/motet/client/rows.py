"""An owner's routing: the rows, and the evidence by token, that the charter's rules ask for.

Made of the owner's text, the public text and the anchor alone, so that no other owner's coming or going changes them.

    rows = make_rows(charter.routing, anchor, corpus, public)
    save_rows(path, rows)
    load_rows(path)
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from motet.client.data import Corpus
from motet.moe.anchor import Anchor
from motet.moe.logistic import logistic_rows
from motet.moe.routing import RoutingRows, lda_rows
from motet.moe.statistics import Statistics
from motet.moe.token_evidence import TokenCounts, token_evidence
from motet.protocols.canonical import write_atomically
from motet.protocols.charter import RoutingRules
from motet.protocols.errors import ExpertError, StatisticsError

_log = logging.getLogger(__name__)


def make_rows(
    rules: RoutingRules,
    anchor: Anchor,
    own: Corpus,
    public: Corpus,
    *,
    statistics: tuple[Statistics, Statistics] | None = None,
    device: torch.device | str = "cpu",
) -> RoutingRows:
    """The rows of an owner's text under a charter's rules; only documents to train on are looked at.

    They have no intercept where the anchor's MLPs read normalised states: the stock export could not hold it.

    Args:
        rules: the charter's.
        anchor: the anchor.
        own: the owner's text.
        public: the public text, whole: the same for every owner.
        statistics: own and public ones, which rows in closed form are made of.
        device: what the anchor runs on.

    Raises:
        StatisticsError: a text has nothing to count, or there are no statistics to make rows in closed form of.
        ConfigurationError: the embedder that the charter names is not installed.
    """
    if rules.kind == "embedding":
        return _embedding_rows(rules, anchor, own.train, public.train)
    rows = _layers_rows(rules, anchor, own, public, statistics, device)
    if not rules.counted:
        return rows
    tokenizer = anchor.tokenizer()
    counts = [TokenCounts.of(tokenizer, corpus.train) for corpus in (own, public)]
    return replace(rows, tokens=token_evidence(counts[0], counts[1], anchor.manifest.vocabulary_size))


def _layers_rows(
    rules: RoutingRules,
    anchor: Anchor,
    own: Corpus,
    public: Corpus,
    statistics: tuple[Statistics, Statistics] | None,
    device: torch.device | str,
) -> RoutingRows:
    """What reads a position's hidden state; nothing does where rows read the average alone."""
    if rules.rows == "average":
        size = anchor.manifest.layers, anchor.manifest.hidden_size
        return RoutingRows(weight=torch.zeros(size), bias=torch.zeros(size[0]))
    if rules.rows == "lda":
        return lda_rows(*_given(statistics), intercept=anchor.family.post_norm)
    _log.info("fitting the routing rows")
    return logistic_rows(anchor, own.train, public.train, intercept=anchor.family.post_norm, device=device)


def save_rows(path: Path, rows: RoutingRows) -> None:
    """Keep rows in a file, whole or not at all. Raises StorageError when the disk is full."""
    tensors = {"weight": rows.weight, "bias": rows.bias} | ({} if rows.tokens is None else {"tokens": rows.tokens})
    write_atomically(path, save(tensors))


def load_rows(path: Path) -> RoutingRows:
    """The rows in a file. Raises StatisticsError when it is damaged."""
    try:
        tensors = load(path.read_bytes())
        return RoutingRows(weight=tensors["weight"], bias=tensors["bias"], tokens=tensors.get("tokens"))
    except (SafetensorError, KeyError, ExpertError) as error:
        raise StatisticsError(f"cannot read the routing rows in {path}: {error}; remove the file") from error


def _given(statistics: tuple[Statistics, Statistics] | None) -> tuple[Statistics, Statistics]:
    if statistics is None:
        raise StatisticsError(
            "saw no statistics, wanted own and public ones for rows in closed form; measure both texts"
        )
    return statistics


def _embedding_rows(rules: RoutingRules, anchor: Anchor, own: Sequence[str], public: Sequence[str]) -> RoutingRows:
    from motet.client.embedding import SentenceEmbedder, embedding_rows, packaged_model

    embedder = SentenceEmbedder.load(packaged_model(), expect=rules.embedder)
    manifest = anchor.manifest
    return embedding_rows(
        own,
        public,
        embedder,
        layers=manifest.layers,
        hidden_size=manifest.hidden_size,
        seed=rules.projection_seed,
    )
