"""The sub-command `motet bench serve`."""

from typing import Annotated

import typer

from motet.protocols.output import Json, bench_group, note, show


def register(app: typer.Typer) -> None:
    """Add it to the command line."""
    bench_group(app).command()(serve)


def serve(
    full: Annotated[int, typer.Option(min=1, help="Full experts.")] = 2,
    lowrank: Annotated[int, typer.Option(min=0, help="Low-rank experts, of rank 16.")] = 7,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved runs, whose medians are told.")] = 7,
    as_json: Json = False,
) -> None:
    """Measure the server: against generate, with one expert set and many, at 1, 4 and 16 requests at once.

    The composite is random, of a Llama anchor 512 wide with 8 layers; about 100M
    parameters as it comes. `generate` of transformers runs on its stock export
    (Mixtral), in which low-rank experts are dense, at a batch of 4, with torch's
    number of threads; the server as it comes, one processor left to HTTP. It is
    asked by HTTP, streaming, from another process. In mixed-4 and mixed-16 every
    request leaves out two low-rank experts, other ones than its neighbours do.
    The JSON has throughput_vs_generate (at 4), mixed_sets_overhead_percent (against
    one set of all experts, which reads the same weights; the worse of 4 and 16
    requests), mixed_sets_overhead_percent_of_equal_size (against one set that lacks
    two experts as well, whose batch reads fewer), batching_speedup_16 (against one
    request after another), switch_ms, and ttft_ms by the number of requests.
    """
    import uvicorn  # noqa: F401 - first, so that its extra is named if it is missing

    from motet.serving.bench.report import Settings
    from motet.serving.bench.rounds import run_serve

    report = run_serve(Settings(full=full, lowrank=lowrank, rounds=rounds), tell=note)
    show(report.as_json(), as_json=as_json, lines=report.lines())
