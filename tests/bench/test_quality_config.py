"""The configuration refuses what could not be measured, and names the keys."""

from pathlib import Path

import pytest

from motet.bench.quality.config import (
    BASELINES,
    MERGING,
    AnchorConfig,
    EvaluationConfig,
    ExpertsConfig,
    Files,
    QualityConfig,
    RoutingConfig,
)
from motet.protocols.canonical import file_digest
from motet.protocols.errors import ConfigurationError

LEAST = 'name = "tiny"\npublic = "public.jsonl"\n'
DOMAINS = '[domains]\nmedicine = "medicine.jsonl"\n'


def config(tmp_path: Path, top: str = "", tables: str = "") -> QualityConfig:
    path = tmp_path / "quality.toml"
    path.write_text(f"{LEAST}{top}\n{DOMAINS}{tables}")
    return QualityConfig.from_toml(path)


def test_only_corpora_and_a_name_are_needed(tmp_path: Path) -> None:
    found = config(tmp_path)
    assert found.baselines == BASELINES
    assert set(MERGING) < set(BASELINES)
    assert found.seeds == 1
    assert found.routing.kinds == ("token", "filter")
    assert QualityConfig.model_validate(found.model_dump(mode="json")) == found


def test_baselines_keep_one_order(tmp_path: Path) -> None:
    assert config(tmp_path, 'baselines = ["joint", "soup", "specialist"]').baselines == ("specialist", "soup", "joint")


@pytest.mark.parametrize(
    ("top", "tables", "said"),
    [
        ('baselines = ["soup", "stew"]', "", r"baselines.*saw stew, wanted any of specialist, best-single"),
        ('baselines = ["oracle"]', "", r"oracle in baselines.*specialist"),
        ("", 'average = "a.jsonl"', r"domains.*average"),
        ("", 'anchor = "a.jsonl"', r"domains.*anchor"),
        ("", 'Law = "a.jsonl"', r"domains\.Law"),
        ("", "[anchor]\nhidden_size = 100\nheads = 3", r"anchor\.hidden_size 100 and anchor\.heads 3"),
        ("", "[experts]\nsequence_length = 256", r"experts\.sequence_length 256 over anchor\.sequence_length 128"),
        ("", "[experts]\nlearning_rates = []", r"experts\.learning_rates"),
        ("", "[experts]\nlearning_rates = [-1.0]", r"experts\.learning_rates"),
        ("", "[routing]\nstay = []", r"routing\.kinds.*routing\.stay"),
        ("", "[experts]\nranks = [4, 4]", r"a rank twice in experts\.ranks"),
        ("", "[experts]\nranks = [0]", r"experts\.ranks"),
        ("", "[experts]\nranks = [86]", r"86 in experts\.ranks with anchor\.hidden_size 128.*smaller rank"),
        (
            "",
            '[experts]\nranks = [4]\n[routing]\nkinds = ["token"]',
            r"experts\.ranks without filter in routing\.kinds",
        ),
        ("", "[experts]\nlowrank_learning_rates = []", r"experts\.lowrank_learning_rates"),
        ("", "[routing]\nstay = [1.5]", r"routing\.stay"),
        ("", "[routing]\ngain = []", r"routing\.gain"),
        ("", "[routing]\ngain = [8.0, 1e38]", r"routing\.gain"),
        ("", '[routing]\nkinds = ["guess"]', r"routing\.kinds"),
        ("", "[evaluation]\ntests = 3", r"evaluation\.tests.*docs/quality\.md"),
        ("seed = 3", "", r"seed.*not permitted"),
        ("seeds = 0", "", r"seeds"),
    ],
)
def test_what_cannot_be_measured(top: str, tables: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        config(tmp_path, top, tables)


def test_the_page_lists_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "quality.md").read_text()
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    tables = {
        "anchor": AnchorConfig,
        "experts": ExpertsConfig,
        "routing": RoutingConfig,
        "evaluation": EvaluationConfig,
    }
    for table, model in tables.items():
        row = " ".join(row.replace(f"`{table}.", "`.") for row in rows if row.startswith(f"| `{table}."))
        assert [key for key in model.model_fields if f"`.{key}`" not in row] == [], table
    for key in QualityConfig.model_fields.keys() - tables.keys() - {"domains"}:
        assert f"| `{key}`" in rows, key
    assert all(f"`{name}`" in page for name in BASELINES)


def test_token_routing_needs_no_probability_to_stay(tmp_path: Path) -> None:
    assert config(tmp_path, tables='[routing]\nkinds = ["token"]\nstay = []').routing.stay == ()


def test_corpora_are_found_beside_the_configuration_or_elsewhere(tmp_path: Path) -> None:
    found = config(tmp_path)
    with pytest.raises(ConfigurationError, match=r"medicine\.jsonl.*--corpora"):
        Files.of(found, tmp_path)
    for name in ("medicine", "public"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    files = Files.of(found, tmp_path)
    assert files.domains.keys() == {"medicine"}
    assert files.domains["medicine"].path == tmp_path / "medicine.jsonl"
    assert files.public.digest == file_digest(tmp_path / "public.jsonl")
