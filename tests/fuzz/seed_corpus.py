"""The seeds of the fuzz target, made of the vectors: `python tests/fuzz/seed_corpus.py FOLDER`."""

import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_update import surgery

VECTORS = Path(__file__).parents[1] / "vectors"


def stored(content: bytes) -> bytes:
    """A deflated section in stored blocks, which stay streams when their bytes are mutated."""
    coder = zlib.compressobj(0, zlib.DEFLATED, -15)
    return surgery.sized(coder.compress(content) + coder.flush())


def seed(parts: surgery.Parts) -> bytes:
    """The input that stands for a file."""
    payloads = []
    for at in range(len(parts.frames)):
        found = surgery.fields(parts, at)
        payloads.append(b"".join(field.data if field.content is None else stored(field.content) for field in found))
    return parts.text + b"\n" + b"".join(struct.pack("<H", len(payload)) + payload for payload in payloads)


def one_tensor(parts: surgery.Parts, tensor: int) -> surgery.Parts:
    """A file of one of the tensors: small seeds are mutated best."""
    frames = tuple(replace(frame, tensor=0) for frame in parts.frames if frame.tensor == tensor)
    return replace(parts, frames=frames).with_header(tensors=[parts.header["tensors"][tensor]])


def seeds() -> dict[str, bytes]:
    """Inputs by file name."""
    found = {}
    for path in sorted(VECTORS.glob("*.motetup")):
        parts = surgery.take_apart(path.read_bytes())
        for tensor, described in enumerate(parts.header["tensors"]):
            kind = path.stem if len(described["shape"]) == 2 else f"any-{described['method']}-{described['dtype']}"
            found[f"{kind}.seed"] = seed(one_tensor(parts, tensor))
        if len(path.read_bytes()) < 1000:
            found[f"{path.stem}.whole"] = path.read_bytes()
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (folder / name).write_bytes(data)
