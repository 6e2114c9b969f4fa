"""The line by which a training tells how far it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.protocols.training_steps import TrainingStep

NAMES = st.none() | st.from_regex(r"[0-9a-f]{12}", fullmatch=True)


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1), st.floats(0, 999_999, allow_nan=False), NAMES)
def test_what_is_told_is_read(step: int, steps: int, loss: float, training: str | None) -> None:
    told = TrainingStep.told_in(f"{TrainingStep(step=step, steps=steps, loss=loss, training=training)}, 900 tokens/s")
    assert told == TrainingStep(step=step, steps=steps, loss=pytest.approx(loss, abs=0.0006), training=training)


@pytest.mark.parametrize(
    "rest", ["", ", 900 tokens/s", ", training 3F2A91BC04D7", ", training 3f", ", training " + "a" * 13]
)
def test_a_line_of_an_owner_who_names_no_training_is_read(rest: str) -> None:
    line = "step 20 of 100, loss 4.200 nats per token" + rest
    assert TrainingStep.told_in(line) == TrainingStep(step=20, steps=100, loss=4.2)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "at work",
        "packed; step 1 of 2, loss 1.000 nats per token",
        "step 1 of 2, loss nan nats per token",
        "step 1 of 2, loss inf nats per token",
        "step 1 of 2, loss -1.000 nats per token",
        "step 1 of 2, loss 1e9 nats per token",
        "step 1 of 2, loss 1234567.000 nats per token",
        "step 1000000000000 of 2, loss 1.000 nats per token",
        "step \u0661 of 2, loss 1.000 nats per token",
        "step 1 of 2, loss 1.000",
    ],
)
def test_another_line_tells_no_step(line: str) -> None:
    assert TrainingStep.told_in(line) is None


@given(st.text())
def test_any_line_can_be_read(line: str) -> None:
    assert TrainingStep.told_in(line) is None
