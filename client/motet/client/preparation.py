"""What an expert is trained from: the pinned anchor, both texts, and the routing rows of the owner's text.

Everything is checked against the charter before hours are spent on it. Rows are made against the public text whole, the
same for every owner, though no owner trains on all of it. They are made once and kept in the home, as are the
statistics of the owner's text where the rows need them; these, like the text, never leave it. The rows do.

    material = prepare(OwnerHome.load(Path("owner")))
    material.rows, material.corpus.held_out
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from motet.client.data import Corpus, load_corpus, load_public
from motet.client.devices import device_of
from motet.client.owner import OwnerHome, require_licence
from motet.client.rows import load_rows, make_rows, save_rows
from motet.client.versions import Version, Versions
from motet.moe.anchor import STATISTICS_FILE, Anchor
from motet.moe.routing import RoutingRows
from motet.moe.statistics import Statistics, measure
from motet.protocols import transfer
from motet.protocols.canonical import digest_of, file_digest, hex_of
from motet.protocols.charter import RoutingRules
from motet.protocols.errors import StatisticsError, TransferBroken

MEASURED_TOKENS = 1 << 17
"""Tokens of the owner's text that its statistics are measured on, at most: some dozens for each direction kept."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Material:
    """All that training needs, checked. `name` is the expert's; `digest` names what determines the result."""

    name: str
    charter: str
    anchor: Anchor
    corpus: Corpus
    public: Corpus
    rows: RoutingRows
    public_share: float
    routing: RoutingRules = field(default_factory=RoutingRules)
    start: Version | None = None
    """The version that training goes on from; None is the anchor."""

    @property
    def digest(self) -> str:
        """The digest of the charter, which pins anchor, statistics and public text, of the owner's text, and of the
        version that training goes on from, if any."""
        named = {"charter": self.charter, "corpus": self.corpus.digest}
        return digest_of(named if self.start is None else named | {"start": self.start.contribution})

    def initial_ffn(self) -> dict[str, Tensor]:
        """The feed-forward tensors that training begins with, under the anchor's names."""
        return self.anchor.ffn() if self.start is None else self.start.trained(self.anchor)


def fetch_anchor(home: OwnerHome) -> None:
    """Fetch the anchor, its statistics and the public text from the coordinator, unless they are there.

    Raises:
        TransferRefused: for example "unknown-owner", until the coordinator has admitted the join request.
        TransferBroken, StorageError: the same call resumes.
    """
    if anchor_is_here(home):
        return
    charter = home.charter
    _log.info("fetching the anchor")
    try:
        with transfer.connect(charter.addresses.data_plane, charter.certificate_authority.encode()) as channel:
            transfer.fetch(
                channel,
                digest=charter.anchor.bundle,
                into=home.anchor,
                key=home.key,
                audience=transfer.audience_of(charter),
            )
    except TransferBroken as error:
        raise TransferBroken(
            f"cannot fetch the anchor: {error}. A site without a connection copies the coordinator's folder anchor/ "
            f"to {home.anchor}"
        ) from error


def anchor_is_here(home: OwnerHome) -> bool:
    """Whether the anchor, its statistics and the public text need not be fetched."""
    return (home.anchor / STATISTICS_FILE).exists() and home.public_text.exists()


def open_anchor(home: OwnerHome) -> Anchor:
    """The anchor in the home, read and checked against the charter.

    Raises:
        AnchorError: it is missing or damaged.
        AnchorMismatch: it is not the one that the charter pins.
    """
    return Anchor.load(home.anchor, expect=home.charter.anchor.digest)


def prepare(home: OwnerHome) -> Material:
    """Load, check, measure, and make the rows, on as many CPU threads as owner.toml allows.

    Raises:
        AnchorError, StatisticsError, DataError: something is missing, damaged or not what the charter pins.
        ConfigurationError: the charter does not accept the terms in owner.toml.
    """
    torch.set_num_threads(home.config.training.threads)
    require_licence(home.config, home.charter)
    anchor = open_anchor(home)
    corpus, whole = _apart_from_public(home)
    public = _apart_from_own(whole, corpus)
    return Material(
        name=home.config.name,
        charter=home.charter.digest,
        anchor=anchor,
        corpus=corpus,
        public=public,
        rows=_rows(home, anchor, corpus, whole),
        public_share=home.charter.training.public_share,
        routing=home.charter.routing,
        start=Versions.of(home, anchor).start() if home.config.training.start == "latest" else None,
    )


def _rows(home: OwnerHome, anchor: Anchor, corpus: Corpus, public: Corpus) -> RoutingRows:
    """The owner's rows under the charter, which with both texts determines them: once made, they stay the same bits.

    `public` is whole: rows compose if all owners divide by the same public model, whatever each holds out.
    """
    rules, device = home.charter.routing, device_of(home.config.training)
    statistics = _public_statistics(anchor, home)
    key = digest_of({"charter": home.charter.digest, "own": corpus.digest, "public": public.digest})
    path = home.work / "rows" / f"{hex_of(key)}.safetensors"
    if path.exists():
        return load_rows(path)
    both: tuple[Statistics, Statistics] | None = None
    if rules.rows == "lda" and rules.kind != "embedding":
        both = _own_statistics(anchor, corpus, home.work / "statistics", device), statistics
    rows = make_rows(rules, anchor, corpus, public, statistics=both, device=device)
    save_rows(path, rows)
    return rows


def load_texts(home: OwnerHome) -> tuple[Corpus, Corpus]:
    """The own and the public text; no document to train on repeats one of either that is held out.

    Raises:
        DataError: a text cannot be used, or nothing of it is left to train on.
    """
    own, public = _apart_from_public(home)
    return own, _apart_from_own(public, own)


def _apart_from_public(home: OwnerHome) -> tuple[Corpus, Corpus]:
    """The own text, none of its training documents one that everybody is scored on, and the public one as it is."""
    own = load_corpus(home.config.data, home.path)
    public = load_public(home.public_text, expect=home.charter.anchor.public_text)
    return own.training_apart_from(public.held_out), public


def _apart_from_own(public: Corpus, own: Corpus) -> Corpus:
    """The public text to train on: nothing in it repeats what is held out of either."""
    return public.training_apart_from((*public.held_out, *own.held_out))


def _public_statistics(anchor: Anchor, home: OwnerHome) -> Statistics:
    path = home.anchor / STATISTICS_FILE
    wanted = home.charter.anchor.statistics
    statistics = anchor.statistics()
    if (actual := file_digest(path)) != wanted:
        raise StatisticsError(
            f"saw public statistics {actual} at {path}, wanted {wanted} as in the charter; fetch them"
        )
    return statistics


def _own_statistics(anchor: Anchor, corpus: Corpus, folder: Path, device: torch.device) -> Statistics:
    key = digest_of({"anchor": anchor.digest, "corpus": corpus.digest, "tokens": MEASURED_TOKENS})
    path = folder / f"{hex_of(key)}.safetensors"
    if path.exists():
        return Statistics.load(path, expect=anchor.digest)
    _log.info("measuring the text's statistics on the anchor")
    statistics = measure(anchor, corpus.train, max_tokens=MEASURED_TOKENS, device=device)
    statistics.save(path)
    return statistics
