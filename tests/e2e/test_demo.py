"""`motet demo` from end to end, once: what it prints, what it leaves, and what ran meanwhile."""

import json
import math
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from motet.protocols.report import Report, row_names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

OWNERS = ("medicine", "mathematics", "code")
ROLES = {
    "SuperLink": ("flower-superlink",),
    "data plane": ("coordinate data-plane",),
    "run": ("coordinate run",),
    "ServerApp": ("flwr-serverapp",),
    "ClientApp": ("flwr-clientapp",),
    **{f"SuperNode of {name}": ("flower-supernode", f"owners/{name}") for name in OWNERS},
    **{f"worker of {name}": ("work worker", f"owners/{name}") for name in OWNERS},
}
STOCK = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name == "motet" or name.startswith("motet."):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Wall())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokens = AutoTokenizer.from_pretrained(sys.argv[1])("Acute ", return_tensors="pt").input_ids
assert torch.isfinite(model(tokens).logits).all()
print(type(model).__name__, model.config.num_experts)
"""


class Watch(threading.Thread):
    """Notes every process whose command line names the demo's directory, and its environment."""

    def __init__(self, run) -> None:
        super().__init__(daemon=True)
        self.run_, self.lines, self.environments = run, {}, {}
        self.strangers: dict[int, str] = {}

    def run(self) -> None:
        while self.run_.process.poll() is None:
            for pid, line in self.run_.children().items():
                if self.lines.get(pid) != line:
                    self.lines[pid] = line
                    with suppress(OSError):
                        self.environments[pid] = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            self._look_for_strangers()
            time.sleep(0.5)  # what is looked for lives for seconds

    def _look_for_strangers(self) -> None:
        """Descendants that do not name the directory."""
        import psutil

        with suppress(psutil.Error):
            for process in psutil.Process(self.run_.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    if line and str(self.run_.directory) not in line and process.create_time() < time.time() - 1:
                        self.strangers[process.pid] = line

    def missing(self) -> list[str]:
        seen = self.lines.values()
        return [role for role, words in ROLES.items() if not any(all(w in line for w in words) for line in seen)]


def test_the_demo(demo) -> None:
    run = demo("--json")
    watch = Watch(run)
    watch.start()
    out, said = run.process.communicate(timeout=390)
    watch.join()
    assert run.process.returncode == 0, said
    assert run.children() == {}

    check_processes(watch)
    printed = json.loads(out)
    assert printed == json.loads((run.directory / "report.json").read_bytes())
    report = Report.parse((run.directory / "report.json").read_bytes())
    check_report(report)
    check_composite(report)
    assert "Traceback" not in said
    assert "Warning" not in said


def check_processes(watch: Watch) -> None:
    assert watch.missing() == []
    assert watch.strangers == {}
    for pid, environment in watch.environments.items():
        assert b"FLWR_TELEMETRY_ENABLED=0" in environment, watch.lines[pid]
        assert b"FLWR_DISABLE_UPDATE_CHECK=1" in environment, watch.lines[pid]
        assert b"HF_HUB_DISABLE_TELEMETRY=1" in environment, watch.lines[pid]


def check_report(report: Report) -> None:
    assert report.domains[0] == "public"
    assert set(report.domains[1:]) == set(OWNERS) == set(report.composite.members) == set(report.wire)
    assert set(report.bits_per_byte) == set(row_names(report.experts))
    for row in report.bits_per_byte.values():
        assert set(row) == set(report.domains)
        assert all(math.isfinite(bits) and 0 < bits < 10 for bits in row.values())
    for wire in report.wire.values():
        assert wire.sent_bytes >= wire.update_bytes > 0
    assert report.seconds["total"] > 0
    assert {sample.expert for sample in report.samples} == set(OWNERS)
    assert all(sample.with_expert != sample.without_expert for sample in report.samples)
    assert report.shortfalls() == []
    for name in OWNERS:
        assert report.bits_per_byte[f"expert:{name}"][name] < report.bits_per_byte["anchor"][name]
        assert report.opt_out_cost(name) > 0.05


def check_composite(report: Report) -> None:
    from motet.moe import MotetForCausalLM
    from motet.protocols.composite_manifest import verify_composite

    path, stock = Path(report.composite.path), Path(str(report.composite.stock_path))
    assert verify_composite(path).digest == report.composite.digest
    assert sorted(MotetForCausalLM.from_pretrained(path).config.names) == sorted(["anchor", *OWNERS])
    loaded = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STOCK), str(stock)], capture_output=True, text=True, check=False
    )
    assert loaded.stdout.split() == ["FlexOlmoForCausalLM", "4"], loaded.stderr
