"""Admission: may this contribution enter the federation? A pure function of what was said and what was found.

Reading the file is `motet.coordinator.inspection`'s business, in a child process; here are only decisions, each with
a word for the ledger and a sentence for the owner. Names, shapes and dtypes come from the coordinator's own anchor
manifest, never from a message or from the file.

    contribution = examine_manifest(signed, standing, charter, public=ids)        # before the bytes travel
    examine_expiry(contribution, standing, now=time.time())
    examine_update(contribution, findings, update_specs(manifest, contribution.rank), charter)  # when they are there
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from motet.coordinator.found_evidence import FoundEvidence, evidence_problem
from motet.protocols.canonical import Digest
from motet.protocols.charter import Charter
from motet.protocols.codec import Method
from motet.protocols.contribution import Contribution, require_lowrank_method
from motet.protocols.documents import Strict
from motet.protocols.errors import AdmissionRefused, CodecError, DocumentError, SignatureError
from motet.protocols.expert_files import EVIDENCE_LIMIT, FACTOR, ROUTER_TOKENS
from motet.protocols.ledger import Standing
from motet.protocols.signing import Signed
from motet.protocols.tensor_files import TensorSpec

MAX_CHANGE = 1e4
"""The largest magnitude admitted in a difference: weights are around 1, so more is damage."""
MAX_ROW = 1e8
"""The largest magnitude admitted in a routing row, in nats."""
UNCHANGED: tuple[Method, ...] = ("lossless", "raw")
"""The methods in which a value arrives as it was: for whatever is no matrix, such as routing rows."""


class FoundTensor(Strict):
    """One tensor as the file's header describes it, and what decoding it showed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: Method
    largest: float | None = None
    """The largest magnitude in it; None if it was not decoded."""


class Findings(Strict):
    """What reading an update's file brought to light."""

    size: int
    digest: Digest
    anchor: Digest | None = None
    """The anchor that the file's header names; None when it has no header that can be read."""
    base: Digest | None = None
    """The contribution whose expert it changes, as the header says."""
    tensors: tuple[FoundTensor, ...] = ()
    """The header's tensors; decoded only if they are exactly those that are wanted."""
    evidence: FoundEvidence | None = None
    """What the evidence by token showed; None if it was not decoded, or not looked at since nothing reads it."""
    problem: str | None = None
    """Why the file cannot be read; None if all of it could that was looked at."""
    finite: bool = True
    """False when the problem is a value that is NaN or infinite."""


def examine_manifest(
    signed: Signed, standing: Standing, charter: Charter, *, public: Collection[str] = frozenset()
) -> Contribution:
    """What can be judged before the update arrives.

    Args:
        signed: the manifest, as it came.
        standing: what the ledger adds up to.
        charter: the rules.
        public: ids of the public documents to train on, which a manifest may name as proxies.

    Raises:
        AdmissionRefused: with the reason "bad-signature", "bad-document", "unknown-owner", "wrong-charter",
            "wrong-anchor", "wrong-name", "withdrawn", "replayed", "wrong-base", "wrong-kind", "wrong-rank",
            "wrong-licence", "wrong-method", "too-large", "too-many-proxies", "unsorted-proxies" or "unknown-proxy".
    """
    contribution = _open(signed)
    owner = standing.owners.get(contribution.owner)
    if owner is None:
        raise _refusal(
            "unknown-owner", f"{contribution.owner} is not enrolled; send the join request to the coordinator"
        )
    _same("wrong-charter", "charter", contribution.charter, charter.digest, "join the federation of this charter")
    _same("wrong-anchor", "anchor", contribution.anchor, charter.anchor.digest, "train on the charter's anchor")
    _same("wrong-name", "name", contribution.name, owner.name, "use the name that this owner joined with")
    _check_age(contribution, standing)
    _check_base(contribution, standing)
    _check_rules(contribution, charter)
    _check_proxies(contribution, charter, public)
    return contribution


def examine_expiry(contribution: Contribution, standing: Standing, *, now: float) -> None:
    """Refuses an expert whose terms have run out; what was admitted before stays in the ledger.

    Args:
        contribution: a manifest, examined before.
        standing: what the ledger adds up to.
        now: seconds since the epoch.

    Raises:
        AdmissionRefused: with the reason "expired".
    """
    if contribution.terms.ended(now) and contribution.digest not in standing.admitted:
        raise _refusal(
            "expired",
            f"saw terms that ended at {contribution.terms.expiry}, wanted a later expiry or none; change [terms] in "
            "owner.toml and pack again",
        )


