"""Small random composites: everything a real one has, in sizes that take milliseconds."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, MistralForCausalLM, Olmo2ForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from motet.moe import Expert, MotetForCausalLM, RoutingRows, compose

NAMES = ("math", "news", "law")


ARCHITECTURES = {
    each.config_class.model_type: each
    for each in (Olmo2ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen3ForCausalLM)
}


def tiny_anchor(model_type: str = "olmo2", **changes: object) -> PreTrainedModel:
    """Like a trained anchor in that its activations are of order one, so that differences show."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
    sizes |= {} if model_type == "olmo2" else {"num_key_value_heads": 2, "head_dim": 12}
    torch.manual_seed(0)
    settings = {"vocab_size": 96, "max_position_embeddings": 64, **sizes, **special, **changes}
    architecture = ARCHITECTURES[model_type]
    model = architecture(architecture.config_class(**settings)).eval()
    model.generation_config.eos_token_id = None  # random models end at random
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def tiny_expert(anchor: PreTrainedModel, name: str) -> Expert:
    draw = torch.Generator().manual_seed(NAMES.index(name) + 1)
    ffn = {
        key: (tensor + torch.randn(tensor.shape, generator=draw).to(tensor) * 0.3).detach()
        for key, tensor in anchor.named_parameters()
        if ".mlp." in key
    }
    layers, hidden = anchor.config.num_hidden_layers, anchor.config.hidden_size
    rows = RoutingRows(weight=torch.randn(layers, hidden, generator=draw) / 4, bias=torch.randn(layers, generator=draw))
    return Expert(name=name, contribution=f"sha256:{NAMES.index(name)}{'0' * 63}", ffn=ffn, rows=rows)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> tuple[Callable[..., PreTrainedModel], Callable[..., Expert]]:
    """`tiny_anchor` and `tiny_expert`, for tests that compose for themselves."""
    return tiny_anchor, tiny_expert


@pytest.fixture(scope="session")
def make_composite() -> Callable[..., MotetForCausalLM]:
    """`make_composite(names, dtype, top_k=..., anchor changes)`: these experts on an anchor that is always the same.

    Among the changes `model_type="llama"` takes another family's.
    """

    def make(
        names: Sequence[str] = NAMES, dtype: torch.dtype = torch.float32, *, top_k: int | None = None, **changes: Any
    ) -> MotetForCausalLM:
        anchor = tiny_anchor(**changes).to(dtype)
        return compose(anchor, [tiny_expert(anchor, name) for name in names], top_k=top_k, log_priors={"anchor": 0.5})

    return make


@pytest.fixture(scope="session")
def prompts() -> torch.Tensor:
    """Token ids (4, 9) without special tokens."""
    return torch.randint(3, 96, (4, 9), generator=torch.Generator().manual_seed(7))
