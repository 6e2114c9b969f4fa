"""Joining: from a charter file to a home with keys, `owner.toml` and a signed join request.

joined = join(Path("charter.signed.json"), Path("owner"), name="medicine", files=("notes/*.jsonl",),
              terms={"licence": "CC0-1.0"}, coordinator="ed25519:…", settings=("training.steps=200",))
joined.request                            # the file for the coordinator
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from motet.client.owner import OwnerConfig, OwnerHome, read_signed, require_kind, require_licence
from motet.protocols.canonical import write_atomically
from motet.protocols.charter import Charter
from motet.protocols.documents import first_problem
from motet.protocols.errors import ConfigurationError

REQUEST_FILE = "join-request.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """A new home and what goes to the coordinator."""

    owner: str
    charter: str
    request: Path
    matched: bool
    """Whether any file matches the patterns by now."""

    def as_json(self) -> dict[str, str]:
        """The result as a JSON object."""
        return {"owner": self.owner, "charter": self.charter, "request": str(self.request)}


def join(
    charter_file: Path,
    directory: Path,
    *,
    name: str,
    files: tuple[str, ...],
    terms: Mapping[str, str | None],
    coordinator: str | None = None,
    settings: tuple[str, ...] = (),
    confirm: Callable[[str], bool] = lambda question: False,
) -> Joined:
    """Make an owner's home under a charter.

    Args:
        charter_file: the signed charter.
        directory: the new home.
        name: of the expert.
        files: files or glob patterns, made absolute here.
        terms: licence, attribution, purpose.
        coordinator: the key that must have signed; None asks `confirm` whether to trust the one in the charter.
        settings: "section.key=value" for owner.toml; values are TOML, or plain words.
        confirm: answers a question.

    Raises:
        ConfigurationError: a file or setting cannot be used, the charter does not accept the licence or the kind of
            expert, or the key was not agreed to.
        SignatureError: the charter's signature does not hold, or is another coordinator's.
    """
    signed = read_signed(charter_file, "charter")
    charter = signed.open(Charter, by=coordinator)
    config = _config(name, signed.key, files, terms, settings)
    require_licence(config, charter)
    require_kind(charter, config.training.kind, config.training.rank)
    if coordinator is None:
        _agree(charter, confirm)
    home = OwnerHome.create(directory.absolute(), config, signed)
    request, matched = _written_request(home), _matched(config)
    return Joined(owner=home.key.public, charter=charter.digest, request=request, matched=matched)


def _agree(charter: Charter, confirm: Callable[[str], bool]) -> None:
    question = f"{charter.name} is signed by {charter.coordinator}. Did the coordinator tell you this key?"
    if not confirm(question):
        raise ConfigurationError("the coordinator's key was not agreed to; ask for it, then use --coordinator KEY")


def _written_request(home: OwnerHome) -> Path:
    """The file for the coordinator."""
    request = home.path / REQUEST_FILE
    write_atomically(request, home.join_request().canonical())
    return request


def _matched(config: OwnerConfig) -> bool:
    """Whether any file matches the patterns by now, which are absolute."""
    return any(glob(pattern, recursive=True) for pattern in config.data.files)  # noqa: PTH207 - absolute patterns


def _config(
    name: str, coordinator: str, files: tuple[str, ...], terms: Mapping[str, str | None], settings: tuple[str, ...]
) -> OwnerConfig:
    document: dict[str, Any] = {
        "name": name,
        "coordinator": coordinator,
        "data": {"files": [str(Path(pattern).expanduser().absolute()) for pattern in files]},
        "terms": {key: value for key, value in terms.items() if value is not None},
    }
    for setting in settings:
        _place(document, setting)
    try:
        return OwnerConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{first_problem(error)}; mend that option and join again") from error


def _place(document: dict[str, Any], setting: str) -> None:
    """Put "section.key=value" into the document."""
    key, equals, text = setting.partition("=")
    section, dot, leaf = key.strip().partition(".")
    if not equals or not dot or not leaf or not isinstance(document.setdefault(section, {}), dict):
        raise ConfigurationError(f"saw --set {setting!r}, wanted section.key=value, for example training.steps=200")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    document[section][leaf] = value
