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
    from motet.protocols.codec import CodecSettings, Description, Header
    from motet.protocols.contribution import Contribution
    from motet.protocols.expert_files import StoredTensors

Method = Literal["ternary", "levels", "int8", "int4", "lossless", "raw"]
"""As `codec.settings` has it; said again so that `motet --help` need not wait for numpy."""

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


def register(app: typer.Typer) -> None:
    """Add this room's sub-commands to the command line."""
    for command in (inspect, verify, pack, unpack):
        app.command()(command)


def inspect(file: UpdateFile, as_json: Json = False) -> None:
    """Show what an update file holds: methods, density, bits per parameter, the entropy bound, bytes per tensor."""
    from motet.protocols.codec import describe
    from motet.protocols.update_files import opened

    with opened(file) as update:
        description = describe(update.path, on_progress=progress_line("decoding", "values"))
    found = description.model_dump(mode="json") | {"contribution": _contribution_json(update.contribution)}
    show(
        found,
        as_json=as_json,
        lines=[*_contribution(update.contribution), *_summary(description), "", *_table(description)],
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
    checked, unchecked = _checks(header, update.contribution, manifest, applied=stored is not None)
    show(
        {"sound": True, "checked": checked, "unchecked": unchecked},
        as_json=as_json,
        lines=["sound", *(f"checked      {each}" for each in checked), *(f"not checked  {each}" for each in unchecked)],
    )


def pack(
    source: Annotated[
        Path,
        typer.Argument(
            help="A safetensors file of differences to the anchor in BF16, or F32 to be rounded to it, and routing "
            "rows in F32, as `motet unpack` writes it."
        ),
    ],
    anchor: Annotated[Path, typer.Option(help="The anchor's directory.")],
    out: Annotated[Path, typer.Option(help="The update file to write, usually .motetup.")],
    weights: Annotated[
        bool, typer.Option("--weights", help="SOURCE holds trained weights and rows; the difference is taken here.")
    ] = False,
    method: Annotated[Method, typer.Option(help="How the two-dimensional tensors travel.")] = "lossless",
    density: Annotated[float, typer.Option(help="ternary: the share of values kept.")] = 0.2,
    row_scales: Annotated[bool, typer.Option("--row-scales", help="ternary: a scale for each row.")] = False,
    step: Annotated[float, typer.Option(help="levels: their distance, in units of the root mean square.")] = 1.0,
    block: Annotated[int, typer.Option(help="int8 and int4: how many values share a scale.")] = 64,
    scale_factor: Annotated[
        float, typer.Option(help="ternary and levels: every scale is multiplied with this, as tuning found it.")
    ] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Encode and report, and keep nothing.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Encode the change to an anchor as an update file, and decode it again to report what it takes."""
    from motet.protocols.codec import describe
    from motet.protocols.update_files import pack as write

    options = {"density": density, "row_scales": row_scales, "step": step, "block": block}
    settings = _settings(method, options, scale_factor)
    with ExitStack() as stack:
        target = Path(stack.enter_context(TemporaryDirectory(prefix="motet-"))) / "dry" if dry_run else out
        if not dry_run:
            _may_write(out, force=force)
        manifest = _manifest(anchor)
        values = stack.enter_context(_source(source, anchor, manifest, weights=weights))
        progress = progress_line("packing", "values")
        write(values, manifest, target, settings, scale_factor=scale_factor, on_progress=progress)
        description = describe(target, on_progress=progress_line("decoding", "values"))
    found = description.model_dump(mode="json") | {"file": None if dry_run else str(out)}
    ending = "dry run: nothing was kept" if dry_run else f"wrote        {out}"
    show(found, as_json=as_json, lines=[*_summary(description), ending])


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
    from motet.protocols.update_files import check_footer, opened, write_difference

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
                base_digest = _base_of(update.path)
                materialise_file(update.path, manifest, stored, out, base=base_digest, on_progress=progress)
    found = {"file": str(out), "bytes": out.stat().st_size, "holds": "difference" if anchor is None else "expert"}
    show(found, as_json=as_json, lines=[f"wrote {out}, {found['bytes']:,} bytes: the {found['holds']}"])


def _settings(method: Method, options: dict[str, Any], scale_factor: float) -> "CodecSettings":
    from pydantic import ValidationError

    from motet.protocols.codec import CodecSettings
    from motet.protocols.documents import first_problem

    try:
        settings = CodecSettings(method=method, **options)
    except ValidationError as error:
        raise typer.BadParameter(f"{first_problem(error)}; see `motet pack --help`") from error
    if scale_factor != 1.0 and not settings.surveyed:
        raise typer.BadParameter(
            f"{method} has no scales; leave it out, or pack ternary or levels", param_hint="--scale-factor"
        )
    if not 0 < scale_factor < float("inf"):
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


def _may_write(out: Path, *, force: bool) -> None:
    if out.is_dir() or (out.exists() and not force):
        ending = "name a file in it" if out.is_dir() else "name another file, or give --force to replace it"
        raise ConfigurationError(f"saw {out} there already; {ending}")


def _checks(
    header: "Header", contribution: "Contribution | None", manifest: "AnchorManifest | None", *, applied: bool
) -> tuple[list[str], list[str]]:
    """What was checked, and what was not."""
    chunks = sum(1 for _ in header.spans())
    done = [f"header, {chunks:,} chunks and their checksums, footer; every value decoded and finite"]
    left = []
    if contribution is not None:
        done.append(f"signature of {contribution.owner}; the update is the one that it names")
    if manifest is not None:
        done.append(f"anchor {manifest.digest}; names, dtypes and shapes of {len(header.tensors):,} tensors")
    if applied:
        done.append("every value of the expert is finite")
    elif manifest is None:
        left.append("fit to an anchor: name its directory with --anchor")
    else:
        left.append(f"the expert's values: name the store file of {header.base} with --base")
    return done, left


def _contribution_json(contribution: "Contribution | None") -> dict[str, Any] | None:
    if contribution is None:
        return None
    shown = contribution.model_dump(mode="json", include={"name", "owner", "version", "charter", "terms"})
    return {"digest": contribution.digest} | shown


def _contribution(contribution: "Contribution | None") -> list[str]:
    if contribution is None:
        return []
    terms = contribution.terms
    return [
        f"contribution {contribution.digest}, version {contribution.version} of {contribution.name}",
        f"owner        {contribution.owner}",
        f"terms        {terms.licence}; attribution: {terms.attribution or 'none'}; purpose: "
        f"{terms.purpose or 'any that the licence allows'}",
    ]


def _summary(description: "Description") -> list[str]:
    lines = [
        f"method       {', '.join(description.methods)}",
        f"bytes        {description.file_bytes:,} for {description.parameters:,} parameters",
        f"bits         {description.bits_per_parameter:.4f} per parameter",
        f"ratio        {description.ratio:.2f} times smaller than the tensors themselves",
    ]
    if description.density is not None:
        lines.append(f"density      {100 * description.density:.3f} % of the values kept")
    if description.bound is not None:
        over = description.over_bound_percent or 0.0
        lines.append(f"bound        {description.bound:.4f} bits, H(k)+k; the ternary tensors take {over:+.2f} % of it")
    return [
        *lines,
        f"anchor       {description.anchor}",
        f"base         {description.base or 'the anchor itself'}",
    ]


def _table(description: "Description") -> list[str]:
    """One line for each tensor, columns as wide as they need to be."""
    rows = [("tensor", "dtype", "shape", "method", "density", "bits", "bytes")]
    for tensor in description.tensors:
        density = "" if tensor.density is None else f"{100 * tensor.density:.2f} %"
        shape = " x ".join(str(size) for size in tensor.shape)
        bits = f"{tensor.bits_per_parameter:.3f}"
        rows.append((tensor.name, tensor.dtype, shape, tensor.method, density, bits, f"{tensor.bytes:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = 4
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
