"""What `motet serve` refuses before it loads anything."""

from pathlib import Path

import pytest

from motet.cli import run


@pytest.mark.parametrize("options", [["--name", "demo:law"], []], ids=["its name", "the folder's"])
def test_a_model_is_not_called_what_would_name_experts(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(tmp_path / ("demo" if options else "demo:law")), *options]) == 2
    assert "'demo:law', wanted one without a colon" in " ".join(capsys.readouterr().err.replace("│", " ").split())
