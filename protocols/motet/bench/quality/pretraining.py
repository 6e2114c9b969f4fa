"""The stage `anchor`: a tokenizer and a small Olmo2, trained on public text alone.

Guarantees what every other stage starts from: a folder that `Anchor.load` reads, in bf16, with the public statistics
beside it; the same text, settings and seed give the same bytes on one machine.

    anchor({"steps": 900, ..., "seed": 0}, {"public": corpus}, out, tell)     # spec: the [anchor] table, and a seed
    Anchor.load(out).statistics()
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

from motet.bench.quality.config import AnchorConfig
from motet.bench.quality.corpora import read_split
from motet.bench.quality.descent import Schedule, descend
from motet.bench.quality.stages import Tell
from motet.moe.anchor import STATISTICS_FILE, Anchor
from motet.moe.statistics import measure

END, PAD = "<|endoftext|>", "<|pad|>"
WEIGHT_DECAY = 0.1
INITIALIZER_RANGE = 0.06
MEASURED_TOKENS = 1 << 17
"""Tokens of public text that the statistics are measured on, at most: as many as an owner measures its own on."""


def anchor(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Train the anchor into `out`; see `motet.bench.quality.stages` and the module."""
    settings = AnchorConfig.model_validate({key: value for key, value in spec.items() if key != "seed"})
    texts = _shuffled(read_split(inputs["public"], "train"), spec["seed"])
    tell("training the tokenizer")
    tokenizer = train_tokenizer(texts, settings.vocabulary)
    model = pretrain(tokenizer, texts, settings, seed=spec["seed"], tell=tell)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    tell("measuring the public statistics")
    measure(Anchor.load(out), texts, max_tokens=MEASURED_TOKENS).save(out / STATISTICS_FILE)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocabulary` tokens that opens texts with `END`; every digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def pretrain(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], settings: AnchorConfig, *, seed: int, tell: Tell
) -> Olmo2ForCausalLM:
    """Train in float32 on windows drawn from `texts` end to end, and round to bf16."""
    torch.manual_seed(seed)
    model = Olmo2ForCausalLM(_shape(tokenizer, settings))
    windows = _windows(_stream(tokenizer, texts), settings, seed)
    schedule = Schedule(steps=settings.steps, peak=settings.learning_rate)
    descend(model, model.parameters(), windows, schedule, weight_decay=WEIGHT_DECAY, tell=tell)
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    return model


def _shape(tokenizer: PreTrainedTokenizerFast, settings: AnchorConfig) -> Olmo2Config:
    return Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.sequence_length,
        tie_word_embeddings=False,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _shuffled(texts: Sequence[str], seed: int) -> list[str]:
    order: list[int] = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    return [texts[index] for index in order]


def _stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """All texts end to end, each opened by `END`: (tokens,)."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for text in encoded for token in (tokenizer.bos_token_id, *text)])


def _windows(stream: Tensor, settings: AnchorConfig, seed: int) -> Callable[[int], Tensor]:
    """A step's windows (batch, sequence_length + 1), drawn anywhere; a stream shorter than one is repeated."""
    width = settings.sequence_length + 1
    stream = stream.repeat(1 + width // len(stream))

    def windows(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        starts = torch.randint(len(stream) - width + 1, (settings.batch_size, 1), generator=draw)
        return stream[starts + torch.arange(width)]

    return windows
