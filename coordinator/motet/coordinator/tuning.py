"""Router tuning: the rows of every layer's router, fitted jointly on public documents that stand for the members' text.

Everything but rows and intercepts is frozen, and intercepts too if no stock export could hold them. The loss is the
language model's on equal shares of public text and of each member's proxies (FlexOlmo, arXiv 2507.07024, section 3.3).
Afterwards the anchor's row is taken from all rows, which changes no weight, so that it is zero again and its intercept
the anchor's log prior.

Guarantees: the same model and documents give the same tensors on one machine. What is not exact: a tuned row was
fitted beside all others, so that it is worth nothing without them; `motet.protocols.composite_manifest.Tuning` names
whom it holds for.

    tensors = tune(model, tokenizer, {"medicine": documents}, public, steps=200, seed=0)
    tensors["model.layers.0.mlp.router.weight"]           # (experts, hidden), float32
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from motet.moe.composite import MotetForCausalLM, router_tensor_names
from motet.moe.trainable_router import trainable_router
from motet.protocols.errors import AssemblyError, ConfigurationError, DataError, ExpertSetError, TrainingError

LEARNING_RATE = 1e-3
"""Adam's in the first step; it falls in a straight line to zero."""
BATCH = 16
"""Sequences in a step."""
SEQUENCE_LENGTH = 256
"""Tokens in a sequence, unless the anchor has fewer positions."""
_GRADIENT_CLIP = 1.0

Progress = Callable[[int, int], None]
"""Told the steps done, and of how many."""


def tune(
    model: MotetForCausalLM,
    tokenizer: Any,  # noqa: ANN401 - transformers is untyped
    proxies: Mapping[str, Sequence[str]],
    public: Sequence[str],
    *,
    steps: int,
    learning_rate: float = LEARNING_RATE,
    batch: int = BATCH,
    sequence_length: int = SEQUENCE_LENGTH,
    seed: int,
    progress: Progress = lambda done, total: None,
) -> dict[str, Tensor]:
    """Fit the router of `model`, in place, on one CPU thread.

    Args:
        model: the composite, in float32 or wider.
        tokenizer: its tokenizer.
        proxies: by member's name, the public documents that stand for its text; none for whoever named none.
        public: public documents, none of which anything is scored on.
        steps: how many batches to learn from.
        learning_rate, batch, sequence_length: of each step.
        seed: of the order of the documents.
        progress: told after every step.

    Returns:
        The router's tensors by name, layer by layer weight (experts, hidden) and bias (experts,), float32.

    Raises:
        ConfigurationError: the composite adds up evidence over the prefix.
        AssemblyError: no member has a proxy.
        ExpertSetError: proxies are of nobody's.
        DataError: there is no public text.
        TrainingError: the loss is no longer finite.
    """
    batches = _batches(tokenizer, _sources(model, proxies, public), batch=batch, length=sequence_length, seed=seed)
    with _one_thread(), _router_alone(model) as parameters:
        _descend(model, parameters, batches, steps=steps, learning_rate=learning_rate, progress=progress)
    return _anchored(model)


def require_tunable(counted: bool, documents: Mapping[str, int]) -> None:
    """Raise unless there is a router to tune and something to tune it on.

    Args:
        counted: whether the composite adds up evidence by token over the prefix.
        documents: member -> number of proxies.

    Raises:
        ConfigurationError: it does: evidence is counted token by token, nothing in it is fitted jointly.
        AssemblyError: nobody named a proxy.
    """
    if counted:
        raise ConfigurationError(
            "saw a composite that adds up evidence over the prefix, wanted layers' rows (kind 'token' with rows "
            "'logistic' or 'lda', or kind 'embedding'): evidence is counted, not fitted; assemble without --tune"
        )
    if not any(documents.values()):
        raise AssemblyError(
            f"saw no proxies of {', '.join(sorted(documents)) or 'anybody'}, wanted some member's to tune on; owners "
            "name them with proxies = true under [contribution], where the charter's routing.proxies asks for them"
        )