def examine_update(
    contribution: Contribution,
    findings: Findings,
    wanted: Sequence[TensorSpec],
    charter: Charter,
    *,
    intercepts: bool = True,
) -> None:
    """What can be judged once the update is there.

    Args:
        contribution: its manifest, examined before.
        findings: what its file holds.
        wanted: what an update of this kind and rank for this anchor holds (`protocols.expert_files.update_specs`).
        charter: says which methods are admitted, and whether owners count evidence by token.
        intercepts: whether rows may have any; not where the anchor's MLPs read normalised states.

    Raises:
        AdmissionRefused: with the reason "wrong-size", "wrong-digest", "malformed", "wrong-anchor", "wrong-base",
            "wrong-kind", "missing-tensor", "extra-tensor", "wrong-dtype", "wrong-shape", "wrong-method", "not-finite",
            "out-of-range", "biased-rows" or "wrong-evidence".
    """
    _check_file(findings, contribution)
    found, expected = {tensor.name: tensor for tensor in findings.tensors}, {spec.name: spec for spec in wanted}
    _check_kind(found, contribution)
    _check_names(found, expected)
    for name, spec in expected.items():
        _check_tensor(found[name], spec)
        _check_method(found[name], contribution, charter)
    if findings.problem is not None:
        raise _unreadable(findings)
    for tensor in findings.tensors:
        _check_range(tensor)
    if not intercepts:
        _check_intercepts(findings.tensors)
    if ROUTER_TOKENS in expected:
        _check_evidence(findings, found[ROUTER_TOKENS], charter)


def _open(signed: Signed) -> Contribution:
    try:
        contribution = signed.open(Contribution)
        return signed.open(Contribution, by=contribution.owner)
    except SignatureError as error:
        raise _refusal("bad-signature", str(error)) from error
    except DocumentError as error:
        raise _refusal("bad-document", str(error)) from error


def _check_age(contribution: Contribution, standing: Standing) -> None:
    digest = contribution.digest
    if digest in standing.withdrawn:
        raise _refusal("withdrawn", f"{digest} was withdrawn by its owner; contribute again as a new version to return")
    own = [other.version for other in standing.admitted.values() if other.owner == contribution.owner]
    if digest not in standing.admitted and own and contribution.version <= max(own):
        raise _refusal(
            "replayed",
            f"saw version {contribution.version}, wanted one above {max(own)}; contribute with a new version",
        )


def _check_base(contribution: Contribution, standing: Standing) -> None:
    """A base is the owner's newest expert: of older ones the store keeps nothing. What was admitted stays."""
    if contribution.base is None or contribution.digest in standing.admitted:
        return
    own = [digest for digest, other in standing.active.items() if other.owner == contribution.owner]
    if contribution.base not in own:
        gone = "which was withdrawn, " if contribution.base in standing.withdrawn else ""
        newest = f"{own[0]}, your newest, or " if own else ""
        raise _refusal(
            "wrong-base", f"saw the base {contribution.base}, {gone}wanted {newest}none; pack against the anchor"
        )


def _check_rules(contribution: Contribution, charter: Charter) -> None:
    rules = charter.experts
    if contribution.kind not in rules.kinds:
        raise _refusal("wrong-kind", f"saw a {contribution.kind} expert, wanted one of {_list(rules.kinds)}")
    if contribution.rank is not None:
        _check_lowrank(contribution.rank, contribution.codec.method, rules.max_rank)
    if rules.licences and contribution.terms.licence not in rules.licences:
        raise _refusal(
            "wrong-licence",
            f"saw licence {contribution.terms.licence}, wanted one of {_list(rules.licences)}; change the terms",
        )
    _check_admitted_method("the manifest", contribution.codec.method, charter)
    if contribution.update_bytes > rules.max_update_bytes:
        raise _refusal(
            "too-large", f"saw an update of {contribution.update_bytes} bytes, wanted at most {rules.max_update_bytes}"
        )


def _check_lowrank(rank: int, method: Method, limit: int) -> None:
    if rank > limit:
        raise _refusal("wrong-rank", f"saw rank {rank}, wanted at most {limit}; train or squeeze to a smaller one")
    try:
        require_lowrank_method(method)
    except CodecError as error:
        raise _refusal("wrong-method", str(error)) from error


def _check_proxies(contribution: Contribution, charter: Charter, public: Collection[str]) -> None:
    """No more than the charter says, sorted, so that their order tells nothing, and none that anything is scored on."""
    named, limit = contribution.proxies, charter.routing.proxies
    if len(named) > limit:
        wanted = "set proxies = false under [contribution] in owner.toml" if limit == 0 else "choose them again"
        raise _refusal("too-many-proxies", f"saw {len(named)} proxies, wanted at most {limit}; {wanted}")
    if list(named) != sorted(set(named)):
        raise _refusal("unsorted-proxies", "saw proxies repeated or out of order, wanted each once and sorted")
    if unknown := next((each for each in named if each not in public), None):
        raise _refusal(
            "unknown-proxy",
            f"saw the proxy {unknown}, wanted a document of the charter's public text that is not held out; fetch that "
            "text again and choose from it",
        )


