"""A low-rank expert from an adapter that was trained elsewhere: measured here, and packed like a trained one.

Guarantees: its routing rows are those of the owner's text under the charter, as if it had been trained here; its
figures are of held-out text; adopted again, the same adapter on the same text is the same contribution.

    packed = adopt(OwnerHome.load(Path("owner")), Path("adapter"))
    packed.contribution.rank, packed.contribution.bits_per_byte

    with deciding(adopt(home, adapter, draft=True), home) as agree:     # while its owner has not said yes
        ...
"""

from pathlib import Path

from motet.client.adapters import Adapter, read_adapter
from motet.client.lowrank import Expansion
from motet.client.outbox import Packed, clear_drafts
from motet.client.owner import OwnerHome, require_kind
from motet.client.packing import pack
from motet.client.preparation import Material, fetch_anchor, open_anchor, prepare
from motet.client.proxy_list import require_ready
from motet.client.spool import Spool
from motet.client.training import TrainedExpert
from motet.client.worker import Report
from motet.protocols.canonical import digest_of
from motet.protocols.contribution import TrainingRecord


def adopt(
    home: OwnerHome,
    directory: Path,
    *,
    base_confirmed: bool = False,
    draft: bool = False,
    report: Report = lambda share, line: None,
) -> Packed:
    """Check, measure and pack an adapter; nothing leaves.

    Args:
        home: the owner's.
        directory: the adapter's folder.
        base_confirmed: the owner's word that it was trained on the charter's anchor, for where it does not tell.
        draft: whether the owner is still to be asked (`motet.client.outbox.deciding`): it is the newest contribution,
            which the next job is compared with, only once they agree.
        report: told the share done, and a line for people.

    Raises:
        ConfigurationError: the charter does not admit it, or what it was trained on cannot be told.
        ExpertError: see `read_adapter`.
        WorkerBusy: the worker is at it; stop it first.
        MotetError: as preparing and packing raise it.
    """
    home.codec_settings("lowrank")
    require_kind(home.charter, "lowrank", 1)
    require_ready(home)
    with Spool(home.path).holding():
        clear_drafts(home)
        report(0.0, "reading the adapter and the anchor")
        fetch_anchor(home)
        limit = home.charter.experts.max_rank
        adapter = read_adapter(directory, open_anchor(home), max_rank=limit, base_confirmed=base_confirmed)
        if adapter.doubt is not None:
            report(0.1, f"warning: {adapter.doubt}; you vouch that it was trained on the charter's anchor")
        report(0.1, "measuring the text")
        material = prepare(home)
        expert = _expert(adapter, material)
        return pack(expert, material, home, tell=lambda line: report(0.5, line), draft=draft)


def _expert(adapter: Adapter, material: Material) -> TrainedExpert:
    """What training would have made; its record says that no step was done here."""
    record = TrainingRecord(
        steps=0,
        tokens=0,
        documents=len(material.corpus.train),
        held_out_documents=len(material.corpus.held_out),
        seed=0,
        public_share=0.0,
    )
    named = {"schema": "motet.adoption/1", "adapter": adapter.digest, "material": material.digest}
    return TrainedExpert(
        ffn=Expansion(material.anchor, adapter.factors),
        rows=material.rows,
        record=record,
        fingerprint=digest_of(named),
        factors=adapter.factors,
    )
