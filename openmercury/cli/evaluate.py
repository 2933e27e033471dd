"""`eval`: benchmarks. Answers are generated and judged in one go, or apart (--generate-only, then --score).

Figures go to stdout, the progress bar to stderr. Nothing a model wrote runs outside the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openmercury.cli import generate
from openmercury.cli.errors import UsageProblem
from openmercury.cli.options import DECODING, MODEL, SHOWN, DtypeName, ModeName, Settings, option

if TYPE_CHECKING:
    from openmercury.eval.humaneval import Sample, Task
    from openmercury.eval.sandbox import Verdict

GENERATING = (
    "model",
    "device",
    "dtype",
    "mode",
    "threshold",
    "edit_below",
    "block_size",
    "max_tokens",
    "batch_size",
    "limit",
    "samples",
)
ModelFolder = Annotated[
    str | None,
    option("Checkpoint folder. [default: $OPENMERCURY_MODEL, else the shipped model]", panel=MODEL, metavar="FOLDER"),
]
SamplesFile = Annotated[Path, typer.Argument(metavar="SAMPLES.jsonl", help="Answers kept by --samples.")]

commands = typer.Typer(help="Measure a checkpoint.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands.command(name="humaneval")(humaneval)
    commands.command(name="compare")(compare)
    app.add_typer(commands, name="eval")


def humaneval(
    context: typer.Context,
    model: ModelFolder = None,
    device: Annotated[str, option("auto, cpu or cuda.", panel=MODEL)] = "auto",
    dtype: Annotated[DtypeName, option("Number format of the weights.", panel=MODEL)] = "auto",
    mode: Annotated[ModeName, option("verified gives ar's text, in fewer forwards.", panel=DECODING)] = "verified",
    threshold: Annotated[
        float | None, option("diffusion: accept predictions at least this sure. [default: 0.15]", panel=DECODING)
    ] = None,
    edit_below: Annotated[
        float | None, option("diffusion: replace a token this unlikely beside the clean choice.", panel=DECODING)
    ] = None,
    block_size: Annotated[int | None, option("Positions denoised together.", panel=DECODING)] = None,
    max_tokens: Annotated[int, option("Tokens of an answer at most.", panel=DECODING)] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Tasks decoded together.", rich_help_panel=DECODING)] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first tasks only.")] = None,
    data: Annotated[
        Path | None, option("Folder of the benchmarks. [default: $OPENMERCURY_EVAL_DATA]", metavar="FOLDER")
    ] = None,
    generate_only: Annotated[bool, option("Keep the answers, run nothing.", "--generate-only")] = False,
    score: Annotated[Path | None, option("Judge these answers, generate nothing.", metavar="SAMPLES.jsonl")] = None,
    samples: Annotated[Path | None, option("Keep the answers here.", panel=SHOWN, metavar="OUT.jsonl")] = None,
    json_out: Annotated[Path | None, option("Write the figures here.", "--json", panel=SHOWN, metavar="OUT")] = None,
) -> None:
    """HumanEval: pass@1 of greedy answers, and tokens per forward."""
    _check(context, generate_only=generate_only, score=score, samples=samples)
    from openmercury.eval import humaneval as benchmark
    from openmercury.eval.sandbox import usable_backend

    settings = Settings(
        model=model,
        device=device,
        dtype=dtype,
        mode=mode,
        threshold=threshold,
        edit_below=edit_below,
        block_size=block_size,
        max_tokens=max_tokens,
    )
    settings.sampling()  # options are refused before anything takes long
    tasks = benchmark.load(data)[:limit]
    if not generate_only:
        usable_backend()
    for path in (samples, json_out):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"benchmark": "humaneval"}
    if score is None:
        answers, told = _generate(tasks, settings, batch_size, samples)
        figures |= told
    else:
        answers = benchmark.read_samples(score)
        figures |= {"samples": score.name}
    figures |= asdict(benchmark.cost(answers))
    if "seconds" in figures:
        figures["tokens_per_second"] = figures["tokens"] / max(figures["seconds"], 1e-9)
    if not generate_only:
        figures |= _judge(tasks, answers)
    _print_figures(figures)
    if json_out is not None:
        benchmark.write_whole(json_out, json.dumps(figures, indent=2) + "\n")


def compare(left: SamplesFile, right: SamplesFile) -> None:
    """The share of tasks that two files of samples answer alike, token for token."""
    from openmercury.eval.humaneval import agreement, read_samples

    different, compared = agreement(read_samples(left), read_samples(right))
    same = compared - len(different)
    print(f"identical answers: {same} of {compared} ({same / compared:.1%})")
    if different:
        print(f"different: {', '.join(different)}")


def _check(context: typer.Context, *, generate_only: bool, score: Path | None, samples: Path | None) -> None:
    """Refuse options that would be ignored."""
    if score is not None:
        sources = {name: context.get_parameter_source(name) for name in GENERATING}
        given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
        if given or generate_only:
            flag = "--" + (given[0] if given else "generate-only").replace("_", "-")
            raise UsageProblem(f"{flag} has no effect with --score, which generates nothing: drop one")
    elif generate_only and samples is None:
        raise UsageProblem("--generate-only would throw the answers away: add --samples OUT.jsonl")


# --- generating and judging ------------------------------------------------------------------------------------------


def _generate(
    tasks: Sequence[Task], settings: Settings, batch_size: int, keep: Path | None
) -> tuple[list[Sample], dict[str, Any]]:
    """Answers, and what is known of the run; each finished batch is kept at once, so that little is lost on Ctrl-C."""
    from openmercury.eval import humaneval as benchmark

    llm = generate.load(settings)
    answers: list[Sample] = []
    begin = time.monotonic()
    with progress("answering", len(tasks)) as advance:
        for batch in benchmark.generate(llm, tasks, settings.sampling(), batch_size, advance):
            answers += batch
            if keep is not None:
                benchmark.write_samples(keep, answers)
    return answers, {
        "model": llm.folder.resolve().name,
        "mode": settings.mode,
        "threshold": settings.threshold,
        "edit_below": settings.edit_below,
        "block_size": settings.block_size,
        "max_tokens": settings.max_tokens,
        "batch_size": batch_size,
        "device": llm.device,
        "dtype": llm.dtype,
        "seconds": time.monotonic() - begin,
    }


def _judge(tasks: Sequence[Task], answers: Sequence[Sample]) -> dict[str, Any]:
    from openmercury.eval import humaneval as benchmark

    with progress("judging", len(answers)) as advance:
        verdicts = benchmark.score(tasks, answers, advance)
    passed = sum(verdict.passed for verdict in verdicts.values())
    return {
        "pass@1": passed / len(answers),
        "passed": passed,
        "verdicts": {task_id: _told(verdict) for task_id, verdict in verdicts.items()},
    }


def _told(verdict: Verdict) -> str:
    """The verdict, with the last line of stderr where there is one: `failed: AssertionError`."""
    lines = verdict.stderr.strip().splitlines()
    return verdict.status if verdict.passed or not lines else f"{verdict.status}: {lines[-1].strip()}"


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields `advance(finished, total)`. Silent in pipes."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(what, total=total)
        yield lambda finished, _: bar.update(row, completed=finished)


def _print_figures(figures: Mapping[str, Any]) -> None:
    how = ", ".join(str(figures[key]) for key in ("model", "mode", "device", "dtype", "samples") if key in figures)
    print(f"HumanEval: {figures['n']} tasks ({how})")
    if "pass@1" in figures:
        print(f"pass@1     {figures['pass@1']:.1%} ({figures['passed']} of {figures['n']})")
    print(f"TPF        {figures['tpf']:.2f} (mean over tasks {figures['tpf_mean']:.2f})")
    print(f"tokens     {figures['tokens']:,} in {figures['forwards']:,} forwards")
    if "seconds" in figures:
        print(f"time       {figures['seconds']:.1f} s, {figures['tokens_per_second']:.1f} tokens/s")
    if figures["truncated"]:
        print(f"cut off    {figures['truncated']} answers reached --max-tokens")
