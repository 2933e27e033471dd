"""Self-distillation data: a checkpoint answers prompts, and its own answers become training examples.

Drafts are judged by what the base itself would write, so this is the text they should be trained on. Prompts are read
from `prompts.jsonl.xz` (made by `openmercury data prompts`) and answered in waves at full batch. While the next wave
decodes, answers to prompts with a check are executed aside, and those kept are written as one shard a wave; an
interrupted run goes on with the waves that are missing. How answers are executed is the caller's matter (`Judge`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, model_validator
from rich.console import Console

from openmercury.config import Frozen, load_config
from openmercury.data.shards import Example, Kind, check_out, write_manifest, write_shard, write_whole
from openmercury.data.sources.base import Drop
from openmercury.data.sources.tables import UNPACKING, json_lines, open_packed
from openmercury.data.tally import Tally
from openmercury.engine.config import EngineConfig
from openmercury.engine.params import SamplingParams
from openmercury.errors import ContextOverflowError, DataError
from openmercury.llm import LLM, Output, Usage
from openmercury.text import chat, edit, fim

Judge: TypeAlias = Callable[[str, Mapping[str, str]], bool]  # (answer, the row's check) → is it right?
KINDS: dict[str, Kind] = {"fim": "fim", "edit": "edit", "next_edit": "edit", "apply": "apply"}  # of shards; else chat
LONGEST = 16_000_000  # bytes of a row of prompts
GOLDEN = 0.618034  # multiples of it spread evenly over (0, 1)
# How long a thread may keep the interpreter while others want it, in seconds. Rendering aside slowed a loop of 60
# launches and a wait of 20 ms by 65 % with Python's own 5 ms, by 11 % with this.
TURN = 0.001
# A cut answer runs in circles where of the 4-grams of its last TAIL tokens fewer than this share differ.
TAIL, VARIETY = 128, 0.5


class DistillRecipe(Frozen):
    """What is answered, how often, and what is kept.

    `greedy` is the share of prompts answered at temperature 0, `samples` the mean number of answers at a temperature
    drawn from `temperature` (`checked_samples` for prompts with a check): with greedy = 0.6 and samples = 0.4 each
    prompt has one answer. `keep` = "passing" executes the answers to prompts with a check and drops those that fail.
    An answer cut off at `max_tokens` (`limits` by kind) is dropped, or with `keep_cut` kept without an end, unless it
    runs in circles.

    `skip` holds out the head. Processes share `out` as `part` of `parts`: each answers every `parts`-th wave. After
    `minutes`, loading included, no wave is begun that would not end in time.
    """

    model: Path
    prompts: Path
    out: Path
    skip: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1)] | None = None
    part: Annotated[int, Field(ge=0)] = 0
    parts: Annotated[int, Field(ge=1)] = 1
    wave: Annotated[int, Field(ge=1)] = 4096  # prompts
    batch: Annotated[int, Field(ge=1)] = 1024  # requests that run at once
    greedy: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    samples: Annotated[float, Field(ge=0.0)] = 0.0
    checked_samples: Annotated[float, Field(ge=0.0)] | None = None
    temperature: tuple[Annotated[float, Field(gt=0.0, le=2.0)], Annotated[float, Field(gt=0.0, le=2.0)]] = (0.7, 1.0)
    max_tokens: Annotated[int, Field(ge=1)] = 512
    limits: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    keep: Literal["all", "passing"] = "passing"
    keep_cut: bool = False
    workers: Annotated[int, Field(ge=1)] | None = None  # answers that are executed at once; None: cores ÷ parts
    minutes: Annotated[float, Field(gt=0.0)] | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0

    @model_validator(mode="after")
    def _part_of_parts(self) -> DistillRecipe:
        if self.part >= self.parts:
            raise ValueError(f"part {self.part} of {self.parts} does not exist: parts are numbered from 0")
        if self.temperature[0] > self.temperature[1]:
            raise ValueError("temperature is a range: give the lower end first")
        return self


# Settings that may change between the processes and sittings of one run.
FREE = frozenset({"out", "part", "parts", "batch", "workers", "minutes", "device"})


class Ask(NamedTuple):
    """One answer to be written: to the row `number` of the prompts."""

    number: int
    ids: list[int]
    params: SamplingParams
    eos: tuple[int, ...] | None


class Answer(NamedTuple):
    """What came of an ask, its row, and the verdict on it if it is executed."""

    ask: Ask
    row: Mapping[str, Any]
    output: Output
    right: Future[bool] | None


# --- prompts ---------------------------------------------------------------------------------------------------------


def read_prompts(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a prompt file; raises DataError when it is missing or cut, or a row is no prompt."""
    try:
        with path.open("rb") as file:
            for number, (_, row) in enumerate(json_lines(open_packed(file, path.name), LONGEST), 1):
                if isinstance(row, Drop) or not _is_prompt(row):
                    why = row.reason if isinstance(row, Drop) else "its kind, what it asks or its check is missing"
                    raise DataError(f"row {number} of {path} is no prompt ({why}): see `openmercury data prompts`")
                yield row
    except UNPACKING as error:
        raise DataError(f"{path} cannot be read ({error}): make it again with `openmercury data prompts`") from None


