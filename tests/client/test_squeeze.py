"""An expert made low-rank by its owner: what is chosen, what is packed, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from motet.cli import run
from motet.client.owner import OwnerHome
from motet.client.preparation import prepare
from motet.client.squeeze import Curve, Goal
from motet.client.squeezing import Outcome, squeeze_file, squeeze_own
from motet.moe.anchor import Anchor
from motet.moe.composite import compose
from motet.moe.experts import Expert, read_update, stored_tensors
from motet.moe.lowrank import LowRankExpert, read_lowrank_update
from motet.moe.squeeze import changes, decompose
from motet.protocols.composite_manifest import (
    MANIFEST_FILE,
    CompositeManifest,
    CompositeMember,
    RoutingPolicy,
    Tuning,
    membership_of,
)
from motet.protocols.errors import CodecError, ConfigurationError, DataError, ExpertError, ExpertSetError, WorkerBusy
from motet.protocols.expert_files import materialise_file
from motet.protocols.update_files import rank_in
from tests.client.conftest import edit, packed_of

LARGEST = 19
"""The largest rank that makes matrices of 32 x 48 smaller."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the home of the tests lies once it is made."""
    return tmp_path_factory.mktemp("template") / "home"


@pytest.fixture
def home(make_home, template: Path, tmp_path: Path) -> OwnerHome:
    """An owner whose full expert is trained and packed; trained once, a copy for every test."""
    if not template.exists():
        made = make_home(training={"steps": 20}, codec={"method": "int8", "successive": "never"})
        packed_of(made)
        shutil.copytree(made.path, template, symlinks=True)
        return made
    return OwnerHome.load(shutil.copytree(template, tmp_path / "medicine", symlinks=True))


def kept(curve: Curve, rank: int) -> float:
    share = {point.rank: point.gain_kept for point in curve.points}[rank]
    assert share is not None
    return share


def test_the_trained_expert_becomes_the_next_contribution(home: OwnerHome) -> None:
    first = packed_of(home)
    done = squeeze_own(home, Goal(rank=8))
    assert done.packed is not None
    manifest, before = done.packed.contribution, first.contribution
    assert (manifest.kind, manifest.rank, manifest.version, manifest.base) == ("lowrank", 8, before.version + 1, None)
    assert (manifest.training, manifest.codec.method) == (before.training, "int8")
    assert manifest.bits_per_byte["trained"] == pytest.approx(done.curve.expert, abs=1e-6)
    assert manifest.bits_per_byte["expert"] < manifest.bits_per_byte["anchor"]
    assert manifest.codec.gain_kept == pytest.approx(kept(done.curve, 8), abs=2e-3)
    anchor = prepare(home).anchor
    full = read_update(first.update, anchor, name="", contribution="")
    expert = read_lowrank_update(done.packed.update, anchor, name="", contribution="")
    assert torch.equal(expert.rows.weight, full.rows.weight)
    assert squeeze_own(home, Goal(rank=8)).packed.digest == done.packed.digest


def test_no_job_undoes_what_its_owner_chose(home: OwnerHome) -> None:
    done = squeeze_own(home, Goal(rank=8))
    assert packed_of(home).digest == done.packed.digest
    assert squeeze_own(home, Goal(rank=4)).packed.contribution.version == 3
    edit(home, "steps = 20", "steps = 2")
    assert packed_of(home).contribution.kind == "full"


def test_nor_where_a_contribution_was_squeezed(home: OwnerHome) -> None:
    done = squeeze_own(home, Goal(rank=8), contribution=packed_of(home).digest)
    assert packed_of(home).digest == done.packed.digest
    smaller = squeeze_own(home, Goal(rank=4), contribution=done.packed.digest)
    assert packed_of(home).digest == smaller.packed.digest


def test_the_curve_is_of_encoded_factors_and_rises_with_the_rank(home: OwnerHome) -> None:
    curve = squeeze_own(home, Goal()).curve
    assert [point.rank for point in curve.points] == [1, 2, 4, 8, 16, LARGEST]
    assert (curve.rank, curve.factors, curve.randomised) == (None, {}, 0)
    energies = [point.energy for point in curve.points]
    assert energies == sorted(energies)
    assert curve.expert < curve.points[-1].bits_per_byte < curve.points[0].bits_per_byte < curve.anchor
    assert kept(curve, 1) < kept(curve, LARGEST) < 1.02
    assert curve.points[3].parameters == 2 * 3 * 8 * (32 + 48)
    assert curve.points[3].parameters < curve.points[3].bytes < 2 * curve.points[3].parameters
    int4 = squeeze_own(home, Goal(), method="int4").curve
    assert all(small.bytes < large.bytes for small, large in zip(int4.points, curve.points, strict=True))
    assert int4.method == "int4"
    assert len(list(home.outbox.iterdir())) == 1


