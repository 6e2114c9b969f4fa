"""Merging: one feed-forward network out of several experts', the baselines that a composite has to beat.

Guarantees: a method sees validation text only, through a `Judge`; what it returns is what the judge scored, rounded
as experts are; the same experts, judge and seed give the same network.

    judge = TextJudge(anchor.model(torch.float32), {"public": windows, "medicine": windows_of(tokenizer, texts, ...)})
    merged = merge("ties", anchor.ffn(), {"medicine": expert.ffn, "law": other.ffn}, judge)
    merged.judged, merged.settings               # bits per byte of the validation text, and what was chosen by it
    with swap_ffn(model, merged.ffn):
        ...

`ties`, `dare` and `task-arithmetic` are computed by PEFT and `cma-es` by cmaes: `pip install motet[merging]`.
"""

from motet.coordinator.merging.judging import TextJudge
from motet.coordinator.merging.methods import METHODS, Merged, merge
from motet.coordinator.merging.problem import Judge, Networks

__all__ = ["METHODS", "Judge", "Merged", "Networks", "TextJudge", "merge"]
