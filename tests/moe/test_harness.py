"""A composite in the lm-evaluation-harness: its scores are our own, its experts are those asked for, all is local."""

import json
import math
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from transformers import AutoTokenizer

from motet import cli
from motet.moe import MotetForCausalLM, only
from motet.moe.harness import HarnessReport, MotetLM, run_harness
from motet.moe.scoring import bits_per_byte, score
from motet.moe_commands import _lines
from motet.protocols.canonical import file_digest
from motet.protocols.composite_manifest import (
    MANIFEST_FILE,
    CompositeFile,
    CompositeManifest,
    CompositeMember,
    RoutingPolicy,
    read_composite_manifest,
)
from motet.protocols.errors import AssemblyError, ConfigurationError, DataError, ExpertSetError

EXAMPLES = Path(__file__).parents[2] / "examples" / "harness"
INSTRUCTIONS = EXAMPLES.parent / "instructions"
TEXTS = ["a fever and chills", "the theorem", "an übung, with umlauts", "rain over the town and the hills"]
CHOICES = [" one", " two", " three", " four words more"]

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXT = """
task: tiny_text
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
metadata: {version: 3}
"""


@pytest.fixture(scope="module")
def composite(
    make_composite: Callable[..., MotetForCausalLM], anchor_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A composite's folder, with everything that an assembled one has."""
    folder = tmp_path_factory.mktemp("composite")
    tokenizer = AutoTokenizer.from_pretrained(anchor_directory)
    model = make_composite(vocab_size=len(tokenizer), max_position_embeddings=512)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = f"sha256:{'0' * 64}"
    names = zip(model.config.names[1:], model.config.contributions, strict=True)
    files = [
        CompositeFile(name=path.name, size=path.stat().st_size, sha256=file_digest(path))
        for path in sorted(folder.iterdir())
    ]
    manifest = CompositeManifest(
        anchor=digest,
        members=tuple(CompositeMember(name=name, contribution=given, expert=digest) for name, given in names),
        routing=RoutingPolicy(),
        files=tuple(files),
    )
    (folder / MANIFEST_FILE).write_bytes(manifest.canonical())
    return folder


@pytest.fixture
def task_files(tmp_path: Path) -> Path:
    (tmp_path / "choice.yaml").write_text(CHOICE)
    (tmp_path / "text.yaml").write_text(TEXT)
    lines = [json.dumps({"text": text, "choices": CHOICES}) + "\n" for text in TEXTS]
    (tmp_path / "questions.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def loaded(composite: Path) -> tuple[MotetForCausalLM, object]:
    return MotetForCausalLM.from_pretrained(composite), AutoTokenizer.from_pretrained(composite)


def log_likelihood(composite: Path, context: str, continuation: str, names: Sequence[str]) -> float:
    """Log p(continuation | context) under the experts `names`, in nats, one token at a time."""
    model, tokenizer = loaded(composite)
    before, all_ids = tokenizer(context)["input_ids"], tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        logs = model(torch.tensor([all_ids]), expert_sets=list(names)).logits[0].log_softmax(dim=-1)
    return sum(float(logs[at - 1, all_ids[at]]) for at in range(len(before), len(all_ids)))


@pytest.mark.parametrize("names", [["anchor"], ["math", "law"]])
def test_its_scores_are_those_that_we_compute(composite: Path, task_files: Path, names: list[str]) -> None:
    report = run_harness(composite, ["tiny_choice", "tiny_text"], task_files=task_files, experts=names)
    model, tokenizer = loaded(composite)
    ours = bits_per_byte(score(model, tokenizer, TEXTS, sequence_length=512, expert_sets=names))
    assert report.tasks["tiny_text"].metrics["bits_per_byte"] == pytest.approx(ours, rel=1e-6)
    right = [max(CHOICES, key=lambda end, text=text: log_likelihood(composite, text, end, names)) for text in TEXTS]
    assert report.tasks["tiny_choice"].metrics["acc"] == right.count(CHOICES[0]) / len(TEXTS)
    assert report.tasks["tiny_text"].documents == len(TEXTS)
    assert report.tasks["tiny_text"].version == "3"


def test_the_expert_set_changes_the_score_and_is_recorded(composite: Path, task_files: Path) -> None:
    def run(**chosen: list[str]) -> HarnessReport:
        return run_harness(composite, ["tiny_text"], task_files=task_files, **chosen)

    reports = [run(), run(excluded=["news"]), run(experts=["news", "law"], excluded=["law"])]
    assert [report.experts for report in reports] == [
        ("anchor", "math", "news", "law"),
        ("anchor", "math", "law"),
        ("anchor", "news"),
    ]
    scores = [report.tasks["tiny_text"].metrics["bits_per_byte"] for report in reports]
    assert min(abs(one - other) for at, one in enumerate(scores) for other in scores[:at]) > 1e-3
    digest = CompositeManifest.parse((composite / MANIFEST_FILE).read_bytes()).digest
    assert {report.composite for report in reports} == {digest}


def test_the_registered_model_takes_experts_as_one_argument(composite: Path) -> None:
    model = get_model("motet").create_from_arg_string(f"pretrained={composite},experts=math+law")
    assert isinstance(model, MotetLM)
    assert model.experts == ("anchor", "math", "law")
    pairs = [(text, end) for text in TEXTS for end in CHOICES[:2]]
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    answers = [nats for nats, _ in model.loglikelihood(asked, disable_tqdm=True)]
    assert answers == pytest.approx([log_likelihood(composite, *pair, ["math", "law"]) for pair in pairs], abs=1e-4)


def test_generation_keeps_to_the_experts(composite: Path) -> None:
    model, tokenizer = loaded(composite)
    asked = Instance("generate_until", {}, ("the theorem", {"until": ["\0"], "max_gen_toks": 12}), 0)
    (said,) = MotetLM(str(composite), experts=["news"]).generate_until([asked], disable_tqdm=True)
    ids = tokenizer("the theorem", return_tensors="pt")["input_ids"]
    tokens = model.generate(ids, max_new_tokens=12, do_sample=False, expert_sets=["news"])
    assert said == tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)


def test_without_experts_of_its_own_the_blocks_around_it_decide(composite: Path) -> None:
    model, ids = MotetLM(str(composite)), torch.arange(3, 12)[None]
    with only("news"):
        inside = model._model_call(ids)
    assert torch.equal(inside, MotetLM(str(composite), experts="news")._model_call(ids))
    assert not torch.allclose(inside, model._model_call(ids), atol=0.1)


def test_nothing_asks_the_network(composite: Path, task_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refused(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    report = run_harness(composite, ["tiny_choice"], task_files=task_files, limit=2)
    assert (report.limit, report.tasks["tiny_choice"].documents) == (2, 2)
    (task_files / "elsewhere.yaml").write_text(
        CHOICE.replace("tiny_choice", "elsewhere").replace("path: json", "path: some/where")
    )
    with pytest.raises(DataError, match=r"elsewhere and their data: .*nothing is fetched"):
        run_harness(composite, ["elsewhere"], task_files=task_files)
    assert asked == []


def test_what_is_missing_is_named(composite: Path, task_files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no task 'tiny', wanted one of 2, such as tiny_choice, tiny_text"):
        run_harness(composite, ["tiny"], task_files=task_files)
    with pytest.raises(ConfigurationError, match="saw no folder"):
        run_harness(composite, ["tiny_text"], task_files=tmp_path / "nowhere")
    with pytest.raises(ExpertSetError, match="unknown experts physics; this composite has anchor, math, news, law"):
        run_harness(composite, ["tiny_text"], task_files=task_files, experts=["physics"])
    (task_files / "questions.jsonl").unlink()
    with pytest.raises(DataError, match=r"tiny_text and their data: .*questions\.jsonl"):
        run_harness(composite, ["tiny_text"], task_files=task_files)
    with pytest.raises(AssemblyError, match=r"composite\.json"):
        MotetLM(str(tmp_path))


@pytest.fixture
def instruct(composite: Path, tmp_path: Path) -> Path:
    """The same with a chat template."""
    folder = Path(shutil.copytree(composite, tmp_path / "instruct"))
    path = folder / "chat_template.jinja"
    path.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    manifest = read_composite_manifest(folder)
    file = CompositeFile(name=path.name, size=path.stat().st_size, sha256=file_digest(path))
    files = tuple(sorted((*manifest.files, file), key=lambda each: each.name))
    (folder / MANIFEST_FILE).write_bytes(manifest.model_copy(update={"files": files}).canonical())
    return folder


def test_instructions_are_put_as_the_chat_template_has_them(
    composite: Path, instruct: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encode = MotetLM.tok_batch_encode

    def listen(self: MotetLM, strings: list[str], **settings: Any) -> Any:
        asked.extend(strings)
        return encode(self, strings, **settings)

    monkeypatch.setattr(MotetLM, "tok_batch_encode", listen)
    report = run_harness(instruct, ["instructions"], task_files=INSTRUCTIONS, limit=2, chat=True)
    prompts = [json.loads(line)["prompt"] for line in (INSTRUCTIONS / "prompts.jsonl").read_text().splitlines()]
    assert sorted(asked) == sorted(f"<user>{prompt}\n<assistant>" for prompt in prompts[:2])
    assert report.chat
    assert list(_lines(report))[1] == "prompts    by the anchor's chat template"
    found = report.tasks["instructions"]
    assert (found.documents, found.metrics["follows"]) == (2, found.metrics["words"])
    with pytest.raises(ConfigurationError, match="no chat template"):
        run_harness(composite, ["instructions"], task_files=INSTRUCTIONS, limit=1, chat=True)


def test_a_folder_without_task_files_says_so(composite: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: [")
    with pytest.raises(ConfigurationError, match="none that parses"):
        run_harness(composite, ["tiny_text"], task_files=tmp_path)


def test_the_command_prints_and_keeps_the_results(
    composite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    out = tmp_path / "results" / "harness.json"
    line = ["harness", str(composite), "--tasks", "quickstart_choice", "--include-path", str(EXAMPLES), "--limit", "1"]
    assert cli.run([*line, "--without", "news", "--json", "--out", str(out)]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["experts"] == ["anchor", "math", "law"]
    domains = ("public", "medicine", "mathematics")
    assert set(printed["tasks"]) == {"quickstart_choice", *(f"quickstart_choice_{domain}" for domain in domains)}
    accuracies = [printed["tasks"][f"quickstart_choice_{domain}"]["metrics"]["acc"] for domain in domains]
    assert math.isclose(printed["tasks"]["quickstart_choice"]["metrics"]["acc"], sum(accuracies) / 3)
    assert cli.run([*line, "--anchor-too", "--json"]) == 0
    both = json.loads(capfd.readouterr().out)
    assert both["experts"] == ["anchor", "math", "news", "law"]
    assert both["anchor"].keys() == both["tasks"].keys()
    told = list(_lines(HarnessReport.model_validate_json(json.dumps(both))))
    begin = told.index("") + 1
    assert told[begin] == "experts    anchor"
    assert [line.split()[:2] for line in told[begin + 1 :]] == [line.split()[:2] for line in told[2 : begin - 1]]
    assert cli.run([*line, "--experts", "physics"]) == ExpertSetError.exit_code
    assert "unknown experts physics" in capfd.readouterr().err
