"""The ledger's chain as a function of its entries: what adds up, and what contradicts."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.protocols.canonical import bytes_digest
from motet.protocols.charter import AnchorPin, Charter
from motet.protocols.contribution import CodecRecord, Contribution, JoinRequest, Terms, TrainingRecord, Withdrawal
from motet.protocols.documents import Document
from motet.protocols.errors import LedgerError, MotetError, SignatureError
from motet.protocols.ledger import GENESIS, LedgerEntry, Standing, fold, following
from motet.protocols.signing import Signed, SigningKey, seal

COORDINATOR, MEDICINE, LAW = (SigningKey.generate() for _ in range(3))
ZEROS = "sha256:" + "0" * 64
CHARTER = Charter(
    name="test",
    anchor=AnchorPin(digest=ZEROS, statistics=ZEROS, public_text=ZEROS, bundle=ZEROS),
    addresses={"data_plane": "a.example:1", "flower": "a.example:2"},
    coordinator=COORDINATOR.public,
    certificate_authority="-----BEGIN CERTIFICATE-----",
)
Link = tuple[str, str, Signed]


def first() -> Link:
    return "charter", CHARTER.digest, seal(CHARTER, COORDINATOR)


def joined(key: SigningKey, name: str) -> Link:
    request = JoinRequest(charter=CHARTER.digest, name=name, owner=key.public, flower_key="k")
    return "enrolled", key.public, seal(request, key)


def contribution(key: SigningKey, version: int = 1) -> Contribution:
    return Contribution(
        charter=CHARTER.digest,
        anchor=ZEROS,
        name="medicine",
        owner=key.public,
        version=version,
        update=ZEROS,
        update_bytes=1,
        terms=Terms(licence="CC0-1.0"),
        training=TrainingRecord(steps=1, tokens=1, documents=1, held_out_documents=1, seed=0, public_share=0.25),
        codec=CodecRecord(method="lossless"),
        bits_per_byte={},
    )


def admitted(key: SigningKey, version: int = 1) -> Link:
    document = contribution(key, version)
    return "admitted", document.digest, seal(document, key)


def withdrawn(key: SigningKey, version: int = 1, of: SigningKey | None = None) -> Link:
    digest = contribution(of or key, version).digest
    return "withdrawn", digest, seal(Withdrawal(charter=CHARTER.digest, contribution=digest, owner=key.public), key)


def chain(links: Sequence[Link]) -> list[LedgerEntry]:
    entries: list[LedgerEntry] = []
    for number, (kind, subject, signed) in enumerate(links):
        body = {"signed": signed.model_dump(mode="json", by_alias=True), "reason": "x"}
        last = entries[-1] if entries else None
        entries.append(following(last, kind=kind, subject=subject, body=body, at=f"t{number}"))
    return entries


GOOD = [
    first(),
    joined(MEDICINE, "medicine"),
    joined(LAW, "law"),
    admitted(MEDICINE),
    ("refused", contribution(LAW).digest, seal(contribution(LAW), LAW)),
    admitted(LAW),
    admitted(MEDICINE, 2),
    withdrawn(LAW),
    ("composite", ZEROS, seal(contribution(LAW), LAW)),
]


def test_a_good_chain_adds_up() -> None:
    standing = fold(chain(GOOD))
    assert standing.charter == CHARTER.digest
    assert {owner: request.name for owner, request in standing.owners.items()} == {
        MEDICINE.public: "medicine",
        LAW.public: "law",
    }
    assert len(standing.admitted) == 3
    assert standing.refusals == {LAW.public: 1}
    assert list(standing.active) == [contribution(MEDICINE, 2).digest]
    assert standing.last is not None
    assert standing.last.sequence == len(GOOD) - 1


def test_nothing_adds_up_to_nothing() -> None:
    assert fold([]) == Standing()
    assert following(None, kind="charter", subject="s", body={}, at="t").previous == GENESIS


@given(st.integers(0, len(GOOD)))
def test_a_chain_may_be_folded_in_two_steps(cut: int) -> None:
    entries = chain(GOOD)
    before = fold(entries[:cut])
    kept = before.copy()
    assert fold(entries[cut:], before) == fold(entries)
    assert before == kept


@settings(max_examples=60)
@given(st.data())
def test_no_entry_may_be_dropped_doubled_swapped_or_changed(data: st.DataObject) -> None:
    entries = chain(GOOD)
    index = data.draw(st.integers(0, len(entries) - 2))
    changed = entries[index].model_copy(update={"at": "another time"})
    for broken in (
        entries[:index] + entries[index + 1 :],
        [*entries[: index + 1], *entries[index:]],
        [*entries[:index], entries[index + 1], entries[index], *entries[index + 2 :]],
        [*entries[:index], changed, *entries[index + 1 :]],
    ):
        with pytest.raises(LedgerError):
            fold(broken)


def test_withdrawing_the_newest_does_not_bring_back_the_one_before() -> None:
    links = [first(), joined(MEDICINE, "medicine"), admitted(MEDICINE), admitted(MEDICINE, 2), withdrawn(MEDICINE, 2)]
    assert fold(chain(links)).active == {}
    assert list(fold(chain([*links, admitted(MEDICINE, 3)])).active) == [contribution(MEDICINE, 3).digest]


def test_active_contributions_are_sorted_by_digest() -> None:
    keys = [SigningKey.generate() for _ in range(6)]
    links = [first(), *(joined(key, f"n{number}") for number, key in enumerate(keys)), *map(admitted, keys)]
    active = list(fold(chain(links)).active)
    assert active == sorted(active)
    assert len(active) == 6


def lent(document: Document, key: SigningKey) -> Signed:
    """Signed by `key`, whatever the document says of its owner."""
    return seal(document, key)


BASE = [first(), joined(MEDICINE, "medicine"), admitted(MEDICINE)]


@pytest.mark.parametrize(
    ("links", "problem"),
    [
        ([joined(MEDICINE, "medicine")], "is the charter"),
        ([first(), first()], "is the charter"),
        ([("charter", ZEROS, seal(CHARTER, COORDINATOR))], "but holds a document about"),
        ([("charter", CHARTER.digest, lent(CHARTER, LAW))], "not signed by"),
        ([*BASE, joined(MEDICINE, "surgery")], "enrolled already"),
        ([*BASE, joined(LAW, "medicine")], "is another owner's"),
        ([*BASE, ("enrolled", MEDICINE.public, joined(LAW, "law")[2])], "but holds a document about"),
        ([*BASE, admitted(LAW)], "never enrolled"),
        ([*BASE, ("admitted", contribution(MEDICINE, 2).digest, lent(contribution(MEDICINE, 2), LAW))], "not signed"),
        ([*BASE, ("admitted", ZEROS, admitted(MEDICINE, 2)[2])], "but holds a document about"),
        ([*BASE, withdrawn(MEDICINE), admitted(MEDICINE)], "withdrawn before"),
        ([*BASE, withdrawn(MEDICINE, 2)], "no such contribution"),
        ([*BASE, joined(LAW, "law"), withdrawn(LAW, of=MEDICINE)], "no such contribution"),
        ([*BASE, ("refused", contribution(LAW).digest, admitted(LAW)[2])], "never enrolled"),
        ([*BASE, ("refused", ZEROS, admitted(MEDICINE, 2)[2])], "but holds a document about"),
        ([*BASE, ("refused", contribution(MEDICINE, 2).digest, lent(contribution(MEDICINE, 2), LAW))], "not signed"),
    ],
)
def test_entries_that_contradict(links: Sequence[Link], problem: str) -> None:
    with pytest.raises(LedgerError, match=problem):
        fold(chain(links))


def test_a_forged_document_inside_is_noticed() -> None:
    signed = admitted(MEDICINE)[2]
    forged = signed.model_copy(update={"payload": signed.payload.replace("CC0-1.0", "MIT")})
    with pytest.raises(SignatureError):
        fold(chain([*BASE[:2], ("admitted", bytes_digest(forged.payload.encode()), forged)]))


@pytest.mark.parametrize("body", [{}, {"signed": None}, {"signed": {"payload": "x"}}, {"signed": []}])
def test_an_entry_without_its_document_is_noticed(body: dict[str, object]) -> None:
    last = chain(BASE)[-1]
    for kind in ("enrolled", "admitted", "withdrawn", "refused"):
        entry = following(last, kind=kind, subject=ZEROS, body=body, at="t")
        with pytest.raises(LedgerError, match="holds no signed document"):
            fold([*chain(BASE), entry])


def test_errors_are_ours() -> None:
    makers: list[Callable[[], object]] = [lambda: LedgerEntry.parse(b"{}"), lambda: fold(chain(BASE)[1:])]
    for make in makers:
        with pytest.raises(MotetError):
            make()
