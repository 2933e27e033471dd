"""Keeps evaluation items out of training data.

A candidate is dropped when it holds 20 % of an item's 10-grams, shares a 13-gram with an item's prompt, contains or
paraphrases an item's description, repeats an item's function (name, arguments and name-erased syntax tree), or has the
name of an item's function and a similar description. Grams are of lower-case word tokens.
"""

from __future__ import annotations

import ast
import hashlib
import json
import lzma
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmercury.data.functions import Def, parse
from openmercury.errors import DataError

ENVIRONMENT = "OPENMERCURY_EVAL_DATA"
GRAM, OVERLAP, PROMPT_GRAM = 10, 0.2, 13
CORE = 5  # words of the shortest description that is looked for
LONG_BODY = 600  # characters of a name-erased syntax tree that no two authors write alike
PARAPHRASE, SAME_NAME = 0.75, 0.4
_STOP_WORDS = (
    "a an the of to in and or for from by with on is are be that which it its as at this given write python function "
    "method find return returns check checks compute computes get gets whether if return calculate determine "
    "using use whose all each take takes create implement user your code should i want need please provide "
    "following list"
)
_STOP = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True)
class Item:
    """One evaluation item: what is asked, its solution, its function's name and one sentence that says what it does."""

    set: str
    prompt: str
    solution: str
    name: str = ""
    description: str = ""


def words(text: str) -> list[str]:
    """Lower-case word tokens."""
    return re.findall(r"\w+", text.lower())


def content(text: str) -> frozenset[str]:
    """Words that carry the meaning, plural endings removed."""
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words(text)) - _STOP


def grams(tokens: list[str], size: int) -> set[tuple[str, ...]]:
    """All runs of `size` tokens."""
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}


def similarity(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard similarity of two word sets; 0 when one is empty."""
    return len(left & right) / len(left | right) if left and right else 0.0


def tree_keys(code: str) -> set[str]:
    """The keys of every function in `code`."""
    tree = parse(code)
    nodes = ast.walk(tree) if tree is not None else ()
    found = (function_keys(node) for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {key for keys in found for key in keys}


def function_keys(node: Def) -> list[str]:
    """Name, arguments and name-erased body of a function; a long body counts without its name too."""
    body = [part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
    shape = re.sub(r"\b(id|arg|name|attr)='\w+'", r"\1", " ".join(ast.dump(part) for part in body))
    key = f"{node.name}|{[arg.arg for arg in node.args.args]}|{shape}"
    return [key, shape] if len(shape) > LONG_BODY else [key]


def eval_folder(given: Path | None, remedy: str = "give --data") -> Path:
    """The evaluation data: the argument, else the environment. Raises DataError when neither names a folder.

    `remedy` is how the caller's user names one.
    """
    told = given or os.environ.get(ENVIRONMENT)
    if not told:
        raise DataError(f"no folder of evaluation data is named: {remedy}, or set {ENVIRONMENT}")
    if not Path(told).is_dir():
        raise DataError(f"no evaluation data at {str(told)!r}: {remedy}, or set {ENVIRONMENT} to its folder")
    return Path(told)


def read_rows(path: Path, *, sha256: str | None = None, remedy: str = "") -> list[dict[str, Any]]:
    """Rows of a JSON or JSON Lines file, xz-compressed or not, of which `sha256` is that of the uncompressed data.

    Raises DataError when it cannot be read or is another; `remedy` is how to go on with another version knowingly.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        if sha256 is not None and (digest := hashlib.sha256(data).hexdigest()) != sha256:
            raise DataError(
                f"{path} is not the expected version (sha256 {digest}, not {sha256}): restore the file, "
                f"point {ENVIRONMENT} to a folder that has it, or {remedy} to use it all the same"
            )
        text = data.decode()
        if path.name.removesuffix(".xz").endswith(".jsonl"):
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        rows = json.loads(text)
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error}); restore the file") from error
    return list(rows.values() if isinstance(rows, dict) else rows)


def read_items(folder: Path) -> Iterator[Item]:
    """Items of HumanEval, MBPP (test and validation), MultiPL-E, EditEval, CRUXEval and BigCodeBench-Hard."""
    for row in read_rows(folder / "humaneval" / "HumanEval.jsonl.xz"):
        doc = re.search(
            r'("""|\'\'\')\s*(.+?)([.\n]\s|>>>|\1)', row["prompt"].split(f"def {row['entry_point']}")[-1], re.DOTALL
        )
        description = doc.group(2) if doc else ""
        yield Item(
            "humaneval", row["prompt"], row["prompt"] + row["canonical_solution"], row["entry_point"], description
        )
    for name, key in (("mbpp.jsonl.xz", "text"), ("sanitized-mbpp.json.xz", "prompt")):
        for row in read_rows(folder / "mbpp" / name):
            if 11 <= row["task_id"] <= 600:
                split = "mbpp-test" if row["task_id"] <= 510 else "mbpp-validation"
                called = re.findall(r"(\w+)\s*\(", row["test_list"][0].replace("assert", "").strip("( "))
                defined = re.findall(r"def (\w+)", row["code"])
                function = next((part for part in called if part in defined), defined[-1] if defined else "")
                tests = "\n".join(row["test_list"])
                yield Item(split, f"{row[key]}\n{tests}", f"{row[key]}\n{row['code']}", function, row[key])
    for path in sorted((folder / "multipl_e").glob("*.jsonl.xz")):
        for row in read_rows(path):
            yield Item("multipl_e", row["prompt"], row["prompt"])
    for row in read_rows(folder / "editeval" / "edit_eval.jsonl.xz"):
        yield Item("editeval", f"{row['instruction']}\n{row['input']}", f"{row['input']}\n{row['output']}")
    for row in read_rows(folder / "cruxeval" / "cruxeval.jsonl.xz"):
        yield Item("cruxeval", f"{row['code']}\n{row['input']}", row["code"])
    for row in read_rows(folder / "bigcodebench_hard" / "bigcodebench_hard.json.xz"):
        yield Item("bigcodebench_hard", row["instruct_prompt"], row["canonical_solution"])


