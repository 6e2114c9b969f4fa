"""An owner's home: `owner.toml`, the keys, the verified charter, and where everything else lies.

owner.toml                     what this page describes; the owner writes it
charter.signed.json            the charter with the coordinator's signature; charter.toml is for reading
keys/owner.pem  keys/flower    Ed25519 for signatures, P-384 for Flower (with flower.pub)
anchor/                        the anchor, statistics.safetensors and public.jsonl
spool/                         jobs and what became of them
work/                          what a job keeps while it runs, and resumes from
outbox/<contribution>/         contribution.json, update.motetup and, once admitted, receipt.json
composites/<composite>/        what was fetched to be evaluated

home = OwnerHome.create(Path("owner"), config, signed_charter)     # `motet join`
home = OwnerHome.load(Path("owner"))                               # everything verified
home.join_request()                                                # signed, binds the Flower key
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from motet.client.keys import flower_public_key, owner_key
from motet.protocols.canonical import hex_of, write_atomically
from motet.protocols.charter import Charter, CodecRules
from motet.protocols.codec import CodecSettings, Method
from motet.protocols.contribution import LOWRANK_METHODS, MAX_RANK, RESERVED_NAMES, ExpertKind, JoinRequest, Terms
from motet.protocols.documents import Name, PublicKey, Strict, TomlFile
from motet.protocols.errors import ConfigurationError
from motet.protocols.signing import Signed, SigningKey, seal

CONFIG_FILE = "owner.toml"
CHARTER_FILE = "charter.signed.json"
PEAK_RATES: dict[ExpertKind, float] = {"full": 5e-4, "lowrank": 2e-3}
"""The learning rate at its peak, by kind of expert, where owner.toml does not say."""


class DataConfig(Strict):
    """The owner's text. It never leaves."""

    files: tuple[str, ...] = Field(min_length=1)
    """Files or glob patterns, absolute or relative to the home."""
    format: Literal["auto", "jsonl", "text", "parquet", "messages"] = "auto"
    """What the files are; auto goes by their suffix (before .gz, .bz2 or .xz if there is one), and anything but .jsonl,
    .ndjson, .json and .parquet is text. messages is JSON lines of conversations, of which the answers alone are learnt
    and scored; docs/instructions.md says how."""
    text_field: str = "text"
    """The field or column that holds a document, in JSON lines and Parquet."""
    held_out_share: float = Field(0.1, gt=0, lt=1)
    """The share of the documents that is never trained on, only scored."""
    max_bytes: int | None = Field(None, gt=0)
    """Use a sample of about so many bytes, chosen by content; None uses all."""
    seed: int = 0
    """Another seed holds out, and samples, other documents."""


