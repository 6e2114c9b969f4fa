"""An owner's text: read where it lies, cleaned of repeats, and split by document.

Files are streamed, JSON line by line and others through Hugging Face `datasets`: no copy is made, nothing is asked of
a network. A document falls on the same side on every machine and beside any others (`motet.protocols.split`); the
parts of a long text file stay together; no held-out document repeats half of its shingles from the others. Files that
end in .gz, .bz2 or .xz are unpacked as they are read. The corpus is held in memory.

    corpus = load_corpus(home.config.data, home.path)
    corpus.train, corpus.held_out                  # documents
    corpus.answers[corpus.train[0]]                # of conversations, what is learnt: characters, start to end
    public = load_public(home.public_text, expect=home.charter.anchor.public_text)
"""

import glob
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from motet.client.conversations import Chat
from motet.client.json_lines import UNPACKED_BY, json_rows
from motet.client.near_duplicates import apart, distinct
from motet.client.owner import DataConfig
from motet.moe.spans import Spans
from motet.protocols.canonical import digest_of, file_digest
from motet.protocols.errors import DataError
from motet.protocols.split import PUBLIC_SEED, PUBLIC_SHARE, is_held_out

PART_BYTES = 4096
"""Longer text files are cut, at blank lines where they can be, into documents of about this size."""

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Documents on either side of the split, in the order of the files.

    `read` counts the documents before repeats and the sample left any out.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    read: int
    answers: Mapping[str, Spans] = field(default_factory=dict)
    """Of a conversation, by its text, where the answers are: nothing else of it is learnt or scored."""

    @property
    def digest(self) -> str:
        """Names the text without telling it: training resumes only on the same."""
        named = [[hashlib.sha256(text.encode()).hexdigest() for text in side] for side in self._sides()]
        spans = [[self.answers[text] for text in side] for side in self._sides()] if self.answers else []
        return digest_of([*named, *spans])

    def training_apart_from(self, others: Sequence[str]) -> "Corpus":
        """The same without the training documents that repeat one of `others`: text that something is scored on.

        Raises:
            DataError: none is left to train on.
        """
        train = tuple(self.train[index] for index in apart(self.train, others))
        if not train:
            raise DataError(
                f"saw {len(self.train)} documents to train on, all of which repeat text that is scored, wanted others; "
                "leave the copies of the public text out of [data] files"
            )
        return replace(self, train=train)

    def _sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.train, self.held_out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Document:
    """A document, and the text, its whole file or itself, that decides its side.

    Of a conversation also its answers, and without what all conversations share what tells it from others.
    """

    text: str
    family: str
    answers: Spans = ()
    told: str = ""

    @property
    def own(self) -> str:
        """What is compared when repeats are looked for."""
        return self.told or self.text


def load_corpus(config: DataConfig, home: Path) -> Corpus:
    """Read, clean and split the owner's text.

    Args:
        config: the `[data]` table of owner.toml.
        home: what relative patterns are relative to; conversations are rendered by the tokenizer in its `anchor`.

    Raises:
        DataError: no file matches; one cannot be read; the text field is missing; a conversation is malformed or the
            anchor has no chat template; or too little text is left to train on and to hold out.
    """
    chat = Chat.load(home / "anchor") if config.format == "messages" else None
    if chat is not None:
        _log.info("answers are %s", "marked by the chat template" if chat.marked else "what they add to the prompt")
    files = matching_files(config.files, home)
    documents = list(_unique(document for path in files for document in _documents(path, config, chat)))
    sample = _sample(documents, config)
    kept = [sample[index] for index in distinct([document.own for document in sample])]
    _log.info("read %d documents from %d files, kept %d", len(documents), len(files), len(kept))
    sides = [is_held_out(document.family, config.held_out_share, config.seed) for document in kept]
    corpus = Corpus(
        train=tuple(document.text for document, out in zip(kept, sides, strict=True) if not out),
        held_out=tuple(document.text for document, out in zip(kept, sides, strict=True) if out),
        read=len(documents),
        answers={document.text: document.answers for document in kept if document.answers},
    )
    _require_both(corpus, files)
    return corpus


def load_public(path: Path, *, expect: str | None = None) -> Corpus:
    """The public text, with the same two sides for everybody.

    Raises:
        DataError: it cannot be read, or is not the file that the charter pins as `expect`.
    """
    if not path.is_file():
        raise DataError(f"saw no public text at {path}; fetch the anchor again, the public text comes with it")
    if expect is not None and (actual := file_digest(path)) != expect:
        raise DataError(f"saw public text {actual} at {path}, wanted {expect} as in the charter; fetch it again")
    texts = [document.text for document in _rows(path, "jsonl", "text")]
    sides = [is_held_out(text, PUBLIC_SHARE, PUBLIC_SEED) for text in texts]
    corpus = Corpus(
        train=tuple(text for text, out in zip(texts, sides, strict=True) if not out),
        held_out=tuple(text for text, out in zip(texts, sides, strict=True) if out),
        read=len(texts),
    )
    _require_both(corpus, [path])
    return corpus


