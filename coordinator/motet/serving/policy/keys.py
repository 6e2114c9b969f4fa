"""API keys: made here, told once, kept as hashes.

A key is 256 random bits, so that its SHA-256 tells nobody what it is, and a look-up by it tells nothing either.
Guarantees: the file is whole at any time and readable by its owner only; keys that are made or revoked count at once
on servers that are running.

    secret = make_key(path, tenant="clinic", note="the ward's tablet")   # "motet-..."; nothing else ever knows it
    Keyring(path).tenant_of(secret)                                      # "clinic"
    revoke_key(path, "3f9a01c2")
"""

import secrets
import threading
import time
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt

from motet.protocols.canonical import Digest, bytes_digest, hex_of, storage_errors, write_atomically
from motet.protocols.documents import Document, Name, Strict
from motet.protocols.errors import ConfigurationError, DocumentError
from motet.protocols.locks import locked

PREFIX = "motet-"
_ID_DIGITS = 12


class ApiKey(Strict):
    """What is kept of a key."""

    hash: Digest
    """Of the key as it is sent."""
    tenant: Name
    """Whose requests it is sent with."""
    made: NonNegativeInt
    """Seconds since the epoch."""
    note: str = Field("", max_length=200)
    """What its maker wants to remember."""

    @property
    def id(self) -> str:
        """The beginning of the hash: what the key is called where it must not be told."""
        return hex_of(self.hash)[:_ID_DIGITS]

    @staticmethod
    def id_of(secret: str) -> str:
        """What a key is called."""
        return hex_of(bytes_digest(secret.encode()))[:_ID_DIGITS]


class KeyFile(Document):
    """The file of keys."""

    schema_: Literal["motet.serving-keys/1"] = Field("motet.serving-keys/1", alias="schema")
    keys: tuple[ApiKey, ...] = Field((), max_length=4096)


def read_keys(path: Path) -> KeyFile:
    """The keys; none where there is no file yet. Raises ConfigurationError when it cannot be read."""
    try:
        return KeyFile.parse(path.read_bytes())
    except FileNotFoundError:
        return KeyFile()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; let the server's user read it") from error
    except DocumentError as error:
        raise ConfigurationError(f"{path}: {error}; restore it, or remove it and make new keys") from error


def make_key(path: Path, *, tenant: str, note: str = "") -> str:
    """Makes a key for a tenant, writes its hash, and returns it. Raises ConfigurationError and StorageError."""
    secret = PREFIX + secrets.token_urlsafe(32)
    made = ApiKey(hash=bytes_digest(secret.encode()), tenant=tenant, made=int(time.time()), note=note)
    with storage_errors(path, new=True):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock(path)):
        before = read_keys(path).keys
        _write(path, KeyFile(keys=(*before, made)))
    return secret


def revoke_key(path: Path, key: str) -> ApiKey:
    """Takes a key back, by its id, and returns what was kept of it. Raises ConfigurationError for an unknown one."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"saw no folder {path.parent}; name the policy that the key was made for")
    with locked(_lock(path)):
        before = read_keys(path).keys
        found = next((each for each in before if each.id == key), None)
        if found is None:
            known = ", ".join(each.id for each in before) or "none"
            raise ConfigurationError(f"saw the key {key}, wanted the id of one in {path}: {known}")
        _write(path, KeyFile(keys=tuple(each for each in before if each != found)))
    return found


class Keyring:
    """The keys of a running server, read again whenever the file changes."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError when the file cannot be read."""
        self._path, self._guard = path, threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._tenants: dict[str, str] = {}
        self.tenant_of("")

    def tenant_of(self, secret: str) -> str | None:
        """Whose key it is; None if it is nobody's. Raises ConfigurationError when the file cannot be read now."""
        with self._guard:
            seen = stamp(self._path)
            if seen != self._seen or seen is None:
                self._tenants = {each.hash: each.tenant for each in read_keys(self._path).keys}
                self._seen = seen
            return self._tenants.get(bytes_digest(secret.encode(errors="surrogateescape")))


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None if it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _lock(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _write(path: Path, keys: KeyFile) -> None:
    write_atomically(path, keys.canonical(), mode=0o600)
