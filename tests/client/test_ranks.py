"""Several processes that share a training: the same expert, sharded moments, and what becomes of it when one dies."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from motet.client.checkpoints import Checkpoints
from motet.client.devices import require_devices
from motet.client.owner import OwnerHome, TrainingConfig
from motet.client.preparation import Material, prepare
from motet.client.ranks import run_ranks
from motet.client.training import Progress, TrainedExpert, expert_model, fingerprint, train
from motet.protocols.errors import ConfigurationError, StorageError, TrainingError
from tests.client.rank_work import refuse

TOGETHER = {"processes": 2, "gradient_accumulation": 2, "steps": 4}


def both(home: OwnerHome, folder: Path, **told) -> TrainedExpert | None:
    return train(prepare(home), home.config.training, folder, **told)


def moments(material: Material, config: TrainingConfig, folder: Path) -> dict[str, torch.Tensor]:
    _, parameters = expert_model(material)
    optimizer = torch.optim.AdamW(parameters.values())
    assert Checkpoints(folder=folder, fingerprint=fingerprint(material, config)).restore(parameters, optimizer) == 4
    return {name: optimizer.state[parameter]["exp_avg_sq"] for name, parameter in parameters.items()}


@pytest.mark.slow
def test_two_processes_make_the_expert_that_one_makes(make_home, tmp_path: Path) -> None:
    home = make_home(training=TOGETHER)
    material, settings = prepare(home), home.config.training
    alone, seen, seen_alone = settings.model_copy(update={"processes": 1}), list[Progress](), list[Progress]()
    assert fingerprint(material, alone) == fingerprint(material, settings)
    one = train(material, alone, tmp_path / "one", on_progress=seen_alone.append)
    two = train(material, settings, tmp_path / "two", on_progress=seen.append)
    assert one is not None
    assert two is not None
    assert [progress.step for progress in seen] == [1, 2, 3, 4]
    assert [progress.loss for progress in seen] == pytest.approx([progress.loss for progress in seen_alone], abs=1e-5)
    assert one.record == two.record
    anchor = material.anchor.ffn()
    for name in anchor:
        change = (one.ffn[name] - anchor[name].float()).abs().max()
        assert (one.ffn[name] - two.ffn[name]).abs().max() < 1e-3 * change
    left, right = (moments(material, settings, tmp_path / name) for name in ("one", "two"))
    assert all(torch.allclose(left[name], right[name], rtol=1e-3, atol=1e-12) for name in left)


def ranks_here() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_by_name_and_the_next_goes_on(make_home, tmp_path: Path) -> None:
    home = make_home(training={"processes": 2, "steps": 40, "checkpoint_every": 2})
    seen, resumed, alone = list[int](), list[int](), list[int]()

    def kill_one(progress: Progress) -> None:
        seen.append(progress.step)
        if progress.step == 5:
            assert len(ranks_here()) == 2
            ranks_here()[1].kill()

    with pytest.raises(TrainingError, match=r"rank \d of 2, which was killed by SIGKILL; the last checkpoint is kept"):
        both(home, tmp_path, on_progress=kill_one)
    assert not ranks_here()
    assert seen[-1] < 40
    # Both go on from a checkpoint, and stop between the same two steps when asked to.
    told = {"on_progress": lambda at: resumed.append(at.step), "should_stop": lambda: len(resumed) > 2}
    assert both(home, tmp_path, **told) is None
    assert 4 < resumed[0] <= seen[-1] + 2
    assert resumed[-1] < 40
    # Whoever has but one device left goes on alone.
    settings = home.config.training.model_copy(update={"processes": 1})
    assert train(prepare(home), settings, tmp_path, on_progress=lambda at: alone.append(at.step)) is not None
    assert alone == list(range(resumed[-1] + 1, 41))
    # What is finished is not trained again, by whomever.
    assert both(home, tmp_path, on_progress=alone.append) is not None
    assert alone[-1] == 40


@pytest.mark.slow
def test_what_a_process_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # what a process is to do, it imports
    with pytest.raises(StorageError, match="make some"):
        run_ranks(refuse, (), ranks=2, on_progress=print, should_stop=lambda: False)


STARTER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from motet.client.ranks import run_ranks
from rank_work import wait_for_ever
if __name__ == "__main__":
    run_ranks(wait_for_ever, (Path(sys.argv[1]),), ranks=2, on_progress=print, should_stop=lambda: False)
"""


@pytest.mark.slow
def test_they_do_not_outlive_who_started_them(tmp_path: Path) -> None:
    script, started = tmp_path / "starter.py", tmp_path / "started"
    started.mkdir()
    script.write_text(STARTER)
    starter = subprocess.Popen([sys.executable, str(script), str(started), str(Path(__file__).parent)])
    try:
        assert came_true(lambda: len(list(started.iterdir())) == 2)
    finally:
        starter.kill()
        starter.wait()
    assert came_true(lambda: not any(psutil.pid_exists(int(each.name)) for each in started.iterdir()))


def came_true(condition, seconds: float = 90) -> bool:
    deadline = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return true


def test_processes_are_refused_where_they_cannot_be(monkeypatch) -> None:
    with pytest.raises(ValueError, match="batch_size, processes: saw batch_size 8 for 3 processes"):
        TrainingConfig(processes=3)
    require_devices(TrainingConfig(processes=2, device="cpu"))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    require_devices(TrainingConfig(processes=2))
    require_devices(TrainingConfig(device="cuda:1"))
    with pytest.raises(ConfigurationError, match=r"processes = 4 .*wanted at most 2"):
        require_devices(TrainingConfig(processes=4))
    with pytest.raises(ConfigurationError, match="'cuda:1' with processes = 2"):
        require_devices(TrainingConfig(processes=2, device="cuda:1"))
