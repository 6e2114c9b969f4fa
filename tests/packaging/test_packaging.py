"""What an installation exposes, and which rooms may know of each other."""

import ast
import importlib.metadata
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIDES = ("protocols", "client", "coordinator")


def modules(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*.py")) if not path.stem.endswith(("_pb2", "_pb2_grpc")))


def imported(path: Path) -> set[str]:
    """The dotted names that a module imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        out,
        ROOT,
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("motet-*.whl"))


def test_motet_is_a_namespace() -> None:
    assert list(ROOT.glob("*/motet/__init__.py")) == []


@pytest.mark.parametrize("side", SIDES)
def test_a_side_folder_holds_motet_and_nothing_else(side: str) -> None:
    assert [path.name for path in (ROOT / side).iterdir() if path.name != "__pycache__"] == ["motet"]


def test_the_editable_install_exposes_only_motet() -> None:
    names = [name for name, owners in importlib.metadata.packages_distributions().items() if "motet" in owners]
    assert [name for name in names if not name.startswith("_")] in ([], ["motet"])


@pytest.mark.parametrize(
    ("side", "forbidden"),
    [
        ("client", ("motet.coordinator", "motet.serving", "motet.demo")),
        ("coordinator", ("motet.client", "motet.demo")),
        ("protocols", ("motet.client", "motet.coordinator", "motet.serving")),
    ],
)
def test_arrows_point_one_way(side: str, forbidden: tuple[str, ...]) -> None:
    seen = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(ROOT / side)
        for name in sorted(imported(path))
        if name.startswith(forbidden)
    ]
    assert seen == []


def test_protocols_load_without_torch() -> None:
    folder = ROOT / "protocols" / "motet" / "protocols"
    names = [".".join(path.relative_to(ROOT / "protocols").with_suffix("").parts) for path in modules(folder)]
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_help_is_shown_without_torch() -> None:
    code = "import sys\nfrom motet.cli import run\nassert run(['--help']) == 0\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_wheel_holds_only_motet(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"motet"}
    assert "motet/__init__.py" not in names
    for wanted in (
        "motet/protocols/py.typed",
        "motet/moe/py.typed",
        "motet/client/py.typed",
        "motet/coordinator/py.typed",
        "motet/coordinator/flower_app/pyproject.toml",
        "motet/protocols/transfer/expert_transfer.proto",
        "motet/protocols/evaluation/templates/figures.html",
        "motet/serving/web/templates/playground.html",
        "motet/serving/web/static/pages.css",
        "motet/serving/web/static/htmx.min.js",
        "motet/serving/web/static/htmx.LICENSE.txt",
        "motet/demo/quickstart_files/anchor/model.safetensors",
        "motet/demo/quickstart_files/text/medicine.jsonl",
    ):
        assert wanted in names


def test_the_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True)
    # -S leaves out the .pth file of the editable install, so that only the wheel provides motet.
    code = (
        f"import sys; sys.path[:0] = [{str(target)!r}, {sysconfig.get_path('purelib')!r}]\n"
        "import motet; assert len(motet.__path__) == 1, list(motet.__path__)\n"
        "import motet.client, motet.coordinator, motet.demo.quickstart as q\n"
        "assert (q.directory() / 'anchor' / 'config.json').exists()\n"
        "from motet.cli import run; raise SystemExit(run(['version']))"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
