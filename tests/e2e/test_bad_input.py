"""Bad input at the command line: an exit code, one message that names the next step, and nothing lost."""

import shutil
import socket
from pathlib import Path

import pytest

from motet.protocols.signing import Signed, SigningKey, seal

from .damage import cut, tamper

pytestmark = pytest.mark.slow


def test_a_wrong_anchor_is_found_before_training(trained, on_stage) -> None:
    stage = on_stage(trained)
    shutil.rmtree(stage.outbox("medicine"))
    tamper(stage.owner("medicine") / "anchor" / "model.safetensors", -100)
    wrong = stage.here("train", "--dir", stage.owner("medicine"), code=5)
    assert "wanted sha256:" in wrong.message
    cut(stage.owner("medicine") / "anchor" / "model.safetensors", 1000)
    assert "fetch it again" in stage.here("train", "--dir", stage.owner("medicine"), code=5).message
    shutil.copytree(stage.coordinator / "anchor", stage.owner("medicine") / "anchor", dirs_exist_ok=True)
    stage.here("train", "--dir", stage.owner("medicine"))


def set_files(home: Path, *files: Path, **settings: str) -> None:
    """Let owner.toml name other data."""
    import tomllib

    import tomli_w

    owner = tomllib.loads((home / "owner.toml").read_text())
    owner["data"] |= {"files": [str(file) for file in files]} | settings
    (home / "owner.toml").write_text(tomli_w.dumps(owner))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing-*.jsonl", None, "correct [data] files"),
        ("empty.jsonl", b"", "name files with documents"),
        ("blank.jsonl", b'{"text": "  "}\n', "name files with documents"),
        ("latin.jsonl", '{"text": "caf\u00e9"}\n'.encode("latin-1"), "UTF-8"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "UTF-8"),
        ("other.jsonl", b'{"body": "a"}\n', "set text_field"),
        ("number.jsonl", b'{"text": 3}\n', "wanted text"),
        ("broken.jsonl", b'{"text": "a"\n', "line 1: saw no JSON"),
        ("one.jsonl", b'{"text": "a single document"}\n', "give more documents"),
    ],
)
def test_data_that_cannot_be_used(trained, on_stage, name: str, content: bytes | None, says: str) -> None:
    stage = on_stage(trained)
    file = stage.root / name
    if content is not None:
        file.write_bytes(content)
    set_files(stage.owner("medicine"), file)
    for options in ((), ("--dry-run",)):
        assert says in stage.here("train", "--dir", stage.owner("medicine"), *options, code=6).message


def test_unknown_and_empty_expert_sets(gathered, on_stage) -> None:
    import torch

    from motet.moe import MotetForCausalLM
    from motet.protocols.errors import ExpertSetError

    stage = on_stage(gathered)
    for option in ((), ("--dry-run",)):
        unknown = stage.here("assemble", "--dir", stage.coordinator, "--without", "nobody", *option, code=14)
        assert "only mathematics, medicine" in unknown.message
        assert "name one of them" in unknown.message
    made = stage.here("assemble", "--dir", stage.coordinator, "--no-stock", "--json").json
    model = MotetForCausalLM.from_pretrained(made["path"])
    tokens = torch.tensor([[1, 2, 3]])
    for wrong in (["nobody"], [], [[]]):
        with pytest.raises(ExpertSetError, match=r"wanted|name|has anchor"):
            model(tokens, expert_sets=wrong)
        with pytest.raises(ExpertSetError):
            model.generate(tokens, expert_sets=wrong, max_new_tokens=1)


def test_a_port_in_use(trained, on_stage) -> None:
    stage = on_stage(trained)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        for part in ("data-plane", "superlink"):
            refused = stage.motet("coordinate", part, "--dir", stage.coordinator, "--listen", taken, code=15)
            assert taken in refused.message
            assert "in use" in refused.message
            assert "choose another" in refused.message


@pytest.mark.parametrize(
    "arguments",
    [
        ("train",),
        ("work", "worker"),
        ("work", "supernode"),
        ("work",),
        ("contribute",),
        ("withdraw",),
        ("pull", "sha256:" + "0" * 64),
        ("eval", "sha256:" + "0" * 64),
        ("coordinate",),
        ("coordinate", "data-plane"),
        ("coordinate", "superlink"),
        ("coordinate", "run"),
        ("admit", "x"),
        ("assemble",),
        ("report",),
    ],
)
def test_a_directory_that_is_no_home_stays_as_it_was(tmp_path: Path, arguments, trained, on_stage) -> None:
    stage = on_stage(trained)
    folder = tmp_path / "empty"
    folder.mkdir()
    refused = stage.here(*arguments, "--dir", folder, code=3)
    assert "motet" in refused.message or "make it with" in refused.message
    assert not list(folder.iterdir())
    absent = tmp_path / "absent"
    stage.here(*arguments, "--dir", absent, code=3)
    assert not absent.exists()


