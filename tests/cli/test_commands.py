"""What every command has in common: help, JSON on stdout and nothing else there, exit codes as README lists them."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from motet.cli import command_line
from motet.protocols import errors

README = Path(__file__).parents[2] / "README.md"
COMMANDS = (
    "ablate",
    *("admit", "assemble", "bench", "contribute", "coordinate", "demo", "doctor", "eval", "harness", "init", "inspect"),
    *("api-key", "chat", "export-adapter", "squeeze", "terms", "usage"),
    *("join", "pack", "pull", "report", "serve", "train", "try", "unpack", "verify", "version", "withdraw", "work"),
)
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def motet(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "motet.cli", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == code, done.stderr
    return done


def commands() -> dict[str, click.Command]:
    group = command_line()
    assert isinstance(group, click.Group)
    return group.commands


def error_classes() -> dict[str, type[errors.MotetError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.MotetError)
    }


def test_the_commands_are_these() -> None:
    assert sorted(commands()) == sorted(COMMANDS)


def test_help_names_every_command() -> None:
    said = motet("--help")
    assert said.stderr == ""
    for name in COMMANDS:
        assert re.search(rf"^\W*{name}\b", said.stdout, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_and_every_option(name: str) -> None:
    command = commands()[name]
    assert command.help
    assert command.help.splitlines()[0].endswith((".", "?"))
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_works(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from motet.cli import run

    assert run([name, "--help"]) == 0
    said = capsys.readouterr()
    assert "Usage: motet " + name in said.out
    assert said.err == ""


def test_what_reads_has_json() -> None:
    reading = ("ablate", "admit", "assemble", "contribute", "doctor", "eval", "pull", "report", "train", "version")
    for name in (*reading, "withdraw"):
        assert "--json" in {option for parameter in commands()[name].params for option in parameter.opts}, name


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("train",), ("version", "--nonsense"), ("coordinate", "x")])
def test_a_wrong_call_is_2(arguments: tuple[str, ...]) -> None:
    wrong = motet(*arguments, code=2)
    assert "Usage" in wrong.stderr + wrong.stdout
    assert "Traceback" not in wrong.stderr


def test_version_in_json() -> None:
    said = motet("version", "--json")
    versions = json.loads(said.stdout)
    assert versions["motet"]
    assert versions["torch"].startswith("2.")
    assert versions["python"].startswith("3.")
    assert said.stderr == ""


def test_doctor_in_json_anywhere(tmp_path: Path) -> None:
    said = motet("doctor", "--dir", str(tmp_path), "--json")
    checks = {check["name"]: check for check in json.loads(said.stdout)}
    assert {"python", "disk", "device"} <= set(checks)
    assert all(check["status"] in ("ok", "warn") and check["message"] for check in checks.values())
    assert said.stderr == ""


def test_doctor_finds_a_damaged_charter(tmp_path: Path) -> None:
    (tmp_path / "charter.signed.json").write_text("{}")
    said = motet("doctor", "--dir", str(tmp_path), "--json", code=1)
    (charter,) = [check for check in json.loads(said.stdout) if check["name"] == "charter"]
    assert charter["status"] == "fail"
    assert "fetch it again" in charter["message"]


def test_an_error_is_one_line_on_stderr_and_nothing_on_stdout(tmp_path: Path) -> None:
    said = motet("report", "--dir", str(tmp_path), "--json", code=3)
    assert said.stdout == ""
    assert said.stderr.startswith("motet: ")
    assert said.stderr.count("\n") == 1


def test_logs_go_to_stderr_only(tmp_path: Path) -> None:
    said = motet("--verbose", "version", "--json")
    assert json.loads(said.stdout)["motet"]


def test_a_reader_that_goes_away_is_no_error() -> None:
    line = [sys.executable, "-m", "motet.cli", "version", "--json"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        said = command.stderr.read()
    assert said == b""
    assert command.returncode == 0


def test_every_error_has_an_exit_code_of_its_kind_and_none_of_the_shells() -> None:
    for name, each in error_classes().items():
        if name != "MotetError":
            assert 3 <= each.exit_code < 126, name
            assert issubclass(each, errors.MotetError)


def test_readme_lists_the_exit_codes() -> None:
    """A row for each code, with the names of its classes: `| 3 | ConfigurationError | ... |`."""
    rows = re.findall(r"^\|\s*`?(\d+)`?\s*\|(.*)\|\s*$", README.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {int(code): set(re.findall(r"\b[A-Z][A-Za-z]+\b", text)) for code, text in rows}
    for name, each in error_classes().items():
        assert each.exit_code in listed, f"README has no row for {each.exit_code}, {name}"
        assert name in listed[each.exit_code], f"README's row {each.exit_code} does not name {name}"
    names = {name for found in listed.values() for name in found if name.endswith(("Error", "Refused", "Broken"))}
    assert names <= set(error_classes())
    assert {0, 2, 130} <= set(listed)