def test_energy_chooses_the_smallest_rank_that_keeps_it(home: OwnerHome) -> None:
    done = squeeze_own(home, Goal(energy=0.8), to=home.path / "small.motetup")
    anchor = prepare(home).anchor
    energies = {point.rank: point.energy for point in done.curve.points}
    assert energies[done.curve.rank] >= 0.8
    assert max(energy for rank, energy in energies.items() if rank < done.curve.rank) < 0.8
    assert (done.packed, rank_in(done.file)) == (None, done.curve.rank)
    expert = read_lowrank_update(done.file, anchor, name="", contribution="")
    whole = decompose(((name, each) for name, each in done.curve.factors.items()), rank=1)
    assert whole.energy(1) < 1
    assert expert.rank == done.curve.rank


def test_a_budget_chooses_by_documents_that_the_figures_are_not_of(home: OwnerHome) -> None:
    done = squeeze_own(home, Goal(loss=0.2))
    rank, held_out = done.curve.rank, len(prepare(home).corpus.held_out)
    assert 1 - kept(done.curve, rank) <= 0.2
    smaller = [point.gain_kept for point in done.curve.points if point.rank < rank]
    assert all(1 - share > 0.2 for share in smaller)
    assert done.packed.contribution.training.held_out_documents == held_out - held_out // 2
    whole = squeeze_own(home, Goal()).curve
    assert done.curve.anchor != whole.anchor
    assert done.packed.contribution.bits_per_byte["anchor"] != pytest.approx(done.curve.anchor, abs=1e-4)


def test_a_contribution_is_squeezed_as_its_update_defines_it(home: OwnerHome, tmp_path: Path) -> None:
    packed, anchor = packed_of(home), prepare(home).anchor
    edit(home, "steps = 20", "steps = 21")  # nothing is trained under these settings
    home = OwnerHome.load(home.path)
    newest = squeeze_own(home, Goal(rank=4))
    named = squeeze_own(home, Goal(rank=4), contribution=packed.digest)
    assert newest.packed.digest == named.packed.digest
    full = read_update(packed.update, anchor, name="", contribution="")
    wanted = decompose(changes(anchor, full.ffn), rank=LARGEST).factors(4)
    for name, each in newest.curve.factors.items():
        assert torch.allclose(each.b @ each.a, wanted[name].b @ wanted[name].a, atol=1e-5)


def test_a_version_that_changes_an_earlier_one_is_squeezed_from_what_is_kept(make_home, coordinator) -> None:
    from motet.client.contribute import contribute

    home = make_home(training={"steps": 12}, codec={"method": "lossless", "successive": "always"})
    contribute(home, packed_of(home))
    edit(home, "steps = 12", "steps = 14")
    later = packed_of(home)
    assert later.contribution.base is not None
    home = OwnerHome.load(home.path)
    done = squeeze_own(home, Goal(), contribution=later.digest)
    assert done.curve.expert == pytest.approx(later.contribution.bits_per_byte["expert"], abs=1e-5)
    for kept_version in (home.work / "versions").rglob("version.json"):
        kept_version.unlink()
    with pytest.raises(ConfigurationError, match="no longer in"):
        squeeze_own(home, Goal(), contribution=later.digest)


def sources(home: OwnerHome, folder: Path) -> dict[str, tuple[Path, str | None]]:
    """The same full expert as every kind of file: where it lies, and its name there."""
    from motet.client.contribute import export

    packed, anchor = packed_of(home), prepare(home).anchor
    with stored_tensors(anchor) as stored:
        materialise_file(packed.update, anchor.manifest, stored, folder / "expert.safetensors")
    full = read_update(packed.update, anchor, name="medicine", contribution=packed.digest)
    other = Expert(name="law", contribution="sha256:" + 64 * "0", ffn=anchor.ffn(), rows=full.rows)
    compose(anchor.model(), [full, other], log_priors={"medicine": 0.5}).save_pretrained(folder / "composite")
    return {
        "update": (packed.update, None),
        "container": (export(packed, folder / "medicine.motet"), None),
        "store": (folder / "expert.safetensors", None),
        "composite": (folder / "composite", "medicine"),
    }


