"""The sub-commands for update files: `motet inspect`, `verify`, `pack`, `unpack`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from motet.protocols.errors import ConfigurationError
from motet.protocols.output import Json, note, progress_line, show

if TYPE_CHECKING:
    from motet.protocols.anchor_manifest import AnchorManifest
    from motet.protocols.codec import CodecSettings
    from motet.protocols.expert_files import StoredTensors

Method = Literal["ternary", "levels", "int8", "int4", "lossless", "raw"]
"""As `codec.settings` has it; said again so that `motet --help` need not wait for numpy."""

TensorFile = Annotated[
    Path,
    typer.Argument(
        help="A safetensors file of differences to the anchor, or of a low-rank expert's factors, in BF16, or F32 "
        "to be rounded to it, and routing rows in F32, as `motet unpack` writes it."
    ),
]
UpdateFile = Annotated[
    Path,
    typer.Argument(
        help="A .motetup file, or what `motet contribute --to` wrote, which is unpacked into the temporary folder."
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(help="For an update of a later version: the store file of the expert that it changes."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
Density = Annotated[float, typer.Option(help="ternary: the share of values kept.")]
Balance = Annotated[
    float, typer.Option(help="ternary: how far small rows compete on one footing with large ones, 0 to 1.")
]
RowScales = Annotated[bool, typer.Option("--row-scales", help="ternary: a scale for each row.")]
Step = Annotated[float, typer.Option(help="levels: their distance, in units of the root mean square.")]
Block = Annotated[int, typer.Option(help="int8 and int4: how many values share a scale.")]
ScaleFactor = Annotated[
    float | None,
    typer.Option(
        help="ternary and levels: what tuning found, every scale is multiplied with it; 1 is the least squared error, "
        "and if not given the values suggest one."
    ),
]


def register(app: typer.Typer) -> None:
    """Add this room's sub-commands to the command line."""
    for command in (inspect, verify, pack, unpack):
        app.command()(command)


def inspect(file: UpdateFile, as_json: Json = False) -> None:
    """Show what an update file holds: methods, density, bits per parameter, the entropy bound, bytes per tensor."""
    from motet.protocols import update_lines
    from motet.protocols.codec import describe
    from motet.protocols.update_files import opened

    with opened(file) as update:
        description = describe(update.path, on_progress=progress_line("decoding", "values"))
    contribution = update_lines.contribution_json(update.contribution)
    lines = [*update_lines.contribution_lines(update.contribution), *update_lines.summary(description)]
    show(
        description.model_dump(mode="json") | {"contribution": contribution},
        as_json=as_json,
        lines=[*lines, "", *update_lines.table(description)],
    )


