"""Conversations: where their answers are, that these alone are learnt and scored, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from motet.cli import run
from motet.client.batches import pack
from motet.client.conversations import DAY, Chat
from motet.client.data import load_corpus
from motet.client.owner import CodecConfig, ContributionConfig, DataConfig, OwnerConfig, OwnerHome, TrainingConfig
from motet.client.preparation import prepare
from motet.client.step import mean_loss
from motet.moe.anchor import STATISTICS_FILE, Anchor
from motet.moe.scoring import score_windows, windows_of
from motet.moe.spans import IGNORED, heard, muted_tokens
from motet.moe.statistics import measure
from motet.protocols.canonical import file_digest, write_atomically
from motet.protocols.charter import AnchorPin
from motet.protocols.contribution import Terms
from motet.protocols.errors import DataError, TransferRefused
from motet.protocols.signing import seal
from tests.client.conftest import packed_of, published, sentences
from tests.conftest import byte_tokenizer

PLAIN = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
MARKED = (
    "<bos>{% for m in messages %}[{{ m.role }}]\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<eos>{% endgeneration %}{% else %}{{ m.content }}<eos>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
REWRITING = (  # as templates do that leave the thinking out of earlier answers
    "{% for m in messages %}[{{ m.role }}]\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('/')[-1] }}{% else %}{{ m.content }}{% endif %}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
TWO_TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many naïve ünïcode bytes?"},
    {"role": "assistant", "content": "hm/Three, élan."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "hm/Four."},
    {"role": "user", "content": "Never answered."},
]


def chat_of(template: str) -> Chat:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Chat.of(tokenizer)


@pytest.mark.parametrize(
    ("template", "marked", "learnt"),
    [
        (PLAIN, False, ["hm/Three, élan.<eos>", "hm/Four.<eos>"]),
        (MARKED, True, ["hm/Three, élan.<eos>", "hm/Four.<eos>"]),
        (REWRITING, False, ["hm/Four.<eos>"]),
    ],
    ids=["added", "marked", "rewritten"],
)
def test_the_answers_are_where_the_template_puts_them(template: str, marked: bool, learnt: list[str]) -> None:
    chat = chat_of(template)
    found = chat.conversation(TWO_TURNS)
    assert chat.marked == marked
    assert [found.text[start:end] for start, end in found.answers] == learnt
    assert found.text.startswith("[system]\nBe brief.<eos>")
    assert "Never answered" not in found.text


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (None, "saw NoneType"),
        ("text", "saw str"),
        ([{"role": "user", "content": "Well?"}], "no message of the role 'assistant'"),
        ([{"role": "assistant", "content": "  "}], "empty answer"),
        ([{"role": "assistant"}], "saw a message with role"),
        ([{"role": "assistant", "content": ["parts"]}], "content as text"),
        ([3], "saw list"),
    ],
)
def test_what_is_no_conversation_is_named(messages, why: str) -> None:
    with pytest.raises(DataError, match=why):
        chat_of(PLAIN).conversation(messages)


def test_an_answer_that_opens_a_conversation_is_read_and_learnt_only_where_the_template_marks_it() -> None:
    greeted = [{"role": "assistant", "content": "Hello."}, *TWO_TURNS[1:3]]
    for template, learnt in ((PLAIN, ["hm/Three, élan.<eos>"]), (MARKED, ["Hello.<eos>", "hm/Three, élan.<eos>"])):
        found = chat_of(template).conversation(greeted)
        assert "[assistant]\nHello.<eos>" in found.text
        assert [found.text[start:end] for start, end in found.answers] == learnt
    with pytest.raises(DataError, match="saw an answer that nothing comes before"):
        chat_of(PLAIN).conversation(greeted[:1])
    assert chat_of(MARKED).conversation(greeted[:1]).answers


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("'abc'.index('z')", "substring not found"),
        ("1 // 0", "zero"),
        ("messages[0].content.nothing()", "has no attribute 'nothing'"),
        ("messages[9].content", "index|no element"),
        ("'%d' | format('x')", "a real number is required|format"),
    ],
)
def test_whatever_a_template_trips_over_is_a_refusal(does: str, why: str) -> None:
    with pytest.raises(DataError, match=f"the chat template refuses it: .*({why})"):
        chat_of("{{ " + does + " }}").conversation(TWO_TURNS)


def test_what_the_template_refuses_or_hides_is_named() -> None:
    with pytest.raises(DataError, match="refuses it: roles must alternate"):
        chat_of("{{ raise_exception('roles must alternate') }}").conversation(TWO_TURNS)
    with pytest.raises(DataError, match="other than the answer's beginning"):
        chat_of("{{ messages | length }}{% if add_generation_prompt %}>{% endif %}").conversation(TWO_TURNS)
    hidden = MARKED.replace("{{ m.content }}<eos>{% endgeneration %}", "{% endgeneration %}")
    with pytest.raises(DataError, match="renders its answers nowhere"):
        chat_of(hidden).conversation(TWO_TURNS)


@pytest.mark.parametrize("form", ["%d %b %Y", "%-d. %B, %A", "%Y-%m-%d", "%F %H:%M:%S", "%c", "%y%j%U", "day %e"])
def test_a_template_is_told_one_day_for_ever(form: str) -> None:
    for rest in (PLAIN, MARKED):
        dated = "{% if strftime_now is defined %}{% set day = strftime_now(format) %}{% endif %}{{ day }}\n" + rest
        found = chat_of(dated.replace("format", repr(form))).conversation(TWO_TURNS)
        assert found.text.startswith(f"{DAY.strftime(form)}\n{'' if rest is PLAIN else '<bos>'}[system]")
        assert [found.text[start:end] for start, end in found.answers] == ["hm/Three, élan.<eos>", "hm/Four.<eos>"]


def test_the_day_is_told_wherever_a_template_asks_for_it() -> None:
    asked = (
        "{% macro head(x) %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}"
        "{% for m in messages %}{% if loop.first %}{{ head(m) }} {{ strftime_now(format='%d %b') }} {% endif %}"
        "{% endfor %}"
    )
    assert chat_of(asked + PLAIN).conversation(TWO_TURNS).text.startswith("2024-07-26 26 Jul [system]")


@pytest.mark.parametrize(
    "begin", ["", "\n", "\n\n", "  ", "  {% if true %}x{% endif %}", "{%- if true %}x{% endif %}\n"]
)
def test_telling_the_day_changes_nothing_else(begin: str) -> None:
    asks = "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    texts = {chat_of(begin + asks + PLAIN).conversation(TWO_TURNS).text, rendered(begin + asks + PLAIN)}
    assert len(texts) == 1


def rendered(template: str) -> str:
    tokenizer = byte_tokenizer()
    return tokenizer.apply_chat_template(TWO_TURNS[:-1], chat_template=template, tokenize=False)


def test_of_several_templates_the_default_counts_and_without_one_they_are_named() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": MARKED, "tool_use": "{{ 1 // 0 }}"}
    assert Chat.of(tokenizer).conversation(TWO_TURNS) == chat_of(MARKED).conversation(TWO_TURNS)
    tokenizer.chat_template = {"tool_use": PLAIN, "rag": PLAIN}
    with pytest.raises(DataError, match=r"saw the chat templates rag, tool_use .* wanted one called default"):
        Chat.of(tokenizer)


def test_tokens_outside_the_answers_are_muted() -> None:
    chat = chat_of(PLAIN)
    found = chat.conversation(TWO_TURNS)
    (tokens,) = muted_tokens(chat.tokenizer, [found.text], {found.text: found.answers})
    ids, labels = heard(torch.tensor(tokens))
    assert chat.tokenizer.decode(ids) == found.text
    assert chat.tokenizer.decode(labels[labels != IGNORED]) == "hm/Three, élan.<eos>hm/Four.<eos>"
    assert muted_tokens(chat.tokenizer, [found.text], {}) == [ids.tolist()]


def test_a_row_learns_its_answers_and_every_row_weighs_the_same() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, 3, 4, 5], [IGNORED, 2, IGNORED, 4, IGNORED], [IGNORED] * 5])
    nats = -torch.log_softmax(logits, dim=-1)
    first = nats[0].gather(1, labels[0][:, None]).mean()
    second = (nats[1, 1, 2] + nats[1, 3, 4]) / 2
    assert torch.allclose(mean_loss(logits, labels), (first + second) / 3)
    assert torch.equal(mean_loss(logits[:1], labels[:1]), functional.cross_entropy(logits[0], labels[0]))
    assert float(mean_loss(logits[2:], labels[2:])) == 0


def test_a_document_is_scored_where_its_answers_are(anchor_directory: Path) -> None:
    anchor, text = Anchor.load(anchor_directory), "question: one? answer: two"
    model, tokenizer, spans = anchor.model(torch.float32), anchor.tokenizer(), ((23, 26),)
    windows = windows_of(tokenizer, [text], sequence_length=64, answers={text: spans})
    found = score_windows(model, windows)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]])
    with torch.no_grad():
        nats = functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
    assert found.bytes == 3
    assert found.nats == pytest.approx(float(nats[23:26].sum()), rel=1e-5)
    assert score_windows(model, windows_of(tokenizer, [text], sequence_length=64)).bytes == len(text)


@pytest.fixture(scope="module")
def instruct_anchor(anchor_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny anchor with a chat template in its tokenizer."""
    directory = Path(shutil.copytree(anchor_bundle, tmp_path_factory.mktemp("instruct") / "anchor"))
    (directory / "chat_template.jinja").write_text(PLAIN)
    from motet.client.data import load_public

    measure(Anchor.load(directory), load_public(directory / "public.jsonl").train).save(directory / STATISTICS_FILE)
    return directory