def test_a_charter_edited_by_hand_stops_the_coordinator_and_says_so(trained, on_stage) -> None:
    stage = on_stage(trained)
    charter = stage.coordinator / "charter.toml"
    good = charter.read_text()
    charter.write_text(good.replace('name = "stage"', 'name = "other"'))
    refused = stage.here("assemble", "--dir", stage.coordinator, code=3)
    assert "undo the change" in refused.message
    charter.write_text(good + "\nunknown_key = 1\n")
    assert "unknown_key" in stage.here("assemble", "--dir", stage.coordinator, code=3).message
    charter.write_text(good)
    stage.here("assemble", "--dir", stage.coordinator, "--dry-run")


def resigned(path: Path, *, keep_coordinator: bool) -> SigningKey:
    """Sign the charter with another key."""
    from motet.protocols.charter import Charter

    key = SigningKey.generate()
    charter = Signed.parse(path.read_bytes()).open(Charter)
    named = charter.coordinator if keep_coordinator else key.public
    path.write_bytes(seal(charter.model_copy(update={"coordinator": named}), key).canonical())
    return key


def test_a_charter_signed_by_another_key(trained, on_stage) -> None:
    stage = on_stage(trained)
    resigned(stage.owner("medicine") / "charter.signed.json", keep_coordinator=False)
    refused = stage.here("train", "--dir", stage.owner("medicine"), code=4)
    assert "wanted" in refused.message
    resigned(stage.coordinator / "charter.signed.json", keep_coordinator=True)
    assert "wanted" in stage.here("assemble", "--dir", stage.coordinator, code=4).message


def join(stage, home: Path, *options: object, code: int = 0):
    charter = stage.coordinator / "charter.signed.json"
    named = ("--name", "late", "--data", "*.txt", "--licence", "CC0-1.0")
    return stage.motet("join", charter, "--dir", home, *named, *options, code=code)


def test_joining_under_another_coordinators_key_leaves_no_home(trained, on_stage) -> None:
    stage = on_stage(trained)
    home = stage.owner("late")
    wrong = join(stage, home, "--coordinator", SigningKey.generate().public, "--yes", code=4)
    assert "wanted" in wrong.message
    assert not home.exists()
    assert (
        "ask for it"
        in stage.motet(
            *("join", stage.coordinator / "charter.signed.json", "--dir", home, "--name", "late"),
            *("--data", "x", "--licence", "CC0-1.0"),
            text="n\n",
            code=3,
        ).message
    )
    assert not home.exists()


def test_joining_twice_keeps_the_first_home(trained, on_stage) -> None:
    stage = on_stage(trained)
    home = stage.owner("late")
    join(stage, home, "--yes")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert "choose another folder" in join(stage, home, "--yes", code=3).message
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_a_name_or_key_that_is_taken_is_not_enrolled(trained, on_stage) -> None:
    stage = on_stage(trained)
    home = stage.owner("other")
    named = ("--name", "medicine", "--data", "x", "--licence", "CC0-1.0", "--yes")
    stage.motet("join", stage.coordinator / "charter.signed.json", "--dir", home, *named)
    taken = stage.motet("admit", home / "join-request.json", "--dir", stage.coordinator, code=11)
    assert "choose another name" in taken.message
    for wrong in ("Anchor", "anchor", "a b"):
        stage.motet(
            *("join", stage.coordinator / "charter.signed.json", "--dir", stage.owner("x"), "--name", wrong),
            *("--data", "x", "--licence", "CC0-1.0", "--yes"),
            code=3,
        )
    assert not stage.owner("x").exists()


@pytest.mark.parametrize("setting", ["training.steps=0", "training.stepz=3", "steps=3", "data=3", "training.steps"])
def test_settings_that_owner_toml_does_not_know(trained, on_stage, setting: str) -> None:
    stage = on_stage(trained)
    refused = join(stage, stage.owner("late"), "--yes", "--set", setting, code=3)
    assert setting.partition("=")[0].rpartition(".")[2] in refused.message
    assert not stage.owner("late").exists()


def test_init_does_not_touch_a_folder_in_use(trained, on_stage) -> None:
    stage = on_stage(trained)
    before = {path: path.read_bytes() for path in stage.coordinator.rglob("*") if path.is_file()}
    addresses = ("--data-plane", "127.0.0.1:1", "--flower", "127.0.0.1:2")
    anchor = ("--anchor", stage.coordinator / "anchor", "--public-text", stage.coordinator / "anchor" / "public.jsonl")
    again = stage.motet("init", stage.coordinator, "--name", "again", *anchor, *addresses, code=3)
    assert "choose another one" in again.message
    assert {path: path.read_bytes() for path in stage.coordinator.rglob("*") if path.is_file()} == before


def test_a_demo_does_not_replace_what_is_no_demo(tmp_path: Path, trained, on_stage) -> None:
    stage = on_stage(trained)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    refused = stage.motet("demo", "--dir", tmp_path / "precious", code=3)
    assert "name another folder" in refused.message
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"
    file = tmp_path / "file"
    file.touch()
    stage.motet("demo", "--dir", file, code=3)
    assert file.exists()
