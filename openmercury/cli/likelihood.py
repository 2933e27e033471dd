"""`likelihood`: bits per byte of text files. Figures go to stdout, the progress bar to stderr."""

from __future__ import annotations

import json as json_format
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from openmercury.cli.errors import UsageProblem
from openmercury.cli.options import MODEL, SHOWN, option

if TYPE_CHECKING:
    from openmercury.eval.likelihood import Bound, Likelihood

TEXTS, MEASURE = "Texts", "Measure"
Side = Literal["ar", "diffusion"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(likelihood)


def likelihood(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER…", help="UTF-8 text to measure.")],
    model: Annotated[
        str | None,
        option("Checkpoint folder. Default: $OPENMERCURY_MODEL, else the shipped one.", panel=MODEL, metavar="FOLDER"),
    ] = None,
    device: Annotated[str, option("auto, cpu or cuda.", panel=MODEL)] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float64"],
        option("Number format of the weights; auto is float32 on a CPU, bfloat16 on a GPU.", panel=MODEL),
    ] = "auto",
    mode: Annotated[Side, option("ar is exact, diffusion an upper bound.", panel=MEASURE)] = "ar",
    block_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="diffusion: positions denoised together. Default: the checkpoint's.", rich_help_panel=MEASURE
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="diffusion: draws of noise. Default: 4.", rich_help_panel=MEASURE)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="diffusion: seed of the noise. Default: 0.", rich_help_panel=MEASURE)
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens a prediction looks back on at most. Default: 2048.", rich_help_panel=MEASURE),
    ] = None,
    pattern: Annotated[str, option("Files of a folder to take.", "--glob", panel=TEXTS, metavar="PATTERN")] = "*",
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many files only.", rich_help_panel=TEXTS)] = None,
    json: Annotated[bool, option("Print one JSON object, with every file.", "--json", panel=SHOWN)] = False,
) -> None:
    """Bits per byte of text files, exactly or by the denoising bound."""
    given = {"--block-size": block_size, "--samples": samples, "--seed": seed}
    useless = [flag for flag, value in given.items() if value is not None]
    if mode == "ar" and useless:
        raise UsageProblem(f"{useless[0]} only acts with --mode diffusion: drop it or add that")
    from openmercury.cli.show import progress
    from openmercury.diffusion.bound import noisy_facts
    from openmercury.eval import likelihood as measure

    documents, skipped = measure.read_documents(paths, pattern, limit)
    loaded = _load(model, device, dtype)
    bound = None
    if mode == "diffusion":
        size = block_size or noisy_facts(loaded.model.config).block_size
        bound = measure.Bound(size, samples or measure.SAMPLES, seed or 0)
    back = context or min(measure.CONTEXT, loaded.model.config.max_context)
    begin = time.monotonic()
    with progress("reading tokens", 0) as advance:
        scores = measure.measure(loaded, documents, bound, back, advance)
    seconds = time.monotonic() - begin
    found = measure.summarise(scores)
    how = {
        "model": loaded.folder.resolve().name,
        "mode": mode,
        "bound": None if bound is None else asdict(bound),
        "context": back,
        "device": str(loaded.device),
        "dtype": loaded.dtype,
        "seconds": round(seconds, 3),
    }
    if json:
        told = {**how, **asdict(found), "skipped": skipped, "files": [asdict(score) for score in scores]}
        print(json_format.dumps(told))
    else:
        _print(how, found, bound, skipped)


def _load(model: str | None, device: str, dtype: str) -> Any:
    from openmercury.cli.show import waiting
    from openmercury.eval.likelihood import load

    with waiting("loading the model") as tell:
        return load(
            model,
            device=device,
            dtype=dtype,
            progress=lambda done, total: tell(f"loading the model, {done / total:.0%}"),
        )


def _print(how: dict[str, Any], found: Likelihood, bound: Bound | None, skipped: Counter[str]) -> None:
    kind = "exact" if bound is None else f"upper bound, blocks of {bound.block_size}, samples {bound.samples}"
    print(f"{how['model']}, {how['mode']} ({kind}), context {how['context']}, {how['dtype']} on {how['device']}")
    errors = {"the noise": found.standard_error, "the choice of files": found.document_error}
    told = "".join(f"   ± {error:.4f} by {what}" for what, error in errors.items() if error is not None)
    print(f"bits per byte   {found.bits_per_byte:.4f}{told}")
    print(f"bits per token  {found.bits_per_token:.4f}")
    print(f"read            {found.documents:,} files, {found.tokens:,} tokens, {found.bytes:,} bytes")
    if skipped:
        print(f"skipped         {', '.join(f'{count:,} {reason}' for reason, count in skipped.items())}")
    print(f"time            {how['seconds']:.1f} s")
