"""From a recipe to a file of prompts: read packages, phrase requests, decontaminate, deduplicate, choose, write.

Packages are read by worker processes, one package a job; all choices are hashes, so the file depends on the recipe and
the wheels only. Any prefix of the file is a fair sample of the whole.
"""

from __future__ import annotations

import json
import lzma
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from openmercury.data import decontaminate
from openmercury.data.config import PromptRecipe
from openmercury.data.decontaminate import BenchmarkIndex, read_rows
from openmercury.data.executors import processes
from openmercury.data.functions import Function, functions
from openmercury.data.prompts.chats import chats
from openmercury.data.prompts.code import fim_prompt, function_prompts
from openmercury.data.prompts.edits import edit_prompts, release_prompts
from openmercury.data.prompts.exercises import exercises
from openmercury.data.prompts.prompt import Prompt, rank
from openmercury.data.prompts.schemas import json_prompts, tool_prompts
from openmercury.data.prompts.tasks import exercise_prompt, gsm8k_prompt, mbpp_prompts, worked_prompts
from openmercury.data.prompts.wheels import fetch_wheel, normal_name, read_wheel
from openmercury.data.prompts.worked import worked
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
    eval_data = decontaminate.eval_folder(eval_data, "give --eval-data")
    wheels = [fetch_wheel(requirement, cache) for requirement in recipe.packages]
    earlier = [fetch_wheel(requirement, cache) for requirement in recipe.earlier]
    index = BenchmarkIndex.load(eval_data)
    pile = Pile()
    with processes(recipe.workers) as pool:
        jobs = [pool.submit(partial(read_package, recipe, index), wheel) for wheel in sorted(wheels, key=_size)]
        jobs += [pool.submit(partial(read_releases, recipe, index), *pair) for pair in pairs(earlier, wheels)]
        jobs += [pool.submit(partial(write_tasks, recipe, index), eval_data)]
        try:
            for job in jobs:
                pile.add(job.result())
        except BrokenProcessPool:
            raise DataError("a worker was killed, most often for want of memory: set fewer `workers`") from None
    chosen = choose(pile, recipe)
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(prompt.row(), ensure_ascii=False) + "\n" for prompt in chosen)
    _write(out / "report.md", report(chosen, pile, recipe).encode())
    return _write(out / "prompts.jsonl.xz", lzma.compress(text.encode(), preset=9))