def home_of(path: Path, federation, anchor: Path, conversations: list[object], **training: object) -> OwnerHome:
    path.mkdir()
    lines = [json.dumps({"messages": each}) for each in conversations]
    (path / "own.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pin = federation.charter.anchor.model_copy(
        update={"digest": Anchor.load(anchor).digest, "statistics": file_digest(anchor / STATISTICS_FILE)}
    )
    settings = {"steps": 25, "batch_size": 4, "sequence_length": 64, "warmup": 2, "device": "cpu"}
    config = OwnerConfig(
        name="helpdesk",
        coordinator=federation.key.public,
        data=DataConfig(files=("own.jsonl",), format="messages"),
        terms=Terms(licence="Apache-2.0"),
        training=TrainingConfig(**settings | {"learning_rate": 1e-2} | training),
        codec=CodecConfig(method="lossless"),
        contribution=ContributionConfig(consent="automatic"),
    )
    charter = federation.charter.model_copy(update={"anchor": AnchorPin(**pin.model_dump())})
    home = OwnerHome.create(path, config, seal(charter, federation.key))
    home.anchor.symlink_to(anchor)
    return home


def conversations(count: int = 40) -> list[list[dict[str, str]]]:
    """Questions of noise, and answers that are all alike."""
    questions = sentences(count, words=4)
    return [
        [{"role": "user", "content": question}, {"role": "assistant", "content": f"As told before: {number % 3}."}]
        for number, question in enumerate(questions)
    ]


