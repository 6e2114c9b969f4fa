"""The public text as the coordinator keeps it: what is held out for scoring, and what anybody may train on.

text = PublicText(home.anchor_directory / PUBLIC_TEXT_FILE)
text.held_out(), text.train()
text.train_ids()                  # the documents that an owner may name as proxies
text.named(contribution.proxies)  # id -> document
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from motet.protocols.split import PUBLIC_SEED, PUBLIC_SHARE, document_id, is_held_out


@dataclass(frozen=True, slots=True)
class PublicText:
    """The file of JSON lines that the charter pins, read anew on every call; blank documents do not count."""

    path: Path

    def held_out(self) -> list[str]:
        """The documents that nobody trains on, in the order of the file."""
        return [text for text, out in self._documents() if out]

    def train(self) -> list[str]:
        """The documents that anybody may train on, in the order of the file."""
        return [text for text, out in self._documents() if not out]

    def train_ids(self) -> frozenset[str]:
        """The ids of the documents to train on."""
        return frozenset(document_id(text) for text, out in self._documents() if not out)

    def named(self, ids: Collection[str]) -> dict[str, str]:
        """Id -> document of those to train on that `ids` names; sorted by id, unknown ones left out."""
        wanted = set(ids)
        pairs = ((document_id(text), text) for text, out in self._documents() if not out)
        return dict(sorted((name, text) for name, text in pairs if name in wanted))

    def _documents(self) -> Iterator[tuple[str, bool]]:
        """Each document, and whether it is held out."""
        with self.path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                text = json.loads(line)["text"] if line.strip() else ""
                if text.strip():
                    yield text, is_held_out(text, PUBLIC_SHARE, PUBLIC_SEED)