def _is_prompt(row: Mapping[str, Any]) -> bool:
    """Whether there is what `render` and a judge look for."""
    kind, check = row.get("kind"), row.get("check", {"before": "", "name": "", "after": ""})
    if not isinstance(kind, str) or not isinstance(check, dict) or not {"before", "name", "after"} <= check.keys():
        return False
    wanted = {"fim": ("prefix", "suffix"), "next_edit": ("message",)}.get(kind, ())
    if kind == "apply" and "message" in row:
        wanted = ("message",)
    return all(isinstance(row.get(name), str) for name in wanted) if wanted else isinstance(row.get("messages"), list)


def render(llm: LLM, row: Mapping[str, Any]) -> tuple[list[int], tuple[str, ...], tuple[int, ...] | None]:
    """Token ids of a prompt row, its stop strings and end tokens, by the same functions that serve requests."""
    tokenizer = llm.tokenizer
    match row["kind"]:
        case "fim":
            ends = tuple(dict.fromkeys((*llm.config.eos_ids, *fim.stop_ids(tokenizer))))
            return fim.render_fill(tokenizer, row["prefix"], row["suffix"]), fim.suffix_stops(row["suffix"]), ends
        case "next_edit":
            asked = edit.parse_next_edit(row["message"])
            return chat.render(tokenizer, edit.edit_messages(asked)), (), None
        case "apply" if "message" in row:
            merge = edit.parse_merge(row["message"])
            return edit.merge_ids(tokenizer, merge), (f"\n{edit.merge_marks(merge)}",), None
    return chat.render(tokenizer, row["messages"], tools=row.get("tools", ())), (), None


def asks(recipe: DistillRecipe, llm: LLM, number: int, row: Mapping[str, Any]) -> list[Ask]:
    """The answers wanted of a row: a greedy one and some samples, by its number."""
    place = number * GOLDEN % 1
    wanted = recipe.samples if recipe.checked_samples is None or "check" not in row else recipe.checked_samples
    samples = int(wanted + place)
    temperatures = [0.0] * (place < recipe.greedy)
    low, high = recipe.temperature
    temperatures += [low + (high - low) * ((number + 7 * index) * GOLDEN % 1) for index in range(1, samples + 1)]
    if not temperatures:
        return []
    ids, stop, eos = render(llm, row)
    most = recipe.limits.get(row["kind"], recipe.max_tokens)
    return [
        Ask(
            number,
            ids,
            SamplingParams(
                mode="ar",
                max_tokens=most,
                temperature=round(temperature, 3),
                seed=recipe.seed + 64 * number + index,
                stop=stop,
            ),
            eos,
        )
        for index, temperature in enumerate(temperatures)
    ]


# --- answers ---------------------------------------------------------------------------------------------------------


def verdict(answer: Answer, keep_cut: bool, before: set[tuple[int, tuple[int, ...]]]) -> str:
    """Why an answer is kept ("ended", "cut") or dropped; `before` are the answers met so far, as (number, ids)."""
    ids, finish = answer.output.token_ids, answer.output.finish_reason
    if finish not in ("stop", "length"):
        return "too long a prompt" if isinstance(answer.output.error, ContextOverflowError) else "error"
    if not answer.output.text.strip():
        return "empty"
    if (answer.ask.number, ids) in before:
        return "same"
    before.add((answer.ask.number, ids))
    if finish == "length" and not keep_cut:
        return "cut off"
    if finish == "length" and circles(ids):
        return "in circles"
    if answer.right is not None and not answer.right.result():
        return "failed"
    return "ended" if finish == "stop" else "cut"


