"""Greedy continuations from an exported checkpoint, by plain transformers in a process that cannot import Motet.

continuations(Path("stock"), {"law": "Permission is hereby granted"})       # {"model": "MixtralForCausalLM", ...}
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from motet.protocols.errors import ExportError

NEW_TOKENS = 24
_PROGRAM = """
import json, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "motet":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Wall())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folder, prompts, length = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
found = {}
for name, prompt in prompts.items():
    ids = tokenizer(prompt, return_tensors="pt")
    greedy = {"do_sample": False, "repetition_penalty": 1.2, "pad_token_id": tokenizer.eos_token_id}
    out = model.generate(**ids, max_new_tokens=length, **greedy)
    found[name] = tokenizer.decode(out[0], skip_special_tokens=True)
print(json.dumps({"model": type(model).__name__, "parameters": model.num_parameters(), "continuations": found}))
"""


def continuations(stock: Path, prompts: Mapping[str, str], *, new_tokens: int = NEW_TOKENS) -> dict[str, Any]:
    """The model's class, its parameters, and what follows each prompt. Raises ExportError when it does not load."""
    line = [sys.executable, "-c", _PROGRAM, str(stock), json.dumps(dict(prompts)), str(new_tokens)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ExportError(f"plain transformers cannot use {stock}: {done.stderr.strip()[-1000:]}; export it again")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
