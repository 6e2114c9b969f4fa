"""Which parameters of a router may be fitted."""

import pytest

from motet.moe.trainable_router import trainable_router


@pytest.mark.parametrize(("model_type", "each"), [("olmo2", ["weight", "bias"]), ("llama", ["weight"])])
def test_intercepts_are_fitted_only_where_an_export_can_hold_them(make_composite, model_type: str, each: list) -> None:
    model = make_composite(model_type=model_type)
    found = trainable_router(model)
    assert list(found) == [f"model.layers.{layer}.mlp.router.{part}" for layer in range(3) for part in each]
    assert all(model.get_parameter(name) is parameter for name, parameter in found.items())