def test_an_expert_learns_to_answer_and_its_figures_are_of_answers(federation, instruct_anchor, tmp_path: Path) -> None:
    home = home_of(
        tmp_path / "home",
        federation,
        instruct_anchor,
        conversations(),
        kind="lowrank",
        rank=8,
        learning_rate=3e-2,
        steps=40,
    )
    material = prepare(home)
    tokenizer, corpus = material.anchor.tokenizer(), material.corpus
    assert set(corpus.answers) == {*corpus.train, *corpus.held_out}
    rows = pack(tokenizer, corpus.train, 64, corpus.answers)
    ids, labels = heard(rows[:4].flatten().long())
    text = tokenizer.decode(labels[labels != IGNORED])
    assert "As told before" in text
    assert "case" not in text
    assert "[user]\ncase" in tokenizer.decode(ids)
    manifest = packed_of(home).contribution
    windows = windows_of(tokenizer, corpus.held_out, sequence_length=64, answers=corpus.answers)
    before = score_windows(material.anchor.model(torch.float32), windows).bits_per_byte
    assert manifest.bits_per_byte["anchor"] == pytest.approx(before, abs=1e-5)
    assert manifest.bits_per_byte["expert"] < before - 0.1
    assert math.isclose(windows.sizes[0], len("As told before: 0.<eos>"))


def test_instructions_that_all_share_make_no_repeats(federation, instruct_anchor, tmp_path: Path) -> None:
    shared = {"role": "system", "content": " ".join(f"rule {number}" for number in range(60))}
    told = [[shared, *each] for each in conversations(30)]
    corpus = load_corpus(home_of(tmp_path / "home", federation, instruct_anchor, told).config.data, tmp_path / "home")
    assert len(corpus.train) + len(corpus.held_out) == 30
    again = [[shared, *each] for each in conversations(30)] + [[*conversations(1)[0]]]
    both = home_of(tmp_path / "both", federation, instruct_anchor, again)
    assert len(corpus.answers) == len(load_corpus(both.config.data, both.path).answers)


def test_another_way_to_tell_answers_is_another_text(federation, instruct_anchor, tmp_path: Path) -> None:
    home = home_of(tmp_path / "home", federation, instruct_anchor, conversations())
    corpus = load_corpus(home.config.data, home.path)
    from dataclasses import replace

    moved = {text: ((start + 1, end),) for text, ((start, end),) in corpus.answers.items()}
    assert replace(corpus, answers=moved).digest != corpus.digest
    assert replace(corpus, answers={}).digest != corpus.digest


