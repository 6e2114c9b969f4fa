"""What control groups leave of a machine's memory, on the files of kernels, containers and schedulers."""

from pathlib import Path

import pytest

from motet.client.control_groups import group_free_bytes

GIB = 1 << 30


def group(folder: Path, *, limit: object, used: int, cache: int = 0, high: object = "max") -> None:
    """One group of version 2."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"memory.max": limit, "memory.high": high, "memory.current": used}
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon {used - cache}\nfile {cache}\ninactive_file {cache}\nactive_file 0\n")


def older(folder: Path, *, limit: int, used: int, cache: int = 0) -> None:
    """One group of version 1; of those under it memory.stat tells in lines of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache {cache}\ninactive_file 0\ntotal_inactive_file {cache}\n")


def member(root: Path, *lines: str) -> Path:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    return root / "sys" / "fs" / "cgroup"


def test_no_group_limits_nothing(tmp_path: Path) -> None:
    assert group_free_bytes(tmp_path) is None
    group(member(tmp_path, "0::/user.slice"), limit="max", used=GIB)
    assert group_free_bytes(tmp_path) is None


def test_a_container_sees_its_own_group_at_the_root(tmp_path: Path) -> None:
    group(member(tmp_path, "0::/"), limit=4 * GIB, used=GIB)
    assert group_free_bytes(tmp_path) == 3 * GIB


@pytest.mark.parametrize("path", ["/system.slice/docker-1f.scope", "/../../job_7"])
def test_so_does_one_whose_path_lies_outside(tmp_path: Path, path: str) -> None:
    group(member(tmp_path, f"0::{path}"), limit=4 * GIB, used=GIB)
    assert group_free_bytes(tmp_path) == 3 * GIB


@pytest.mark.parametrize("level", range(1, 5))
def test_the_tightest_limit_of_a_job_decides_wherever_it_is(tmp_path: Path, level: int) -> None:
    parts = ["system.slice", "slurmstepd.scope", "job_7", "step_0"]
    mount = member(tmp_path, f"0::/{'/'.join(parts)}")
    for depth in range(1, 5):
        limit = 2 * GIB if depth == level else 64 * GIB if depth == 1 else "max"
        group(mount.joinpath(*parts[:depth]), limit=limit, used=GIB)
    assert group_free_bytes(tmp_path) == GIB


def test_what_has_been_read_from_files_is_free(tmp_path: Path) -> None:
    scope = member(tmp_path, "0::/a.scope") / "a.scope"
    group(scope, limit=4 * GIB, used=4 * GIB, cache=3 * GIB)
    assert group_free_bytes(tmp_path) == 3 * GIB
    (scope / "memory.stat").write_text("a line that is no number\n")
    assert group_free_bytes(tmp_path) == 0
    group(scope, limit=GIB, used=2 * GIB)
    assert group_free_bytes(tmp_path) == 0


def test_a_group_is_held_back_before_its_limit(tmp_path: Path) -> None:
    group(member(tmp_path, "0::/a.scope") / "a.scope", limit=8 * GIB, high=3 * GIB, used=GIB)
    assert group_free_bytes(tmp_path) == 2 * GIB


def test_groups_of_version_1(tmp_path: Path) -> None:
    mount = member(tmp_path, "11:cpu,cpuacct:/other", "4:memory:/slurm/uid_1/job_7", "0::/unified") / "memory"
    older(mount, limit=0x7FFFFFFFFFFFF000, used=9 * GIB)
    older(mount / "slurm" / "uid_1" / "job_7", limit=4 * GIB, used=2 * GIB, cache=GIB)
    older(mount / "other", limit=1, used=0)
    assert group_free_bytes(tmp_path) == 3 * GIB