def _check_admitted_method(where: str, method: Method, charter: Charter) -> None:
    methods = charter.codec.methods
    if method not in methods:
        raise _refusal("wrong-method", f"{where}: saw the method {method}, wanted one of {_list(methods)}; pack again")


def _check_file(findings: Findings, contribution: Contribution) -> None:
    """Whether it is the file that the manifest speaks of, whole, and of the same anchor and base."""
    _same("wrong-size", "bytes", findings.size, contribution.update_bytes, "send the whole update again")
    _same("wrong-digest", "digest", findings.digest, contribution.update, "it was changed on the way: send it again")
    if findings.anchor is None:
        raise _unreadable(findings)
    _same("wrong-anchor", "the file's anchor", findings.anchor, contribution.anchor, "pack on the charter's anchor")
    _same("wrong-base", "the file's base", findings.base, contribution.base, "pack file and manifest together")


def _check_kind(found: Iterable[str], contribution: Contribution) -> None:
    factors = next((name for name in found if FACTOR in name), None)
    if (factors is not None) != (contribution.kind == "lowrank"):
        held = "no low-rank factors" if factors is None else f"the low-rank factor {factors}"
        raise _refusal(
            "wrong-kind", f"saw {held} in the file of a {contribution.kind} expert; pack file and manifest together"
        )


def _check_names(found: Mapping[str, FoundTensor], wanted: Mapping[str, TensorSpec]) -> None:
    if missing := sorted(wanted.keys() - found.keys()):
        raise _refusal("missing-tensor", f"saw no {missing[0]} ({len(missing)} missing), wanted all {len(wanted)}")
    if extra := sorted(found.keys() - wanted.keys()):
        raise _refusal("extra-tensor", f"saw {extra[0]} ({len(extra)} extra), wanted the anchor's FFN and rows only")


def _check_tensor(found: FoundTensor, wanted: TensorSpec) -> None:
    name = found.name
    _same("wrong-dtype", f"dtype of {name}", found.dtype, wanted.dtype, "pack the update with motet")
    _same("wrong-shape", f"shape of {name}", found.shape, wanted.shape, "train on the charter's anchor")


def _check_method(found: FoundTensor, contribution: Contribution, charter: Charter) -> None:
    """Matrices travel as charter and manifest say; what is no matrix travels unchanged."""
    if len(found.shape) == 2:
        _check_admitted_method(found.name, found.method, charter)
        _same("wrong-method", f"method of {found.name}", found.method, contribution.codec.method, "pack it again")
    elif found.method not in UNCHANGED:
        wanted = _list(UNCHANGED)
        raise _refusal("wrong-method", f"{found.name}: saw the method {found.method}, wanted one of {wanted}")


def _check_evidence(findings: Findings, table: FoundTensor, charter: Charter) -> None:
    """Only what the charter asks an owner to tell, and no more than counting tokens can make of it."""
    largest, counted = table.largest or 0.0, charter.routing.counted
    if problem := evidence_problem(findings.evidence, largest=largest, counted=counted):
        raise _refusal("wrong-evidence", f"{problem}; make the rows again with motet, against the whole public text")


def _check_intercepts(found: Iterable[FoundTensor]) -> None:
    """One owner's intercept would cost everybody the exact export."""
    for tensor in found:
        if tensor.name.endswith(".router.bias") and tensor.largest:
            raise _refusal(
                "biased-rows",
                f"{tensor.name}: saw {tensor.largest:g}, wanted 0: no export of this anchor's composites has a "
                "place for it; make the rows again with motet",
            )


def _check_range(found: FoundTensor) -> None:
    limit = EVIDENCE_LIMIT if found.name == ROUTER_TOKENS else MAX_ROW if ".router." in found.name else MAX_CHANGE
    if found.largest is None:
        raise _refusal("malformed", f"{found.name}: saw no values, wanted all of them; pack the update again")
    if found.largest > limit:
        raise _refusal("out-of-range", f"{found.name}: saw {found.largest:g}, wanted at most {limit:g}; train again")


def _same(reason: str, what: str, saw: object, wanted: object, advice: str) -> None:
    if saw != wanted:
        raise _refusal(reason, f"{what}: saw {saw}, wanted {wanted}; {advice}")


def _unreadable(findings: Findings) -> AdmissionRefused:
    if not findings.finite:
        return _refusal("not-finite", f"{findings.problem}; train again")
    return _refusal("malformed", f"the update cannot be read: {findings.problem}")


def _refusal(reason: str, message: str) -> AdmissionRefused:
    return AdmissionRefused(f"refused ({reason}): {message}", reason=reason)


def _list(values: Iterable[str]) -> str:
    return ", ".join(values)
