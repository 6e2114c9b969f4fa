"""What is measured: a random composite in its native form and as a stock export, in a folder.

write_material(Path("tmp"), settings)
composite, stock = load_material(Path("tmp"))
"""

from itertools import combinations, cycle, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from motet.moe import Expert, Factors, LowRankExpert, MotetForCausalLM, RoutingRows, compose
from motet.moe.export import export_stock
from motet.moe.lowrank import AnyExpert
from motet.protocols.canonical import bytes_digest
from motet.serving.bench.report import Settings
from motet.serving.engine.loading import Composite, in_memory
from motet.serving.expert_sets import ExpertSet, Roster

CONTEXT = 1024


def write_material(folder: Path, settings: Settings) -> None:
    """Writes `native` and `stock` below `folder`."""
    anchor = _anchor(settings)
    kinds = ["full"] * settings.full + ["lowrank"] * settings.lowrank
    experts = [_expert(anchor, f"{kind}-{number}", number, settings) for number, kind in enumerate(kinds)]
    compose(anchor, experts).save_pretrained(folder / "native")
    export_stock(folder / "native", folder / "stock")


def load_material(folder: Path) -> tuple[Composite, PreTrainedModel]:
    """Both in float32; the composite's answers end when they are as long as was asked for."""
    native: MotetForCausalLM = MotetForCausalLM.from_pretrained(folder / "native", dtype=torch.float32)
    stock: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder / "stock", dtype=torch.float32)
    stock.train(False)
    digest = bytes_digest(b"a random composite")
    return in_memory(native, _words(native.config.vocab_size), anchor=digest, digest=digest), stock


def different_sets(roster: Roster, number: int) -> list[ExpertSet]:
    """So many sets of equal size, different as far as there are different ones: each lacks two low-rank experts.

    Where there are too few of those, each lacks one expert.
    """
    lowrank = [name for name in roster.names if name.startswith("lowrank")]
    left_out = list(combinations(lowrank, 2)) if len(lowrank) > 2 else [(name,) for name in roster.names[1:]]
    return [roster.choose(exclude=names) for names in islice(cycle(left_out), number)]


def _anchor(settings: Settings) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=settings.vocabulary_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model: PreTrainedModel = LlamaForCausalLM(config)
    return model.requires_grad_(False)


def _expert(anchor: PreTrainedModel, name: str, number: int, settings: Settings) -> AnyExpert:
    draw = torch.Generator().manual_seed(number)
    ffn = {stored: tensor.detach() for stored, tensor in anchor.named_parameters() if ".mlp." in stored}
    rows = RoutingRows(
        weight=torch.randn(settings.layers, settings.hidden_size, generator=draw) / 50,
        bias=torch.zeros(settings.layers),  # what Mixtral has no place for
    )
    contribution = f"sha256:{number:064x}"
    if name.startswith("full"):
        whole = {stored: own + torch.randn(own.shape, generator=draw) / 200 for stored, own in ffn.items()}
        return Expert(name=name, contribution=contribution, ffn=whole, rows=rows)
    factors = {stored: _factors(own, settings.rank, draw) for stored, own in ffn.items()}
    return LowRankExpert(name=name, contribution=contribution, factors=factors, rows=rows)


def _factors(own: Tensor, rank: int, draw: torch.Generator) -> Factors:
    a, b = torch.randn(rank, own.shape[1], generator=draw), torch.randn(own.shape[0], rank, generator=draw)
    return Factors(a=a / 50, b=b / 50)


def _words(number: int) -> Any:  # noqa: ANN401 - transformers is untyped
    """A tokenizer whose words are numbers; none ends an answer."""
    words = models.WordLevel(vocab={f"w{word}": word for word in range(number)}, unk_token="w0")  # noqa: S106
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]
