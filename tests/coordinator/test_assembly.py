"""A composite is what its members and the anchor determine, whole or not there."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from motet.coordinator.assembly import Member, RoutingPolicy, assemble, verify_composite
from motet.moe import compose
from motet.moe.anchor import Anchor
from motet.moe.experts import read_expert, stored_tensors, write_update
from motet.moe.prefix import evidence_of
from motet.moe.routing import RoutingRows
from motet.protocols.canonical import digest_of
from motet.protocols.composite_manifest import read_composite_manifest
from motet.protocols.errors import AssemblyError, StorageError
from motet.protocols.expert_files import materialise_file

POLICY = RoutingPolicy(log_prior_anchor=0.25, log_prior_expert=-0.5)
FILTER = RoutingPolicy(kind="filter", stay=0.9, temperature=2.0, log_prior_anchor=0.25, log_prior_expert=-0.5)
AVERAGE = RoutingPolicy(kind="token", gain=8.0, log_prior_anchor=0.25, log_prior_expert=-0.5)


@pytest.fixture(scope="module")
def anchor(anchor_directory):
    return Anchor.load(anchor_directory)


@pytest.fixture(scope="module")
def members(anchor, tmp_path_factory):
    return make_members(anchor, tmp_path_factory.mktemp("store"), {"medicine": "c", "mathematics": "a", "code": "b"})


def make_members(anchor, store: Path, named: dict[str, str]) -> list[Member]:
    """Random experts: name -> the hexadecimal digit that its contribution's digest repeats."""
    made = []
    for name, digit in named.items():
        generator = torch.Generator().manual_seed(int(digit, 16))
        trained = {n: t.float() + 0.05 * torch.randn(t.shape, generator=generator) for n, t in anchor.ffn().items()}
        layers, hidden = anchor.manifest.layers, anchor.manifest.hidden_size
        rows = RoutingRows(
            weight=torch.randn(layers, hidden, generator=generator),
            bias=torch.randn(layers, generator=generator),
            tokens=(torch.randn(anchor.manifest.vocabulary_size, generator=generator) * 16).round() / 8,
        )
        write_update(store / f"{name}.update", anchor, trained, rows)
        with stored_tensors(anchor) as stored:
            materialise_file(store / f"{name}.update", anchor.manifest, stored, store / f"{name}.safetensors")
        made.append(Member(name=name, contribution="sha256:" + digit * 64, expert_file=store / f"{name}.safetensors"))
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("policy", [POLICY, FILTER, AVERAGE], ids=["rows", "filter", "average"])
def test_an_expert_that_left_leaves_no_byte_behind(anchor, members, tmp_path, policy):
    assemble(anchor, members, policy, tmp_path / "with everybody")
    after_it_left = assemble(anchor, members[:1] + members[2:], policy, tmp_path / "after")
    never_had_it = assemble(anchor, [members[0], members[2]], policy, tmp_path / "elsewhere" / "never")

    assert contents(after_it_left.path) == contents(never_had_it.path)
    assert after_it_left.digest == never_had_it.digest


def test_order_does_not_matter_and_ids_follow_the_contributions(anchor, members, tmp_path):
    one = assemble(anchor, members, POLICY, tmp_path / "one")
    other = assemble(anchor, members[::-1], POLICY, tmp_path / "other")

    assert contents(one.path) == contents(other.path)
    assert [member.name for member in one.members] == ["mathematics", "code", "medicine"]
    config = json.loads((one.path / "config.json").read_text())
    assert config["expert_names"] == ["anchor", "mathematics", "code", "medicine"]


@pytest.mark.parametrize("policy", [POLICY, FILTER, AVERAGE], ids=["rows", "filter", "average"])
def test_loads_equal_to_the_composite_made_in_process(anchor, members, tmp_path, policy):
    composite = assemble(anchor, members, policy.model_copy(update={"top_k": 2}), tmp_path / "composite")
    loaded, report = AutoModelForCausalLM.from_pretrained(composite.path, output_loading_info=True)
    assert not any(report.values())
    experts = [read_expert(m.expert_file, anchor, name=m.name, contribution=m.contribution) for m in members]
    priors = {"anchor": POLICY.log_prior_anchor} | {m.name: POLICY.log_prior_expert for m in members}
    evidence = evidence_of(policy)
    in_process = compose(anchor.model(), experts, top_k=2, log_priors=priors, evidence=evidence)

    assert (loaded.config.prefix, loaded.config.priors) == (in_process.config.prefix, in_process.config.priors)
    assert ("token_router.weight" in loaded.state_dict()) == (evidence is not None)
    state, expected = loaded.state_dict(), in_process.state_dict()
    assert state.keys() == expected.keys()
    assert all(
        torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype for name, tensor in state.items()
    )
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, in_process(ids).logits)
    assert AutoTokenizer.from_pretrained(composite.path)("a").input_ids == anchor.tokenizer()("a").input_ids