def test_every_source_gives_the_same_expert(home: OwnerHome, tmp_path: Path) -> None:
    anchor = prepare(home).anchor
    found: dict[str, Outcome] = {}
    for name, (path, expert) in sources(home, tmp_path).items():
        found[name] = squeeze_file(
            path, anchor.directory, Goal(rank=4), expert=expert, max_rank=8, to=tmp_path / f"{name}.motetup"
        )
    experts = {name: read_lowrank_update(done.file, anchor, name="", contribution="") for name, done in found.items()}
    first = experts["update"]
    for name, each in experts.items():
        assert torch.allclose(each.rows.weight, first.rows.weight), name
        assert torch.allclose(each.rows.bias, first.rows.bias, atol=1e-6), name
        assert all(torch.equal(each.factors[key].a, first.factors[key].a) for key in each.factors), name
        assert [point.rank for point in found[name].curve.points] == [1, 2, 4, 8]
        assert found[name].curve.points[0].bits_per_byte is None


def test_text_given_is_measured_and_can_choose(home: OwnerHome, tmp_path: Path) -> None:
    path, anchor = packed_of(home).update, prepare(home).anchor.directory
    texts = (str(home.path / "own.jsonl"),)
    done = squeeze_file(path, anchor, Goal(loss=0.3), texts=texts)
    assert done.file is None
    assert 1 - kept(done.curve, done.curve.rank) <= 0.3
    with pytest.raises(ConfigurationError, match="give --text"):
        squeeze_file(path, anchor, Goal(loss=0.3))


def test_a_low_rank_expert_only_shrinks(make_home, tmp_path: Path) -> None:
    home = make_home(training={"kind": "lowrank", "rank": 4, "steps": 12, "learning_rate": 3e-2})
    packed = packed_of(home)
    for rank in (4, 5):
        with pytest.raises(ExpertError, match=f"rank 4 already, wanted one that rank {rank} makes smaller"):
            squeeze_own(home, Goal(rank=rank))
    done = squeeze_own(home, Goal(rank=2))
    assert [point.rank for point in done.curve.points] == [1, 2, 3]
    assert done.curve.parameters == 2 * 3 * 4 * (32 + 48)
    assert done.packed.contribution.rank == 2
    assert done.packed.contribution.bits_per_byte["trained"] == packed.contribution.bits_per_byte["trained"]
    anchor = prepare(home).anchor
    expert = read_lowrank_update(packed.update, anchor, name="medicine", contribution=packed.digest)
    assert isinstance(expert, LowRankExpert)
    compose(anchor.model(), [expert]).save_pretrained(tmp_path / "composite")
    cut = squeeze_file(tmp_path / "composite", anchor.directory, Goal(rank=3), expert="medicine")
    assert cut.curve.rank == 3


def test_a_rank_beyond_the_smaller_side_of_a_matrix_shrinks_to_that_at_most(make_home) -> None:
    home = make_home(training={"kind": "lowrank", "rank": 40, "steps": 1})
    packed = packed_of(home)
    done = squeeze_file(packed.update, home.anchor, Goal(rank=32))
    assert [point.rank for point in done.curve.points] == [1, 2, 4, 8, 16, 32]
    assert done.curve.points[-1].energy == pytest.approx(1, abs=1e-5)
    with pytest.raises(ExpertError, match=r"of rank 40 already.*at most 32"):
        squeeze_file(packed.update, home.anchor, Goal(rank=33))


def test_what_the_charter_rules_out_is_refused(home: OwnerHome) -> None:
    with pytest.raises(ConfigurationError, match="rank 65, wanted at most 64"):
        squeeze_own(home, Goal(rank=65))
    with pytest.raises(ExpertError, match=f"a full expert, wanted one that rank 20 makes smaller, at most {LARGEST}"):
        squeeze_own(home, Goal(rank=20))
    with pytest.raises(ConfigurationError, match="factors survive"):
        squeeze_own(home, Goal(rank=2), method="ternary")
    assert len(list(home.outbox.iterdir())) == 1


def test_what_no_rank_reaches_is_refused(home: OwnerHome) -> None:
    with pytest.raises(ExpertError, match=f"kept at rank {LARGEST}.*wanted 1"):
        squeeze_own(home, Goal(energy=1.0))
    with pytest.raises(ExpertError, match=f"of the gain lost at rank {LARGEST}, the largest, wanted at most 0.00%"):
        squeeze_own(home, Goal(loss=0.0))


def test_one_document_cannot_choose_and_be_reported_on(make_home) -> None:
    home = make_home(texts=[f"document {number} of two" for number in range(3)])
    packed_of(home)
    with pytest.raises(DataError, match="one held-out document"):
        squeeze_own(home, Goal(loss=0.5))


def test_an_expert_of_another_anchor_is_refused(home: OwnerHome, make_anchor, tmp_path: Path) -> None:
    other = make_anchor(tmp_path / "other", seed=1)
    errors = {"update": CodecError, "container": CodecError, "store": ExpertError, "composite": ExpertError}
    for name, (path, expert) in sources(home, tmp_path).items():
        with pytest.raises(errors[name], match="anchor"):
            squeeze_file(path, other, Goal(rank=2), expert=expert)