def pairs(earlier: Sequence[Path], wheels: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each older release with the one on the list; raises DataError where there is none."""
    newer = {normal_name(wheel.name.split("-")[0]): wheel for wheel in wheels}
    lone = [wheel.name for wheel in earlier if normal_name(wheel.name.split("-")[0]) not in newer]
    if lone:
        raise DataError(f"{lone[0]} is an earlier release of no package of the recipe; add that to `packages`")
    return [(wheel, newer[normal_name(wheel.name.split("-")[0])]) for wheel in earlier]


def read_package(recipe: PromptRecipe, index: BenchmarkIndex, wheel: Path) -> Pile:
    """Prompts of one wheel, decontaminated."""
    pile, files, used, licence = Pile(), 0, 0, ""
    seen: set[str] = set()
    for document in read_wheel(wheel, recipe.licences, recipe.skip_paths, pile.drops):
        files, licence = files + 1, document.licence
        clean = [each for each in functions(document) if _is_new(each, seen, pile) and _is_clean(each, index, pile)]
        used += len(clean)
        for number, function in enumerate(clean):
            hole = fim_prompt(function, recipe.seed)
            pile.prompts += [*function_prompts(function, recipe.seed, recipe.per_function), *([hole] if hole else [])]
            others = clean[max(0, number - 2) : number + 3]
            _add_clean(edit_prompts(function, others, document.path, recipe.seed), index, pile)
    pile.packages["==".join(wheel.name.split("-")[:2])] = (licence, files, used)
    return pile


def read_releases(recipe: PromptRecipe, index: BenchmarkIndex, earlier: Path, later: Path) -> Pile:
    """Prompts made of the functions that differ between two releases of a package, decontaminated."""
    pile, files = Pile(), 0
    before: dict[str, Function] = {}
    licence = ""
    for document in read_wheel(earlier, recipe.licences, recipe.skip_paths):
        files, licence = files + 1, document.licence
        before |= {each.id.partition(":")[2]: each for each in functions(document)}
    used = 0
    for document in read_wheel(later, recipe.licences, recipe.skip_paths):
        for new in functions(document):
            old = before.get(new.id.partition(":")[2])
            if old is None or old.source == new.source or not _is_clean(new, index, pile):
                continue
            if _is_clean(old, index, pile):
                used += 1
                _add_clean(release_prompts(old, new, document.path, recipe.seed), index, pile)
    pile.packages["==".join(earlier.name.split("-")[:2])] = (licence, files, used)
    return pile


def _is_new(function: Function, seen: set[str], pile: Pile) -> bool:
    if function.body in seen:
        pile.drops["function seen before"] += 1
        return False
    seen.add(function.body)
    return True


def _is_clean(function: Function, index: BenchmarkIndex, pile: Pile) -> bool:
    hit = index.find("", code=function.source, name=function.name, description=function.summary)
    if hit is not None:
        pile.contamination[hit] += 1
    return hit is None


def _add_clean(prompts: Iterable[Prompt], index: BenchmarkIndex, pile: Pile) -> None:
    """Adds prompts whose text, of instruction and code together, is near no item either."""
    for prompt in prompts:
        hit = index.find(prompt.text, description=prompt.description)
        if hit is None:
            pile.prompts.append(prompt)
        else:
            pile.contamination[hit] += 1


def write_tasks(recipe: PromptRecipe, index: BenchmarkIndex, eval_data: Path) -> Pile:
    """Prompts that come from no package: exercises, training splits, chat."""
    pile = Pile()
    for prompt in _tasks(recipe, eval_data):
        hit = index.find(prompt.text, code=prompt.code, name=prompt.name, description=prompt.description)
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
    yield from json_prompts(wanted.json_, seed)
    yield from tool_prompts(wanted.tool, seed)


def choose(pile: Pile, recipe: PromptRecipe) -> list[Prompt]:
    """The recipe's number of distinct prompts of each kind, first those whose answers can be checked, in an order that
    is a hash; the rest is counted in `pile.drops`."""
    left = recipe.counts.model_dump(by_alias=True)
    seen: set[int] = set()
    chosen: list[Prompt] = []
    for prompt in sorted(pile.prompts, key=lambda each: (not each.check, rank(recipe.seed, each.id), each.text)):
        key = rank(*decontaminate.words(prompt.text))
        if len(prompt.text) > recipe.max_characters:
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
    # Kinds are cut off at different places of the order above, so it is no fair sample: another hash is.
    chosen.sort(key=lambda prompt: (rank(recipe.seed, "place", prompt.id), prompt.id))
    return hold_out(chosen, recipe.held_out, pile)


def hold_out(prompts: list[Prompt], count: int, pile: Pile) -> list[Prompt]:
    """The prompts without those behind the first `count` that share a source with one of them."""
    held = {prompt.source for prompt in prompts[:count] if prompt.source}
    kept = [prompt for number, prompt in enumerate(prompts) if number < count or prompt.source not in held]
    pile.drops["source is held out"] += len(prompts) - len(kept)
    return kept


def report(chosen: list[Prompt], pile: Pile, recipe: PromptRecipe) -> str:
    """Markdown: counts by kind, lengths, drops, contamination by set and reason, packages with licences."""
    kinds = Counter(prompt.kind for prompt in chosen)
    checked = Counter(prompt.kind for prompt in chosen if prompt.check)
    sources = len({prompt.source or prompt.id for prompt in chosen})
    lengths = sorted(len(prompt.text) for prompt in chosen)
    head = f"Seed {recipe.seed}, {len(chosen)} prompts of {sources} sources, the first {recipe.held_out} held out."
    parts = [f"# Prompts\n\n{head}"]
    quantiles = ", ".join(f"p{q} {lengths[min(len(lengths) - 1, len(lengths) * q // 100)]}" for q in (50, 90, 99))
    parts.append(f"Characters of a prompt: {quantiles}, longest {lengths[-1]}.")
    rows = ((kind, count, checked[kind]) for kind, count in kinds.most_common())
    parts.append(_table(("kind", "prompts", "with a check"), rows))
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