def _sources(
    model: MotetForCausalLM, proxies: Mapping[str, Sequence[str]], public: Sequence[str]
) -> list[Sequence[str]]:
    """What takes turns in a batch: the public text, and each member's proxies. Raises as `tune` says."""
    require_tunable(model.config.prefix is not None, {name: len(texts) for name, texts in proxies.items()})
    if strangers := sorted(proxies.keys() - set(model.config.names[1:])):
        raise ExpertSetError(f"saw proxies of {strangers[0]}, wanted members': {', '.join(model.config.names[1:])}")
    if not public:
        raise DataError("saw no public document to tune on beside the proxies, wanted some; give a longer public text")
    return [public, *(proxies[name] for name in sorted(proxies) if proxies[name])]


def _batches(
    tokenizer: Any,  # noqa: ANN401
    sources: Sequence[Sequence[str]],
    *,
    batch: int,
    length: int,
    seed: int,
) -> Iterator[Tensor]:
    """Batches (batch, length + 1) without end; sources take turns, sequence by sequence."""
    draws = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in range(len(sources))]
    streams = [
        _sequences(_tokens(tokenizer, texts, draw), length + 1) for texts, draw in zip(sources, draws, strict=True)
    ]
    turns = cycle(streams)
    while True:
        yield torch.stack([next(next(turns)) for _ in range(batch)])


def _tokens(tokenizer: Any, documents: Sequence[str], draw: torch.Generator) -> Iterator[int]:  # noqa: ANN401
    """Documents end to end, each opened by BOS (or EOS), pass after pass, each pass in an order drawn anew."""
    opening = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    while True:
        for index in torch.randperm(len(documents), generator=draw).tolist():
            yield opening
            yield from tokenizer(documents[index], add_special_tokens=False, verbose=False)["input_ids"]


def _sequences(tokens: Iterator[int], length: int) -> Iterator[Tensor]:
    while True:
        yield torch.tensor([next(tokens) for _ in range(length)])


def _descend(
    model: MotetForCausalLM,
    parameters: Sequence[nn.Parameter],
    batches: Iterator[Tensor],
    *,
    steps: int,
    learning_rate: float,
    progress: Progress,
) -> None:
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        ids = next(batches)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (batch, seq, vocabulary)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(parameters, _GRADIENT_CLIP)
        if not (loss.isfinite() and norm.isfinite()):
            raise TrainingError(
                f"after {step} of {steps} steps of tuning: saw a loss of {float(loss.detach()):.4g} with a gradient of "
                f"norm {float(norm):.4g}, wanted finite numbers; assemble without --tune"
            )
        optimizer.step()
        progress(step + 1, steps)


@contextmanager
def _router_alone(model: MotetForCausalLM) -> Iterator[list[nn.Parameter]]:
    """The parameters of every layer's router, which alone ask for gradients while open; dropout is off."""
    model.train(False)
    model.requires_grad_(False)
    routers = list(trainable_router(model).values())
    try:
        for parameter in routers:
            parameter.requires_grad_(True)
        yield routers
    finally:
        model.requires_grad_(False)
        for parameter in routers:
            parameter.grad = None


@torch.no_grad()
def _anchored(model: MotetForCausalLM) -> dict[str, Tensor]:
    """Take from all rows what makes the anchor's zero; the softmax ignores what all rows share."""
    tensors: dict[str, Tensor] = {}
    prior = model.config.priors[0]
    for layer in _layers(model):
        weight_name, bias_name = router_tensor_names(layer)
        weight, bias = model.get_parameter(weight_name), model.get_parameter(bias_name)
        weight.copy_(weight - weight[0])
        bias.copy_(bias - bias[0] + prior)
        tensors |= {weight_name: weight.float().cpu().clone(), bias_name: bias.float().cpu().clone()}
    return tensors


def _layers(model: MotetForCausalLM) -> range:
    return range(model.config.num_hidden_layers)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