KEPT = ("ended", "cut")


def circles(ids: Sequence[int]) -> bool:
    """Does a text end in repetition?"""
    tail = ids[-TAIL:]
    grams = {tuple(tail[place : place + 4]) for place in range(len(tail) - 3)}
    return len(grams) < VARIETY * (len(tail) - 3)


def finish_wave(recipe: DistillRecipe, stem: Path, answers: Sequence[Answer], tokenizer: str) -> Tally:
    """Wait for verdicts, write the shard of a wave and then its tally."""
    tally, examples = Tally(), []
    before: set[tuple[int, tuple[int, ...]]] = set()
    for answer in sorted(answers, key=lambda answer: (answer.ask.number, answer.ask.params.seed)):
        kind, why = answer.row["kind"], verdict(answer, recipe.keep_cut, before)
        tally.answers[kind, why] += 1
        tally.tokens[kind] += answer.output.usage.completion_tokens
        if why in KEPT:
            ids = [*answer.ask.ids, *answer.output.token_ids]
            examples.append(Example(ids, len(answer.ask.ids), KINDS.get(kind, "chat")))
    if examples:
        write_shard(stem.with_suffix(".safetensors"), examples, tokenizer=tokenizer)
    write_whole(stem.with_suffix(".json"), json.dumps(tally.plain()).encode())
    return tally


# --- the run ---------------------------------------------------------------------------------------------------------


def distill(recipe: DistillRecipe, console: Console, judge: Judge | None = None) -> Tally:
    """Answer all prompts of this part that are not answered yet, and write the manifest; returns what came of them.

    Raises DataError where `out` holds answers of another recipe.
    """
    end = None if recipe.minutes is None else time.monotonic() + 60 * recipe.minutes
    rows = list(read_prompts(recipe.prompts))[: None if recipe.count is None else recipe.skip + recipe.count]
    firsts = range(recipe.skip, len(rows), recipe.wave)[recipe.part :: recipe.parts]
    waves = [(range(len(rows))[first : first + recipe.wave], recipe.out / f"answers-{first:07d}") for first in firsts]
    waiting = [(numbers, stem) for numbers, stem in waves if not stem.with_suffix(".json").exists()]
    _claim(recipe)
    total = Tally()
    if waiting:
        bulk = EngineConfig(max_requests=recipe.batch, steps_per_sync=8, prefix_cache=False)
        llm = LLM(recipe.model, device=recipe.device, dtype=recipe.dtype, engine=bulk)
        for tally in _answer(recipe, llm, rows, waiting, end, console, judge):
            total.add(tally)
    _summary(recipe, console)
    return total


