"""Members of a federation whose anchor's MLPs read normalised states: rows without intercept, or none of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from motet.coordinator.founding import init
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.intake import Intake
from motet.moe.anchor import STATISTICS_FILE, Anchor
from motet.moe.statistics import measure
from motet.protocols.charter import Addresses, RoutingRules
from motet.protocols.codec import CodecSettings, encode
from motet.protocols.expert_files import ROUTER_TOKENS, update_specs
from motet.protocols.receipts import Receipt

from .conftest import PUBLIC, Owner, random_values


@pytest.fixture(scope="session")
def home_template(make_anchor: Callable[..., Path], public_text: Path, tmp_path_factory) -> Path:
    anchor = make_anchor(tmp_path_factory.mktemp("llama"), model_type="llama")
    measure(Anchor.load(anchor), PUBLIC[:20]).save(anchor / STATISTICS_FILE)
    path = tmp_path_factory.mktemp("pre-norm") / "home"
    init(
        path,
        name="quickstart",
        anchor_directory=anchor,
        public_text=public_text,
        addresses=Addresses(data_plane="127.0.0.1:9443", flower="localhost:8000"),
        routing=RoutingRules(kind="token"),
    )
    return path


def packed(home: CoordinatorHome, path: Path, *, biased: bool) -> Path:
    specs = update_specs(home.anchor_manifest)
    values = random_values(specs, 0)
    for name in values.tensors:
        if name == ROUTER_TOKENS or (name.endswith(".router.bias") and not biased):
            values.tensors[name] = values.tensors[name] * 0
    encode(path, values, specs, CodecSettings(method="lossless"), anchor=home.charter.anchor.digest, base=None)
    return path


@pytest.mark.slow
def test_rows_with_an_intercept_are_refused(home: CoordinatorHome, medicine: Owner, tmp_path: Path) -> None:
    intake = Intake(home)
    biased = packed(home, tmp_path / "biased.motetup", biased=True)
    receipt = intake.admit(medicine.manifest(home, biased), biased, 1).open(Receipt)
    assert (receipt.status, receipt.reason) == ("refused", "biased-rows")
    assert "router.bias: saw" in str(receipt.message)
    plain = packed(home, tmp_path / "plain.motetup", biased=False)
    assert intake.admit(medicine.manifest(home, plain), plain, 1).open(Receipt).status == "admitted"


def test_founded_on_such_an_anchor_a_token_charter_has_no_priors(home: CoordinatorHome) -> None:
    assert (home.charter.routing.log_prior_anchor, home.charter.routing.log_prior_expert) == (0, 0)
    assert home.anchor_manifest.normalises_mlp_input
