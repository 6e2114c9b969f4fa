"""Contributions that are not as they should be: forged by their owner, or damaged on the way.

forge(stage, "medicine", change=poison, version=2)     # a file for `motet admit`, signed
tamper(stage.file("medicine"), -5000)                  # one bit of it; cut(file, 100) leaves the first bytes
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from motet.protocols.canonical import file_digest
from motet.protocols.codec import Header, TensorHeader, UpdateReader
from motet.protocols.codec.changes import narrow
from motet.protocols.codec.frames import FrameWriter
from motet.protocols.container import UPDATE_NAME, write_container
from motet.protocols.contribution import CodecRecord, Contribution
from motet.protocols.signing import Signed, SigningKey, seal

DTYPES = {"uint16": "BF16", "float32": "F32"}


def key_of(home: Path) -> SigningKey:
    return SigningKey.load(home / "keys" / "owner.pem")


def forge(stage, of: str, *, change: Callable[[dict], None] | None = None, **fields: object) -> Path:
    """A file that the owner signed, whose manifest or tensors are not as they should be."""
    outbox, update = stage.outbox(of), stage.root / "forged.motetup"
    shutil.copyfile(outbox / UPDATE_NAME, update)
    described: dict[str, object] = {}
    if change is not None:
        tensors, anchor = read_tensors(update)
        change(tensors)
        write_tensors(update, tensors, anchor)
        described["codec"] = CodecRecord(method="raw")
    manifest = Signed.parse((outbox / "contribution.json").read_bytes()).open(Contribution)
    described |= {"update": file_digest(update), "update_bytes": update.stat().st_size}
    signed = seal(manifest.model_copy(update=described | fields), key_of(stage.owner(of)))
    write_container(stage.root / "forged.motet", signed, update)
    return stage.root / "forged.motet"


def read_tensors(update: Path) -> tuple[dict, str]:
    """An update's tensors, bf16 as their bits, and the digest of its anchor."""
    with UpdateReader(update) as reader:
        return {spec.name: narrow(reader.tensor(spec.name), spec.dtype) for spec in reader.specs}, reader.header.anchor


def write_tensors(update: Path, tensors: dict, anchor: str) -> None:
    """A raw update file of whatever there is: none of an encoder's scruples."""
    described = {
        "name": "",
        "dtype": "",
        "shape": (),
        "method": "raw",
        "scale": None,
        "row_scales": None,
        "block": None,
    }
    headers = [
        TensorHeader.model_construct(
            **described | {"name": name, "dtype": DTYPES[str(tensor.dtype)], "shape": tensor.shape}
        )
        for name, tensor in tensors.items()
    ]
    empty = Header(anchor=anchor, tensors=())
    header = Header.model_construct(**dict(empty) | {"tensors": tuple(headers)})
    update.unlink()
    with FrameWriter(update, header) as writer:
        for index, tensor, span in header.spans():
            values = tensors[tensor.name].reshape(-1)[span.start : span.start + span.count]
            writer.write(index, span.number, values.tobytes())


def one_tensor(tensors: dict) -> str:
    return next(name for name in sorted(tensors) if name.endswith("gate_proj.weight"))


def poison(tensors: dict) -> None:
    tensors[one_tensor(tensors)][0, 0] = 0x7FC0


def crop(tensors: dict) -> None:
    tensors[one_tensor(tensors)] = tensors[one_tensor(tensors)][1:]


def widen(tensors: dict) -> None:
    tensors[one_tensor(tensors)] = tensors[one_tensor(tensors)].astype("float32")


def drop(tensors: dict) -> None:
    del tensors[one_tensor(tensors)]


def add(tensors: dict) -> None:
    tensors["model.embed_tokens.weight"] = tensors[one_tensor(tensors)]


def escape(tensors: dict) -> None:
    tensors["../../etc/passwd"] = tensors[one_tensor(tensors)]


def tamper(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def cut(path: Path, offset: int) -> None:
    path.write_bytes(path.read_bytes()[:offset])