class TrainingConfig(Strict):
    """How the expert is trained. The defaults suit an expert of a small anchor."""

    kind: ExpertKind = "full"
    """What is trained: every matrix of the feed-forward networks, or for each of them two factors of a low rank (LoRA,
    arXiv 2106.09685), at a fraction of the memory and of the bytes that leave."""
    rank: int = Field(16, ge=1, le=MAX_RANK)
    """lowrank: the rank of every factor, at most the charter's experts.max_rank."""
    alpha: float | None = Field(None, gt=0)
    """lowrank: the product of two factors counts times alpha / rank while it is trained; None is twice the rank."""
    steps: int = Field(1000, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(8, ge=1)
    """Sequences in each forward pass, public ones included."""
    gradient_accumulation: int = Field(1, ge=1)
    """Forward passes in each step; multiplies the batch without its memory."""
    sequence_length: int = Field(256, ge=8)
    """Tokens in each packed sequence, and in each window that is scored."""
    learning_rate: float | None = Field(None, gt=0)
    """The peak of the schedule; None is 0.0005 for full experts and 0.002 for low-rank ones, whose factors want more
    than whole matrices do."""
    warmup: int = Field(20, ge=0)
    """Steps until the peak; afterwards half a cosine falls to a tenth of it."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decay, towards zero."""
    gradient_clip: float = Field(1.0, gt=0)
    """The largest norm of the gradient in a step."""
    gradient_checkpointing: bool = False
    """Whether layers are computed twice to save memory."""
    device: str = "auto"
    """A torch device such as "cuda:0"; auto takes the accelerator if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The dtype of the arithmetic in training and scoring; auto is bfloat16 on an accelerator. Weights being trained,
    and whatever is stored in float32, stay float32."""
    processes: int = Field(1, ge=1, le=1024)
    """How many processes on this machine share every forward pass's sequences, each on an accelerator of its own, or
    all on the CPU if that is the device, with `threads` threads each. AdamW's moments are spread over them."""
    frozen_4bit: bool = False
    """lowrank: whether the frozen anchor is rounded to four bits while factors are trained beside it, to save memory;
    needs motet[four-bit]."""
    start: Literal["anchor", "latest"] = "anchor"
    """Whether the expert starts as the anchor, or as the newest version that the coordinator admitted, if there is one:
    each admitted version then begins a new training of so many steps."""
    seed: int = 0
    """The seed of the order of the text; the same seed gives the same expert on one kind of machine."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints: what a crash can cost."""
    threads: int = Field(1, ge=1)
    """CPU threads that torch may use."""

    @property
    def peak_rate(self) -> float:
        """The learning rate at the peak of the schedule: as it is set, or what suits the kind of expert."""
        return PEAK_RATES[self.kind] if self.learning_rate is None else self.learning_rate

    @property
    def scale(self) -> float:
        """lowrank: what the product of two factors is multiplied with, alpha / rank."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size, processes: saw batch_size {self.batch_size} for {self.processes} processes, wanted a "
                "multiple, so that each has the same number of sequences"
            )
        if self.frozen_4bit and self.kind == "full":
            raise ValueError(
                "kind, frozen_4bit: saw frozen_4bit with kind 'full', wanted kind 'lowrank': a full expert starts as "
                "the anchor's own matrices and would learn to mend their rounding"
            )
        if self.kind == "lowrank" and self.start == "latest":
            raise ValueError(
                "kind, start: saw kind 'lowrank' with start 'latest', wanted start 'anchor': factors travel whole and "
                "have no version that they go on from"
            )
        return self


class ContributionConfig(Strict):
    """How what was made leaves."""

    consent: Literal["ask", "automatic"] = "ask"
    """ask keeps each contribution until `motet contribute` says yes; automatic sends it when it is ready."""
    transport: Literal["auto", "data-plane", "flower", "file"] = "auto"
    """Over gRPC; inside Flower's reply (small updates only); or not at all, until `motet contribute --to FILE`. auto is
    Flower's reply for low-rank experts that the charter lets ride there, and gRPC for everything else."""
    proxies: bool = False
    """Whether to name public documents like the own text for tuning the router, as many as the charter asks for;
    docs/routing.md says what they reveal."""


class CodecConfig(Strict):
    """How the expert's matrices are encoded for the journey."""

    method: Method | None = None
    """One that the charter admits; none takes the charter's first."""
    density: float | None = Field(None, gt=0, le=1)
    """ternary: the share of values kept; none takes the charter's."""
    balance: float = Field(0.9, ge=0, le=1)
    """ternary: how far rows are put on one footing before the largest values are chosen, from 0, one threshold for all,
    to 1, in units of each row's root mean square. 0.9 kept most of the gain of the experts it was measured on."""
    row_scales: bool = False
    """ternary: a scale for each row beside its tensor's."""
    step: float = Field(1.0, ge=1e-3, le=1e3)
    """levels: the distance between levels, in units of the update's root mean square."""
    block: int = Field(64, ge=8, le=4096)
    """int8, int4: how many values share a scale."""
    tune: bool = True
    """ternary, levels: whether the scale is tuned on a part of the held-out text."""
    successive: Literal["auto", "always", "never"] = "auto"
    """Whether a later version travels as the change since the one that the coordinator admitted last, or to the anchor;
    auto tries both, and takes what serves the expert better, or for exact methods what is smaller. Low-rank experts
    travel whole."""

    def settings(self, rules: CodecRules, kind: ExpertKind = "full") -> CodecSettings:
        """What the codec is told for a kind of expert. Raises ConfigurationError when the charter does not admit it."""
        suited = [method for method in rules.methods if kind == "full" or method in LOWRANK_METHODS]
        method = self.method or next(iter(suited), None)
        if method not in suited:
            raise ConfigurationError(
                f"saw the method {method!r} under [codec] in owner.toml, wanted one that the charter admits"
                f"{'' if kind == 'full' else ' and that factors survive'}: {', '.join(suited) or 'there is none'}"
            )
        return CodecSettings(
            method=method,
            density=self.density or rules.density,
            balance=self.balance,
            row_scales=self.row_scales,
            step=self.step,
            block=self.block,
        )


class OwnerConfig(TomlFile):
    """`owner.toml`."""

    keys_documented_in: ClassVar[str] = "docs/owner.md"

    schema_: Literal["motet.owner/1"] = Field("motet.owner/1", alias="schema")
    name: Name
    """What the expert, and its column in every table, is called."""
    charter: str = CHARTER_FILE
    """The signed charter, absolute or relative to the home."""
    coordinator: PublicKey
    """The key that must have signed the charter; pinned when the owner joined."""
    data: DataConfig
    terms: Terms
    training: TrainingConfig = TrainingConfig()
    codec: CodecConfig = CodecConfig()
    contribution: ContributionConfig = ContributionConfig()

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError(f"'{value}' names a row or a column of every report; choose another name")
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnerHome:
    """A home whose configuration was read and whose charter was verified."""

    path: Path
    config: OwnerConfig
    charter: Charter
    key: SigningKey

    @classmethod
    def create(cls, path: Path, config: OwnerConfig, charter: Signed) -> Self:
        """Make a home: keys, `owner.toml`, the charter in both forms. The anchor is fetched by the caller.

        Raises:
            ConfigurationError: there is a home already.
            SignatureError: the charter is not signed by `config.coordinator`.
        """
        if (path / CONFIG_FILE).exists():
            raise ConfigurationError(f"{path / CONFIG_FILE} exists: this home has joined; choose another folder")
        rules = _verified(charter, config)
        key = owner_key(path / "keys" / "owner.pem")
        flower_public_key(path / "keys" / "flower")
        write_atomically(path / config.charter, charter.canonical())
        write_atomically(path / "charter.toml", rules.to_toml().encode())
        write_atomically(path / CONFIG_FILE, config.to_toml().encode())
        return cls(path=path, config=config, charter=rules, key=key)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open the home at `path`.

        Raises:
            ConfigurationError: `owner.toml`, the key or the charter is missing or unusable.
            SignatureError: the charter is not signed by the coordinator that the owner joined.
        """
        config = OwnerConfig.from_toml(path / CONFIG_FILE)
        charter = read_signed(path / config.charter, "charter")
        return cls(
            path=path,
            config=config,
            charter=_verified(charter, config),
            key=SigningKey.load(path / "keys" / "owner.pem"),
        )

    def codec_settings(self, kind: ExpertKind | None = None) -> CodecSettings:
        """What the codec is told for an expert of a kind, or None for the kind under [training].

        Raises:
            ConfigurationError: the charter does not admit the method, or no expert of that kind can use it.
        """
        return self.config.codec.settings(self.charter.codec, kind or self.config.training.kind)

    def join_request(self) -> Signed:
        """The signed wish to be enrolled: it binds the Flower key to the owner's."""
        request = JoinRequest(
            charter=self.charter.digest,
            name=self.config.name,
            owner=self.key.public,
            flower_key=flower_public_key(self.flower_key),
        )
        return seal(request, self.key)

    @property
    def flower_key(self) -> Path:
        """The private key that the SuperNode authenticates with; its public half ends in `.pub`."""
        return self.path / "keys" / "flower"

    @property
    def anchor(self) -> Path:
        """The anchor's directory."""
        return self.path / "anchor"

    @property
    def public_text(self) -> Path:
        """The public JSONL file that the charter pins."""
        return self.anchor / "public.jsonl"

    @property
    def work(self) -> Path:
        """What jobs keep while they run."""
        return self.path / "work"

    @property
    def outbox(self) -> Path:
        """Packed contributions, one folder each."""
        return self.path / "outbox"

    def contribution(self, digest: str) -> Path:
        """The folder of one packed contribution. Raises ConfigurationError when `digest` is none."""
        return self.outbox / _file_name(digest)

    def composite(self, digest: str) -> Path:
        """The folder that a composite is fetched into. Raises ConfigurationError when `digest` is none."""
        return self.path / "composites" / _file_name(digest)


def require_licence(config: OwnerConfig, charter: Charter) -> None:
    """Raises ConfigurationError when the charter admits no expert under the licence that the owner offers."""
    accepted, offered = charter.experts.licences, config.terms.licence
    if accepted and offered not in accepted:
        raise ConfigurationError(
            f"saw the licence {offered!r}, wanted one that the charter accepts: {', '.join(accepted)}; choose one of "
            "them under [terms] in owner.toml (`motet join --licence`)"
        )


def require_kind(charter: Charter, kind: ExpertKind, rank: int) -> None:
    """Raises ConfigurationError when the charter admits no expert of a kind, or no low-rank one of that rank."""
    rules = charter.experts
    if kind not in rules.kinds:
        raise ConfigurationError(
            f"saw an expert of kind {kind!r}, wanted one that the charter admits: {', '.join(rules.kinds)}; choose it "
            "as kind under [training] in owner.toml"
        )
    if kind == "lowrank" and rank > rules.max_rank:
        raise ConfigurationError(
            f"saw a low-rank expert of rank {rank}, wanted at most {rules.max_rank} as in the charter; lower it under "
            "[training] in owner.toml"
        )


def _verified(charter: Signed, config: OwnerConfig) -> Charter:
    rules = charter.open(Charter, by=config.coordinator)
    if rules.coordinator != config.coordinator:
        raise ConfigurationError(
            f"the charter names {rules.coordinator} as its coordinator but is signed by {config.coordinator}; "
            "ask the coordinator for the right one"
        )
    return rules


def _file_name(digest: str) -> str:
    """A digest as a file name; it may have been typed by a person."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ConfigurationError(f"saw {digest!r}, wanted a digest: sha256: and 64 hexadecimal digits; copy it whole")
    return hex_of(digest)


def read_signed(path: Path, kind: str) -> Signed:
    """A signed document kept in a file; `kind` says what was wanted.

    Raises:
        ConfigurationError: there is no such file.
        DocumentError: it holds no signed document.
    """
    try:
        return Signed.parse(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read the {kind} {path}: {error.strerror}; name an existing file") from error
