"""The common ground of every document: strict pydantic models with one canonical form.

class Receipt(Document):
    schema_: Literal["motet.receipt/1"] = Field("motet.receipt/1", alias="schema")

receipt.digest                              # names the content
Receipt.parse(path.read_bytes())            # DocumentError says what is wrong and where
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from motet.protocols.canonical import canonical_json, digest_of
from motet.protocols.errors import ConfigurationError, DocumentError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
"""A name that is safe as a file name, a column of a table and a word on the command line."""

PublicKey = Annotated[str, StringConstraints(pattern=r"^ed25519:[0-9a-f]{64}$")]

MAX_DOCUMENT_BYTES = 1 << 20


class Strict(BaseModel):
    """Values that cross a border: unknown keys, NaN and infinity are refused, and nothing changes after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Document(Strict):
    """A strict model with canonical bytes and a digest."""

    def as_json(self) -> dict[str, Any]:
        """The document as a JSON object."""
        return self.model_dump(mode="json", by_alias=True)

    def canonical(self) -> bytes:
        """The document's canonical JSON."""
        return canonical_json(self.as_json())

    @property
    def digest(self) -> str:
        """The digest of the canonical JSON: the document's name."""
        return digest_of(self.as_json())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a document from JSON.

        Raises:
            DocumentError: it is too large, not JSON, or breaks a rule of the model.
        """
        if len(data) > MAX_DOCUMENT_BYTES:
            raise DocumentError(f"saw a {cls.__name__} of {len(data)} bytes, wanted at most {MAX_DOCUMENT_BYTES}")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise DocumentError(f"not a valid {cls.__name__}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """One line about a validation error: where, what was wrong, and how many more there are."""
    problems = error.errors(include_url=False)
    where = ".".join(str(part) for part in problems[0]["loc"]) or "the document"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {problems[0]['msg']}{more}"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigurationError: there is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"saw no file {path}; name an existing one, or make it with `motet --help`'s init or join"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} is not readable TOML: {error}; mend it and try again") from error


class TomlFile(Strict):
    """A strict model that people read and write as TOML."""

    keys_documented_in: ClassVar[str]
    """The page that an error sends the reader to."""

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            ConfigurationError: it is missing, not TOML, or breaks a rule; the message names the key.
        """
        try:
            return cls.model_validate(read_toml(path))
        except ValidationError as error:
            raise ConfigurationError(
                f"{path}: {first_problem(error)}; mend that key, {cls.keys_documented_in} lists them all"
            ) from error

    def to_toml(self) -> str:
        """The model as TOML; keys without a value are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", by_alias=True, exclude_none=True))
