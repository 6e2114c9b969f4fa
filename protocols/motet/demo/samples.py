"""A few generated words with and without one expert, from a composite on disk.

for sample in samples_of(Path("composite"), {"medicine": "S52 Fracture of"}):
    print(sample.with_expert)
"""

from collections.abc import Mapping
from pathlib import Path

from motet.protocols.report import Sample

NEW_TOKENS = 24


def samples_of(composite: Path, prompts: Mapping[str, str]) -> list[Sample]:
    """Greedy continuations of each member's prompt, with all experts and without that one, in one batch."""
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from motet.moe import ANCHOR, MotetForCausalLM

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    model = MotetForCausalLM.from_pretrained(composite, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(composite, local_files_only=True)
    experts = list(model.config.names)
    found = []
    for expert in (name for name in experts if name in prompts and name != ANCHOR):
        inputs = tokenizer([prompts[expert]] * 2, return_tensors="pt")
        sets = [experts, [name for name in experts if name != expert]]
        tokens = model.generate(
            **inputs,
            expert_sets=sets,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.3,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = [" ".join(text.split()) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        found.append(Sample(prompt=prompts[expert], expert=expert, with_expert=texts[0], without_expert=texts[1]))
    return found
