"""Admission: may this contribution enter the federation? A pure function of what was said and what was found.

Reading the file is `motet.coordinator.inspection`'s business, in a child process; here are only decisions, each with
a word for the ledger and a sentence for the owner. Names, shapes and dtypes come from the coordinator's own anchor
manifest, never from a message or from the file.

    contribution = examine_manifest(signed, standing, charter)          # before the bytes travel
    examine_update(contribution, findings, wanted_tensors(manifest))    # when they are there
"""

from collections.abc import Iterable, Mapping

from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.canonical import Digest
from motet.protocols.charter import Charter
from motet.protocols.contribution import Contribution
from motet.protocols.documents import Strict
from motet.protocols.errors import AdmissionRefused, DocumentError, SignatureError
from motet.protocols.ledger import Standing
from motet.protocols.signing import Signed

MAX_CHANGE = 1e4
"""The largest magnitude admitted in a difference: weights are around 1, so more is damage."""
MAX_ROW = 1e8
"""The largest magnitude admitted in a routing row, in nats."""


Kind = tuple[str, tuple[int, ...]]
"""A tensor's safetensors dtype and shape."""


class FoundTensor(Strict):
    """One tensor as it lies in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    largest: float | None
    """The largest magnitude in it; None if a value is NaN or infinite, or of a dtype that was not looked into."""


class Findings(Strict):
    """What reading an update's file brought to light."""

    size: int
    digest: Digest
    tensors: tuple[FoundTensor, ...] = ()
    problem: str | None = None
    """Why the file could not be read as tensors; None if it could."""


def wanted_tensors(manifest: AnchorManifest) -> dict[str, Kind]:
    """Name -> kind of every tensor in an update for this anchor: what `motet.moe.experts.update_specs` says.

    Said again here because the process that decides, and holds the coordinator's key, does without torch.
    """
    wanted: dict[str, Kind] = {spec.name: ("BF16", spec.shape) for spec in manifest.ffn()}
    for layer in range(manifest.layers):
        wanted[f"model.layers.{layer}.mlp.router.weight"] = ("F32", (manifest.hidden_size,))
        wanted[f"model.layers.{layer}.mlp.router.bias"] = ("F32", (1,))
    return wanted


def examine_manifest(signed: Signed, standing: Standing, charter: Charter) -> Contribution:
    """What can be judged before the update arrives.

    Raises:
        AdmissionRefused: with the reason "bad-signature", "bad-document", "unknown-owner", "wrong-charter",
            "wrong-anchor", "withdrawn", "replayed", "wrong-name", "wrong-kind", "wrong-licence" or "too-large".
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
    _check_rules(contribution, charter)
    return contribution


def examine_update(contribution: Contribution, findings: Findings, wanted: Mapping[str, Kind]) -> None:
    """What can be judged once the update is there.

    Args:
        contribution: its manifest, examined before.
        findings: what its file holds.
        wanted: what an update for this anchor holds (`wanted_tensors`).

    Raises:
        AdmissionRefused: with the reason "wrong-size", "wrong-digest", "malformed", "missing-tensor", "extra-tensor",
            "wrong-dtype", "wrong-shape", "not-finite" or "out-of-range".
    """
    _same("wrong-size", "bytes", findings.size, contribution.update_bytes, "send the whole update again")
    _same("wrong-digest", "digest", findings.digest, contribution.update, "it was changed on the way: send it again")
    if findings.problem is not None:
        raise _refusal("malformed", f"the update is no tensor file: {findings.problem}")
    found = {tensor.name: tensor for tensor in findings.tensors}
    _check_names(found, wanted)
    for name, kind in wanted.items():
        _check_tensor(found[name], kind)


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


def _check_rules(contribution: Contribution, charter: Charter) -> None:
    rules = charter.experts
    if contribution.kind not in rules.kinds:
        raise _refusal("wrong-kind", f"saw a {contribution.kind} expert, wanted one of {_list(rules.kinds)}")
    if rules.licences and contribution.terms.licence not in rules.licences:
        raise _refusal(
            "wrong-licence",
            f"saw licence {contribution.terms.licence}, wanted one of {_list(rules.licences)}; change the terms",
        )
    if contribution.update_bytes > rules.max_update_bytes:
        raise _refusal(
            "too-large", f"saw an update of {contribution.update_bytes} bytes, wanted at most {rules.max_update_bytes}"
        )


def _check_names(found: Mapping[str, FoundTensor], wanted: Mapping[str, Kind]) -> None:
    if missing := sorted(wanted.keys() - found.keys()):
        raise _refusal("missing-tensor", f"saw no {missing[0]} ({len(missing)} missing), wanted all {len(wanted)}")
    if extra := sorted(found.keys() - wanted.keys()):
        raise _refusal("extra-tensor", f"saw {extra[0]} ({len(extra)} extra), wanted the anchor's FFN and rows only")


def _check_tensor(found: FoundTensor, kind: Kind) -> None:
    name, (dtype, shape) = found.name, kind
    _same("wrong-dtype", f"dtype of {name}", found.dtype, dtype, "pack the update with motet")
    _same("wrong-shape", f"shape of {name}", found.shape, shape, "train on the charter's anchor")
    if found.largest is None:
        raise _refusal("not-finite", f"{name} holds NaN or infinity, wanted finite values; train again")
    limit = MAX_ROW if ".router." in name else MAX_CHANGE
    if found.largest > limit:
        raise _refusal("out-of-range", f"{name}: saw {found.largest:g}, wanted at most {limit:g}; train again")


def _same(reason: str, what: str, saw: object, wanted: object, advice: str) -> None:
    if saw != wanted:
        raise _refusal(reason, f"{what}: saw {saw}, wanted {wanted}; {advice}")


def _refusal(reason: str, message: str) -> AdmissionRefused:
    return AdmissionRefused(f"refused ({reason}): {message}", reason=reason)


def _list(values: Iterable[str]) -> str:
    return ", ".join(values)
