"""Training: exact resuming, what is frozen, which text is used, and what happens when it diverges."""

import dataclasses
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from motet.client.batches import Batches, pack
from motet.client.checkpoints import Checkpoints
from motet.client.devices import arithmetic_of, device_of
from motet.client.owner import OwnerHome, TrainingConfig
from motet.client.preparation import Material, prepare
from motet.client.training import (
    Progress,
    TrainedExpert,
    expert_model,
    fingerprint,
    learning_rate,
    train,
)
from motet.moe.evidence import Evidence
from motet.moe.routing import RoutingRows
from motet.protocols.charter import RoutingRules
from motet.protocols.errors import AnchorMismatch, ConfigurationError, StatisticsError, TrainingError

SCRIPT = """
import os, sys, time
from pathlib import Path
from motet.client.owner import OwnerHome
from motet.client.preparation import prepare
from motet.client.training import train
home = OwnerHome.load(Path(sys.argv[1]))
def show(progress):
    print(os.getpid(), progress.step, flush=True)
    time.sleep(0.02)
for folder in sys.argv[2:]:  # a process for each; what they import, which takes longest, is imported once
    if not (child := os.fork()):
        train(prepare(home), home.config.training, Path(folder), on_progress=show)
        os._exit(0)
    os.waitpid(child, 0)
"""


def trained(material: Material, home: OwnerHome, folder: Path) -> TrainedExpert:
    made = train(material, home.config.training, folder)
    assert made is not None
    return made


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


ROUTING = {
    "filter": RoutingRules(kind="filter", stay=0.9, temperature=2.0),
    "token": RoutingRules(kind="token"),
    "embedding": RoutingRules(kind="embedding", embedder="sha256:" + "0" * 64),
}


def routed(home: OwnerHome, kind: str) -> Material:
    """The home's material under another kind of routing; what an embedder would begin with is drawn."""
    material, draw = prepare(home), torch.Generator().manual_seed(0)
    drawn = RoutingRows(weight=torch.randn(2, 32, generator=draw) / 4, bias=torch.zeros(2))
    rows = {"filter": material.rows, "token": dataclasses.replace(material.rows, tokens=None), "embedding": drawn}
    return dataclasses.replace(material, rows=rows[kind], routing=ROUTING[kind])


def test_training_lowers_the_loss_and_changes_every_matrix(make_home, tmp_path: Path) -> None:
    home = make_home(training={"steps": 15})
    material, seen = prepare(home), list[Progress]()
    made = train(material, home.config.training, tmp_path / "run", on_progress=seen.append)
    assert made is not None
    assert [progress.step for progress in seen] == list(range(1, 16))
    assert seen[-1].loss < seen[0].loss - 0.1
    anchor = material.anchor.ffn()
    assert all(not torch.equal(made.ffn[name], anchor[name].float()) for name in anchor)
    assert made.record.tokens == 15 * 4 * 32


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_stopped_run_resumes_to_the_same_bits(make_home, tmp_path: Path, stop_after: int) -> None:
    home = make_home()
    material, steps = prepare(home), list[Progress]()
    whole = trained(material, home, tmp_path / "whole")
    settings = home.config.training
    part = tmp_path / "part"
    stopped = train(material, settings, part, on_progress=steps.append, should_stop=lambda: len(steps) >= stop_after)
    assert stopped is None
    resumed = train(material, settings, part, on_progress=steps.append)
    assert resumed is not None
    assert [progress.step for progress in steps] == list(range(1, 7))
    assert same(whole.ffn, resumed.ffn)


@pytest.mark.parametrize("kind", ROUTING)
def test_the_charter_says_what_weighs_the_expert(make_home, kind: str) -> None:
    material = routed(make_home(), kind)
    model, parameters = expert_model(material)
    trained_rows = {name for name in parameters if ".router." in name}
    assert len(trained_rows) == (4 if kind == "embedding" else 0)
    ids = torch.randint(3, 259, (2, 6), generator=torch.Generator().manual_seed(0))
    gates: list[Tensor] = []
    model.model.layers[1].mlp.gate.register_forward_hook(lambda _module, _args, output: gates.append(output))
    loss = model(input_ids=ids, labels=ids).loss
    if kind == "filter":
        scores = torch.stack([torch.zeros(2, 6), material.rows.tokens[ids]], dim=-1)
        expected = Evidence(stay=0.9, temperature=2.0).filter(scores, torch.zeros(2))
        assert torch.equal(gates[0], expected.flatten(0, 1))
    else:
        assert model.token_router is None
    loss.backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in parameters.values())


