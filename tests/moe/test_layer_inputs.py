"""What the anchor's feed-forward networks read, and of which text: padding and first positions left out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from motet.moe.anchor import Anchor
from motet.moe.layer_inputs import layer_inputs, walk
from motet.protocols.errors import StatisticsError

TEXTS = ["short", "", "a somewhat longer text, of which little is said", "x", "the last one"]


@pytest.fixture(scope="module")
def anchor(anchor_directory: Path) -> Anchor:
    return Anchor.load(anchor_directory)


def read_alone(anchor: Anchor, text: str, layer: int) -> Tensor:
    """The MLP inputs (tokens, hidden) of one text that fits into a sequence, without its opening."""
    model, seen = anchor.model(dtype=torch.float32), list[Tensor]()
    model.model.layers[layer].mlp.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0, 1:]))
    ids = [anchor.tokenizer().bos_token_id, *anchor.tokenizer().encode(text, add_special_tokens=False)]
    with torch.no_grad():
        model(torch.tensor([ids]))
    return seen[0]


def test_every_token_of_every_text_once_and_by_document(anchor: Anchor) -> None:
    found = layer_inputs(anchor, TEXTS, layers=[0, 1], max_tokens=10_000)
    assert found.document.tolist() == [number for number, text in enumerate(TEXTS) for _ in text]
    for layer in (0, 1):
        assert found.values[layer].shape == (sum(map(len, TEXTS)), 32)
        for number in (0, 2, 4):
            own = found.values[layer][found.document == number]
            assert torch.allclose(own, read_alone(anchor, TEXTS[number], layer), atol=1e-5)


def test_layers_are_the_same_read_alone_or_together(anchor: Anchor) -> None:
    both = layer_inputs(anchor, TEXTS, layers=[0, 1], max_tokens=10_000)
    for layer in (0, 1):
        one = layer_inputs(anchor, TEXTS, layers=[layer], max_tokens=10_000)
        assert one.values.keys() == {layer}
        assert torch.equal(one.values[layer], both.values[layer])
        assert torch.equal(one.document, both.document)


def test_long_texts_are_cut_and_stay_one_document(anchor: Anchor) -> None:
    found = layer_inputs(anchor, ["ab" * 150, "c" * 3], layers=[0], max_tokens=10_000)
    assert found.document.tolist() == [0] * 300 + [1] * 3


def test_reading_stops_with_the_batch_that_is_enough(anchor: Anchor) -> None:
    def endless():
        while True:
            yield "four"

    assert len(layer_inputs(anchor, endless(), layers=[1], max_tokens=65).document) == 2 * 16 * 4


def test_a_walk_tells_what_it_counted(anchor: Anchor) -> None:
    told: list[tuple[int, int, list[int]]] = []

    def observe(layer: int, inputs: Tensor, document: Tensor) -> None:
        told.append((layer, len(inputs), document.tolist()))

    counted = list(walk(anchor, ["abcd", "ef", "g"], observe, batch_size=2, sequence_length=4, skip_first=2))
    # sequences: <bos>abc, <bos>d; <bos>ef, <bos>g - of each the opening and one more position do not count
    assert counted == [2, 3]
    assert told == [(0, 2, [0, 0]), (1, 2, [0, 0]), (0, 1, [1]), (1, 1, [1])]


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_position_is_an_error(anchor: Anchor, texts: list[str]) -> None:
    with pytest.raises(StatisticsError, match=r"counted no position .* give more text"):
        layer_inputs(anchor, texts, layers=[0], max_tokens=10)
