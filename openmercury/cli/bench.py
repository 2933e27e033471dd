"""`bench`: how fast a checkpoint answers HumanEval's prompts, in each mode and at each concurrency.

The table goes to stdout, the progress bar to stderr. All rows come from one process, so their ratios can be trusted.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openmercury.cli.errors import UsageProblem
from openmercury.cli.options import DECODING, MODEL, SHOWN, DtypeName, Settings, option

if TYPE_CHECKING:
    from openmercury.eval.speed import Speed

MODES = ("ar", "verified", "diffusion", "auto")
HEADER = ("mode", "at once", "tok/s", "per request", "TPF", "first ms", "between ms p50/p95/p99", "× ar")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(
    model: Annotated[str | None, option("Checkpoint folder.", panel=MODEL, metavar="FOLDER")] = None,
    device: Annotated[str, option("auto, cpu or cuda.", panel=MODEL)] = "auto",
    dtype: Annotated[DtypeName, option("Number format of the weights.", panel=MODEL)] = "auto",
    mode: Annotated[str, option("Modes to measure, with commas between.", panel=DECODING)] = ",".join(MODES),
    concurrency: Annotated[str, option("Requests under way at once, with commas between.", panel=DECODING)] = "1",
    max_tokens: Annotated[int, option("Tokens of an answer at most.", panel=DECODING)] = 512,
    limit: Annotated[int, typer.Option(min=1, help="Take the first prompts only.")] = 164,
    data: Annotated[
        Path | None, option("Folder of the benchmarks. [default: $OPENMERCURY_EVAL_DATA]", metavar="FOLDER")
    ] = None,
    json_out: Annotated[Path | None, option("Write the figures here.", "--json", panel=SHOWN, metavar="OUT")] = None,
) -> None:
    """Measure speed: a closed loop over HumanEval's prompts, temperature 0."""
    modes = [name.strip() for name in mode.split(",")]
    if wrong := [name for name in modes if name not in MODES]:
        raise UsageProblem(f"--mode {wrong[0]!r} is unknown: use {', '.join(MODES)}")
    try:
        levels = [int(level) for level in concurrency.split(",")]
    except ValueError:
        levels = [0]
    if min(levels) < 1:
        raise UsageProblem(f"--concurrency {concurrency!r} should be whole numbers from 1 on, as in 1,8,32")
    each = [Settings(mode=name, max_tokens=max_tokens).sampling() for name in modes]  # type: ignore[arg-type]
    from openmercury.cli.evaluate import progress
    from openmercury.engine.setup import setup
    from openmercury.eval import humaneval, speed
    from openmercury.llm import LLM, default_model, pick_device
    from openmercury.model.config import read_config
    from openmercury.text import chat

    tasks = humaneval.load(data)[:limit]
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
    chosen = setup(dtype, pick_device(device).type, read_config(default_model() if model is None else Path(model)))
    engine = chosen.engine
    llm = LLM(
        model,
        device=device,
        dtype=chosen.dtype,
        engine=engine.model_copy(update={"prefix_cache": False, "max_requests": max(*levels, engine.max_requests)}),
    )
    prompts = [chat.render(llm.tokenizer, [{"role": "user", "content": humaneval.chat_prompt(task)}]) for task in tasks]
    print(f"{llm.folder.resolve().name}, {llm.device}, {llm.dtype}: {len(prompts)} prompts of HumanEval")
    rows: list[Speed] = []
    print(_line(HEADER))
    for level in levels:
        for params in each:
            with progress(f"{params.mode}, {level} at once", len(prompts)) as advance:
                rows.append(speed.measure(llm, prompts, params, level, advance))
            print(_line(_cells(rows[-1], rows)), flush=True)
    if json_out is not None:
        figures: dict[str, Any] = {
            "model": llm.folder.resolve().name,
            "device": llm.device,
            "hardware": hardware(llm.device),
            "dtype": llm.dtype,
            "max_tokens": max_tokens,
            "rows": [asdict(row) for row in rows],
        }
        humaneval.write_whole(json_out, json.dumps(figures, indent=2) + "\n")


def hardware(device: str) -> str:
    """The name of the GPU, or how many cores a CPU gives us."""
    import os

    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {len(os.sched_getaffinity(0))} cores"


def _cells(row: Speed, rows: list[Speed]) -> tuple[str, ...]:
    base = next((one for one in rows if one.mode == "ar" and one.concurrency == row.concurrency), None)
    return (
        row.mode,
        str(row.concurrency),
        f"{row.tokens_per_second:.1f}",
        f"{row.request_tokens_per_second:.1f}",
        f"{row.tpf:.2f}",
        f"{row.first_ms_p50:.1f}",
        f"{row.between_ms_p50:.2f}/{row.between_ms_p95:.2f}/{row.between_ms_p99:.2f}",
        "" if base is None else f"{row.tokens_per_second / base.tokens_per_second:.2f}",
    )


def _line(cells: tuple[str, ...]) -> str:
    return "".join(cell.ljust(width) for cell, width in zip(cells, (11, 9, 10, 13, 7, 10, 26, 6), strict=True)).rstrip()