def test_a_base_model_is_no_place_for_conversations(federation, anchor_bundle: Path, tmp_path: Path) -> None:
    home = home_of(tmp_path / "home", federation, anchor_bundle, conversations())
    with pytest.raises(DataError, match="wanted an instruct anchor: frozen shared layers break"):
        prepare(home)


def test_the_line_of_a_bad_conversation_is_named(federation, instruct_anchor, tmp_path: Path) -> None:
    told = [*conversations(10), [{"role": "user", "content": "Well?"}]]
    home = home_of(tmp_path / "home", federation, instruct_anchor, told)
    with pytest.raises(DataError, match="line 11: saw no message of the role 'assistant'"):
        load_corpus(home.config.data, home.path)
    (home.path / "own.jsonl").write_text('{"text": "no conversation"}\n')
    with pytest.raises(DataError, match="line 1: saw NoneType"):
        load_corpus(home.config.data, home.path)
    (home.path / "own.jsonl").write_text(json.dumps({"messages": told[0]}) + "\n" + '{"messages": [{"role"')
    with pytest.raises(DataError, match=r"own\.jsonl as JSON lines.*line 2: saw no JSON"):
        load_corpus(home.config.data, home.path)
    home.anchor.unlink()
    with pytest.raises(DataError, match="no tokenizer"):
        load_corpus(home.config.data, home.path)


def test_the_line_that_a_template_trips_over_is_named(federation, instruct_anchor, tmp_path: Path) -> None:
    told = [*conversations(10), [{"role": "assistant", "content": "Hello."}]]
    home = home_of(tmp_path / "home", federation, instruct_anchor, told)
    with pytest.raises(DataError, match="line 11: saw an answer that nothing comes before"):
        load_corpus(home.config.data, home.path)


def test_a_guest_tries_conversations(federation, instruct_anchor, tmp_path: Path, capsys) -> None:
    settings = {"kind": "lowrank", "rank": 2, "steps": 1}
    home = home_of(tmp_path / "home", federation, instruct_anchor, conversations(), **settings)
    published(home, tmp_path / "composite")
    write_atomically(tmp_path / "charter.json", seal(home.charter, federation.key).canonical())
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "anchor").symlink_to(instruct_anchor)
    text = ("--data", str(home.path / "own.jsonl"), "--format", "messages", "--composite", str(tmp_path / "composite"))
    who = ("--charter", str(tmp_path / "charter.json"), "--coordinator", federation.key.public)
    command = ["try", "--dir", str(tmp_path / "guest"), *who, *text, "--json"]
    assert run([*command, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["conversations"]
    assert plan["fetched"] == [], "the anchor and the composite are here"
    assert run(command) == 0
    trial = json.loads(capsys.readouterr().out)
    assert trial["documents"] == plan["documents"] == 40
    assert trial["bytes"] == 40 * len("As told before: 0.<eos>")


def test_a_plan_with_conversations_fetches_the_anchor_as_the_trial_does(
    make_home, coordinator, federation, tmp_path: Path, capsys
) -> None:
    home = make_home()
    published(home, tmp_path / "composite")
    coordinator.published = {federation.charter.anchor.bundle: federation.anchor}
    write_atomically(tmp_path / "charter.json", seal(federation.charter, federation.key).canonical())
    text = ("--data", str(home.path / "own.jsonl"), "--format", "messages", "--composite", str(tmp_path / "composite"))
    who = ("--charter", str(tmp_path / "charter.json"), "--coordinator", federation.key.public)
    command = ["try", "--dir", str(tmp_path / "guest"), *who, *text, "--dry-run"]
    coordinator.owners = set()
    assert run(command) == TransferRefused.exit_code
    assert "the charter says no try_before_joining" in capsys.readouterr().err
    coordinator.guests = True
    assert run(command) == DataError.exit_code
    said = capsys.readouterr().err
    assert "wanted an instruct anchor" in said
    assert "format --format" in said
    assert (tmp_path / "guest" / "anchor" / "model.safetensors").is_file()


def test_conversations_read_as_text_are_pointed_out(make_home) -> None:
    home = make_home()
    (home.path / "own.jsonl").write_text(json.dumps({"messages": TWO_TURNS}) + "\n")
    with pytest.raises(DataError, match='format = "messages"'):
        load_corpus(home.config.data, home.path)