def test_one_file_per_expert_and_priors_in_the_bias(anchor, members, tmp_path):
    composite = assemble(anchor, members[:1], POLICY, tmp_path / "composite")
    index = json.loads((composite.path / "model.safetensors.index.json").read_text())["weight_map"]
    by_file = {file: {name for name in index if index[name] == file} for file in set(index.values())}

    assert {name.split(".experts.")[1][0] for name in by_file["expert-00001.safetensors"]} == {"1"}
    assert not any(".mlp." in name for name in by_file["shared.safetensors"])
    model = AutoModelForCausalLM.from_pretrained(composite.path)
    rows = read_expert(members[0].expert_file, anchor, name="medicine", contribution=members[0].contribution).rows
    router = model.model.layers[1].mlp.router
    assert not router.weight[0].any()
    assert router.bias.tolist() == [0.25, pytest.approx(rows.bias[1].item() - 0.5)]


def test_an_anchor_alone_is_a_composite(anchor, tmp_path):
    composite = assemble(anchor, [], POLICY, tmp_path / "composite")
    model, ids = AutoModelForCausalLM.from_pretrained(composite.path), torch.arange(6)[None]

    with torch.no_grad():
        assert torch.equal(model(ids).logits, anchor.model()(ids).logits)


def test_the_manifest_names_every_file_and_no_place_or_time(anchor, members, tmp_path):
    composite = assemble(anchor, members, POLICY, tmp_path / "composite")
    manifest = verify_composite(composite.path)

    assert manifest.digest == composite.digest == digest_of(json.loads((composite.path / "composite.json").read_text()))
    assert {file.name for file in manifest.files} | {"composite.json"} == set(contents(composite.path))
    text = b"".join(data for name, data in contents(composite.path).items() if name.endswith(".json"))
    assert str(tmp_path).encode() not in text
    assert b"transformers_version" not in text


def test_a_member_s_change_changes_the_digest(anchor, members, tmp_path):
    digests = {
        assemble(anchor, members, POLICY, tmp_path / "a").digest,
        assemble(anchor, members[:2], POLICY, tmp_path / "b").digest,
        assemble(anchor, members, RoutingPolicy(), tmp_path / "c").digest,
    }
    assert len(digests) == 3


def test_the_same_again_is_reused(anchor, members, tmp_path):
    first = assemble(anchor, members, POLICY, tmp_path / "composite")
    inodes = {path.name: path.stat().st_ino for path in first.path.iterdir()}

    assert assemble(anchor, members[::-1], POLICY, tmp_path / "composite") == first
    assert {path.name: path.stat().st_ino for path in first.path.iterdir()} == inodes


