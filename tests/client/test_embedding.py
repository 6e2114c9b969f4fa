"""Rows that depend on own text, public text, embedder and seed alone, and an embedder known by its digest."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from motet.client.embedding import (
    BATCH_SIZE,
    SAMPLED_DOCUMENTS,
    SentenceEmbedder,
    embedding_rows,
    packaged_model,
    projection,
)
from motet.client.sampling import sample
from motet.moe.routing import RoutingRows
from motet.protocols.errors import ConfigurationError, DataError, ExpertError

PUBLIC = ["river trade border", "river coast trade", "border coast island"]
MEDICINE = ["kidney heart liver", "kidney lung fever", "heart fever trade"]
LAW = ["court judge appeal", "judge border contract"]
MINILM = "sha256:16ef80ad5715c4da269e7d275ce06fcd39da9f5f27920c1f53158b3bd907fe45"
SIZES = {"layers": 3, "hidden_size": 64}


class Words:
    """Counts the words it knows; every text's vector has length 1."""

    digest = "sha256:" + "0" * 64
    known = tuple(sorted({word for text in (*PUBLIC, *MEDICINE, *LAW) for word in text.split()}))

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.seen += len(texts)
        counts = [[text.split().count(word) for word in self.known] for text in texts]
        return normalize(torch.tensor(counts, dtype=torch.float32), dim=1)


def rows_of(own: Sequence[str], public: Sequence[str] = PUBLIC, seed: int = 0) -> RoutingRows:
    return embedding_rows(own, public, Words(), seed=seed, **SIZES)


def test_a_row_is_the_projected_difference_of_the_means() -> None:
    rows = rows_of(MEDICINE)
    difference = (Words()(MEDICINE).mean(dim=0) - Words()(PUBLIC).mean(dim=0)).double()
    for layer in range(3):
        expected = torch.from_numpy(projection(layer, 64, len(Words.known), seed=0)) @ difference
        assert torch.allclose(rows.weight[layer], expected.float(), atol=1e-6)
    assert torch.equal(rows.bias, torch.zeros(3))


def test_the_public_texts_own_row_is_zero() -> None:
    assert torch.equal(rows_of(PUBLIC).weight, torch.zeros(3, 64))


def test_no_other_owner_and_no_chance_enters_a_row() -> None:
    alone = rows_of(MEDICINE)
    rows_of(LAW)
    torch.manual_seed(7)
    torch.rand(10)
    beside = rows_of(MEDICINE)
    assert torch.equal(alone.weight, beside.weight)
    assert torch.equal(torch.stack([alone.weight]), torch.stack([beside.weight, rows_of(LAW).weight])[:1])


def test_the_order_of_the_documents_and_repeats_change_nothing() -> None:
    assert torch.equal(rows_of(MEDICINE).weight, rows_of([*reversed(MEDICINE), MEDICINE[0], " \n"]).weight)


def test_text_and_seed_change_the_row() -> None:
    first = rows_of(MEDICINE).weight
    assert not torch.allclose(first, rows_of(LAW).weight, atol=0.01)
    assert not torch.allclose(first, rows_of(MEDICINE, public=PUBLIC[:2]).weight, atol=0.01)
    assert not torch.allclose(first, rows_of(MEDICINE, seed=1).weight, atol=0.01)


def test_only_a_sample_is_embedded() -> None:
    embed = Words()
    embedding_rows([f"kidney case{number}" for number in range(2000)], PUBLIC, embed, seed=0, **SIZES)
    assert embed.seen == SAMPLED_DOCUMENTS + len(PUBLIC)


def test_a_sample_depends_on_documents_and_seed_alone() -> None:
    texts = [f"case {number}" for number in range(100)]
    shuffled = random.Random(0).sample(texts, 100)
    assert sample(texts, 10, seed=0) == sample([*shuffled, "", *texts], 10, seed=0)
    assert set(sample(texts, 10, seed=0)) != set(sample(texts, 10, seed=1))
    assert set(sample(texts, 500, seed=0)) == set(texts)


