"""Memory does not grow with the model: a child encodes and applies updates that lie in files, and says what it took."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from motet.protocols.codec.kernels import PATH_VARIABLE
from motet.protocols.tensor_files import TensorSpec, TensorWriter

from .conftest import bf16

LIMIT_MB = 128

WORK = """
import json, sys
from pathlib import Path
from motet.protocols.codec import CodecSettings, FileSource, UpdateReader, apply, encode
from motet.protocols.codec.header import bytes_of
from motet.protocols.tensor_files import TensorReader

WAYS = [CodecSettings(method="ternary", density=0.5), CodecSettings(method="lossless"), CodecSettings(method="levels")]

def work(source, ways):
    out = source.with_suffix(".motetup")
    for way in ways:
        with FileSource(source) as values:
            encode(out, values, values.specs, way, anchor="sha256:" + "a" * 64, workers=2)
        took(f"{way.method}, encode")
        with UpdateReader(out) as update, TensorReader(source) as anchor:
            stored = lambda spec, start, count: anchor.slice(spec.name, bytes_of(spec, start), bytes_of(spec, count))
            for _ in apply(update, stored, update.specs, workers=2):
                pass
        took(f"{way.method}, apply")

def took(what):
    peak[what] = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

peak = {}
small, large = map(Path, sys.argv[1:])
work(small, WAYS)
base = peak["levels, apply"]
work(large, WAYS)
print(json.dumps({what: megabytes - base for what, megabytes in peak.items()}))
"""


def difference(path: Path, parameters: int) -> Path:
    """Five tensors of rows of 2048, of noise that repeats: only sizes matter."""
    rows = parameters // 5 // 2048
    specs = [TensorSpec(name=f"model.layers.{layer}", dtype="BF16", shape=(rows, 2048)) for layer in range(5)]
    noise = bf16(np.random.default_rng(0).standard_normal(1 << 20) * 1e-3).tobytes()
    with TensorWriter(path, specs) as writer:
        for spec in specs:
            whole, rest = divmod(spec.nbytes, len(noise))
            writer.write(spec.name, [*[noise] * whole, noise[:rest]])
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own account of a process's peak")
@pytest.mark.parametrize(("parameters", "kernels"), [(20_000_000, "native"), (60_000_000, "numpy")])
def test_extra_memory_is_bounded_at_any_size(
    parameters: int, kernels: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    small, large = difference(tmp_path / "small", 100_000), difference(tmp_path / "large", parameters)
    command = [sys.executable, "-c", WORK, str(small), str(large)]
    environment = {**os.environ, PATH_VARIABLE: kernels}
    child = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True, env=environment)
    extra = json.loads(child.stdout)
    record_property("extra_mb", extra)
    assert len(extra) == 6
    assert max(extra.values()) < LIMIT_MB, extra
