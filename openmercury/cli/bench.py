"""`bench`: how fast a checkpoint answers, in each mode and under each load; or what a network of a given size could do.

Tables go to stdout, the progress bar to stderr. All rows come from one process, so their ratios can be trusted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from openmercury.cli import bench_http
from openmercury.cli import bench_tables as tables
from openmercury.cli.errors import UsageProblem
from openmercury.cli.options import DECODING, MODEL, SHOWN, DtypeName, Settings, flag, given, option

if TYPE_CHECKING:
    from openmercury.engine.config import EngineConfig
    from openmercury.engine.engine import Engine
    from openmercury.engine.params import SamplingParams
    from openmercury.eval.baseline import Baseline
    from openmercury.eval.prompts import PromptSet
    from openmercury.eval.speed import Speed
    from openmercury.llm import LLM
    from openmercury.model.config import ModelConfig
    from openmercury.server.remote import RemoteLLM

LOAD, NETWORK = "Load", "Forwards alone"
OPEN_WARM_UP = 32  # clients of the pass before an open loop
# Tokens per forward of the shipped model on HumanEval (README.md), for networks that have learned nothing.
SIMULATED_TPF = {"ar": 1.0, "verified": 7.5, "diffusion": 4.8}

# What an option goes with; given without it, nothing would read it.
NO_RANDOM, RANDOM = "a checkpoint, not with --random-weights", "--random-weights and --concurrency"
LOOP, OPEN, BASELINE = "--concurrency or --rate", "--rate", "--baseline"
PROMPTED, CLOSED = "--concurrency or --rate over a checkpoint", "--concurrency over a checkpoint"
BEHIND, HTTP = "--forward or --random-weights", "--http"
GOES_WITH = {
    "model": NO_RANDOM,
    "rate": NO_RANDOM,
    "mode": LOOP,
    "max_tokens": PROMPTED,
    "prompts": PROMPTED,
    "limit": PROMPTED,
    "data": PROMPTED,
    "requests": PROMPTED,
    "baseline": CLOSED,
    "picture": CLOSED,
    "http": CLOSED,
    "engine_process": HTTP,
    "seed": OPEN,
    "baseline_limit": BASELINE,
    "context": BEHIND,
    "simulated_tpf": RANDOM,
}
POSITIVE = ("limit", "requests", "context", "baseline_limit", "simulated_tpf")

Number = TypeVar("Number", int, float)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(
    invocation: typer.Context,
    model: Annotated[str | None, option("Checkpoint folder.", panel=MODEL, metavar="FOLDER")] = None,
    random_weights: Annotated[
        str | None, option("Instead: a network of random weights, as qwen2.5-1.5b, qwen2.5-7b, llada-8b.", panel=MODEL)
    ] = None,
    device: Annotated[str, option("auto, cpu or cuda.", panel=MODEL)] = "auto",
    dtype: Annotated[DtypeName, option("Number format of the weights.", panel=MODEL)] = "auto",
    mode: Annotated[str | None, option("Modes, with commas between. Default: all.", panel=DECODING)] = None,
    drafts: Annotated[
        str | None,
        option("Of `verified`: width:groups, as in 7:all, 7:last, 13:4. Default: by device.", panel=DECODING),
    ] = None,
    max_tokens: Annotated[
        int | None, option("Tokens of an answer at most. Default: 512; long: exactly 1000.", panel=DECODING)
    ] = None,
    concurrency: Annotated[
        str | None, option("Closed loops: requests under way at once, as in 1,8,32.", panel=LOAD)
    ] = None,
    rate: Annotated[str | None, option("Open loops: requests that come in a second, as in 0.5,8.", panel=LOAD)] = None,
    requests: Annotated[
        int | None, option("Requests of a loop. Default: each prompt once, at least 4 for each client.", panel=LOAD)
    ] = None,
    seed: Annotated[int, option("Seed of the arrivals.", panel=LOAD)] = 0,
    prompts: Annotated[Literal["humaneval", "mbpp", "long"], option("What is asked.", panel=LOAD)] = "humaneval",
    limit: Annotated[int | None, option("Take the first prompts only.", panel=LOAD)] = None,
    data: Annotated[
        Path | None,
        option("Folder of the benchmarks. Default: $OPENMERCURY_EVAL_DATA", panel=LOAD, metavar="FOLDER"),
    ] = None,
    forward: Annotated[
        str | None, option("Time a forward over so many positions, as in 1,8,32,128.", panel=NETWORK)
    ] = None,
    context: Annotated[int, option("Tokens before these positions.", panel=NETWORK)] = 1024,
    simulated_tpf: Annotated[
        float | None, option("With --random-weights: tokens per forward to assume.", panel=NETWORK)
    ] = None,
    baseline: Annotated[
        Literal["transformers"] | None, option("Measure plain transformers.generate, too.", panel=LOAD)
    ] = None,
    baseline_limit: Annotated[int, option("Prompts for the baseline.", panel=LOAD)] = 8,
    json_out: Annotated[Path | None, option("Write the figures here.", "--json", panel=SHOWN, metavar="OUT")] = None,
    http: Annotated[
        bool, option("Measure each closed loop over HTTP, too, with the server in this process.", panel=LOAD)
    ] = False,
    engine_process: Annotated[
        bool | None, option("With --http: an engine in a process of its own. Default: as `serve`.", panel=LOAD)
    ] = None,
    picture: Annotated[
        Path | None, option("Draw speed against concurrency: a .png or .svg file.", panel=SHOWN, metavar="OUT")
    ] = None,
) -> None:
    """Measure speed: loops over real prompts at temperature 0, and forwards alone."""
    levels, rates = _numbers(concurrency, "--concurrency", int), _numbers(rate, "--rate", float)
    positions = _numbers(forward, "--forward", int)
    if not (levels or rates or positions):
        levels = [1]
    _check(
        invocation,
        {
            NO_RANDOM: random_weights is None,
            RANDOM: random_weights is not None and bool(levels),
            LOOP: bool(levels or rates),
            PROMPTED: random_weights is None and bool(levels or rates),
            CLOSED: random_weights is None and bool(levels),
            OPEN: bool(rates),
            BASELINE: baseline is not None,
            HTTP: http,
            BEHIND: bool(positions) or random_weights is not None,
        },
    )
    if picture is not None:
        from openmercury.eval.picture import check

        check(picture)
    if http:
        bench_http.check()
    modes = _modes(mode, simulated=random_weights is not None)
    drafted = _drafts(drafts)
    report = Report(json_out)
    settings = _start(report, device, dtype, _config(model, random_weights), max([*levels, 1]))
    settings = settings.model_copy(update=drafted)
    if random_weights is not None:
        engine = _random_engine(report, random_weights, settings)
        _simulated(report, engine, modes, levels, context, simulated_tpf)
    else:
        from openmercury.eval import prompts as sets
        from openmercury.llm import LLM

        llm = LLM(model, device=report.figures["device"], dtype=report.figures["dtype"], engine=settings)
        engine = llm.engine
        report.figures["model"] = llm.folder.resolve().name
        report.say()
        if levels or rates:
            asked = sets.load(prompts, data, llm.tokenizer).with_limits(limit, max_tokens)
            each = [asked_params(name, asked) for name in modes]
            base = _baseline(llm, asked, baseline_limit) if baseline else None
            loads = Loads(levels, rates, requests, seed, http)
            with bench_http.behind(llm, engine_process) if http else contextlib.nullcontext(llm) as behind:
                rows = _loops(report, llm, behind, asked, each, loads, base)
            if picture is not None:
                _draw(report, picture, rows, base)
    if positions:
        _forwards(report, engine, positions, context)
    report.write()


class Report:
    """What is known so far, written again after each row, so that little is lost on Ctrl-C."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.figures: dict[str, Any] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def say(self) -> None:
        """The line above the tables."""
        print(", ".join(str(self.figures[name]) for name in ("model", "hardware", "dtype")))

    def row(self, section: str, row: Any) -> None:
        """Add a dataclass to a section."""
        self.figures.setdefault(section, []).append(asdict(row))
        self.write()

    def write(self) -> None:
        """Write the figures, where a file was asked for."""
        if self.path is not None:
            from openmercury.eval.store import write_whole

            write_whole(self.path, json.dumps(self.figures, indent=2) + "\n")


