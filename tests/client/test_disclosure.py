"""What an error tells the coordinator: its kind, and nothing of what it says."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest

from motet.client.disclosure import disclosed, disclosing
from motet.protocols import errors
from motet.protocols.control import EvaluateRequest, TrainRequest
from motet.protocols.errors import (
    AnchorMismatch,
    DataError,
    FederationError,
    MotetError,
    TransferRefused,
    WorkerBusy,
)
from motet.protocols.jobs import StatusQuery

PRIVATE = "cannot read /srv/patients/notes.jsonl"


def test_no_message_of_ours_is_disclosed() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, MotetError)]
    assert len(kinds) > 20
    for kind in kinds:
        error = kind.__new__(kind)
        error.args = (PRIVATE,)
        if kind.__init__ is not errors.MotetError.__init__:
            continue  # below, with what they carry
        assert "patients" not in disclosed(error)
        assert kind.__name__ in disclosed(error)


def test_the_kind_is_told_as_closely_as_it_is_known() -> None:
    assert "the text cannot be used" in disclosed(DataError(PRIVATE))
    mismatch = AnchorMismatch(PRIVATE, expected="sha256:a", actual="sha256:b")
    assert "not the one that the charter pins" in disclosed(mismatch)
    assert "the spool cannot be used" in disclosed(WorkerBusy(PRIVATE, pid=3))
    assert "unforeseen" in disclosed(ValueError(PRIVATE))
    assert "patients" not in disclosed(mismatch) + disclosed(WorkerBusy(PRIVATE, pid=3)) + disclosed(
        ValueError(PRIVATE)
    )


def test_the_coordinators_own_word_goes_back_to_it() -> None:
    found = disclosed(TransferRefused(PRIVATE, reason="unknown-owner"))
    assert "unknown-owner" in found
    assert "patients" not in found


def test_the_client_app_raises_only_kinds(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FederationError, match="DataError: the text cannot be used") as caught, disclosing():
        raise DataError(PRIVATE)
    assert caught.value.__suppress_context__
    assert "patients" not in str(caught.value)
    assert PRIVATE in caplog.text


@pytest.mark.filterwarnings("ignore:'click.utils:DeprecationWarning")  # typer's own imports, under Flower's
@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_no_answer_of_the_client_app_names_a_path(tmp_path: Path, kind: str) -> None:
    from motet.client import client_app
    from motet.protocols.flower_records import pack

    nothing = "sha256:" + "0" * 64
    requests = {
        "query": StatusQuery(charter=nothing),
        "train": TrainRequest(charter=nothing),
        "evaluate": EvaluateRequest(charter=nothing, composite=nothing),
    }
    message = SimpleNamespace(content=pack(requests[kind]))
    context = SimpleNamespace(node_config={"motet-home": str(tmp_path), "motet-owner": "ed25519:" + "0" * 64})
    with pytest.raises(FederationError, match="ConfigurationError") as caught:
        getattr(client_app, kind)(message, context)
    assert str(tmp_path) not in str(caught.value)
