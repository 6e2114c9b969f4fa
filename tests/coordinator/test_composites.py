"""Composites on request: what would go in, what dropping the bias costs, and what happens during the copying."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from motet.cli import run
from motet.coordinator import assembly, databases
from motet.coordinator.composite_plan import plan
from motet.coordinator.composites import make
from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.moe.card import CARD_FILE, read_record
from motet.moe.scoring import bits_per_byte
from motet.protocols.canonical import hex_of
from motet.protocols.composite_manifest import verify_composite
from motet.protocols.contribution import Terms
from motet.protocols.errors import AssemblyError, ExpertSetError, StorageError
from motet.protocols.expert_sizes import ExpertSize
from motet.protocols.tensor_files import read_header

Admit = Callable[..., str]


@pytest.fixture
def members(admit_quickly: Admit, medicine: object, law: object) -> dict[str, str]:
    """Name -> contribution of two experts."""
    return {"medicine": admit_quickly(medicine, seed=1), "law": admit_quickly(law, seed=2)}


@pytest.fixture
def federation(home: CoordinatorHome, members: dict[str, str]) -> Federation:
    return Federation(home)


def recorded(home: CoordinatorHome) -> list[dict[str, str]]:
    return [entry.body["members"] for entry in home.ledger.entries() if entry.kind == "composite"]


def on_a_full_disk(*arguments: object, **options: object) -> NoReturn:
    raise StorageError("no space left on device")


def tensor_bytes(folder: Path) -> int:
    """Of the files' tensors, without headers."""
    specs = [stored.spec for path in folder.glob("*.safetensors") for stored in read_header(path).values()]
    return sum(spec.nbytes for spec in specs)


def test_a_plan_says_who_goes_in_and_how_large_it_is(federation: Federation, members: dict[str, str]) -> None:
    both = plan(federation, (), stock=False)
    assert list(both.members.values()) == sorted(members.values())
    assert (both.native_bytes, both.stock_bytes) == (tensor_bytes(federation.assemble().path), None)
    assert both.free_bytes > both.needed_bytes == both.native_bytes
    alone = plan(federation, ("law",))
    assert alone.members == {"medicine": members["medicine"]}
    assert alone.native_bytes < both.native_bytes
    assert "nothing was written" in alone.lines()[-1]
    with pytest.raises(ExpertSetError, match="surgery"):
        plan(federation, ("surgery",))


@pytest.mark.parametrize("drop_bias", [False, True])
def test_the_plan_counts_the_export_with_its_dense_experts(
    federation: Federation,
    admit_quickly: Admit,
    home: CoordinatorHome,
    make_owner: Callable[[str], object],
    drop_bias: bool,
) -> None:
    news = make_owner("news")
    home.enrol(news.request(home))
    admit_quickly(news, seed=5, rank=2)
    found = plan(federation, (), drop_bias=drop_bias)
    made = make(federation, drop_bias=drop_bias)
    assert found.native_bytes == tensor_bytes(Path(made.summary.path))
    assert found.stock_bytes == tensor_bytes(Path(made.summary.stock_path or ""))
    assert found.stock_bytes > found.native_bytes, "it is widened, and one expert is dense there only"
    assert found.needed_bytes == found.native_bytes + found.stock_bytes
    told = found.as_json()
    sizes = found.native_bytes, found.stock_bytes, found.needed_bytes
    assert tuple(told[f"{name}_bytes"] for name in ("native", "stock", "needed")) == sizes
    assert f"stock      {found.stock_bytes:,} bytes, low-rank experts dense and in float32" in found.lines()


