"""The line by which a training tells how far it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.protocols.training_steps import TrainingStep


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1), st.floats(0, 999_999, allow_nan=False))
def test_what_is_told_is_read(step: int, steps: int, loss: float) -> None:
    told = TrainingStep.told_in(f"{TrainingStep(step=step, steps=steps, loss=loss)}, 900 tokens/s")
    assert told == TrainingStep(step=step, steps=steps, loss=pytest.approx(loss, abs=0.0006))


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
