"""The composite: an anchor whose feed-forward networks are mixtures of the anchor's own and the owners' experts.

Guarantees: with every closed expert off it computes exactly what the anchor computes; an expert that is off is not
executed, and the others behave as if it did not exist; tensors have the same names in memory and on disk, the anchor's
except below `mlp`: `model.layers.{l}.mlp.experts.{e}.gate_proj.weight`, `model.layers.{l}.mlp.router.{weight,bias}`,
and of a low-rank expert `model.layers.{l}.mlp.experts.{e}.gate_proj.lora_{A,B}.weight`, of which no dense copy is made.

    import motet.moe                                              # registers with transformers' Auto classes
    model = AutoModelForCausalLM.from_pretrained("composite")
    model.generate(**inputs, expert_sets=["math"], max_new_tokens=20)
    model(**inputs, expert_mask=torch.tensor([[True, False, True]]))  # (batch, experts), column 0 is the anchor

    model = compose(anchor_model, [expert_a, expert_b])           # in process, sharing the anchor's parameters
    model.experts                                                 # kind, rank, parameters and bytes of each
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.generic import can_return_tuple

from motet.moe.average import Average
from motet.moe.composition import (
    adopt,
    adopt_scales,
    adopt_unsaved,
    composed_state,
    expert_tensor_name,
    factor_tensor_names,
    prior_list,
    router_tensor_names,
    router_tensors,
    token_router_tensor,
)
from motet.moe.config import ANCHOR, MotetConfig
from motet.moe.evidence import Evidence
from motet.moe.expert_cache import claim, last_told, note, set_keys
from motet.moe.expert_sets import expert_mask_of, prompts_allow
from motet.moe.experts import Expert
from motet.moe.families import FAMILIES, Family, family_of
from motet.moe.gate import Gate, Routing
from motet.moe.lowrank import AnyExpert, Expansion, Factors
from motet.moe.lowrank_mlp import LowRankMLP
from motet.moe.mixture import Mixture, Router
from motet.moe.prefix import prefix_settings
from motet.moe.token_router import TokenRouter, real_positions
from motet.protocols.errors import ExpertSetError
from motet.protocols.expert_sizes import ExpertSize

__all__ = [
    "MotetForCausalLM",
    "compose",
    "expert_tensor_name",
    "router_tensor_names",
    "router_tensors",
    "token_router_tensor",
]


class MotetForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """A composite with a language-model head.

    `forward` and `generate` take, beyond what the anchor takes, `expert_mask` (batch, experts) bool or `expert_sets`
    (names for all rows, or one list of names per row); without either, the blocks `only` and `without` decide, and
    without those all experts take part. Raises ExpertSetError and CacheExpertSetError.
    """

    config_class = MotetConfig
    config: MotetConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = [family.layer.__name__ for family in FAMILIES.values()]  # noqa: RUF012 - read from the class
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _keep_in_fp32_modules_strict = {"router", "token_router"}  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True

    def __init__(self, config: MotetConfig) -> None:
        super().__init__(config)
        self.model = _mixture_model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.token_router = (
            None if config.prefix is None else TokenRouter(config.vocab_size, config.prefix, config.priors)
        )
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,  # noqa: ANN401 - a transformers Cache
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        expert_mask: Tensor | None = None,
        expert_sets: Sequence[str] | Sequence[Sequence[str]] | None = None,
        **kwargs: Any,  # noqa: ANN401 - what attention and loss functions take
    ) -> CausalLMOutputWithPast:
        """input_ids (batch, seq) -> logits (batch, seq, vocabulary), and the loss given `labels` (batch, seq)."""
        rows = self._rows(input_ids, inputs_embeds)
        expert_mask = self._mask(rows, expert_mask, expert_sets)
        keys = set_keys(self.config.contributions or (), expert_mask, rows)
        if past_key_values is not None:
            claim(past_key_values, keys)
        told = self._told(input_ids, attention_mask, past_key_values, expert_mask)
        routing = Routing(expert_mask=expert_mask)
        if told is not None and self.token_router is not None:
            routing = self.token_router.routing(told, expert_mask)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            routing=routing,  # reaches every layer as an argument: checkpointing runs layers again later
            **kwargs,
        )
        if outputs.past_key_values is not None:
            note(outputs.past_key_values, keys, told, new=past_key_values is None)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate(
        self,
        inputs: Tensor | None = None,
        *args: Any,  # noqa: ANN401 - as transformers' generate
        expert_mask: Tensor | None = None,
        expert_sets: Sequence[str] | Sequence[Sequence[str]] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """As transformers' generate. Mask or sets have a row per prompt, whatever the number of beams or sequences."""
        prompts = inputs if inputs is not None else kwargs.get("input_ids")
        rows = self._rows(prompts, kwargs.get("inputs_embeds"))
        chosen = self._mask(rows, expert_mask, expert_sets)
        assistant = kwargs.get("assistant_model")
        if chosen is not None and (assistant is None or isinstance(assistant, MotetForCausalLM)):
            kwargs["expert_mask"] = chosen  # a tensor, so that generate repeats it along with the prompts
        # What generate is given it hands to an assistant too, and one without experts (the anchor) refuses a mask.
        with prompts_allow(chosen):
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def adjust_generation_fn(self, generation_config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """As transformers', which calls it when a model has been loaded; a folder without settings has the anchor's.

        Transformers then reads config.json, where the token that ends an answer is one level further down.
        """
        own, there = self.generation_config, Path(str(self.config.name_or_path)) / GENERATION_CONFIG_NAME
        super().adjust_generation_fn(generation_config, *args, **kwargs)  # type: ignore[misc]
        if generation_config is None and there.parent.is_dir() and not there.exists():
            self.generation_config = own

    @property
    def experts(self) -> tuple[ExpertSize, ...]:
        """Every expert's kind, rank, parameters and bytes, by expert id, the anchor first; the router not counted."""
        return tuple(
            ExpertSize.of(name, [tensor for each in self._expert_tensors(number).values() for tensor in each], rank)
            for number, (name, rank) in enumerate(zip(self.config.names, self.config.ranks, strict=True))
        )

    def expert_ffn(self, name: str) -> Mapping[str, Tensor]:
        """One expert's tensors under the anchor's names; a low-rank expert's are expanded each time one is asked for.

        Raises ExpertSetError when there is no such expert.
        """
        if name not in self.config.names:
            raise ExpertSetError(f"saw unknown expert {name!r}; this composite has {', '.join(self.config.names)}")
        own, found = self._expert_tensors(0), self._expert_tensors(self.config.names.index(name))
        if self.config.ranks[self.config.names.index(name)] is None:
            return {stored: tensors[0] for stored, tensors in found.items()}
        factors = {stored: Factors(a=a, b=b, scale=self._scale(name, stored)) for stored, (a, b) in found.items()}
        return Expansion({stored: tensors[0] for stored, tensors in own.items()}, factors)

    def _expert_tensors(self, expert: int) -> dict[str, tuple[Tensor, ...]]:
        """What there is of an expert under each of the anchor's names: its matrix, or its factors A and B."""
        family, full = family_of(self.config.anchor.model_type), self.config.ranks[expert] is None
        named = {
            stored: (expert_tensor_name(stored, expert),) if full else factor_tensor_names(stored, expert)
            for layer in range(self.config.num_hidden_layers)
            for stored in family.ffn_names(layer)
        }
        return {stored: tuple(self.get_parameter(name) for name in names) for stored, names in named.items()}

    def _scale(self, name: str, stored: str) -> float:
        module = expert_tensor_name(stored, self.config.names.index(name)).removesuffix(".weight")
        return float(self.get_submodule(module).scale)  # type: ignore[arg-type]

    def _told(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, cache: Cache | None, expert_mask: Tensor | None
    ) -> Tensor | None:
        """What the tokens say at every position of this pass, a row each; None when the layers' rows decide."""
        if self.token_router is None:
            return None
        if input_ids is None:
            raise ExpertSetError(
                "saw embeddings and no token ids in a composite that weighs its experts by the tokens; pass input_ids"
            )
        past = 0 if cache is None else int(cache.get_seq_length())
        found: Tensor = self.token_router(
            input_ids,
            expert_mask=expert_mask,
            real=real_positions(attention_mask, input_ids.shape[1], past=past),
            before=last_told(cache),
        )
        return found

    def _rows(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> int:
        given = input_ids if input_ids is not None else inputs_embeds
        return 1 if given is None else given.shape[0]

    def _mask(
        self,
        rows: int,
        expert_mask: Tensor | None,
        expert_sets: Sequence[str] | Sequence[Sequence[str]] | None,
    ) -> Tensor | None:
        mask = expert_mask_of(self.config.names, rows, expert_mask=expert_mask, expert_sets=expert_sets)
        return None if mask is None else mask.to(self.device)


def compose(
    anchor_model: PreTrainedModel,
    experts: Sequence[AnyExpert],
    *,
    top_k: int | None = None,
    normalise_top_k: bool = True,
    log_priors: Mapping[str, float] | None = None,
    evidence: Evidence | Average | None = None,
) -> MotetForCausalLM:
    """A composite of a loaded anchor and experts, full or low-rank, in the order of their contribution digests.

    Nothing is copied: the composite's parameters are the anchor's own, and the experts' tensors as given (an
    `nn.Parameter` stays the same object, so what a trainer optimises is what it passed in, and may be float32 beside
    an anchor in bfloat16; run such a composite under autocast). Low-rank factors stay factors, and only they take the
    anchor's dtype if they have another. The router is frozen.
    `top_k` is the number of experts per token, None for all that are allowed.
    `log_priors` are in nats by expert name, zero where absent; `evidence` makes the composite a filter over the prefix,
    or has it average over the prefix, in the anchor's unit; None routes by the layers' rows. Raises AssemblyError when
    an expert does not fit.
    """
    experts = sorted(experts, key=lambda expert: expert.contribution)
    names = [ANCHOR, *(expert.name for expert in experts)]
    config = MotetConfig(
        anchor_config=copy.deepcopy(anchor_model.config),
        expert_names=names,
        contributions=[expert.contribution for expert in experts],
        experts_per_token=top_k,
        normalise_top_k=normalise_top_k,
        log_priors=prior_list(names, log_priors),
        expert_ranks=[None, *(None if isinstance(expert, Expert) else expert.rank for expert in experts)],
        evidence=prefix_settings(evidence, anchor_model.config.to_dict(), anchor_model.get_parameter),
        dtype=anchor_model.dtype,
    )
    config._attn_implementation = anchor_model.config._attn_implementation
    with torch.device("meta"):
        model = MotetForCausalLM(config)
    adopt(model, composed_state(anchor_model, experts, config))
    adopt_scales(model, experts)
    adopt_unsaved(model, anchor_model)
    return model


def _mixture_model(config: MotetConfig) -> PreTrainedModel:
    """The anchor without its head, every decoder layer's MLP a mixture."""
    anchor, family = config.anchor, family_of(config.anchor.model_type)
    model = family.base(anchor)
    model.layers = nn.ModuleList(
        family.layer(anchor, layer, _mixture(config, family)) for layer in range(anchor.num_hidden_layers)
    )
    return model


def _mixture(config: MotetConfig, family: Family) -> Mixture:
    sizes = config.hidden_size, config.intermediate_size
    experts = [family.mlp(config.anchor) if rank is None else LowRankMLP(*sizes, rank) for rank in config.ranks]
    gate = Gate(top_k=config.experts_per_token, normalise=config.normalise_top_k)
    return Mixture(experts, Router(config.hidden_size, config.num_experts), gate)


AutoConfig.register(MotetConfig.model_type, MotetConfig, exist_ok=True)
AutoModelForCausalLM.register(MotetConfig, MotetForCausalLM, exist_ok=True)
