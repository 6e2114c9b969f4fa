"""What goes wrong with one sequence is that sequence's trouble, and nobody waits for ever."""

from dataclasses import replace

import pytest

from motet.serving.engine.engine import Engine
from motet.serving.engine.job import Closing, Job, Sampling
from motet.serving.engine.loading import Composite
from motet.serving.hooks import nobody

from .batches import Heard, alone, batch_of, begin, finish, prompts

PROMPT = prompts(1)[0]


class OnlyOne(int):
    """A seed for one sample: the next one's cannot be made."""

    def __add__(self, other: int) -> int:
        if other:
            raise MemoryError
        return int(self)


@pytest.mark.parametrize("temperature", [1e-320, 5e-324, 1e-300, 1e-9])
def test_the_lowest_temperatures_take_the_likeliest_and_trouble_nobody(
    composite: Composite, temperature: float
) -> None:
    batch, every = batch_of(composite), composite.roster.every()
    cold, other = begin(batch, PROMPT, every, temperature=temperature, seed=1), begin(batch, PROMPT, every)
    finish(batch)
    assert cold.finish == other.finish == ["length"]
    assert cold.tokens() == other.tokens() == alone(composite, PROMPT, every)


def test_a_sequence_whose_token_cannot_be_told_ends_alone(
    composite: Composite, caplog: pytest.LogCaptureFixture
) -> None:
    batch, every = batch_of(composite), composite.roster.every()
    broken, sound = begin(batch, PROMPT, every, logprobs=-1), begin(batch, PROMPT, every)
    finish(batch)
    assert broken.finish == ["error"]
    assert sound.tokens() == alone(composite, PROMPT, every)
    assert "a sequence failed" in caplog.text


def test_a_job_whose_samples_cannot_begin_ends_alone(composite: Composite, caplog: pytest.LogCaptureFixture) -> None:
    batch, every = batch_of(composite), composite.roster.every()
    broken, sound = begin(batch, PROMPT, every, samples=3, seed=OnlyOne(5)), begin(batch, PROMPT, every)
    finish(batch)
    assert broken.finish == ["error"] * 3
    assert broken.tokens() == []
    assert sound.tokens() == alone(composite, PROMPT, every)
    assert "cannot begin" in caplog.text


def test_a_job_that_cannot_begin_fails_alone_and_the_engine_goes_on(
    composite: Composite, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(prompt=PROMPT, experts=composite.roster.every(), sampling=Sampling(max_tokens=25, temperature=0.0))
    broken = replace(job, sampling=Sampling(seed="x"), samples=2)  # type: ignore[arg-type]
    with Engine(composite, max_batch=4) as engine:
        heard, told, after = Heard(), Heard(), Heard()
        engine.submit(job, heard)
        engine.submit(broken, told)
        assert told.done.wait(30)
        assert told.finish == ["error"] * 2
        assert heard.done.wait(30)
        assert heard.finish == ["length"]
        engine.submit(job, after)
        assert after.done.wait(30)
    assert heard.tokens() == after.tokens()
    assert "cannot begin" in caplog.text


def test_a_pass_that_fails_does_not_end_those_who_are_not_in_it(composite: Composite) -> None:
    batch, every = batch_of(composite, chunk=4), composite.roster.every()
    broken, waiting = begin(batch, (10**6,) * 4, every), begin(batch, PROMPT, every)
    batch.step()
    assert broken.finish == ["error"]
    finish(batch)
    assert waiting.tokens() == alone(composite, PROMPT, every)


def test_whatever_ends_the_thread_ends_everybody(composite: Composite, caplog: pytest.LogCaptureFixture) -> None:
    """No client waits for a thread that is gone, and the server says that it takes nothing more."""
    ending: list[bool] = []

    def withdrawn(names: frozenset[str]) -> frozenset[str]:
        if ending:
            raise SystemExit
        return nobody(names)

    job = Job(prompt=PROMPT, experts=composite.roster.every(), sampling=Sampling(max_tokens=180))
    with Engine(composite, max_batch=1, queue=4, withdrawn=withdrawn) as engine:
        running, waiting = Heard(), Heard()
        engine.submit(job, running)
        engine.submit(replace(job, samples=1), waiting)
        ending.append(True)
        assert running.done.wait(30)
        assert waiting.done.wait(30)
        assert running.finish == waiting.finish == ["error"]
        assert engine.drain(30)
        assert not engine.taking
        with pytest.raises(Closing, match="thread has ended"):
            engine.submit(job, Heard())
    assert "the engine's thread has ended" in caplog.text


def test_a_look_for_withdrawals_that_fails_ends_who_is_there_and_the_engine_goes_on(composite: Composite) -> None:
    failing: list[bool] = [True]

    def withdrawn(names: frozenset[str]) -> frozenset[str]:
        if failing:
            raise OSError("no such disk")
        return nobody(names)

    job = Job(prompt=PROMPT, experts=composite.roster.every(), sampling=Sampling(max_tokens=2))
    with Engine(composite, max_batch=1, withdrawn=withdrawn) as engine:
        told, after = Heard(), Heard()
        engine.submit(job, told)
        assert told.done.wait(30)
        assert told.finish == ["error"]
        failing.clear()
        engine.submit(job, after)
        assert after.done.wait(30)
        assert after.finish == ["length"]
