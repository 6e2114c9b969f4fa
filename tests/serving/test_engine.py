"""The engine alone: each sequence as if it were by itself, whoever shares its passes, comes, goes or is withdrawn."""

from dataclasses import replace

import pytest
import torch

from motet.moe import compose
from motet.moe.average import Average
from motet.moe.evidence import Evidence
from motet.serving.engine.engine import Engine
from motet.serving.engine.job import Closing, Job, QueueFull, Sampling
from motet.serving.engine.loading import Composite, in_memory
from motet.serving.engine.network import Network, Row

from ..conftest import byte_tokenizer
from ..moe.conftest import tiny_anchor
from ..moe.mixed_kinds import MIXED, expert_of
from .batches import Heard, alone, batch_of, begin, finish, prompts
from .conftest import ANCHOR_DIGEST, COMPOSITE_DIGEST, tiny_composite


def with_evidence(evidence) -> Composite:
    tokenizer = byte_tokenizer()
    anchor = tiny_anchor(vocab_size=len(tokenizer), max_position_embeddings=192)
    experts = []
    for name in MIXED:
        one = expert_of(anchor, name)
        tokens = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(MIXED.index(name)))
        experts.append(replace(one, rows=replace(one.rows, tokens=(tokens * 8).round() / 8)))
    model = compose(anchor, experts, evidence=evidence)
    return in_memory(model, tokenizer, anchor=ANCHOR_DIGEST, digest=COMPOSITE_DIGEST)


@pytest.mark.parametrize("kind", ["olmo2", "llama", "mistral", "qwen3", "filter", "average"])
def test_rows_of_one_pass_have_the_logits_that_they_have_alone(kind: str) -> None:
    """Prompts read in several chunks, under different sets, in passes of uneven rows."""
    evidence = {"filter": Evidence(stay=0.9, temperature=2.0), "average": Average(gain=8.0)}.get(kind)
    window = {"sliding_window": 7} if kind == "mistral" else {}
    found = with_evidence(evidence) if evidence else tiny_composite(model_type=kind, **window)
    network, sets = (
        Network(found.model),
        [found.roster.choose(exclude=names) for names in ([], ["law"], ["art", "news"])],
    )
    states = [network.new_state(each.digest) for each in sets]
    asked = prompts(3)
    for cut in (slice(0, 4), slice(4, 5), slice(5, None)):
        rows = zip(states, asked, sets, strict=True)
        outcome = network.run([Row(state=state, tokens=each[cut], mask=chosen.mask) for state, each, chosen in rows])
    for number, (each, chosen) in enumerate(zip(asked, sets, strict=True)):
        with torch.no_grad():
            wanted = found.model(torch.tensor([each]), expert_sets=[list(chosen.names)]).logits[0, -1]
        assert (outcome.logits[number] - wanted).abs().max() < 2e-5
        assert [share > 0 for share in outcome.shares[number].tolist()] == list(chosen.mask)
        assert float(outcome.shares[number].sum()) == pytest.approx(1)


def test_sequences_that_come_and_go_are_each_as_alone(composite: Composite) -> None:
    batch, roster = batch_of(composite, chunk=7), composite.roster
    sets = [roster.every(), roster.choose(exclude=["law"]), roster.choose(include=["anchor"])]
    heard = []
    for number, prompt in enumerate(prompts(6)):
        heard.append((prompt, sets[number % 3], begin(batch, prompt, sets[number % 3], max_tokens=4 + number)))
        batch.step()
    finish(batch)
    for number, (prompt, chosen, told) in enumerate(heard):
        assert told.tokens() == alone(composite, prompt, chosen, 4 + number)
        assert told.finish == ["length"]


def test_a_set_is_switched_without_a_copy_of_weights(composite: Composite) -> None:
    network, roster = Network(composite.model), composite.roster
    before = {name: tensor.data_ptr() for name, tensor in composite.model.named_parameters()}
    for chosen in (roster.every(), roster.choose(include=["law"]), roster.choose(exclude=["law"])):
        network.run([Row(state=network.new_state(chosen.digest), tokens=(5, 6), mask=chosen.mask)])
    assert {name: tensor.data_ptr() for name, tensor in composite.model.named_parameters()} == before


def test_beginnings_are_used_again_under_the_same_set_and_no_other(composite: Composite) -> None:
    batch, roster = batch_of(composite, prefix_tokens=500), composite.roster
    prompt, every, fewer = prompts(1, 30)[0], roster.every(), roster.choose(exclude=["law"])
    begin(batch, prompt, every)
    finish(batch)
    longer = (*prompt, 9, 8, 7)
    again, other = begin(batch, longer, every), begin(batch, longer, fewer)
    finish(batch)
    assert again.steps[0].cached == len(prompt)
    assert other.steps[0].cached == 0
    assert again.tokens() == alone(composite, longer, every)
    assert other.tokens() == alone(composite, longer, fewer)


