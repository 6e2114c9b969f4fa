"""Composites whose configuration does not hold together are named before anything is read from them."""

import json
from pathlib import Path

import pytest

from motet.client.adapter_sources import lowrank_in
from motet.protocols.errors import AssemblyError, ExpertError


@pytest.mark.parametrize(
    ("ranks", "saw"), [([None], "1 expert_ranks"), ([None, 4, 4], "3 expert_ranks"), (4, "no list of expert_ranks")]
)
def test_a_composite_with_other_than_a_rank_for_every_name_is_named(tmp_path: Path, ranks: object, saw: str) -> None:
    config = {"model_type": "motet", "expert_names": ["anchor", "medicine"], "expert_ranks": ranks}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssemblyError, match=rf"saw {saw} in .*config\.json, wanted 2 as its expert_names"):
        lowrank_in(tmp_path, expert="medicine")


def test_a_composite_without_ranks_has_full_experts_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "motet", "expert_names": ["anchor", "medicine"]}))
    with pytest.raises(ExpertError, match="medicine: saw a full expert"):
        lowrank_in(tmp_path, expert="medicine")


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"model_type": "motet", "expert_names": 3}'])
def test_what_is_no_composite_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(AssemblyError, match=str(tmp_path)):
        lowrank_in(tmp_path, expert="medicine")