def matching_files(patterns: Iterable[str], home: Path) -> list[Path]:
    """The files that the patterns name, each once, sorted within a pattern.

    Raises:
        DataError: a pattern names no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        names = sorted(glob.glob(str(home / Path(pattern).expanduser()), recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
        files = [path for name in names if (path := Path(name)).is_file()]
        if not files:
            raise DataError(f"saw no file that matches {pattern!r}, seen from {home}; correct [data] files")
        found |= dict.fromkeys(files)
    return list(found)


def _documents(path: Path, config: DataConfig, chat: Chat | None = None) -> Iterator[_Document]:
    if chat is not None:
        yield from _conversations(path, chat)
        return
    kind = _kind_of(path) if config.format == "auto" else config.format
    if kind != "text":
        yield from _rows(path, kind, config.text_field)
        return
    for row in _read(path, "text"):
        whole = (row["text"] or "").removeprefix("\ufeff")  # a byte order mark is no text
        for part in _parts(whole):
            yield _Document(text=part, family=whole)


def _conversations(path: Path, chat: Chat) -> Iterator[_Document]:
    """The conversations of JSON lines, each rendered as one document."""
    for place, row in json_rows(path, "messages"):
        try:
            found = chat.conversation(row.get("messages"))
        except DataError as error:
            raise DataError(f"{path}: {place}: {error}; correct it, or leave it out") from error
        yield _Document(text=found.text, family=found.told, answers=found.answers, told=found.told)


def _kind_of(path: Path) -> str:
    """What a file is by its name, packed or not."""
    inner = path.with_suffix("") if path.suffix.lower() in UNPACKED_BY else path
    return _SUFFIXES.get(inner.suffix.lower(), "text")


def _rows(path: Path, kind: str, field: str) -> Iterator[_Document]:
    """The documents of a table; rows without the field, or where it is null or blank, are left out."""
    found, others = False, None
    for place, row in json_rows(path, field) if kind == "jsonl" else _numbered(path, kind):
        if field not in row:
            others = sorted(row) if others is None else others
            continue
        found, text = True, row[field]
        if text is not None and not isinstance(text, str):
            raise DataError(f"{path}: {place}: saw {type(text).__name__} in {field!r}, wanted text; correct it")
        if text and text.strip():
            yield _Document(text=text, family=text)
    if others is not None and not found:
        raise DataError(
            f"saw no field {field!r} in {path}, only {', '.join(others[:12]) or 'empty objects'}; set text_field under "
            '[data], or format = "messages" for conversations'
        )


def _numbered(path: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"row {number}", row) for number, row in enumerate(_read(path, kind), start=1))


def _read(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of one file that is not JSON, streamed."""
    dataset = _dataset(path, kind)
    try:
        yield from dataset
    except Exception as error:  # datasets passes on whatever pyarrow and the codecs raise
        raise _unreadable(path, kind, error) from error


def _dataset(path: Path, kind: str) -> Iterable[dict[str, Any]]:
    """A streaming dataset; an empty list for a file without rows."""
    from datasets import IterableDataset  # type: ignore[import-untyped]
    from datasets.utils import logging as datasets_logging  # type: ignore[import-untyped]

    datasets_logging.set_verbosity(logging.CRITICAL)  # what it would say is in our error
    name = glob.escape(os.fspath(path.resolve()))
    try:
        with tempfile.TemporaryDirectory() as cache:  # only a lock is put there, and only until the file is opened
            if kind == "text":
                rows = IterableDataset.from_text(name, cache_dir=cache, sample_by="document")
            else:
                rows = IterableDataset.from_parquet(name, cache_dir=cache)
    except StopIteration:
        return []
    except Exception as error:
        raise _unreadable(path, kind, error) from error
    return rows  # type: ignore[no-any-return]


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    what = {"text": "text in UTF-8", "parquet": "a Parquet file"}[kind]
    saw = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else type(error).__name__
    return DataError(f"cannot read {path} as {what} ({saw}); mend it, or leave it out of [data] files")


def _parts(text: str) -> Iterator[str]:
    """A long text in parts of about `PART_BYTES` at most, cut at blank lines where it has them; none is blank."""
    part: list[str] = []
    size = 0
    for line in _lines(text):
        size += len(line.encode())
        part.append(line)
        blank = not line.strip()
        if (blank and size >= PART_BYTES // 2) or size >= PART_BYTES:
            yield from _unless_blank(part)
            part, size = [], 0
    yield from _unless_blank(part)


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        yield from (line[start : start + PART_BYTES] for start in range(0, len(line), PART_BYTES))


def _unless_blank(lines: Sequence[str]) -> Iterator[str]:
    text = "".join(lines)
    if text.strip():
        yield text


def _unique(documents: Iterable[_Document]) -> Iterator[_Document]:
    seen: set[bytes] = set()
    for document in documents:
        key = hashlib.sha256(document.text.strip().encode()).digest()
        if key not in seen:
            seen.add(key)
            yield document


def _sample(documents: Sequence[_Document], config: DataConfig) -> list[_Document]:
    """All documents, or those with the lowest hashes that fit into `max_bytes`, in their order."""
    if config.max_bytes is None:
        return list(documents)
    order = sorted(range(len(documents)), key=lambda index: _rank(documents[index].text, config.seed))
    chosen, size = [], 0
    for index in order:
        size += len(documents[index].text.encode())
        if size > config.max_bytes:
            break
        chosen.append(index)
    return [documents[index] for index in sorted(chosen)]


def _rank(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"motet.sample/1\n{seed}\n{text.strip()}".encode()).digest()


def _require_both(corpus: Corpus, files: Sequence[Path]) -> None:
    if corpus.read == 0:
        raise DataError(
            f"saw no text in {files[0]} and {len(files) - 1} other files; name files with documents in them"
        )
    if not corpus.train or not corpus.held_out:
        raise DataError(
            f"saw {len(corpus.train)} distinct documents to train on and {len(corpus.held_out)} to hold out, wanted "
            "both; give more documents, raise max_bytes or held_out_share, or choose another seed under [data]"
        )