@dataclass(frozen=True)
class Loads:
    """Closed loops at `levels`, with `http` over a socket, too; open loops at `rates`; `requests` as the help says."""

    levels: list[int]
    rates: list[float]
    requests: int | None
    seed: int
    http: bool


def hardware(device: str) -> str:
    """The name of the GPU, or how many cores a CPU gives us."""
    import os

    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {len(os.sched_getaffinity(0))} cores"


# --- options ---------------------------------------------------------------------------------------------------------


def _numbers(text: str | None, name: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        found = [kind(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        found = [kind("0")]
    if any(not 0 < number < float("inf") for number in found):
        what = "whole numbers from 1 on, as in 1,8,32" if kind is int else "numbers above 0, as in 0.5,8"
        raise UsageProblem(f"{name} {text!r} should be {what}")
    return found


def _drafts(text: str | None) -> dict[str, Any]:
    """`--drafts` as settings of the engine."""
    from pydantic import ValidationError

    from openmercury.engine.config import EngineConfig

    if text is None:
        return {}
    width, _, groups = text.partition(":")
    try:
        checked = EngineConfig.model_validate({"draft_width": width, "draft_groups": groups})
    except ValidationError:
        raise UsageProblem(f"--drafts {text!r} should be width:groups, as in 7:all, 7:last or 13:4") from None
    return checked.model_dump(include={"draft_width", "draft_groups"})


def _check(context: typer.Context, holds: Mapping[str, bool]) -> None:
    """Refuse numbers below 1 or 0, and options that nothing would read; `holds` says what was asked for."""
    for name in POSITIVE:
        value = context.params[name]
        if value is not None and not value > 0:
            raise UsageProblem(f"{flag(name)} {value} should be above 0")
    for name, needed in GOES_WITH.items():
        if given(context, name) and not holds[needed]:
            raise UsageProblem(f"{flag(name)} has no effect here: it goes with {needed}")


def _modes(text: str | None, *, simulated: bool) -> list[str]:
    """The modes asked for, `ar` first, since the others are compared with it."""
    from typing import get_args

    from openmercury.engine.params import Mode

    known = sorted(SIMULATED_TPF if simulated else get_args(Mode), key=lambda name: name != "ar")
    asked = known if text is None else [name.strip() for name in text.split(",")]
    if wrong := [name for name in asked if name not in known]:
        raise UsageProblem(f"--mode {wrong[0]!r} is unknown here: use {', '.join(known)}")
    return sorted(asked, key=lambda name: name != "ar")


def asked_params(mode: str, asked: PromptSet) -> SamplingParams:
    """Greedy decoding of a prompt set."""
    params = Settings(mode=mode, max_tokens=asked.max_tokens).sampling()  # type: ignore[arg-type]
    return params.model_copy(update={"ignore_eos": asked.ignore_eos})


def _config(model: str | None, random_weights: str | None) -> ModelConfig:
    from openmercury.llm import default_model
    from openmercury.model.config import read_config
    from openmercury.model.shapes import config_of

    if random_weights is not None:
        return config_of(random_weights)
    return read_config(default_model() if model is None else Path(model))


def _start(report: Report, device: str, dtype: str, config: ModelConfig, most: int) -> EngineConfig:
    """Settings for the device at hand, with room for `most` requests; no prefix cache: every prompt is read."""
    from openmercury.engine.setup import setup
    from openmercury.model.device import pick_device

    on = pick_device(device)
    chosen = setup(dtype, on.type, config)
    report.figures |= {"device": str(on), "hardware": hardware(on.type), "dtype": chosen.dtype}
    settings = chosen.engine
    return settings.model_copy(update={"prefix_cache": False, "max_requests": max(most, settings.max_requests)})


# --- sections --------------------------------------------------------------------------------------------------------


def _baseline(llm: LLM, asked: PromptSet, limit: int) -> Baseline:
    from openmercury.cli.show import progress
    from openmercury.eval.baseline import measure

    prompts = asked.prompts[:limit]
    with progress("transformers", len(prompts)) as advance:
        return measure(llm, prompts, asked.max_tokens, ignore_eos=asked.ignore_eos, on_progress=advance)


def _loops(
    report: Report,
    llm: LLM,
    behind: LLM | RemoteLLM,
    asked: PromptSet,
    each: list[SamplingParams],
    loads: Loads,
    base: Baseline | None,
) -> list[Speed]:
    from openmercury.cli.show import progress
    from openmercury.eval.speed import Bench

    bench, rows, served = Bench(llm, asked.prompts), list["Speed"](), list[bench_http.Served]()
    report.figures |= {"prompts": asked.name, "prompt_count": len(asked.prompts), "max_tokens": asked.max_tokens}
    print(f"{len(asked.prompts)} prompts of {asked.name}, answers of {asked.max_tokens} tokens at most")
    print(tables.line(tables.SPEED))
    if base is not None:
        report.row("baseline", base)
        print(tables.line(tables.SPEED, tables.baseline_cells(base)), flush=True)

    def tell(row: Speed) -> None:
        rows.append(row)
        report.row("rows", row)
        print(tables.line(tables.SPEED, tables.speed_cells(row, rows)), flush=True)

    for level in loads.levels:
        count = loads.requests or max(len(asked.prompts), 4 * level)
        for params in each:
            with progress(f"{params.mode}, {level} at once", count) as advance:
                bench.warm_up(params, level)
                tell(bench.closed(params, level, count, advance))
            if loads.http:
                served.append(bench_http.over(behind, asked, params, rows[-1]))
                report.row("served", served[-1])
    for rate in loads.rates:
        count = loads.requests or len(asked.prompts)
        for params in each:
            with progress(f"{params.mode}, {rate:g} a second", count) as advance:
                bench.warm_up(params, OPEN_WARM_UP)
                tell(bench.open(params, rate, count, loads.seed, advance))
    print("\n" + tables.line(tables.TIME))
    for row in rows:
        print(tables.line(tables.TIME, tables.time_cells(row)))
    if served:
        print("\n" + tables.line(tables.SERVED))
    for one in served:
        print(tables.line(tables.SERVED, tables.served_cells(one)))
    return rows


def _draw(report: Report, path: Path, rows: list[Speed], base: Baseline | None) -> None:
    from openmercury.eval.picture import draw

    path.parent.mkdir(parents=True, exist_ok=True)
    figures = report.figures
    title = f"{figures['model']}, {figures['hardware']}, {figures['dtype']}, {figures['prompts']}"
    draw(path, rows, title, None if base is None else base.tokens_per_second)


def _random_engine(report: Report, name: str, settings: EngineConfig) -> Engine:
    import torch

    from openmercury.engine.engine import Engine
    from openmercury.model.costs import FORMATS, pack_as
    from openmercury.model.shapes import random_model

    figures = report.figures
    kind = FORMATS[figures["dtype"]]
    network = random_model(name, kind.dtype, torch.device(figures["device"]))
    pack_as(kind, network)
    figures |= {"model": f"{name} with random weights"}
    report.say()
    return Engine(network, settings)


def _simulated(
    report: Report, engine: Engine, modes: list[str], levels: list[int], context: int, tpf: float | None
) -> None:
    from openmercury.engine import probe

    if not levels:
        return
    print(tables.line(tables.SIMULATED))
    for level in levels:
        for mode in modes:
            assumed = SIMULATED_TPF[mode] if tpf is None or mode == "ar" else tpf
            row = probe.simulate(engine, mode, level, context, assumed)  # type: ignore[arg-type]
            report.row("simulated", row)
            print(tables.line(tables.SIMULATED, tables.simulated_cells(row)), flush=True)


def _forwards(report: Report, engine: Engine, positions: list[int], context: int) -> None:
    from openmercury.engine import probe

    bandwidth = probe.copy_bandwidth(engine.runner.device)
    report.figures["copy_bytes_per_second"] = bandwidth
    print(f"\none forward of one request behind {context} tokens; a copy moves {bandwidth / 1e9:,.0f} GB/s")
    print(tables.line(tables.FORWARD))
    first: float | None = None
    for row in probe.forward_times(engine, positions, bandwidth, context):
        first = first or row.ms
        report.row("forwards", row)
        print(tables.line(tables.FORWARD, tables.forward_cells(row, first)), flush=True)