def _answer(
    recipe: DistillRecipe,
    llm: LLM,
    rows: Sequence[Mapping[str, Any]],
    waves: Sequence[tuple[range, Path]],
    end: float | None,
    console: Console,
    judge: Judge | None,
) -> list[Tally]:
    """Decode wave after wave; beside that the prompts of the next are rendered and the answers of the last judged."""

    def wanted(numbers: range) -> list[Ask]:
        each = [ask for number in numbers for ask in asks(recipe, llm, number, rows[number])]
        return sorted(each, key=lambda ask: -len(ask.ids))  # like lengths together: prompts are read padded

    workers = recipe.workers or max(1, len(os.sched_getaffinity(0)) // recipe.parts)
    pools = ThreadPoolExecutor(workers), ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    jury, ahead, behind = pools
    pace, endings = Pace(), list[Future[Tally]]()
    turns = sys.getswitchinterval()
    sys.setswitchinterval(TURN)
    try:
        coming = [ahead.submit(wanted, numbers) for numbers, _ in waves[:1]]
        for place, (_, stem) in enumerate(waves):
            asked = coming.pop().result()
            coming += [ahead.submit(wanted, numbers) for numbers, _ in waves[place + 1 : place + 2]]
            with pace.timed():
                answers = list(_decode(llm, asked, rows, jury, judge))
            pace.tokens += sum(answer.output.usage.completion_tokens for answer in answers)
            endings.append(behind.submit(finish_wave, recipe, stem, answers, llm.tokenizer.fingerprint))
            console.print(f"wave {place + 1} of {len(waves)}: {len(answers):,} answers, {pace}", highlight=False)
            left = len(waves) - place - 1
            if end is not None and left and time.monotonic() + pace.longest > end:
                console.print(f"{left} waves are left for another time", highlight=False)
                break
            for ending in filter(Future.done, endings):
                ending.result()  # a sandbox or a disk that fails is told at once
        return [ending.result() for ending in endings]
    finally:
        sys.setswitchinterval(turns)
        for pool in pools:
            pool.shutdown(cancel_futures=True)


@dataclass
class Pace:
    """Completion tokens and seconds of all waves so far, and the seconds of the longest."""

    tokens: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """A wave is decoded here."""
        begin = time.monotonic()
        yield
        taken = time.monotonic() - begin
        self.seconds, self.longest = self.seconds + taken, max(self.longest, taken)

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens, {self.tokens / max(self.seconds, 1e-9):,.0f} tok/s"


def _decode(
    llm: LLM, asked: Sequence[Ask], rows: Sequence[Mapping[str, Any]], jury: ThreadPoolExecutor, judge: Judge | None
) -> Iterator[Answer]:
    """Answers as they end; those of rows with a check are handed to the jury at once."""
    fitting = [ask for ask in asked if len(ask.ids) < llm.config.max_context]
    for ask in asked:
        if len(ask.ids) >= llm.config.max_context:
            error = ContextOverflowError(f"the prompt has {len(ask.ids)} tokens: leave it out")
            usage = Usage(len(ask.ids), 0, 0, 0.0)
            yield Answer(ask, rows[ask.number], Output("", "error", "ar", usage, (), error), None)
    ids, params = [ask.ids for ask in fitting], [ask.params for ask in fitting]
    for place, output in llm.stream_batch(ids, params, ends=[ask.eos for ask in fitting]):
        row = rows[fitting[place].number]
        right = jury.submit(judge, output.text, row["check"]) if judge is not None and "check" in row else None
        yield Answer(fitting[place], row, output, right)


def _claim(recipe: DistillRecipe) -> None:
    """Remember in `out` what its answers are to; raises DataError where they are to something else."""
    facts = recipe.model_dump(mode="json", exclude=set(FREE)) | {"prompts": _digest(recipe.prompts)}
    path = recipe.out / "recipe.json"
    check_out(recipe.out, "answers-*.safetensors")
    with _alone(recipe.out):
        if not path.exists():
            write_whole(path, json.dumps(facts, indent=1).encode())
        known = json.loads(path.read_text())
    others = [name for name in facts if known.get(name) != facts[name]]
    if others:
        raise DataError(f"{recipe.out} holds answers of a recipe with another {others[0]}: give another out")


def _summary(recipe: DistillRecipe, console: Console) -> None:
    """The manifest over all that lies in `out`, whoever made it, with the counts of all waves."""
    with _alone(recipe.out):
        whole = Tally()
        for path in sorted(recipe.out.glob("answers-*.json")):
            whole.add(Tally.of(json.loads(path.read_text())))
        facts = {"recipe": recipe.model_dump(mode="json"), "outcomes": whole.plain()}
        write_manifest(recipe.out, facts)
    told = ", ".join(f"{count:,} {why}" for why, count in whole.outcomes().most_common())
    console.print(f"{recipe.out}: {told or 'no answers'}; {whole.tokens.total():,} tokens", highlight=False)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process of the run is between these lines at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): make it again with `openmercury data prompts`") from None


def run_recipe(path: Path, overrides: list[str], judge_of: Callable[[], Judge]) -> None:
    """`openmercury data generate RECIPE [key=value …]`; `judge_of` is called where answers are to be executed."""
    recipe = load_config(DistillRecipe, path, overrides)
    distill(recipe, Console(), judge_of() if recipe.keep == "passing" else None)
