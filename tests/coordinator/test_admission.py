"""Every way a contribution can be wrong, decided without a server: manifest by manifest, tensor by tensor."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.coordinator.admission import Findings, FoundTensor, examine_expiry, examine_manifest, examine_update
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.inspection import read_findings
from motet.coordinator.public_tokens import read_public_tokens
from motet.protocols.canonical import file_digest
from motet.protocols.charter import Charter, CodecRules
from motet.protocols.codec import METHODS, CodecSettings
from motet.protocols.contribution import CodecRecord, Contribution, Terms
from motet.protocols.errors import AdmissionRefused
from motet.protocols.expert_files import update_specs
from motet.protocols.ledger import Standing
from motet.protocols.signing import Signed
from motet.protocols.tensor_files import TensorSpec

ZEROS = "sha256:" + "0" * 64
ONES = "sha256:" + "1" * 64

WriteUpdate = Callable[..., Path]


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(AdmissionRefused) as caught:
        call()
    assert str(caught.value).startswith(f"refused ({caught.value.reason}): ")
    return caught.value.reason


def examine(home: CoordinatorHome, signed: Signed, update: Path, *, charter: Charter | None = None) -> None:
    wanted, public = update_specs(home.anchor_manifest), read_public_tokens(home.public_tokens_file)
    findings = read_findings(update, wanted, public)
    examine_update(signed.open(Contribution), findings, wanted, charter or home.charter)


def allowing(home: CoordinatorHome, *methods: str) -> Charter:
    return home.charter.model_copy(update={"codec": CodecRules(methods=methods)})


@pytest.mark.parametrize("method", METHODS)
def test_a_good_one_passes_in_every_method(
    home: CoordinatorHome, medicine: object, write_update: WriteUpdate, tmp_path: Path, method: str
) -> None:
    update = write_update(tmp_path / "u", settings=CodecSettings(method=method))
    signed = medicine.manifest(home, update)
    contribution = examine_manifest(signed, home.ledger.standing(), home.charter)
    assert (contribution.name, contribution.codec.method) == ("medicine", method)
    examine(home, signed, update)
    examine(home, signed, update, charter=allowing(home, method))


def test_what_is_found_is_what_the_owner_wrote(home: CoordinatorHome, update: Path) -> None:
    found = read_findings(update, update_specs(home.anchor_manifest))
    assert (found.size, found.digest) == (update.stat().st_size, file_digest(update))
    assert (found.anchor, found.base, found.problem, found.finite) == (home.charter.anchor.digest, None, None, True)
    specs = [TensorSpec(name=each.name, dtype=each.dtype, shape=each.shape) for each in found.tensors]
    assert specs == update_specs(home.anchor_manifest)
    assert {each.method for each in found.tensors if len(each.shape) == 2} == {"lossless"}
    assert {each.method for each in found.tensors if ".router." in each.name and each.dtype == "F32"} == {"raw"}
    assert all(0 < each.largest <= 0.125 for each in found.tensors)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"charter": ZEROS}, "wrong-charter"),
        ({"anchor": ZEROS}, "wrong-anchor"),
        ({"name": "surgery"}, "wrong-name"),
        ({"terms": Terms(licence="Proprietary")}, "wrong-licence"),
        ({"update_bytes": (1 << 20) + 1}, "too-large"),
        ({"owner": "ed25519:" + "0" * 64}, "bad-signature"),
    ],
)
def test_a_manifest_that_breaks_a_rule(
    home: CoordinatorHome, medicine: object, update: Path, changes: dict[str, object], reason: str
) -> None:
    signed = medicine.manifest(home, update, **changes)
    assert reason_of(lambda: examine_manifest(signed, home.ledger.standing(), home.charter)) == reason


def test_an_expert_whose_terms_have_run_out(home: CoordinatorHome, medicine: object, update: Path) -> None:
    terms = Terms(licence="CC0-1.0", expiry="2027-01-31")
    contribution = medicine.manifest(home, update, terms=terms).open(Contribution)
    standing, end = home.ledger.standing(), terms.expires_at
    examine_expiry(contribution, standing, now=end - 1)
    assert reason_of(lambda: examine_expiry(contribution, standing, now=end)) == "expired"
    admitted = Standing(admitted={contribution.digest: contribution})
    examine_expiry(contribution, admitted, now=end)  # its owner asks for the receipt again


def test_a_stranger_and_a_forger(home: CoordinatorHome, medicine: object, make_owner: object, update: Path) -> None:
    standing, good = home.ledger.standing(), medicine.manifest(home, update)
    stranger = make_owner("medicine").manifest(home, update)
    assert reason_of(lambda: examine_manifest(stranger, standing, home.charter)) == "unknown-owner"
    forged = good.model_copy(update={"payload": good.payload.replace("CC0-1.0", "CC0-2.0")})
    assert reason_of(lambda: examine_manifest(forged, standing, home.charter)) == "bad-signature"
    lent = stranger.model_copy(update={"key": medicine.key.public})
    assert reason_of(lambda: examine_manifest(lent, standing, home.charter)) == "bad-signature"
    withdrawal = medicine.withdrawal(home, ZEROS)
    assert reason_of(lambda: examine_manifest(withdrawal, standing, home.charter)) == "bad-signature"


def test_replays_and_returns(home: CoordinatorHome, medicine: object, update: Path) -> None:
    def of(version: int, seed: int = 0) -> tuple[Signed, Contribution]:
        signed = medicine.manifest(home, update, version=version, update_bytes=1 + seed)
        return signed, signed.open(Contribution)

    second, contribution = of(2)
    owners = home.ledger.standing().owners
    standing = Standing(owners=owners, admitted={contribution.digest: contribution})
    assert examine_manifest(second, standing, home.charter) == contribution  # the same again is no replay
    for version, seed in ((1, 0), (2, 1)):
        replay, _ = of(version, seed)
        assert reason_of(lambda: examine_manifest(replay, standing, home.charter)) == "replayed"  # noqa: B023
    assert examine_manifest(of(3)[0], standing, home.charter).version == 3
    standing.withdrawn.add(contribution.digest)
    assert reason_of(lambda: examine_manifest(second, standing, home.charter)) == "withdrawn"
    assert reason_of(lambda: examine_manifest(of(1)[0], standing, home.charter)) == "replayed"
    assert examine_manifest(of(3)[0], standing, home.charter).version == 3


def test_a_base_is_the_owners_newest_expert(
    home: CoordinatorHome, medicine: object, make_owner: Callable[[str], object], update: Path
) -> None:
    def of(owner: object, version: int, **changes: object) -> tuple[Signed, Contribution]:
        signed = owner.manifest(home, update, version=version, **changes)
        return signed, signed.open(Contribution)

    law = make_owner("law")
    home.enrol(law.request(home))
    (_, first), (_, theirs) = of(medicine, 1), of(law, 1)
    admitted = {first.digest: first, theirs.digest: theirs}
    standing = Standing(owners=home.ledger.standing().owners, admitted=admitted)
    signed, second = of(medicine, 2, base=first.digest)
    assert examine_manifest(signed, standing, home.charter) == second
    for stranger in (ZEROS, theirs.digest, second.digest):
        wrong, _ = of(medicine, 2, base=stranger)
        assert reason_of(lambda: examine_manifest(wrong, standing, home.charter)) == "wrong-base"  # noqa: B023

    standing.withdrawn.add(first.digest)
    with pytest.raises(AdmissionRefused, match="which was withdrawn, wanted none; pack against the anchor") as caught:
        examine_manifest(signed, standing, home.charter)
    assert caught.value.reason == "wrong-base"
    standing.admitted[second.digest] = second
    assert examine_manifest(signed, standing, home.charter) == second  # admitted before: the same again is no news
    for base, fine in ((first.digest, False), (second.digest, True), (None, True)):
        third, contribution = of(medicine, 3, base=base)
        if fine:
            assert examine_manifest(third, standing, home.charter) == contribution
        else:
            assert reason_of(lambda: examine_manifest(third, standing, home.charter)) == "wrong-base"  # noqa: B023
    standing.withdrawn.remove(first.digest)
    older, _ = of(medicine, 3, base=first.digest)
    with pytest.raises(AdmissionRefused, match=f"wanted {second.digest}, your newest, or none"):
        examine_manifest(older, standing, home.charter)


def test_a_method_that_the_charter_does_not_list_is_refused_twice(
    home: CoordinatorHome, medicine: object, write_update: WriteUpdate, tmp_path: Path
) -> None:
    """By the manifest before the bytes travel, and by the file when it is not what the manifest says."""
    update, charter = write_update(tmp_path / "u", settings=CodecSettings(method="ternary")), allowing(home, "int8")
    signed = medicine.manifest(home, update, charter=charter.digest)
    assert reason_of(lambda: examine_manifest(signed, home.ledger.standing(), charter)) == "wrong-method"
    assert reason_of(lambda: examine(home, signed, update, charter=charter)) == "wrong-method"
    lying = medicine.manifest(home, update, charter=charter.digest, codec=CodecRecord(method="int8"))
    examine_manifest(lying, home.ledger.standing(), charter)
    for rules in (charter, home.charter):
        assert reason_of(lambda: examine(home, lying, update, charter=rules)) == "wrong-method"  # noqa: B023


@pytest.mark.parametrize(("dtype", "method"), [("F32", "int8"), ("F32", "int4"), ("BF16", "ternary")])
def test_a_routing_row_travels_unchanged(home: CoordinatorHome, dtype: str, method: str) -> None:
    """No encoder writes such a row, and no charter can allow it."""
    row = TensorSpec(name="model.layers.0.mlp.router.weight", dtype=dtype, shape=(8,))
    refused, fine = found_as([row], method=method), found_as([row], method="raw")
    contribution = Contribution.model_construct(
        update=ZEROS, update_bytes=5, anchor=ONES, base=None, codec=CodecRecord(method=method)
    )
    examine_update(contribution, fine, [row], home.charter)
    assert reason_of(lambda: examine_update(contribution, refused, [row], home.charter)) == "wrong-method"


def found_as(specs: Sequence[TensorSpec], *, method: str) -> Findings:
    tensors = [FoundTensor(name=s.name, dtype=s.dtype, shape=s.shape, method=method, largest=1.0) for s in specs]
    return Findings(size=5, digest=ZEROS, anchor=ONES, tensors=tuple(tensors))


def test_a_file_that_says_otherwise_than_its_manifest(
    home: CoordinatorHome, medicine: object, write_update: WriteUpdate, tmp_path: Path
) -> None:
    for said, meant, reason in (
        ({"anchor": ONES}, {}, "wrong-anchor"),
        ({"base": ONES}, {}, "wrong-base"),
        ({}, {"base": ONES}, "wrong-base"),
        ({"base": ZEROS}, {"base": ONES}, "wrong-base"),
    ):
        update = write_update(tmp_path / "u", **said)
        signed = medicine.manifest(home, update, **meant)
        assert reason_of(lambda: examine(home, signed, update)) == reason  # noqa: B023


def changed(specs: list[TensorSpec], index: int, **values: object) -> list[TensorSpec]:
    kept = {"name": specs[index].name, "dtype": specs[index].dtype, "shape": specs[index].shape}
    specs[index] = TensorSpec(**(kept | values))
    return specs


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda specs: specs[1:], "missing-tensor"),
        (lambda specs: [*specs, TensorSpec(name="lm_head.weight", dtype="BF16", shape=(4, 4))], "extra-tensor"),
        (lambda specs: changed(specs, 0, name="model.layers.7.mlp.gate_proj.weight"), "missing-tensor"),
        (lambda specs: changed(specs, 0, shape=specs[0].shape[::-1]), "wrong-shape"),
        (lambda specs: changed(specs, 0, shape=(*specs[0].shape, 1)), "wrong-shape"),
        (lambda specs: changed(specs, 0, shape=(0, 3)), "wrong-shape"),
        (lambda specs: changed(specs, 0, dtype="F16"), "wrong-dtype"),
        (lambda specs: changed(specs, 0, dtype="F32"), "wrong-dtype"),
        (lambda specs: changed(specs, -2, dtype="BF16"), "wrong-dtype"),
        (lambda specs: changed(specs, -1, dtype="F32"), "wrong-dtype"),
        (lambda specs: changed(specs, -1, shape=(258,)), "wrong-shape"),
        (lambda specs: specs[:-1], "missing-tensor"),
    ],
)
def test_tensors_that_are_not_the_anchors(
    change: Callable[..., list[TensorSpec]],
    reason: str,
    home: CoordinatorHome,
    medicine: object,
    write_update: WriteUpdate,
    tmp_path: Path,
) -> None:
    path = write_update(tmp_path / "u", specs=change(update_specs(home.anchor_manifest)))
    found = read_findings(path, update_specs(home.anchor_manifest))
    assert {tensor.largest for tensor in found.tensors} == {None}  # not a chunk was decoded
    assert reason_of(lambda: examine(home, medicine.manifest(home, path), path)) == reason


@pytest.mark.parametrize(
    ("poison", "reason"),
    [(math.nan, "not-finite"), (math.inf, "not-finite"), (-math.inf, "not-finite"), (-1e9, "out-of-range")],
)
@pytest.mark.parametrize("kind", ["BF16", "F32"])
def test_values_that_would_poison_a_composite(
    home: CoordinatorHome,
    medicine: object,
    write_update: WriteUpdate,
    tmp_path: Path,
    poison: float,
    reason: str,
    kind: str,
) -> None:
    specs = sorted(update_specs(home.anchor_manifest), key=lambda spec: spec.dtype == kind)
    path = write_update(tmp_path / "u", specs=specs, poison=poison)
    assert reason_of(lambda: examine(home, medicine.manifest(home, path), path)) == reason


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:-1], "wrong-size"),
        (lambda data: data + b"x", "wrong-size"),
        (lambda data: data[:-9] + b"tampered!", "wrong-digest"),
    ],
)
def test_bytes_that_are_not_the_manifests(
    home: CoordinatorHome, medicine: object, update: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    signed = medicine.manifest(home, update)
    update.write_bytes(spoil(update.read_bytes()))
    assert reason_of(lambda: examine(home, signed, update)) == reason


@given(
    st.lists(
        st.builds(
            FoundTensor,
            name=st.sampled_from(["a", "b", "c"]),
            dtype=st.sampled_from(["BF16", "F32"]),
            shape=st.tuples(st.integers(1, 3)) | st.tuples(st.integers(1, 2), st.integers(1, 2)),
            method=st.sampled_from(METHODS),
            largest=st.none() | st.floats(0, 1e9),
        ),
        max_size=4,
    ),
    st.sampled_from(METHODS),
    st.none() | st.just("cut"),
)
def test_only_the_exact_tensors_pass(tensors: list[FoundTensor], method: str, problem: str | None) -> None:
    findings = Findings(size=5, digest=ZEROS, anchor=ONES, tensors=tuple(tensors), problem=problem)
    contribution = Contribution.model_construct(
        update=ZEROS, update_bytes=5, anchor=ONES, base=None, codec=CodecRecord(method=method)
    )
    charter = Charter.model_construct(codec=CodecRules(methods=("ternary", "raw")))
    wanted = [TensorSpec(name="a", dtype="BF16", shape=(2, 2)), TensorSpec(name="b", dtype="F32", shape=(1,))]
    last = {tensor.name: tensor for tensor in tensors}
    kinds = {(tensor.name, tensor.dtype, tensor.shape) for tensor in last.values()}
    good = kinds == {(spec.name, spec.dtype, spec.shape) for spec in wanted} and problem is None
    good = good and method == last["a"].method in ("ternary", "raw") and last["b"].method in ("lossless", "raw")
    if good and all(each.largest is not None and each.largest <= 1e4 for each in tensors):
        examine_update(contribution, findings, wanted, charter)
    else:
        with pytest.raises(AdmissionRefused):
            examine_update(contribution, findings, wanted, charter)