def test_beginnings_are_bounded_and_the_oldest_go_first(composite: Composite) -> None:
    batch, every = batch_of(composite, prefix_tokens=130), composite.roster.every()
    asked = prompts(4, 30)
    for prompt in asked:
        begin(batch, prompt, every)
        finish(batch)
        assert batch.prefixes.tokens <= 130
    assert batch.prefixes.find(every.digest, asked[0]) is None
    assert batch.prefixes.find(every.digest, asked[-1]) is not None


def test_samples_share_the_prompt_and_differ_by_their_seeds(composite: Composite) -> None:
    batch, every = batch_of(composite), composite.roster.every()
    told = begin(batch, prompts(1)[0], every, samples=3, temperature=1.5, seed=1)
    assert batch.places == 5
    finish(batch)
    drawn = [told.tokens(sample) for sample in range(3)]
    assert len({tuple(each) for each in drawn}) == 3
    one = begin(batch, prompts(1)[0], every, temperature=1.5, seed=3)
    begin(batch, prompts(2)[1], composite.roster.choose(exclude=["art"]), temperature=1.0, seed=8)
    finish(batch)
    assert one.tokens() == drawn[2]


def test_a_withdrawn_expert_ends_its_sequences_and_no_others(composite: Composite) -> None:
    gone: set[str] = set()
    batch = batch_of(composite, prefix_tokens=500, withdrawn=lambda names: names & gone)
    every, fewer = composite.roster.every(), composite.roster.choose(exclude=["law"])
    begin(batch, prompts(1, 30)[0], every)
    finish(batch)
    using = begin(batch, prompts(1)[0], every, samples=2)
    for _ in range(3):
        batch.step()
    unbegun, other = begin(batch, prompts(2)[1], every, samples=2), begin(batch, prompts(1)[0], fewer)
    gone.add("law")
    finish(batch)
    assert using.finish == unbegun.finish == ["expert_withdrawn"] * 2
    assert 0 < len(using.tokens()) < 8
    assert other.tokens() == alone(composite, prompts(1)[0], fewer)
    assert batch.prefixes.find(every.digest, prompts(1, 30)[0]) is None


def test_values_that_are_not_finite_end_the_sequence_with_an_error_and_no_other(composite: Composite) -> None:
    batch, roster = batch_of(composite), composite.roster
    sound = begin(batch, prompts(1)[0], roster.choose(include=["anchor"]))
    broken = begin(batch, prompts(1)[0], roster.choose(include=["law"]))
    weight = composite.model.get_parameter(f"model.layers.1.mlp.experts.{roster.names.index('law')}.up_proj.weight")
    kept = weight[0, 0].clone()
    try:
        weight[0, 0] = torch.nan
        finish(batch)
    finally:
        weight[0, 0] = kept
    assert broken.finish == ["error"]
    assert sound.tokens() == alone(composite, prompts(1)[0], roster.choose(include=["anchor"]))


def test_whoever_has_gone_frees_the_place_at_once(composite: Composite) -> None:
    with Engine(composite, max_batch=1, queue=4) as engine:
        heard, long = Heard(), Sampling(max_tokens=150, temperature=0.0)
        first = engine.submit(Job(prompt=prompts(1)[0], experts=composite.roster.every(), sampling=long), Heard())
        engine.submit(
            Job(prompt=prompts(1)[0], experts=composite.roster.every(), sampling=Sampling(max_tokens=2)), heard
        )
        engine.cancel(first)
        assert heard.done.wait(30)
        assert heard.finish == ["length"]
        assert engine.drain(30)
        assert engine.load().running == engine.load().waiting == 0


def test_a_full_queue_says_when_to_come_back_and_a_closed_engine_that_it_is(composite: Composite) -> None:
    job = Job(prompt=prompts(1)[0], experts=composite.roster.every(), sampling=Sampling(max_tokens=180))
    with Engine(composite, max_batch=1, queue=2) as engine:
        heard = Heard()
        with pytest.raises(QueueFull, match="2 requests waiting, of 2 at most") as refused:  # noqa: PT012
            for _ in range(8):
                engine.submit(job, heard)
        assert refused.value.retry_after >= 1
        assert engine.load().waiting == 2
    assert heard.finish.count("cancelled") >= 2
    with pytest.raises(Closing):
        engine.submit(job, heard)


def test_a_pass_that_fails_ends_those_in_it_and_the_engine_goes_on(composite: Composite) -> None:
    job = Job(prompt=prompts(1)[0], experts=composite.roster.every(), sampling=Sampling(max_tokens=2))
    broken = replace(job, prompt=(10**6,))  # no such token: what the API keeps away
    with Engine(composite, max_batch=4) as engine:
        heard, after = Heard(), Heard()
        engine.submit(broken, heard)
        assert heard.done.wait(30)
        assert heard.finish == ["error"]
        engine.submit(job, after)
        assert after.done.wait(30)
        assert after.finish == ["length"]
