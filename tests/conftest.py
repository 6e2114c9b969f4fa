"""Anchors for tests: random, tiny, and real checkpoints in every other respect."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeAnchor = Callable[..., Path]
ALONE = ("tests/e2e/", "tests/deploy/test_compose.py")
"""Tests of many processes each: one after the other in one worker, lest two of them share the processors."""
WAITING = "tests/e2e/test_flower.py"
"""Not one of them: it waits for most of its time, until Flower misses a node."""

# As the command line sets it, before anything imports grpc: tests that talk gRPC also start children.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def pytest_collection_finish() -> None:
    """What importing every test module has made stays, and no collection after a training looks through it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, with the files that are `ALONE` as one: it is large, so that it is handed out first."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            alone = nodeid.startswith(ALONE) and not nodeid.startswith(WAITING)
            return "of many processes" if alone else super()._split_scope(nodeid)

    return ByFile(config, log)


@pytest.fixture(scope="session")
def make_anchor() -> MakeAnchor:
    """`make_anchor(directory, seed=0, model_type="olmo2", **sizes)`: a random bf16 anchor, one token per byte."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)

    def make(directory: Path, *, seed: int = 0, model_type: str = "olmo2", **sizes: int) -> Path:
        tokenizer = byte_tokenizer()
        tokenizer.save_pretrained(directory)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        shape |= {} if model_type == "olmo2" else {"num_key_value_heads": 2, "head_dim": 8}
        shape |= {"tie_word_embeddings": False} | sizes
        config = AutoConfig.for_model(
            model_type,
            vocab_size=len(tokenizer),
            max_position_embeddings=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **shape,
        )
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def anchor_directory(make_anchor: MakeAnchor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny anchor shared by all tests of a session; never write into it."""
    return make_anchor(tmp_path_factory.mktemp("anchor"))


def byte_tokenizer():
    """One token per byte, and one that opens, ends and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<bos>", "<eos>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
