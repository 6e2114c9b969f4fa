"""Training the quickstart's tokenizer and anchor.

Guarantees the same tokenizer everywhere and, on one machine with one set of library versions, the same anchor to the
last bit: one thread, a fixed seed, a fixed number of steps.

    tokenizer = train_tokenizer(texts)
    model = train_anchor(tokenizer, texts)
    save_anchor(model, tokenizer, directory)
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 2048
POSITIONS = 512
STEPS, LAST_STEPS, WARM_UP = 2600, 400, 100
BATCH, WINDOW = 8, 256
PEAK_RATE, LAST_RATE, SECOND_RATE = 8e-3, 4e-4, 1.5e-3
SEED = 2


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every byte has a token, and digits stand alone. Adds no token of its own accord."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def anchor_config(tokenizer: PreTrainedTokenizerFast) -> Olmo2Config:
    """The anchor's shape: about 1.05 million parameters, 2.1 MB in bf16; every row a multiple of 16 bytes."""
    return Olmo2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train_anchor(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    last_texts: Sequence[str],
    *,
    steps: int = STEPS,
    last_steps: int = LAST_STEPS,
) -> Olmo2ForCausalLM:
    """Trains in float32 on `texts`, at a lower rate on `last_texts`, and rounds to bf16 after either."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Olmo2ForCausalLM(anchor_config(tokenizer)).train()
    _descend(model, _token_stream(tokenizer, texts), steps, peak=PEAK_RATE, last=LAST_RATE)
    with torch.no_grad():
        for parameter in model.parameters():  # not the buffers: rotary frequencies stay exact
            parameter.copy_(parameter.bfloat16())
    _descend(model, _token_stream(tokenizer, last_texts), last_steps, peak=SECOND_RATE, last=0.0)
    return model.to(torch.bfloat16).eval()


def _descend(model: Olmo2ForCausalLM, stream: torch.Tensor, steps: int, *, peak: float, last: float) -> None:
    """Trains on random windows of the stream."""
    draw = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    started = time.monotonic()
    for step in range(steps):
        starts = torch.randint(len(stream) - WINDOW, (BATCH, 1), generator=draw)
        windows = stream[starts + torch.arange(WINDOW)]  # (batch, window)
        loss = model(input_ids=windows, labels=windows, use_cache=False).loss
        optimizer.param_groups[0]["lr"] = _rate(step, steps, peak, last)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            speed = (step + 1) * BATCH * WINDOW / (time.monotonic() - started)
            print(f"step {step:5d}  loss {loss.item():.3f} nats/token  {speed:.0f} tokens/s", file=sys.stderr)


def _rate(step: int, steps: int, peak: float, last: float) -> float:
    """Linear warm-up, then half a cosine from `peak` to `last`."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return last + (peak - last) * (1 + math.cos(math.pi * done)) / 2


def _token_stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> torch.Tensor:
    """All texts in a fixed shuffled order, each after an end token. (tokens,)"""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(SEED)).tolist()
    encoded = tokenizer([END + texts[index] for index in order])["input_ids"]
    return torch.tensor([token for document in encoded for token in document])


def save_anchor(model: Olmo2ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes a Hugging Face checkpoint: configuration, weights as safetensors, tokenizer."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