def test_everybody_draws_the_same_projection() -> None:
    """These numbers are part of the protocol: owners who drew others would make rows that do not compose."""
    drawn = projection(1, 2, 3, seed=0).ravel().tolist()
    assert drawn == pytest.approx([-0.657686, -0.013285, 0.598913, -0.334995, -0.489393, 0.607842], abs=1e-6)
    assert projection(0, 2, 3, seed=0).ravel().tolist() != drawn


def test_a_row_is_about_as_long_as_the_difference_when_sizes_are_equal() -> None:
    drawn = torch.from_numpy(projection(0, 384, 384, seed=0))
    assert float((drawn @ normalize(torch.ones(384, dtype=torch.float64), dim=0)).norm()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("own", "public", "whose"), [([], PUBLIC, "own"), (MEDICINE, ["  \n"], "public")])
def test_text_without_documents_is_refused(own: list[str], public: list[str], whose: str) -> None:
    with pytest.raises(DataError, match=f"saw no document in the {whose} text"):
        rows_of(own, public)


def test_an_embedder_that_gives_nan_is_refused() -> None:
    class Broken(Words):
        def __call__(self, texts: Sequence[str]) -> Tensor:
            return super().__call__(texts) * torch.nan

    with pytest.raises(ExpertError, match="saw NaN or infinity"):
        embedding_rows(MEDICINE, PUBLIC, Broken(), seed=0, **SIZES)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT, a token a word, in the files that sentence embedders come in."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("embedder")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *Words.known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(directory)
    return directory


def documents(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(Words.known, k=draw.randint(1, 300))) for _ in range(count)]


def test_vectors_have_length_one_and_do_not_depend_on_the_batch(model_directory: Path) -> None:
    embed = SentenceEmbedder.load(model_directory)
    texts = documents(BATCH_SIZE + 9)
    together = embed(texts)
    assert tuple(together.shape) == (BATCH_SIZE + 9, 16)
    assert torch.allclose(together.norm(dim=1), torch.ones(BATCH_SIZE + 9), atol=1e-6)
    assert torch.allclose(together, torch.cat([embed([text]) for text in texts]), atol=1e-5)
    assert torch.equal(together, embed(texts))
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_a_vector_is_the_mean_of_the_first_256_tokens_states(model_directory: Path) -> None:
    embed = SentenceEmbedder.load(model_directory)
    text = " ".join(random.Random(1).choices(Words.known, k=400))
    ids = torch.tensor([[2 + Words.known.index(word) for word in text.split()[:256]]])
    with torch.inference_mode():
        states = embed.model(input_ids=ids).last_hidden_state[0]
    assert torch.allclose(embed([text])[0], normalize(states.mean(dim=0), dim=0), atol=1e-5)


def test_the_digest_names_the_files_that_count(model_directory: Path, tmp_path: Path) -> None:
    digest = SentenceEmbedder.load(model_directory).digest
    copy = shutil.copytree(model_directory, tmp_path / "copy")
    (copy / "README.md").write_text("nothing")
    assert SentenceEmbedder.load(copy, expect=digest).digest == digest
    with (copy / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigurationError, match=rf"in {copy}, wanted {digest}; install that one"):
        SentenceEmbedder.load(copy, expect=digest)


def test_missing_and_damaged_files_are_told(model_directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_directory, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigurationError, match=f"cannot load the embedder in {copy}"):
        SentenceEmbedder.load(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match=r"tokenizer.json.*name the directory that holds them"):
        SentenceEmbedder.load(copy)


def test_the_packaged_embedder_is_the_one_that_the_docs_name_and_tells_topics_apart() -> None:
    embed = SentenceEmbedder.load(packaged_model(), expect=MINILM)
    fever, kidney, treaty = embed(
        ["The patient had a fever and chills.", "Acute failure of the kidney.", "The two states signed a treaty."]
    )
    assert float(fever @ kidney) > float(fever @ treaty) + 0.1
    page = Path(__file__).parents[2] / "docs" / "routing.md"
    assert MINILM in page.read_text(encoding="utf-8")
