"""A server's folder: one composite at a time."""

import os
from pathlib import Path

import pytest

from motet.protocols.errors import ConfigurationError, StorageError
from motet.serving.state import default_state, used_by

OWN, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def test_servers_of_one_composite_share_a_folder_and_another_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    with used_by(state, OWN):
        with used_by(state, OWN):
            pass
        with pytest.raises(ConfigurationError, match=rf"another composite, {OWN}.*--state"), used_by(state, OTHER):
            pass
    with used_by(state, OTHER), pytest.raises(ConfigurationError, match=OTHER), used_by(state, OWN):
        pass
    assert state.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), used_by(tmp_path / "file" / "state", OWN):
        pass


def test_the_folder_is_below_where_programs_keep_their_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "XDG_STATE_HOME", "/state")
    assert default_state() == Path("/state/motet/serving")
