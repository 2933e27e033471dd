"""`data`: make training data (prepare, prompts, generate, chats), and look at it (show).

Tokens are data: no control character of theirs reaches the terminal, and nothing in them is read as markup.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from openmercury.cli.options import Overrides, RecipeFile, option
from openmercury.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

    from openmercury.data.shards import Counts, Example, Facts
    from openmercury.text.tokenizer import Tokenizer

PHASES = {"read": "reading and filtering", "deduplicate": "looking for duplicates", "write": "writing shards"}
CHECK_SECONDS = 5.0  # an answer that is executed may take
# As in data.shards, whose import would cost the help page.
KindName = Literal["code", "fim", "chat", "edit", "apply", "chosen", "rejected"]
TRAINED, GIVEN, HEAD = "bold green", "dim", "bold"
MOST = 8  # lines of a table

app = typer.Typer(help="Make and look at training data.")


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    for command in (prepare, prompts, generate, chats, show):
        app.command()(command)
    parent.add_typer(app, name="data")


def prepare(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Make shards from folders, archives, git repositories and tables; goes on where it was stopped."""
    from openmercury.config import load_config
    from openmercury.data.config import PrepareRecipe

    settings = load_config(PrepareRecipe, recipe, overrides or ())

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from openmercury.data import pipeline, report

    report.check(settings.pictures)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        bars: dict[str, TaskID] = {}

        def watch(phase: str, done: int, whole: int) -> None:
            if phase not in bars:
                bars[phase] = bar.add_task(PHASES[phase], total=max(1, whole))
            bar.update(bars[phase], completed=done if whole else 1)

        outcome = pipeline.prepare(settings, watch, report.write)
    if outcome is None:
        print(f"{settings.out} is there already, made by this recipe from these sources")
    else:
        print(settings.out / report.NAME)


# --- self-distillation -----------------------------------------------------------------------------------------------


def prompts(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for prompts and report.")],
    cache: Annotated[Path, option("Folder that keeps the packages fetched.", metavar="FOLDER")],
    eval_data: Annotated[Path, option("Folder of the benchmarks to keep out.", metavar="FOLDER")],
) -> None:
    """Write prompts from packages and exercises, none of them near a benchmark's."""
    from openmercury.cli.show import waiting
    from openmercury.config import load_config
    from openmercury.data.config import PromptRecipe

    settings = load_config(PromptRecipe, recipe)
    with waiting(f"writing prompts from {len(settings.packages)} packages"):
        from openmercury.data.prompts.collect import prepare_prompts

        print(prepare_prompts(settings, cache, out, eval_data))


