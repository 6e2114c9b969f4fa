"""What commands print while they work."""

import pytest

from motet.protocols import output


def test_a_share_is_told_at_once_and_then_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[str]()
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    report = output.share_line(told.append)
    for now[0], share in ((0.0, 0.0), (1.9, 0.25), (2.1, 0.5), (3.9, 0.75), (4.2, 1.0)):
        report(share, "working")
    assert told == ["  0 %  working", " 50 %  working", "100 %  working"]
