"""The sub-command `motet bench train`."""

from typing import Annotated

import typer

from motet.protocols.output import Json, note, show

Rounds = Annotated[int, typer.Option(min=1, help="How often everybody is timed.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads, of all alike.")]


def train_speed(rounds: Rounds = 7, threads: Threads = 1, as_json: Json = False) -> None:
    """Measure how fast experts train on this CPU, against transformers.Trainer on the same rows of the same anchor.

    Two pairs: a full expert beside the frozen network against a plain fine-tune
    of the feed-forward networks alone, and a low-rank expert of rank 16 against
    the same LoRA made by PEFT. The anchor is random: hidden 512, 8 layers,
    intermediate 2048, vocabulary 8192; a step is 4 sequences of 256 tokens in
    float32. A full expert has the frozen network's forward pass and its input
    gradients on top; full_flop_bound is the ratio that counting these allows.
    Everybody is timed in every round; a ratio is the median over rounds.
    Takes about two minutes.
    """
    from motet.client.speed import run

    speeds = run.run_train(run.SHAPE, rounds=rounds, threads=threads, tell=note)
    show(speeds.as_json(), as_json=as_json, lines=speeds.lines())
