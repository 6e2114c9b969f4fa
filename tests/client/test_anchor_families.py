"""An owner's training on anchors whose MLPs read normalised states."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from motet.client.data import Corpus
from motet.client.owner import TrainingConfig
from motet.client.preparation import Material
from motet.client.rows import make_rows
from motet.client.training import TrainedExpert, expert_model, train
from motet.moe.anchor import Anchor
from motet.moe.layer_inputs import layer_inputs
from motet.moe.routing import RoutingRows
from motet.moe.statistics import measure
from motet.protocols.charter import RoutingRules

from .conftest import sentences

FAMILIES = ("llama", "mistral", "qwen3")
OWN = Corpus(train=tuple(sentences(12, words=12)), held_out=("never",), read=13)
PUBLIC = Corpus(train=tuple(f"country {n} exports timber and grain" for n in range(12)), held_out=("never",), read=13)


@pytest.fixture(scope="module")
def anchors(make_anchor: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Anchor]:
    root = tmp_path_factory.mktemp("families")
    return {name: Anchor.load(make_anchor(root / name, model_type=name)) for name in FAMILIES}


def test_the_manifest_tells_which_mlps_read_normalised_states(
    anchors: dict[str, Anchor], anchor_directory: Path
) -> None:
    """Whoever admits an expert has the manifest alone."""
    for anchor in (*anchors.values(), Anchor.load(anchor_directory)):
        assert anchor.manifest.normalises_mlp_input is not anchor.family.post_norm


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", ["logistic", "lda"])
def test_rows_have_no_intercept_and_tell_the_texts_apart(anchors: dict[str, Anchor], family: str, rows: str) -> None:
    anchor = anchors[family]
    statistics = measure(anchor, OWN.train), measure(anchor, PUBLIC.train)
    made = make_rows(RoutingRules(kind="token", rows=rows), anchor, OWN, PUBLIC, statistics=statistics)
    assert not made.bias.any()
    for layer in range(2):
        sides = [layer_inputs(anchor, each.train, layers=[layer], max_tokens=9999) for each in (OWN, PUBLIC)]
        own, public = (made.scores(side.values[layer], layer=layer).mean() for side in sides)
        assert own > 0.5 > -0.5 > public


def material(anchor: Anchor, kind: str) -> Material:
    rules = RoutingRules(kind="token")
    rows = RoutingRows(weight=torch.randn(2, 32, generator=torch.Generator().manual_seed(0)) / 4, bias=torch.zeros(2))
    if kind == "embedding":
        rules = RoutingRules(kind="embedding", embedder="sha256:" + "0" * 64)
    return Material(
        name="x", charter="", anchor=anchor, corpus=OWN, public=PUBLIC, rows=rows, public_share=0.25, routing=rules
    )


def trained(anchor: Anchor, folder: Path, kind: str = "token", *, checkpointing: bool = False) -> TrainedExpert:
    settings = {"steps": 2, "batch_size": 2, "sequence_length": 24, "warmup": 1, "device": "cpu", "learning_rate": 0.01}
    config = TrainingConfig(**settings, gradient_checkpointing=checkpointing)
    made = train(material(anchor, kind), config, folder)
    assert made is not None
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_training_changes_every_matrix_with_and_without_checkpointing(
    anchors: dict[str, Anchor], family: str, tmp_path: Path
) -> None:
    anchor = anchors[family]
    plain, again = trained(anchor, tmp_path / "a"), trained(anchor, tmp_path / "b", checkpointing=True)
    assert plain.ffn.keys() == anchor.ffn().keys()
    for name, before in anchor.ffn().items():
        assert (plain.ffn[name] - before.float()).abs().max() > 1e-4
        assert torch.allclose(plain.ffn[name], again.ffn[name], atol=1e-5)


def test_rows_from_embeddings_are_trained_without_intercept(anchors: dict[str, Anchor], tmp_path: Path) -> None:
    anchor = anchors["llama"]
    _, parameters = expert_model(material(anchor, "embedding"))
    assert not any(name.endswith(".bias") for name in parameters)
    made = trained(anchor, tmp_path, "embedding")
    assert not made.rows.bias.any()
    assert (made.rows.weight - material(anchor, "embedding").rows.weight).abs().max() > 1e-3
