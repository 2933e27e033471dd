"""`eval`: benchmarks. Answers are generated and judged in one go, or apart (--generate-only, then --score).

Figures go to stdout, the progress bar to stderr. Nothing a model wrote runs outside the sandbox.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from openmercury.cli import eval_runs as runs
from openmercury.cli import sweep as sweeps
from openmercury.cli.errors import UsageProblem
from openmercury.cli.options import DECODING, MODEL, SHOWN, DtypeName, ModeName, Settings, given, option, refuse_unread

WHO = "Who answers"
# What an option needs; given without it, nothing would read it.
GENERATING, ENGINE, LOCAL, URL = "generating", "our own engine", "a checkpoint folder", "--base-url"
DRAWING, JUDGING = "generating at a --temperature above 0", "judging"
NEEDS = {
    "model": GENERATING,
    "transformers": GENERATING,
    "base_url": GENERATING,
    "api_key_env": URL,
    "device": LOCAL,
    "dtype": LOCAL,
    "mode": ENGINE,
    "threshold": ENGINE,
    "edit_below": ENGINE,
    "block_size": ENGINE,
    "max_tokens": GENERATING,
    "temperature": GENERATING,
    "top_p": DRAWING,
    "seed": DRAWING,
    "samples_per_task": DRAWING,
    "limit": GENERATING,
    "style": GENERATING,
    "concurrency": GENERATING,
    "cache_tokens": ENGINE,
    "out": GENERATING,
    "generate_only": GENERATING,
    "sweep": ENGINE,
    "workers": JUDGING,
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="eval")(evaluate)


def _list(wanted: bool) -> None:
    if wanted:
        from openmercury.eval.tasks import GROUPS, TASKS

        width = max(map(len, (*TASKS, *GROUPS)))
        for name, task in TASKS.items():
            print(f"{name:{width}} {task.title} ({', '.join(task.styles)})")
        for name, members in GROUPS.items():
            print(f"{name:{width}} = {' '.join(members)}")
        raise typer.Exit


def evaluate(
    invocation: typer.Context,
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="TASK…", help="Tasks or groups of them; --list shows all.")
    ] = None,
    model: Annotated[
        str | None, option("Checkpoint folder; with --base-url the server's name for a model.", panel=WHO)
    ] = None,
    transformers: Annotated[
        bool, option("Let plain transformers.generate answer.", "--transformers", panel=WHO)
    ] = False,
    base_url: Annotated[
        str | None, option("Ask a server of the OpenAI protocol, as http://localhost:8000/v1.", panel=WHO)
    ] = None,
    api_key_env: Annotated[
        str, option("Variable of the environment that holds its key.", panel=WHO, metavar="NAME")
    ] = runs.KEY_ENV,
    device: Annotated[str, option("auto, cpu or cuda.", panel=MODEL)] = "auto",
    dtype: Annotated[DtypeName, option("Number format of the weights.", panel=MODEL)] = "auto",
    mode: Annotated[ModeName, option("verified gives ar's text, in fewer forwards.", panel=DECODING)] = "verified",
    threshold: Annotated[
        float | None, option("diffusion: accept predictions at least this sure. Default: 0.15.", panel=DECODING)
    ] = None,
    edit_below: Annotated[
        float | None, option("diffusion: replace a token this unlikely beside the clean choice.", panel=DECODING)
    ] = None,
    block_size: Annotated[int | None, option("Positions denoised together.", panel=DECODING)] = None,
    max_tokens: Annotated[
        int | None, option("Tokens of an answer at most. Default: each task's.", panel=DECODING)
    ] = None,
    temperature: Annotated[float, option("0 is greedy.", panel=DECODING)] = 0.0,
    top_p: Annotated[float, option("Sample from this share of the probability.", panel=DECODING)] = 1.0,
    seed: Annotated[int, option("Seed of the sampling.", panel=DECODING)] = 0,
    samples_per_task: Annotated[
        int, typer.Option("--samples-per-task", "-n", min=1, help="Answers to each problem.", rich_help_panel=DECODING)
    ] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first problems of each task only.")] = None,
    style: Annotated[
        Literal["chat", "completion", "fill"] | None, option("How to ask. Default: each task's first.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Answers under way at once. Default: 32; transformers 1, a server 8.")
    ] = None,
    cache_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of KV cache, where a training run needs the GPU, too. Default: what is free."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Programs judged at once. Default: one a core.")] = None,
    data: Annotated[
        Path | None, option("Folder of the benchmarks. Default: $OPENMERCURY_EVAL_DATA", metavar="FOLDER")
    ] = None,
    out: Annotated[
        Path | None, option("Folder of the run. Default: one in eval-runs.", panel=SHOWN, metavar="FOLDER")
    ] = None,
    json_out: Annotated[
        Path | None, option("Write the figures here, too.", "--json", panel=SHOWN, metavar="OUT")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        option("One run for each value, as in mode=ar,diffusion or threshold=0.1,0.3; repeatable.", panel=DECODING),
    ] = None,
    generate_only: Annotated[bool, option("Keep the answers, run nothing.", "--generate-only")] = False,
    score: Annotated[Path | None, option("Judge a run again, generate nothing.", metavar="FOLDER")] = None,
    list_all: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="Show the tasks and leave.")
    ] = False,
) -> int:
    """Answer benchmarks and judge the answers: pass@k, tokens per forward, speed. The same command resumes."""
    refuse_unread(
        invocation,
        NEEDS,
        {
            GENERATING: score is None,
            ENGINE: score is None and not transformers and base_url is None,
            LOCAL: score is None and base_url is None,
            URL: base_url is not None,
            DRAWING: score is None and temperature > 0,
            JUDGING: not generate_only,
        },
    )
    if score is not None:
        return runs.score(score, tasks or [], data, workers, json_out)
    if not tasks:
        raise UsageProblem("there is no task: name some, as in `openmercury eval humaneval`; --list shows all")
    if transformers and base_url is not None:
        raise UsageProblem("--transformers and --base-url exclude each other: drop one")
    if base_url is not None and model is None:
        raise UsageProblem("--base-url needs --model: the name by which the server knows the model")
    decoding = Settings(
        model=model,
        device=device,
        dtype=dtype,
        mode=mode,
        threshold=threshold,
        edit_below=edit_below,
        block_size=block_size,
        max_tokens=512 if max_tokens is None else max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    decoding.sampling()  # options are refused before anything takes long
    wanted = runs.Wanted(
        tasks=tasks,
        style=style,
        data=data,
        limit=limit,
        decoding=decoding,
        max_tokens=max_tokens,
        samples=samples_per_task,
        transformers=transformers,
        base_url=base_url,
        api_key_env=api_key_env,
        concurrency=concurrency,
        cache_tokens=cache_tokens,
        workers=workers,
        out=out,
        json_out=json_out,
        generate_only=generate_only,
    )
    if sweep:
        if json_out is not None:
            raise UsageProblem("--json is of one run, and --sweep makes several: see `openmercury frontier --json`")
        swept = sweeps.read(sweep)
        for name in swept:
            if given(invocation, name):
                raise UsageProblem(f"--{name.replace('_', '-')} and --sweep {name} exclude each other: drop one")
        return sweeps.run(wanted, swept)
    return runs.run(wanted)
