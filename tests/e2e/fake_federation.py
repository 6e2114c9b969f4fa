"""A coordinator's home of plain files, for the Flower test: shipped inside the test's own FAB.

The test writes `enrolled/*.json` and, in place of the data plane, `admitted/*`; this writes the rest.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from motet.coordinator.conduct import Federation
from motet.coordinator.server_app import serve
from motet.protocols.canonical import bytes_digest, digest_of, hex_of, write_atomically
from motet.protocols.contribution import Contribution, EvaluationReport, JoinRequest
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey, seal


class FileFederation:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.charter = (home / "charter.digest").read_text()

    def enrolled(self) -> Mapping[str, JoinRequest]:
        paths = (self.home / "enrolled").glob("[!.]*.json")
        requests = [Signed.parse(path.read_bytes()).open(JoinRequest) for path in paths]
        return {request.owner: request for request in requests}

    def admitted(self) -> Mapping[str, str]:
        paths = (self.home / "admitted").glob("[!.]*")
        return {f"ed25519:{path.name}": path.read_text() for path in paths}

    def expired(self) -> Mapping[str, str]:
        return {}

    def admit_inline(self, manifest: bytes, update: bytes) -> Signed:
        contribution = Signed.parse(manifest).open(Contribution)
        assert bytes_digest(update) == contribution.update
        write_atomically(self.home / "admitted" / hex_of(contribution.owner), contribution.digest.encode())
        receipt = Receipt(
            charter=self.charter,
            contribution=contribution.digest,
            owner=contribution.owner,
            status="admitted",
            received_bytes=len(update),
            entry="sha256:" + "0" * 64,
            sequence=1,
        )
        return seal(receipt, SigningKey.load(self.home / "coordinator.pem"))

    def assemble(self) -> str:
        return digest_of(sorted(self.admitted().values()))

    def keep_evaluation(self, report: Signed) -> None:
        opened = report.open(EvaluationReport)
        path = self.home / "kept" / f"{opened.domain}.json"
        times = json.loads(path.read_text())["times"] if path.exists() else 0
        write_atomically(path, json.dumps({"times": times + 1, "composite": opened.composite}).encode())

    def evaluate_public(self, composite: str, *, sets: bool) -> None:
        write_atomically(self.home / "kept" / "public.json", composite.encode())


def open_files(home: Path) -> Federation:
    return FileFederation(home)


app = serve(open_files)
