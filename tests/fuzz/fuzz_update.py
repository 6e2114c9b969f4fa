"""An atheris target: an update file is opened, verified, described and applied; anything but CodecError is a find.

    make fuzz                                                  # one minute, with the seeds of the vectors
    python tests/fuzz/fuzz_update.py -max_total_time=60 SCRATCH SEEDS

An input is either a file as it is, or, so that mutations get behind the checksums, a file without any: the header's
JSON, a newline, and for each chunk a u16 length and its payload, whose deflated sections the seeds hold in stored
blocks. `assemble` adds magic, checksums and footer. A small file must mean the same to `reference` as to the codec.
"""

import importlib.util
import json
import os
import struct
import sys
import tempfile
import warnings
from contextlib import nullcontext, suppress
from itertools import chain, repeat
from pathlib import Path
from types import ModuleType

try:
    import atheris
except ImportError:  # the tests run the target without it, over the seeds
    atheris = None

CODEC = Path(__file__).parents[1] / "protocols" / "codec"
MAX_VALUES = 1 << 13
"""Files that claim more are opened and looked through, but the slow second decoder is spared them."""


def _load(name: str) -> ModuleType:
    """A module of the codec's tests, which are no package."""
    spec = importlib.util.spec_from_file_location(f"codec_tests.{name}", CODEC / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sys.modules.setdefault("codec_tests", ModuleType("codec_tests"))
reference, surgery = _load("reference"), _load("surgery")

with atheris.instrument_imports(include=["motet.protocols.codec"]) if atheris else nullcontext():
    from motet.protocols.codec import UpdateReader, apply, describe, verify
    from motet.protocols.codec.frames import MAGIC
    from motet.protocols.errors import CodecError
    from motet.protocols.tensor_files import DTYPE_BYTES

SCRATCH = tempfile.TemporaryDirectory(prefix="motet-fuzz-")
FILE = Path(SCRATCH.name) / "fuzzed.motetup"


def assemble(data: bytes) -> bytes:
    """The file that an input stands for."""
    if data.startswith(MAGIC):
        return data
    text, _, rest = data.partition(b"\n")
    frames = []
    for tensor, number in chain(_places(text), repeat((0, 0))):
        if len(rest) < 2:
            break
        (size,) = struct.unpack_from("<H", rest)
        frames.append(surgery.Frame(tensor=tensor, number=number, payload=rest[2 : 2 + size]).bytes())
        rest = rest[2 + size :]
    return surgery.file_of(text, frames)


def _places(text: bytes) -> list[tuple[int, int]]:
    """Where a header's frames belong; none if it is not one."""
    with suppress(reference.RefusedError):
        header = reference.read_header(text)
        sizes = [len(reference.chunks(tensor, header["chunk_values"])) for tensor in header["tensors"]]
        return [(tensor, number) for tensor, size in enumerate(sizes) for number in range(size)]
    return []


def look(path: Path) -> dict[str, bytes]:
    """Everything that is done to a stranger's file; the values in it as bytes if there are few."""
    verify(path)
    json.loads(describe(path).model_dump_json())
    with UpdateReader(path) as update, UpdateReader(path, wanted=update.specs, anchor=update.header.anchor,
                                                    base=update.header.base) as again:  # fmt: skip
        for spec, _, words in apply(
            again, lambda spec, start, count: bytes(count * DTYPE_BYTES[spec.dtype]), again.specs
        ):
            assert words.nbytes <= spec.nbytes
        if update.header.values > MAX_VALUES:
            return {}
        return {name: update.tensor(name).tobytes() for name in (spec.name for spec in update.specs)}


def one_input(data: bytes) -> None:
    """Try one input.

    Raises:
        AssertionError, or anything else: a find.
    """
    whole = assemble(data)
    FILE.unlink(missing_ok=True)  # overwriting would wait for the disk
    FILE.write_bytes(whole)
    found, problem = _found()
    if problem and not (problem.startswith(FILE.name) and problem.isprintable()):
        raise AssertionError(f"a message that does not say where: {problem!r}")
    if len(whole) < 4 * MAX_VALUES and _claims() <= MAX_VALUES:
        wanted = _wanted(whole)
        too_large = "is not finite in" in problem  # the anchor's dtype, here the update's own, may not hold it
        if found != wanted and not too_large:
            raise AssertionError(f"codec and reference differ: {problem or 'taken'}; wanted {str(wanted)[:80]}")


def _found() -> tuple[dict[str, bytes] | None, str]:
    """What the codec finds in the file, or says."""
    try:
        return look(FILE), ""
    except CodecError as error:
        return None, str(error)


def _wanted(whole: bytes) -> dict[str, bytes] | None:
    """What docs/format.md finds in a file; None if it refuses it."""
    with suppress(reference.RefusedError):
        return {name: values.tobytes() for name, values in reference.decode(whole)[1].items()}
    return None


def _claims() -> int:
    """How many values the file's header claims to hold; 0 if the codec refuses it."""
    with suppress(CodecError), UpdateReader(FILE) as update:
        return update.header.values
    return 0


if __name__ == "__main__":
    if atheris is None:
        sys.exit("fuzz_update: atheris is not installed: pip install 'motet[fuzz]' where it has a wheel (Linux, macOS)")
    os.environ["MOTET_CODEC_PATH"] = "numpy"  # what a coordinator reads strangers' files with
    warnings.simplefilter("error")
    atheris.Setup(sys.argv, lambda data: one_input(bytes(data)))
    atheris.Fuzz()