def test_a_disk_that_has_room_for_the_native_form_alone_keeps_that(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    federation.assemble()
    monkeypatch.setattr(databases, "ROOM_BYTES", 0)  # what the ledger wants, more than a tiny export
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    assert plan(federation, ()).lines()[-1].endswith("of 100 free, which is too little; nothing was written")
    command = ["assemble", "--dir", str(federation.home.path)]
    assert run([*command, "--json"]) == StorageError.exit_code
    told = capsys.readouterr()
    made = json.loads(told.out)
    assert Path(made["path"]).is_dir()
    assert made["stock_path"] is None
    assert "saw 100 bytes free" in made["not_exported"]
    assert "wanted" in told.err
    assert "for the stock export" in told.err
    assert list(federation.home.stock_directory.iterdir()) == []
    monkeypatch.undo()
    assert run([*command, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["digest"], "not_exported" in again) == (made["digest"], False)


def test_the_card_tells_sizes_and_terms_and_how_to_choose(
    federation: Federation, admit_quickly: Admit, home: CoordinatorHome, make_owner: Callable[[str], object]
) -> None:
    news = make_owner("news")
    home.enrol(news.request(home))
    terms = Terms(licence="CC0-1.0", attribution="<b>The news</b> | all of it", expiry="2099-01-31")
    admit_quickly(news, seed=5, rank=2, terms=terms)
    made = make(federation)
    path, stock = Path(made.summary.path), Path(made.summary.stock_path or "")
    assert verify_composite(path).digest == made.summary.digest
    told = read_record(path)
    assert told is not None
    assert told.anchor == federation.charter.anchor.digest
    sizes = [ExpertSize(**each.model_dump(exclude={"contribution", "terms"})) for each in told.experts]
    assert tuple(sizes) == made.summary.experts
    assert {each.name: each.terms for each in told.experts}["news"] == terms
    contributions = {each.name: each.contribution for each in told.experts[1:]}
    assert contributions == {each.name: digest for digest, each in federation.chosen().items()}

    exported = read_record(stock)
    assert exported is not None
    assert [(each.name, each.terms) for each in exported.experts] == [(each.name, each.terms) for each in told.experts]

    blocks = re.findall(r"```python\n(.*?)```", (path / CARD_FILE).read_text(), re.DOTALL)
    assert len(blocks) == 2
    exec("".join(blocks).replace("FOLDER", str(path)), {})
    (loading,) = re.findall(r"```python\n(.*?)```", (stock / CARD_FILE).read_text(), re.DOTALL)
    exec(loading.replace("FOLDER", str(stock)), {})


def test_what_dropping_the_bias_costs_is_told(federation: Federation) -> None:
    kept = make(federation)
    assert kept.bias is None
    assert "dropped_bias" not in kept.as_json()
    made = make(federation, drop_bias=True)
    assert made.bias is not None
    composite = federation.score_public(made.summary.digest)["composite"]
    assert made.bias.with_bias == pytest.approx(bits_per_byte(composite), abs=1e-5)
    assert made.bias.without_bias != made.bias.with_bias
    assert made.as_json()["dropped_bias"] == {
        "with_bias": made.bias.with_bias,
        "without_bias": made.bias.without_bias,
        "cost": pytest.approx(made.bias.without_bias - made.bias.with_bias, abs=1e-6),
    }
    assert "dropping it costs" in made.lines()[-1]
    assert made.lines()[-1].endswith("on the owners' domains was not measured")
    assert json.dumps(made.as_json())
    assert kept.summary.stock_path != made.summary.stock_path
    assert make(federation, stock=False, drop_bias=True).bias is None


def test_a_filters_export_of_an_earlier_release_is_not_taken_for_one_of_now(federation: Federation) -> None:
    earlier = federation.home.stock_directory / hex_of(federation.assemble().digest)
    earlier.mkdir(parents=True)
    assert federation.charter.routing.kind == "filter"
    made = make(federation)
    assert made.summary.stock_path not in (None, str(earlier))
    assert make(federation, stock=False).summary.stock_path == made.summary.stock_path
    assert list(earlier.iterdir()) == []


def test_one_unreadable_folder_stops_nobody(federation: Federation, home: CoordinatorHome) -> None:
    stray = home.composites_directory / ("f" * 64)
    stray.mkdir(parents=True)
    composite = federation.assemble()
    assert set(federation.composites()) == {composite.digest}


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["router.safetensors", "composite.json"])
def test_a_damaged_composite_is_made_anew(
    federation: Federation, name: str, spoil: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    composite = federation.assemble()
    before = (composite.path / name).read_bytes()
    spoil(composite.path / name)
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "assemble", on_a_full_disk)
        with pytest.raises(StorageError):
            federation.assemble()
    again = federation.assemble()
    assert (again.digest, again.path) == (composite.digest, composite.path)
    assert (again.path / name).read_bytes() == before
    (aside,) = again.path.parent.glob("damaged-*")
    assert aside.is_dir()
    assert len(recorded(federation.home)) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_withdraws_while_it_is_assembled_is_left_out(
    federation: Federation, members: dict[str, str], law: object, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the copying the expert's file goes; after it only the ledger knows."""
    assemble = assembly.assemble

    def withdraw() -> None:
        federation.intake.withdraw(law.withdrawal(federation.home, members["law"]))

    def assemble_meanwhile(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(assembly, "assemble", assemble)
        if when == "before":
            withdraw()
        made = assemble(*arguments, **options)  # type: ignore[arg-type]
        withdraw()
        return made

    monkeypatch.setattr(assembly, "assemble", assemble_meanwhile)
    composite = federation.assemble()
    assert [member.name for member in composite.members] == ["medicine"]
    assert recorded(federation.home) == [{"medicine": members["medicine"]}]
    assert set(federation.composites()) == {composite.digest}


def test_what_fails_for_another_reason_is_not_tried_for_ever(
    federation: Federation, members: dict[str, str], home: CoordinatorHome
) -> None:
    federation.intake.expert_file(members["law"]).write_bytes(b"rubbish")
    with pytest.raises(AssemblyError, match="law does not fit"):
        federation.assemble()
    assert recorded(home) == []


def test_a_superseded_expert_stays_while_it_is_being_copied(
    federation: Federation, home: CoordinatorHome, admit_quickly: Admit, medicine: object, members: dict[str, str]
) -> None:
    seen: list[bool] = []

    def progress(done: int, total: int) -> None:
        if not seen:
            admit_quickly(medicine, seed=3, version=2)
            Federation(home)  # opening clears what is no longer active
        seen.append(federation.intake.expert_file(members["medicine"]).exists())

    federation.assemble(progress=progress)
    assert set(seen) == {True}
    Federation(home)
    assert not federation.intake.expert_file(members["medicine"]).exists()