def test_rows_from_embeddings_are_trained_and_the_anchors_stays_zero(make_home, tmp_path: Path) -> None:
    home = make_home()
    material = routed(home, "embedding")
    made = trained(material, home, tmp_path / "run")
    assert not any(".router." in name for name in made.ffn)
    assert made.rows.tokens is None
    assert (made.rows.weight - material.rows.weight).abs().max() > 1e-3
    assert made.rows.bias.abs().max() > 1e-3
    # Both rows were free: what counts is their difference, as what the composite has beside an anchor's row of zeros.
    settings = home.config.training
    model, parameters = expert_model(material)
    Checkpoints(folder=tmp_path / "run", fingerprint=fingerprint(material, settings)).restore(
        parameters, torch.optim.AdamW(parameters.values())
    )
    ids = torch.arange(3, 27).reshape(2, 12)
    again, _ = expert_model(dataclasses.replace(material, rows=made.rows))
    again.load_state_dict(
        {**again.state_dict(), **{n: t for n, t in model.state_dict().items() if ".router." not in n}}
    )
    assert not again.model.layers[0].mlp.router.weight[0].any()
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, again(ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["filter", "embedding"])
def test_a_stopped_run_of_every_kind_resumes_to_the_same_bits(make_home, tmp_path: Path, kind: str) -> None:
    home = make_home()
    material, steps = routed(home, kind), list[Progress]()
    whole = trained(material, home, tmp_path / "whole")
    stopped = train(
        material, home.config.training, tmp_path / "part", on_progress=steps.append, should_stop=lambda: len(steps) >= 3
    )
    assert stopped is None
    resumed = trained(material, home, tmp_path / "part")
    assert same(whole.ffn, resumed.ffn)
    assert torch.equal(whole.rows.weight, resumed.rows.weight)
    assert torch.equal(whole.rows.bias, resumed.rows.bias)
    assert (whole.rows.tokens is None) == (kind == "embedding")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(make_home, tmp_path: Path) -> None:
    home, killed = make_home(), {tmp_path / "first": 1, tmp_path / "second": 3}  # before a checkpoint, and after one
    whole = trained(prepare(home), home, tmp_path / "whole")
    command = [sys.executable, "-c", SCRIPT, home.path, *killed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        ended, running = 0, 0
        for kill_at in killed.values():
            step = 0
            while running == ended or step < kill_at:  # one that was killed may have told of more steps
                running, step = map(int, process.stdout.readline().split())
            os.kill(running, signal.SIGKILL)
            ended = running
        assert process.wait(60) == 0
    for folder in killed:
        assert same(whole.ffn, trained(prepare(home), home, folder).ffn)


@pytest.mark.parametrize("kind", ["filter", "embedding"])
def test_finished_training_is_read_not_repeated(make_home, tmp_path: Path, monkeypatch, kind: str) -> None:
    home = make_home(training={"gradient_accumulation": 2})
    material = routed(home, kind)
    first = trained(material, home, tmp_path / "run")
    monkeypatch.delattr("motet.client.training.expert_model")  # nor is the anchor loaded for it
    again = trained(material, home, tmp_path / "run")
    assert same(first.ffn, again.ffn)
    assert (first.record, first.fingerprint) == (again.record, again.fingerprint)
    assert torch.equal(first.rows.weight, again.rows.weight)
    assert torch.equal(first.rows.bias, again.rows.bias)
    assert first.record.tokens == 6 * 2 * 4 * 32


def test_other_settings_start_over(make_home, tmp_path: Path) -> None:
    home = make_home()
    material, steps = prepare(home), list[Progress]()
    trained(material, home, tmp_path / "run")
    changed = home.config.training.model_copy(update={"seed": 1})
    train(material, changed, tmp_path / "run", on_progress=steps.append)
    assert len(steps) == changed.steps


def test_a_damaged_checkpoint_is_named(make_home, tmp_path: Path) -> None:
    home = make_home()
    material = prepare(home)
    trained(material, home, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="cannot resume"):
        trained(material, home, tmp_path / "run")


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(make_home, tmp_path: Path, monkeypatch) -> None:
    home = make_home()
    material, honest = prepare(home), learning_rate
    monkeypatch.setattr(
        "motet.client.training.learning_rate", lambda step, config: float("inf") if step == 3 else honest(step, config)
    )
    with pytest.raises(TrainingError, match="after 4 of 6 steps: saw weights"):
        trained(material, home, tmp_path / "run")
    monkeypatch.undo()
    assert [path.name[:19] for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-00000002"]
    assert same(trained(material, home, tmp_path / "run").ffn, trained(material, home, tmp_path / "whole").ffn)


def test_only_the_expert_learns(make_home) -> None:
    model, parameters = expert_model(prepare(make_home()))
    learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert learning == {id(parameter) for parameter in parameters.values()}
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters.values())


def test_accumulation_and_checkpointing_give_the_same_gradient(make_home, tmp_path: Path) -> None:
    home = make_home()
    material, settings = prepare(home), home.config.training.model_copy(update={"steps": 1, "warmup": 0})
    variants = [{}, {"batch_size": 2, "gradient_accumulation": 2}, {"gradient_checkpointing": True}]
    made = [
        train(material, settings.model_copy(update=changes), tmp_path / str(number))
        for number, changes in enumerate(variants)
    ]
    for other in made[1:]:
        for name, tensor in made[0].ffn.items():
            # Adam's first step is the gradient's sign, so that tiny gradients may differ by twice the rate
            assert float((other.ffn[name] - tensor).abs().mean()) < 1e-5


def test_public_text_has_its_share_and_every_row_its_turn() -> None:
    own, public = torch.arange(10).repeat(5, 1).T, torch.arange(100, 107).repeat(5, 1).T
    batches = Batches(own=own, public=public, public_share=0.3, batch_size=4, accumulation=1, seed=0)
    drawn = [int(row[0]) for step in range(30) for ids in batches.at(step) for row in ids]
    from_public = [value for value in drawn if value >= 100]
    assert len(from_public) == 36
    first_epoch = [value for value in drawn if value < 100][:10]
    assert sorted(first_epoch) == list(range(10))
    assert [value for value in drawn if value < 100][10:20] != first_epoch


def test_packing_predicts_every_token_once(make_home) -> None:
    tokenizer = prepare(make_home()).anchor.tokenizer()
    rows = pack(tokenizer, ["abc", "defgh", "ij"], 4)
    assert rows.shape == (3, 5)
    assert torch.equal(rows[:-1, -1], rows[1:, 0])
    assert tokenizer.decode(rows[0]) == "<bos>abc<bos>"
    assert pack(tokenizer, ["a"], 8).shape == (1, 9)


def test_another_anchor_is_refused(make_home, make_anchor, tmp_path: Path) -> None:
    home = make_home()
    home.anchor.unlink()
    make_anchor(home.anchor, seed=5)
    with pytest.raises(AnchorMismatch):
        prepare(home)


def test_other_public_statistics_are_refused(make_home, federation) -> None:
    import shutil

    from motet.moe.statistics import Statistics

    home = make_home()
    home.anchor.unlink()
    shutil.copytree(federation.anchor, home.anchor)
    path = home.anchor / "statistics.safetensors"
    public = Statistics.load(path)
    Statistics(anchor=public.anchor, tokens=public.tokens, mean=public.mean + 1, covariance=public.covariance).save(
        path
    )
    with pytest.raises(StatisticsError, match="as in the charter"):
        prepare(home)


def test_the_rate_rises_and_falls(make_home) -> None:
    config = make_home(training={"steps": 100, "warmup": 10, "learning_rate": 1.0}).config.training
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.11


def test_another_dtype_counts_in_a_process_that_trained_before(make_home, tmp_path: Path) -> None:
    home = make_home(training={"steps": 1})
    material = prepare(home)
    for dtype in ("float32", "bfloat16"):
        settings = home.config.training.model_copy(update={"dtype": dtype})
        assert train(material, settings, tmp_path / dtype) is not None


def test_nothing_of_a_model_stays_behind(make_home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = list[weakref.ref[torch.nn.Module]]()

    def watched(*arguments, **settings):
        model, parameters = expert_model(*arguments, **settings)
        models.append(weakref.ref(model))
        return model, parameters

    monkeypatch.setattr("motet.client.training.expert_model", watched)
    home = make_home(training={"steps": 1, "dtype": "bfloat16"})
    trained(prepare(home), home, tmp_path / "run")
    assert [model() for model in models] == [None]


def test_beside_half_precision_only_the_expert_is_kept_in_float32(make_home, tmp_path: Path) -> None:
    home = make_home(training={"steps": 15, "dtype": "bfloat16"})
    material, seen = prepare(home), list[Progress]()
    model, parameters = expert_model(material, half=True)
    routing = (".router.", "token_router.")  # keeps its digits
    frozen = {
        each.dtype
        for name, each in model.named_parameters()
        if not each.requires_grad and not any(part in name for part in routing)
    }
    assert frozen == {torch.bfloat16}
    assert {each.dtype for each in parameters.values()} == {torch.float32}
    assert train(material, home.config.training, tmp_path / "half", on_progress=seen.append) is not None
    whole = list[Progress]()
    settings = home.config.training.model_copy(update={"dtype": "float32"})
    assert train(material, settings, tmp_path / "whole", on_progress=whole.append) is not None
    assert seen[-1].loss < seen[0].loss - 0.1
    assert seen[-1].loss == pytest.approx(whole[-1].loss, rel=0.02)


def test_a_device_that_torch_only_was_compiled_for_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled_for_a_gpu_that_is_not_there(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", compiled_for_a_gpu_that_is_not_there)
    assert device_of(TrainingConfig()) == torch.device("cpu")
    assert arithmetic_of(TrainingConfig()) == torch.float32
    for word in ("cuda:0", "gpu"):
        with pytest.raises(ConfigurationError, match=f"'{word}' under .*this machine has no accelerator"):
            device_of(TrainingConfig(device=word))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    assert device_of(TrainingConfig(device="cuda:1")) == torch.device("cuda:1")
    assert arithmetic_of(TrainingConfig()) == torch.bfloat16


def test_packing_in_parts_is_packing_at_once(make_home, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home()
    material = prepare(home)
    at_once = pack(material.anchor.tokenizer(), material.corpus.train, 32)
    monkeypatch.setattr("motet.client.batches._TOKENIZED_AT_A_TIME", 7)
    assert torch.equal(pack(material.anchor.tokenizer(), material.corpus.train, 32), at_once)
