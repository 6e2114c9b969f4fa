"""The sub-command `motet bench codec`; `motet bench composite` and `motet bench quality` have rooms of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motet.bench.composite_commands import composite
from motet.bench.quality.commands import quality
from motet.protocols.output import Json, bench_group, note, show

if TYPE_CHECKING:
    from motet.bench.rows import Row
    from motet.bench.run import Result

_HEAD = ("method", "density", "path", "bits", "bound", "over", "encode", "x sha", "decode", "x sha", "extra")
_UNITS = ("", "", "", "/param", "/param", "%", "MB/s", "", "MB/s", "", "MB")


Params = Annotated[int, typer.Option(help="Parameters of the update, rounded down to a multiple of 2000.")]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Only these, with commas: ternary, ternary-balanced, levels, int8, int4, lossless, raw, zstd-3, "
        "safetensors, 2-bit."
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(help="Where up to 10 bytes a parameter lie meanwhile; the temporary folder if not given."),
]


def register(app: typer.Typer) -> None:
    """Add this room's sub-commands to the command line."""
    bench_group(app).command()(codec)
    bench_group(app).command()(quality)
    bench_group(app).command()(composite)


def codec(
    params: Params = 50_000_000,
    methods: Methods = None,
    tmp: Folder = None,
    as_json: Json = False,
) -> None:
    """Measure what the codec costs and buys: bits per parameter against the bound H(k)+k, speed, memory.

    The input is Gaussian bf16 differences at independent positions, seed 0, in
    a file. Encoding counts reading it (twice, where a threshold is found first)
    and writing the update, fsync included. Decoding counts reading the update
    and an anchor and making every value of the expert, which is not written.
    Two threads; MB/s are 10^6 bytes of bf16 input a second, and "x sha" is that
    over SHA-256 on one thread, hashed in between, its reading not counted.
    Extra memory is the peak over what the process had after a small update went
    both ways. Each row is measured in a process of its own, and is the median
    of up to three rounds. ternary-balanced lets rows compete, which costs two
    more passes over the input. zstd-3 is given the ternary update as dense bf16 and,
    without a density, the differences; 2-bit the ternary update.
    """
    from motet.bench.rows import MEASURED
    from motet.bench.run import planned, run_codec

    chosen = MEASURED if methods is None else tuple(each.strip() for each in methods.split(","))
    if unknown := [each for each in chosen if each not in MEASURED]:
        raise typer.BadParameter(f"saw {', '.join(unknown)}, wanted any of {', '.join(MEASURED)}")
    result = run_codec(params, planned(chosen, note), tmp=tmp, tell=note)
    if not result.exact_memory:
        note("this system does not forget a peak of memory: extra memory may count the start too")
    show(result.report.model_dump(mode="json"), as_json=as_json, lines=_lines(result))


def _lines(result: "Result") -> Iterator[str]:
    table = [_HEAD, _UNITS, *(_cells(row) for row in result.report.rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEAD))]
    yield f"{result.report.params:,} parameters; SHA-256 {result.sha256_mb_s:,.0f} MB/s"
    for line in table:
        cells = (cell.ljust(widths[at]) if at < 1 else cell.rjust(widths[at]) for at, cell in enumerate(line))
        yield "  ".join(cells).rstrip()


def _cells(row: "Row") -> tuple[str, ...]:
    return (
        row.method,
        "" if row.density is None else f"{100 * row.density:.4g} %",
        row.path,
        f"{row.bits_per_parameter:.4f}",
        "" if row.bound is None else f"{row.bound:.4f}",
        "" if row.over_bound_percent is None else f"{row.over_bound_percent:+.2f}",
        f"{row.encode_mb_s:,.0f}",
        f"{row.encode_vs_sha256:.3f}",
        f"{row.decode_mb_s:,.0f}",
        f"{row.decode_vs_sha256:.3f}",
        f"{row.extra_rss_mb:.0f}",
    )
