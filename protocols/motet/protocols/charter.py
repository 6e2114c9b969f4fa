"""The charter: the rules of one federation, written by the coordinator, pinned and signed.

    charter = Charter.from_toml(Path("charter.toml"))
    charter.digest                    # what contributions and receipts refer to

A home keeps two files: `charter.toml`, to be read by people, and `charter.signed.json`, whose signature holds.
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from motet.protocols.canonical import Digest
from motet.protocols.codec.settings import METHODS, Method
from motet.protocols.contribution import MAX_RANK, ExpertKind
from motet.protocols.documents import Document, Name, PublicKey, Strict, TomlFile

MAX_GAIN = 1e4
"""Of an average: above it one expert has all of the weight in any case, and float32 ends somewhere."""


class AnchorPin(Strict):
    """The frozen public model that every expert is a difference to."""

    digest: Digest
    """The digest of the anchor's manifest: tensors, configuration and tokenizer."""
    statistics: Digest
    """The digest of `statistics.safetensors`, measured on public calibration text."""
    public_text: Digest
    """The digest of the public JSONL file that owners mix into their batches and everybody is scored on."""
    bundle: Digest
    """The digest of `bundle.json`, by which the data plane hands out all of the above."""


class ExpertRules(Strict):
    """What a contribution may be."""

    kinds: tuple[ExpertKind, ...] = Field(("full", "lowrank"), min_length=1)
    """The kinds of expert admitted: `full`, a change of every feed-forward matrix; `lowrank`, two factors for each."""
    max_rank: int = Field(64, ge=1, le=MAX_RANK)
    """The largest rank of a low-rank expert's factors."""
    max_update_bytes: int = Field(64 << 30, gt=0)
    """The largest update admitted, in bytes."""
    inline_bytes: int = Field(32 << 20, ge=0, le=512 << 20)
    """Up to this size an update may ride in the Flower reply instead of the data plane; 0 forbids it."""
    licences: tuple[str, ...] = ()
    """SPDX identifiers accepted in an expert's terms; empty accepts any."""
    try_before_joining: bool = False
    """Whether whoever has this charter may fetch what is published, to measure it before joining (`motet try`)."""


class RoutingRules(Strict):
    """How the composite weighs its experts."""

    kind: Literal["filter", "token", "embedding"] = "filter"
    """What the weights follow: `filter`, the domain told from all tokens so far; `token`, each layer's rows, as stock
    architectures do; `embedding`, the same with rows that begin as sentence embeddings and are trained with the
    expert."""
    rows: Literal["average", "lda", "logistic"] = "logistic"
    """What rows read. `average`: the mean evidence of all tokens so far, which one more attention head leaves in the
    residual stream; for kind `token` and anchors with norms behind attention. Else this position's hidden state, by the
    closed form of the log density ratio (linear discriminant), or by logistic regression of own against public text."""
    gain: float = Field(8.0, gt=0, le=MAX_GAIN)
    """Average: what the mean evidence is multiplied with."""
    stay: float = Field(0.99, ge=0, lt=1)
    """Filter: the probability that the next token is of the same domain."""
    temperature: float = Field(4.0, gt=0)
    """Filter: what a token's evidence is divided by, since neighbouring tokens are not independent."""
    embedder: Digest | None = None
    """Embedding: the digest of the sentence embedder's files; owners need the same one. None for the other kinds."""
    projection_seed: int = Field(0, ge=0)
    """The seed of what is drawn for routing: under `embedding` the projection from sentence embeddings to the hidden
    size; wherever proxies are asked for, the classifier that chooses them, and the order of tuning on them."""
    proxies: int = Field(0, ge=0, le=4096)
    """How many public documents like its own each owner may name for tuning the router; 0 asks for none."""
    top_k: int | None = Field(None, ge=1)
    """How many experts a token uses; None is all of them."""
    normalise_top_k: bool = True
    """Whether the weights of the chosen experts are made to sum to 1."""
    log_prior_anchor: float = Field(1.0, ge=-50, le=50)
    """Natural logarithm of the anchor's prior, up to a constant shared with `log_prior_expert`; one nat more than an
    expert's protects public text at a small price elsewhere."""
    log_prior_expert: float = Field(0.0, ge=-50, le=50)
    """Natural logarithm of every closed expert's prior."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "embedding") != (self.embedder is not None):
            raise ValueError(
                f"kind, embedder: saw kind '{self.kind}' with embedder {self.embedder}, wanted an embedder's digest "
                "exactly if the kind is 'embedding'"
            )
        if self.rows == "average" and self.kind != "token":
            raise ValueError(f"kind, rows: saw rows 'average' with kind '{self.kind}', wanted kind 'token'")
        if self.proxies and self.counted:
            raise ValueError(
                f"kind, proxies: saw kind '{self.kind}' with {self.proxies} proxies, wanted 0: evidence is counted and "
                "no router is tuned; take kind 'token' with rows 'logistic' or 'lda'"
            )
        return self

    @property
    def counted(self) -> bool:
        """Whether owners count evidence by token id, which is added up over the prefix."""
        return self.kind == "filter" or self.rows == "average"


class TrainingRules(Strict):
    """What owners agree on about training, so that experts made apart fit together."""

    public_share: float = Field(0.25, ge=0, lt=1)
    """The share of public text in an owner's batches."""


class CodecRules(Strict):
    """How updates may travel."""

    methods: tuple[Method, ...] = Field(METHODS, min_length=1)
    """The methods admitted for an expert's matrices; the first is what an owner takes who chooses none."""
    density: float = Field(0.2, gt=0, le=1)
    """The share of values that a ternary update keeps when the owner chooses none."""


class Addresses(Strict):
    """Where the coordinator is reached: host:port, TLS on both."""

    data_plane: str = Field(pattern=r"^[^\s:/]+:\d{1,5}$")
    """The ExpertTransfer service."""
    flower: str = Field(pattern=r"^[^\s:/]+:\d{1,5}$")
    """The Flower SuperLink, or the proxy in front of it."""


class Charter(TomlFile, Document):
    """The rules of one federation."""

    keys_documented_in: ClassVar[str] = "docs/charter.md"

    schema_: Literal["motet.charter/1"] = Field("motet.charter/1", alias="schema")
    name: Name
    anchor: AnchorPin
    experts: ExpertRules = ExpertRules()
    routing: RoutingRules = RoutingRules()
    training: TrainingRules = TrainingRules()
    codec: CodecRules = CodecRules()
    addresses: Addresses
    coordinator: PublicKey
    """The key that signs this charter and every receipt."""
    certificate_authority: str = Field(max_length=16384)
    """PEM of the private CA that both addresses' TLS certificates chain to."""

    def as_json(self) -> dict[str, Any]:
        """The document as a JSON object; what earlier releases signed is the same bytes: neither rank nor gain."""
        whole = super().as_json()
        if self.routing.rows != "average" and self.routing.gain == RoutingRules.model_fields["gain"].default:
            del whole["routing"]["gain"]
        experts = self.experts
        if experts.kinds == ("full",) and experts.max_rank == ExpertRules.model_fields["max_rank"].default:
            del whole["experts"]["max_rank"]
        if not experts.try_before_joining:
            del whole["experts"]["try_before_joining"]
        return whole

    @field_validator("certificate_authority")
    @classmethod
    def _is_pem(cls, value: str) -> str:
        if not value.startswith("-----BEGIN CERTIFICATE-----"):
            raise ValueError("wanted a PEM certificate")
        return value