def verify(
    file: UpdateFile,
    anchor: Annotated[
        Path | None, typer.Option(help="The anchor's directory: fit to it is checked, and every value applied to it.")
    ] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Check an update file to its last byte; with --anchor also that it fits and every value stays finite."""
    from motet.protocols import update_lines
    from motet.protocols.update_files import check, opened

    if base is not None and anchor is None:
        raise typer.BadParameter("give --anchor too: names, dtypes and shapes come from it", param_hint="--base")
    with opened(file) as update, ExitStack() as stack:
        manifest = None if anchor is None else _manifest(anchor)
        changes_anchor = _base_of(update.path) is None
        stored = None
        if anchor is not None and manifest is not None and (changes_anchor or base is not None):
            stored = stack.enter_context(_stored(anchor, manifest, update.path, base))
        header = check(update.path, manifest, stored, on_progress=progress_line("decoding", "values"))
    checked, unchecked = update_lines.checks(header, update.contribution, manifest, applied=stored is not None)
    show(
        {"sound": True, "checked": checked, "unchecked": unchecked},
        as_json=as_json,
        lines=["sound", *(f"checked      {each}" for each in checked), *(f"not checked  {each}" for each in unchecked)],
    )


def pack(
    source: TensorFile,
    anchor: Annotated[Path, typer.Option(help="The anchor's directory.")],
    out: Annotated[Path, typer.Option(help="The update file to write, usually .motetup.")],
    weights: Annotated[
        bool, typer.Option("--weights", help="SOURCE holds trained weights and rows; the difference is taken here.")
    ] = False,
    method: Annotated[Method, typer.Option(help="How the two-dimensional tensors travel.")] = "lossless",
    density: Density = 0.2,
    balance: Balance = 0.0,
    row_scales: RowScales = False,
    step: Step = 1.0,
    block: Block = 64,
    scale_factor: ScaleFactor = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Encode and report, and keep nothing.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Encode the change to an anchor as an update file, and decode it again to report what it takes."""
    from motet.protocols import update_lines
    from motet.protocols.codec import describe
    from motet.protocols.update_files import pack as write

    options = {"density": density, "balance": balance, "row_scales": row_scales, "step": step, "block": block}
    settings = _settings(method, options, scale_factor)
    with _target(out, dry_run=dry_run, force=force) as target:
        manifest = _manifest(anchor)
        with _source(source, anchor, manifest, weights=weights) as values:
            progress = progress_line("packing", "values")
            factor = write(values, manifest, target, settings, scale_factor=scale_factor, on_progress=progress)
        description = describe(target, on_progress=progress_line("decoding", "values"))
    found = description.model_dump(mode="json") | {"file": None if dry_run else str(out), "scale_factor": factor}
    lines = [*update_lines.summary(description), *([] if factor is None else [f"scales       times {factor:.3f}"])]
    ending = "dry run: nothing was kept" if dry_run else f"wrote        {out}"
    show(found, as_json=as_json, lines=[*lines, ending])


def unpack(
    file: UpdateFile,
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    anchor: Annotated[
        Path | None, typer.Option(help="The anchor's directory: write the expert's store file, not the difference.")
    ] = None,
    base: Base = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Decode an update file into its difference (BF16 if lossless, else F32), or with --anchor into the expert."""
    from motet.protocols.expert_files import materialise_file
    from motet.protocols.update_files import check_footer, opened, rank_in, write_difference

    _may_write(out, force=force)
    if base is not None and anchor is None:
        raise typer.BadParameter("give --anchor too: names, dtypes and shapes come from it", param_hint="--base")
    progress = progress_line("unpacking", "values")
    with opened(file) as update:
        check_footer(update.path)
        if anchor is None:
            write_difference(update.path, out, on_progress=progress)
        else:
            manifest = _manifest(anchor)
            with _stored(anchor, manifest, update.path, base) as stored:
                rank, base_digest = rank_in(update.path), _base_of(update.path)
                materialise_file(update.path, manifest, stored, out, rank=rank, base=base_digest, on_progress=progress)
    found = {"file": str(out), "bytes": out.stat().st_size, "holds": "difference" if anchor is None else "expert"}
    show(found, as_json=as_json, lines=[f"wrote {out}, {found['bytes']:,} bytes: the {found['holds']}"])


def _settings(method: Method, options: dict[str, Any], scale_factor: float | None) -> "CodecSettings":
    from pydantic import ValidationError

    from motet.protocols.codec import CodecSettings
    from motet.protocols.documents import first_problem

    try:
        settings = CodecSettings(method=method, **options)
    except ValidationError as error:
        raise typer.BadParameter(f"{first_problem(error)}; see `motet pack --help`") from error
    if scale_factor is not None and not settings.surveyed:
        raise typer.BadParameter(f"{method} has no scales: leave it out", param_hint="--scale-factor")
    if scale_factor is not None and not 0 < scale_factor < float("inf"):
        raise typer.BadParameter(f"saw {scale_factor}, wanted a number above 0", param_hint="--scale-factor")
    return settings


def _manifest(anchor: Path) -> "AnchorManifest":
    from motet.protocols.anchor_manifest import AnchorManifest

    note(f"reading the anchor in {anchor}")
    return AnchorManifest.of(anchor)


@contextmanager
def _source(source: Path, anchor: Path, manifest: "AnchorManifest", *, weights: bool) -> Iterator[Any]:
    from motet.protocols.expert_files import StoredTensors
    from motet.protocols.update_files import Differences, TrainedWeights

    if not weights:
        with Differences(source, manifest) as differences:
            yield differences
        return
    with StoredTensors.of_anchor(anchor) as stored, TrainedWeights(source, manifest, stored) as trained:
        yield trained


def _base_of(update: Path) -> str | None:
    from motet.protocols.codec import UpdateReader

    with UpdateReader(update) as reader:
        return reader.header.base


def _stored(anchor: Path, manifest: "AnchorManifest", update: Path, base: Path | None) -> "StoredTensors":
    """What the update changes. Raises ConfigurationError when `base` is missing, or not wanted."""
    from motet.protocols.expert_files import StoredTensors

    wanted = _base_of(update)
    if wanted is None and base is not None:
        raise ConfigurationError("this update changes the anchor itself: leave --base out")
    if wanted is not None and base is None:
        raise ConfigurationError(
            f"this update changes the expert of contribution {wanted}; name its store file with --base"
        )
    return StoredTensors.of_anchor(anchor) if base is None else StoredTensors.of_expert(base, manifest)


@contextmanager
def _target(out: Path, *, dry_run: bool, force: bool) -> Iterator[Path]:
    """Where to write: `out`, or for a dry run a file that is gone when the block ends."""
    if not dry_run:
        _may_write(out, force=force)
        yield out
        return
    with TemporaryDirectory(prefix="motet-") as folder:
        yield Path(folder) / out.name


def _may_write(out: Path, *, force: bool) -> None:
    if out.is_dir() or (out.exists() and not force):
        ending = "name a file in it" if out.is_dir() else "name another file, or give --force to replace it"
        raise ConfigurationError(f"saw {out} there already; {ending}")