def generate(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Let a checkpoint answer prompts; the answers are training examples."""
    from openmercury.cli.show import waiting
    from openmercury.config import read_toml

    read_toml(recipe)  # what is no TOML is told before torch is imported, which takes seconds
    with waiting("starting"):
        from openmercury.distill import run_recipe

    run_recipe(recipe, list(overrides or ()), _judge)


def _judge() -> Callable[[str, Mapping[str, str]], bool]:
    """Executes answers in the sandbox; raises SandboxError where there is none."""
    from openmercury.eval import sandbox
    from openmercury.eval.tasks.base import Program
    from openmercury.eval.tasks.extract import extract

    sandbox.usable_backend()

    def right(answer: str, check: Mapping[str, str]) -> bool:
        parts = (check["before"], extract(answer, check["name"]), check["after"])
        return sandbox.run(Program("\n".join(parts), timeout=CHECK_SECONDS)).passed

    return right


# --- conversations ---------------------------------------------------------------------------------------------------


def chats(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSON Lines with `messages`, may be packed.")],
    out: Annotated[Path, option("Folder for the shards.", "--out", metavar="FOLDER")],
    model: Annotated[str | None, option("Checkpoint they are made for.", metavar="FOLDER")] = None,
    max_tokens: Annotated[int, typer.Option(min=128, help="Of an example: the row length of the run.")] = 2048,
    eval_data: Annotated[Path | None, option("Folder of the benchmarks to keep out.", metavar="FOLDER")] = None,
    contaminated: Annotated[bool, option("Keep no benchmarks out.", "--contaminated")] = False,
) -> None:
    """Turn conversations into examples whose answers are trained on."""
    from rich.console import Console

    from openmercury.cli.show import waiting
    from openmercury.data.config import ExampleRecipe
    from openmercury.data.conversations import write_conversations
    from openmercury.data.decontaminate import BenchmarkIndex, eval_folder
    from openmercury.llm import default_model
    from openmercury.text.tokenizer import Tokenizer

    remedy = "give --eval-data (or --contaminated)"
    benchmarks = None if contaminated else BenchmarkIndex.load(eval_folder(eval_data, remedy))
    tokenizer = Tokenizer.load(default_model() if model is None else Path(model))
    with waiting(f"reading {len(files)} files"):
        manifest, drops = write_conversations(files, out, ExampleRecipe(max_tokens=max_tokens), tokenizer, benchmarks)
    _print_counts(manifest, Console(highlight=False, soft_wrap=True))
    for reason, count in sorted(drops.items()):
        if count:
            print(f"  left out: {count:,} {reason}")


# --- what shards hold ------------------------------------------------------------------------------------------------


def show(
    shard: Annotated[Path, typer.Argument(metavar="SHARD", help="A shard, or a folder of shards.")],
    rows: Annotated[int, typer.Option(min=0, help="Examples to print.")] = 3,
    kind: Annotated[KindName | None, option("Print examples of this kind only.")] = None,
    model: Annotated[str | None, option("Checkpoint whose tokenizer reads them.", metavar="FOLDER")] = None,
) -> None:
    """Print what shards hold, and the first examples with what is trained on in colour, else between {+ and +}."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    facts, examples = _open(shard)
    _print_counts(facts, console)
    if rows:
        tokenizer = _tokenizer(model, facts)
        found = (pair for pair in enumerate(examples) if kind is None or pair[1].kind == kind)
        for number, example in itertools.islice(found, rows):
            _print_example(number, example, tokenizer, console)


def _open(path: Path) -> tuple[Facts, Iterator[Example]]:
    """What is known of a shard or a folder, and its examples: no more of them is read than is printed."""
    from openmercury.data.shards import read_facts, read_manifest, read_shard

    if not path.exists():
        raise DataError(f"{path} does not exist: give a shard, or a folder that `openmercury data` has made")
    if not path.is_dir():
        return read_facts(path), read_shard(path).each()
    manifest = read_manifest(path)
    shards = (read_shard(path / entry.name, entry.sha256) for entry in manifest.shards)
    return manifest, itertools.chain.from_iterable(examples.each() for examples in shards)


def _tokenizer(model: str | None, facts: Facts) -> Tokenizer:
    from openmercury.llm import default_model
    from openmercury.text.tokenizer import Tokenizer

    folder = default_model() if model is None else Path(model)
    tokenizer = Tokenizer.load(folder)
    if facts.tokenizer not in (None, tokenizer.fingerprint):
        raise DataError(
            f"the tokenizer of {folder} is not the one that made these shards: name its checkpoint, --model"
        )
    return tokenizer


def _print_counts(facts: Facts, console: Console) -> None:
    from rich.text import Text

    console.print(Text(_told(facts.counts), style=HEAD))
    for name in ("kinds", "languages", "licences"):
        table = sorted(getattr(facts, name).items(), key=lambda pair: (-pair[1].tokens, pair[0]))
        for key, counts in table[:MOST]:
            if key:
                console.print(Text(f"  {key:<20} {_told(counts)}"))
        if len(table) > MOST:
            console.print(Text(f"  … and {len(table) - MOST} more {name}"))


def _told(counts: Counts) -> str:
    share = counts.trained / max(1, counts.tokens)
    return f"{counts.examples:,} examples, {counts.tokens:,} tokens, {counts.trained:,} trained on ({share:.0%})"


def _print_example(number: int, example: Example, tokenizer: Tokenizer, console: Console) -> None:
    from rich.text import Text

    from openmercury.cli.show import clean

    trained = int(example.flags().sum())
    console.print(Text(f"--- example {number}: {example.kind}, {len(example.ids)} tokens, {trained} trained on", HEAD))
    shown = Text()
    pairs = zip(example.ids, example.flags().tolist(), strict=True)
    for flag, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        text = clean(tokenizer.decode([token for token, _ in run], special=True))
        if console.is_terminal and not console.no_color:
            shown.append(text, TRAINED if flag else GIVEN)
        else:
            shown.append(f"{{+{text}+}}" if flag else text)
    console.print(shown)