def test_never_overwrites_something_else(anchor, members, tmp_path):
    assemble(anchor, members, POLICY, tmp_path / "composite")
    with pytest.raises(AssemblyError, match="saw another composite"):
        assemble(anchor, members[:1], POLICY, tmp_path / "composite")

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(AssemblyError, match=r"composite\.json"):
        assemble(anchor, members, POLICY, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_refuses_members_that_cannot_be_told_apart(anchor, members, tmp_path):
    first, second, _ = members
    twin = Member(name=first.name, contribution=second.contribution, expert_file=second.expert_file)
    with pytest.raises(AssemblyError, match="saw the name medicine twice"):
        assemble(anchor, [first, twin], POLICY, tmp_path / "composite")
    twin = Member(name="other", contribution=first.contribution, expert_file=first.expert_file)
    with pytest.raises(AssemblyError, match=r"saw the contribution sha256:c+ twice"):
        assemble(anchor, [first, twin], POLICY, tmp_path / "composite")
    usurper = Member(name="anchor", contribution=first.contribution, expert_file=first.expert_file)
    with pytest.raises(AssemblyError, match="saw the name anchor twice"):
        assemble(anchor, [usurper], POLICY, tmp_path / "composite")


def test_refuses_an_expert_of_another_anchor(make_anchor, members, tmp_path):
    wider = Anchor.load(make_anchor(tmp_path / "wider", intermediate_size=64))
    with pytest.raises(AssemblyError, match="expert medicine does not fit"):
        assemble(wider, members[:1], POLICY, tmp_path / "composite")


@pytest.mark.parametrize("damage", ["altered", "missing", "added"])
def test_verifying_finds_damage(anchor, members, tmp_path, damage):
    folder = assemble(anchor, members, POLICY, tmp_path / "composite").path
    path = folder / "expert-00002.safetensors"
    if damage == "altered":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "missing":
        path.unlink()
    else:
        path = folder / "pytorch_model.bin"
        path.write_bytes(b"")

    with pytest.raises(AssemblyError, match=path.name):
        verify_composite(folder)


def test_progress_reaches_the_total(anchor, members, tmp_path):
    seen = []
    assemble(anchor, members, POLICY, tmp_path / "composite", progress=lambda done, total: seen.append((done, total)))

    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_an_interruption_leaves_nothing(anchor, members, tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assemble(anchor, members, POLICY, tmp_path / "composite", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_seen_before_copying(anchor, members, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(StorageError, match=r"saw 100 bytes free .* wanted \d[\d,]+ for the composite"):
        assemble(anchor, members, POLICY, tmp_path / "composite")
    assert list(tmp_path.iterdir()) == []


ASSEMBLE = """
import json, os, resource, signal, sys
from pathlib import Path
from motet.coordinator.assembly import Member, RoutingPolicy, assemble
from motet.moe.anchor import Anchor
from motet.protocols.errors import MotetError
anchor_directory, store, out, how = sys.argv[1:]
anchor = Anchor.load(Path(anchor_directory))
members = [Member(name=p.stem, contribution="sha256:" + d * 64, expert_file=p)
           for d, p in zip("abcdef", sorted(Path(store).glob("*.safetensors")))]
if how == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
def progress(done, total):
    if how == "killed" and done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    digest = assemble(anchor, members, RoutingPolicy(), Path(out), progress=progress).digest
except MotetError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(json.dumps({"digest": digest, "grown_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}))
"""


def assemble_elsewhere(anchor, store, out, how="plainly") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ASSEMBLE, anchor.directory, store, out, how]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_full_disk_is_reported_and_leaves_nothing(anchor, members, tmp_path):
    result = assemble_elsewhere(anchor, members[0].expert_file.parent, tmp_path / "composite", "full")

    assert result.returncode == 1
    assert "StorageError" in result.stderr
    assert "File too large" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_assembly_is_taken_up_by_the_next(anchor, members, tmp_path):
    store = members[0].expert_file.parent
    assert assemble_elsewhere(anchor, store, tmp_path / "composite", "killed").returncode == -signal.SIGKILL
    assert not (tmp_path / "composite").exists()

    named = zip("abc", sorted(store.glob("*.safetensors")), strict=True)
    again = [Member(name=path.stem, contribution="sha256:" + digit * 64, expert_file=path) for digit, path in named]
    digest = assemble(anchor, again, RoutingPolicy(), tmp_path / "composite").digest
    assert verify_composite(tmp_path / "composite").digest == digest
    assert [path.name for path in tmp_path.iterdir()] == ["composite"]


def test_two_at_once_do_not_mix(anchor, members, tmp_path):
    def assemble_again(done: int, total: int) -> None:
        with pytest.raises(AssemblyError, match="saw another process assembling"):
            assemble(anchor, members, POLICY, tmp_path / "composite")

    composite = assemble(anchor, members, POLICY, tmp_path / "composite", progress=assemble_again)
    assert verify_composite(composite.path) == read_composite_manifest(composite.path)


@pytest.mark.slow
def test_takes_little_memory_whatever_the_size(make_anchor, tmp_path):
    anchor = Anchor.load(make_anchor(tmp_path / "big", hidden_size=1024, intermediate_size=8192))
    store = tmp_path / "store"
    store.mkdir()
    make_members(anchor, store, {"code": "a"})
    result = assemble_elsewhere(anchor, store, tmp_path / "composite")

    size = sum(path.stat().st_size for path in (tmp_path / "composite").iterdir())
    assert size > 200e6
    assert json.loads(result.stdout)["grown_kib"] < 32 * 1024