@dataclass
class BenchmarkIndex:
    """Everything about evaluation items that a candidate is compared with. Build it with `of` or `load`."""

    items: list[Item] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    by_gram: dict[tuple[str, ...], list[int]] = field(default_factory=lambda: defaultdict(list))
    prompt_grams: dict[tuple[str, ...], int] = field(default_factory=dict)
    trees: dict[str, int] = field(default_factory=dict)
    by_name: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    by_word: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    meaning: list[frozenset[str]] = field(default_factory=list)
    cores: dict[tuple[str, ...], int] = field(default_factory=dict)
    core_starts: dict[tuple[str, ...], list[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def load(cls, folder: Path) -> BenchmarkIndex:
        """The index of a folder of evaluation data."""
        return cls.of(read_items(folder))

    @classmethod
    def of(cls, items: Iterable[Item]) -> BenchmarkIndex:
        """The index of the given items."""
        index = cls()
        for item in items:
            index._add(item)
        return index

    def _add(self, item: Item) -> None:
        number = len(self.items)
        self.items.append(item)
        held = grams(words(item.solution), GRAM)
        self.sizes.append(len(held))
        for gram in held:
            self.by_gram[gram].append(number)
        for gram in grams(words(item.prompt), PROMPT_GRAM):
            self.prompt_grams.setdefault(gram, number)
        for key in tree_keys(item.solution):
            self.trees.setdefault(key, number)
        self.meaning.append(content(item.description))
        if item.name:
            self.by_name[item.name.lower()].append(number)
        for word in self.meaning[number]:
            self.by_word[word].append(number)
        core = core_words(item.description)
        if len(core) >= CORE and core not in self.cores:
            self.cores[core] = number
            self.core_starts[core[:CORE]].append(core)

    def find(self, text: str, *, code: str = "", name: str = "", description: str = "") -> tuple[str, str] | None:
        """(set, reason) of the first item that a candidate repeats, or None; `text` and `code` are both trained on."""
        tokens = words(f"{text}\n{code}")
        hit = self._by_grams(tokens) or self._by_core(tokens) or self._by_meaning(name, description or text[:300])
        if hit is None and code:
            found = min((self.trees[key] for key in tree_keys(code) if key in self.trees), default=None)
            hit = None if found is None else (found, "syntax tree")
        return None if hit is None else (self.items[hit[0]].set, hit[1])

    def _by_grams(self, tokens: list[str]) -> tuple[int, str] | None:
        counts: Counter[int] = Counter()
        for gram in grams(tokens, GRAM):
            counts.update(self.by_gram.get(gram, ()))
        held = [number for number, count in counts.items() if count >= OVERLAP * self.sizes[number]]
        if held:
            return min(held), "10-grams"
        shared = [self.prompt_grams[gram] for gram in grams(tokens, PROMPT_GRAM) if gram in self.prompt_grams]
        return (min(shared), "13-gram") if shared else None

    def _by_core(self, tokens: list[str]) -> tuple[int, str] | None:
        held = [
            self.cores[core]
            for at in range(len(tokens) - CORE + 1)
            for core in self.core_starts.get(tuple(tokens[at : at + CORE]), ())
            if tuple(tokens[at : at + len(core)]) == core
        ]
        return (min(held), "description") if held else None

    def _by_meaning(self, name: str, description: str) -> tuple[int, str] | None:
        meaning = content(description)
        for number in self.by_name.get(name.lower(), ()):
            if similarity(meaning, self.meaning[number]) >= SAME_NAME:
                return number, "name"
        counts: Counter[int] = Counter()
        for word in meaning:
            counts.update(self.by_word.get(word, ()))
        near = [
            number
            for number, count in counts.items()
            if count >= 2 and count >= PARAPHRASE * (len(meaning) + len(self.meaning[number]) - count)
        ]
        return (min(near), "paraphrase") if near else None


def core_words(description: str) -> tuple[str, ...]:
    """An item's description without "Write a function to", as words."""
    text = re.sub(r"^\s*write an? (python )?function (to|that|which|for)?\s*", "", description.lower())
    return tuple(words(text))