def test_what_is_no_expert_is_refused(home: OwnerHome, tmp_path: Path) -> None:
    anchor = prepare(home).anchor.directory
    folder = sources(home, tmp_path)["composite"][0]
    with pytest.raises(ExpertSetError, match="'anchor', wanted one of law, medicine"):
        squeeze_file(folder, anchor, Goal(rank=2), expert="anchor")
    with pytest.raises(ConfigurationError, match="nothing at"):
        squeeze_file(tmp_path / "nowhere", anchor, Goal(rank=2))
    gone = squeeze_file(folder, anchor, Goal(), expert="law").curve
    assert {point.energy for point in gone.points} == {1.0}  # law changes nothing


def test_rows_that_were_tuned_together_are_nobodys_own(home: OwnerHome, tmp_path: Path) -> None:
    anchor, (folder, name) = prepare(home).anchor, sources(home, tmp_path)["composite"]
    contributions = {"law": "sha256:" + 64 * "0", "medicine": packed_of(home).digest}
    members = [
        CompositeMember(name=each, contribution=digest, expert="sha256:" + 64 * "1")
        for each, digest in sorted(contributions.items(), key=lambda item: item[1])
    ]
    tuning = Tuning(
        membership=membership_of(contributions.values()), steps=3, seed=0, documents=dict.fromkeys(contributions, 2)
    )
    manifest = CompositeManifest(
        anchor=anchor.digest, members=tuple(members), routing=RoutingPolicy(), files=(), tuning=tuning
    )
    (folder / MANIFEST_FILE).write_bytes(manifest.canonical())
    with pytest.raises(ExpertError, match="tuned for all of its members together, wanted the routing rows"):
        squeeze_file(folder, anchor.directory, Goal(rank=2), expert=name)
    alone = manifest.model_copy(update={"tuning": None})
    (folder / MANIFEST_FILE).write_bytes(alone.canonical())
    assert squeeze_file(folder, anchor.directory, Goal(rank=2), expert=name).curve.rank == 2


def test_nothing_is_written_over_or_without_a_rank(home: OwnerHome, tmp_path: Path) -> None:
    update, anchor = packed_of(home).update, prepare(home).anchor.directory
    before = update.read_bytes()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for there in (update, tmp_path / "dangling"):
        with pytest.raises(ConfigurationError, match="wanted a new file"):
            squeeze_file(update, anchor, Goal(rank=2), to=there)
        with pytest.raises(ConfigurationError, match="wanted a new file"):
            squeeze_own(home, Goal(rank=2), to=there)
    assert update.read_bytes() == before
    new = tmp_path / "new.motetup"
    with pytest.raises(ConfigurationError, match="wanted one of --rank, --energy and --loss"):
        squeeze_own(home, Goal(), to=new)
    command = ["squeeze", str(update), "--anchor", str(anchor), "--to", str(new)]
    assert run(command) == ConfigurationError.exit_code
    assert not new.exists()


def test_it_waits_for_the_worker(home: OwnerHome) -> None:
    from motet.client.spool import Spool

    spool = Spool(home.path)
    spool.hold()
    with pytest.raises(WorkerBusy):
        squeeze_own(home, Goal(rank=2))
    spool.close()


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({"rank": 2, "energy": 0.5}, "several of rank, energy and loss"),
        ({"rank": 0}, "rank 0, wanted 1"),
        ({"energy": 90.0}, r"energy 90, wanted a share of 1, such as 0\.9"),
        ({"loss": 1.0}, r"loss 1, wanted a share of 1, such as 0\.01"),
    ],
)
def test_a_goal_is_one_and_within_reason(goal: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Goal(**goal)


def test_the_command_prints_the_curve_and_what_it_made(
    home: OwnerHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["squeeze", "--dir", str(home.path), "--rank", "4", "--method", "int4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["expert"], found["method"], found["rank"]) == ("medicine", "int4", 4)
    assert found["contribution"] == squeeze_own(home, Goal(rank=4), method="int4").packed.digest
    assert [point["rank"] for point in found["curve"]] == [1, 2, 4, 8, 16, LARGEST]
    anchor = Anchor.load(home.anchor).directory
    update = packed_of(home).update
    made = ["squeeze", str(update), "--anchor", str(anchor), "--energy", "0.3", "--to", str(tmp_path / "small.motetup")]
    assert run(made) == 0
    said = capsys.readouterr().out
    assert " *" in said
    assert f"wrote {tmp_path / 'small.motetup'}" in said
    assert run(["squeeze", str(update)]) == 2
    assert run(["squeeze", str(update), "--dir", str(home.path)]) == 2
    assert run(["squeeze", "--dir", str(home.path), "--rank", "65"]) == ConfigurationError.exit_code
