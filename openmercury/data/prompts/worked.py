"""Exercises whose examples are computed: small predicates, measures and edits combined, so each answer is known.

The grammar in exercises is wider but cannot say what f(x) is. Here every phrase carries a Python function, so that a
stub can show true doctests and a request true asserts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Ints = Sequence[int]


@dataclass(frozen=True)
class Worked:
    """A task with the arguments of its function, and calls with their results as (arguments, result) in source text.

    `examples` are the three of `cases` that are shown.
    """

    task: str
    name: str
    arguments: str
    returns: str
    examples: tuple[tuple[str, str], ...]
    cases: tuple[tuple[str, str], ...]


def _prime(x: int) -> bool:
    return x > 1 and all(x % d for d in range(2, math.isqrt(x) + 1))


def _square(x: int) -> bool:
    return x >= 0 and math.isqrt(x) ** 2 == x


_PICKS: dict[str, Callable[[Ints, int], bool]] = {
    "are even": lambda xs, i: xs[i] % 2 == 0,
    "are odd": lambda xs, i: xs[i] % 2 == 1,
    "are negative": lambda xs, i: xs[i] < 0,
    "are positive": lambda xs, i: xs[i] > 0,
    "are prime": lambda xs, i: _prime(xs[i]),
    "are perfect squares": lambda xs, i: _square(xs[i]),
    "are divisible by 3": lambda xs, i: xs[i] % 3 == 0,
    "are not divisible by 4": lambda xs, i: xs[i] % 4 != 0,
    "are greater than 10": lambda xs, i: xs[i] > 10,
    "are less than 5": lambda xs, i: xs[i] < 5,
    "lie between 3 and 20 inclusive": lambda xs, i: 3 <= xs[i] <= 20,
    "appear exactly once": lambda xs, i: list(xs).count(xs[i]) == 1,
    "appear more than once": lambda xs, i: list(xs).count(xs[i]) > 1,
    "are at even indices": lambda xs, i: i % 2 == 0,
    "are at odd indices": lambda xs, i: i % 2 == 1,
    "are greater than the element before them": lambda xs, i: i > 0 and xs[i] > xs[i - 1],
    "are smaller than the element after them": lambda xs, i: i + 1 < len(xs) and xs[i] < xs[i + 1],
    "are greater than all elements before them": lambda xs, i: all(xs[i] > x for x in xs[:i]),
    "are above the average of the list": lambda xs, i: xs[i] * len(xs) > sum(xs),
    "are equal to their index": lambda xs, i: xs[i] == i,
    "have two digits": lambda xs, i: 10 <= abs(xs[i]) <= 99,
    "end in the digit 5 or 0": lambda xs, i: xs[i] % 5 == 0,
    "have an even digit sum": lambda xs, i: sum(map(int, str(abs(xs[i])))) % 2 == 0,
    "read the same backwards": lambda xs, i: str(abs(xs[i])) == str(abs(xs[i]))[::-1],
}
_FOLDS: dict[str, tuple[str, Callable[[list[int]], Any]]] = {
    "Return the sum of": ("int", sum),
    "Return the number of": ("int", len),
    "Return the product of": ("int", math.prod),
    "Return the maximum, or None if there is none, of": ("Optional[int]", lambda xs: max(xs, default=None)),
    "Return the minimum, or None if there is none, of": ("Optional[int]", lambda xs: min(xs, default=None)),
    "Return in reverse order": ("List[int]", lambda xs: xs[::-1]),
    "Return in descending order": ("List[int]", lambda xs: sorted(xs, reverse=True)),
    "Return in ascending order and without duplicates": ("List[int]", lambda xs: sorted(set(xs))),
    "Return the sum of the squares of": ("int", lambda xs: sum(x * x for x in xs)),
    "Return the difference between the largest and the smallest, or 0 if there are none, of": (
        "int",
        lambda xs: max(xs, default=0) - min(xs, default=0),
    ),
    "Return the running totals of": ("List[int]", lambda xs: [sum(xs[: i + 1]) for i in range(len(xs))]),
    "Return the sum of the absolute values of": ("int", lambda xs: sum(map(abs, xs))),
}
_CHANGES: dict[str, Callable[[int], int]] = {
    "squared": lambda x: x * x,
    "doubled": lambda x: 2 * x,
    "negated": lambda x: -x,
    "replaced with 0": lambda x: 0,
    "increased by 3": lambda x: x + 3,
    "replaced with its remainder modulo 7": lambda x: x % 7,
    "replaced with its digit sum": lambda x: sum(map(int, str(abs(x)))),
    "halved with integer division": lambda x: x // 2,
}
_WORDS: dict[str, Callable[[str], bool]] = {
    "start with a vowel": lambda w: w[0] in "aeiou",
    "end with a vowel": lambda w: w[-1] in "aeiou",
    "have more than four letters": lambda w: len(w) > 4,
    "have at most three letters": lambda w: len(w) <= 3,
    "have an even number of letters": lambda w: len(w) % 2 == 0,
    "contain the letter 'a'": lambda w: "a" in w,
    "contain a double letter": lambda w: any(a == b for a, b in pairwise(w)),
    "have no repeated letters": lambda w: len(set(w)) == len(w),
    "start and end with the same letter": lambda w: w[0] == w[-1],
    "read the same backwards": lambda w: w == w[::-1],
    "have more consonants than vowels": lambda w: sum(c not in "aeiou" for c in w) > len(w) / 2,
    "have their letters in alphabetical order": lambda w: list(w) == sorted(w),
    "contain at least two vowels": lambda w: sum(c in "aeiou" for c in w) > 1,
}
_EDITS: dict[str, Callable[[str], str]] = {
    "reversed": lambda w: w[::-1],
    "in upper case": str.upper,
    "capitalised": str.capitalize,
    "replaced with its length": lambda w: str(len(w)),
    "replaced with asterisks of the same length": lambda w: "*" * len(w),
    "without its vowels": lambda w: "".join(c for c in w if c not in "aeiou"),
    "with its first letter moved to its end": lambda w: w[1:] + w[0],
    "with its letters sorted": lambda w: "".join(sorted(w)),
    "written twice with a hyphen between": lambda w: f"{w}-{w}",
    "shortened to its first letter and a full stop": lambda w: w[0] + ".",
}
_LETTERS: dict[str, Callable[[str], bool]] = {
    "vowels": lambda c: c in "aeiouAEIOU",
    "consonants": lambda c: c.isalpha() and c not in "aeiouAEIOU",
    "digits": str.isdigit,
    "uppercase letters": str.isupper,
    "characters that are not letters": lambda c: not c.isalpha(),
    "letters of the second half of the alphabet": lambda c: c.isalpha() and c.lower() > "m",
}
_GATHER: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "Return the number of": ("int", len),
    "Return in alphabetical order": ("List[str]", sorted),
    "Return sorted by length, ties in original order": ("List[str]", lambda ws: sorted(ws, key=len)),
    "Return the longest (the first one of several, or an empty string) of": (
        "str",
        lambda ws: max(ws, key=len, default=""),
    ),
    "Return joined with hyphens": ("str", "-".join),
    "Return the total length of": ("int", lambda ws: sum(map(len, ws))),
    "Return the distinct last letters in alphabetical order of": ("List[str]", lambda ws: sorted({w[-1] for w in ws})),
}
_VOCABULARY_TEXT = (
    "level apple kayak tree moon river book stone an ox ice banana letter noon sky hello area fox almost begin open "
    "eye world summer data code green light under civic egg small queue act rhythm piano lemon toast bee go up at"
)
_VOCABULARY = tuple(_VOCABULARY_TEXT.split())


def _values(generator: random.Random, low: int = -9, high: int = 36) -> list[int]:
    return [
        generator.choice((generator.randint(low, high), generator.randint(0, 9)))
        for _ in range(generator.randint(4, 7))
    ]


def _sentence(generator: random.Random) -> str:
    return " ".join(generator.sample(_VOCABULARY, generator.randint(3, 6)))


def _mixed(generator: random.Random) -> str:
    return "".join(generator.choice("abeinorstuzABERT0123-? ") for _ in range(generator.randint(6, 12))).strip() or "a1"


def _make(
    task: str, name: str, arguments: str, returns: str, cases: Sequence[tuple[Any, ...]], solve: Callable[..., Any]
) -> Worked:
    solved = [(", ".join(map(repr, case)), repr(solve(*case))) for case in cases]
    first = {result: number for number, (_, result) in reversed(list(enumerate(solved)))}
    # Examples with distinct results say more; the others fill up to three.
    order = sorted(range(len(solved)), key=lambda number: (number not in first.values(), number))
    examples = tuple(solved[number] for number in order[:3])
    plain = "_".join(name.replace("'", "").replace(",", "").split())
    return Worked(task, plain, arguments, returns, examples, tuple(solved))


def _chosen(xs: list[int], *picks: Callable[[Ints, int], bool]) -> list[int]:
    return [x for i, x in enumerate(xs) if all(pick(xs, i) for pick in picks)]


def worked(seed: int) -> Iterator[Worked]:
    """Every exercise of the families below, in a fixed order, its examples drawn from the seed."""
    generator = random.Random(seed)
    for pick, holds in _PICKS.items():
        yield from _number_tasks(pick, holds, generator)
    for word, fits in _WORDS.items():
        yield from _word_tasks(word, fits, generator)
    for letters, is_one in _LETTERS.items():
        yield from _letter_tasks(letters, is_one, generator)


def _number_tasks(pick: str, holds: Callable[[Ints, int], bool], generator: random.Random) -> Iterator[Worked]:
    numbers, subject = "numbers: List[int]", f"the numbers in a list that {pick}"
    tail = "_".join(pick.split()[-2:])
    for start, (kind, fold) in _FOLDS.items():
        cases = [(_values(generator),) for _ in range(8)]
        head = "_".join(start.lower().replace(",", "").split()[1:4])
        yield _make(
            f"{start} {subject}", f"{head}_{tail}", numbers, kind, cases, lambda xs, f=fold: f(_chosen(xs, holds))
        )
    for change, apply in _CHANGES.items():
        task = f"Return a copy of a list of integers in which the numbers that {pick} are {change}"
        cases = [(_values(generator),) for _ in range(8)]
        yield _make(
            task,
            f"{change.split()[0]}_{tail}",
            numbers,
            "List[int]",
            cases,
            lambda xs, a=apply: [a(x) if holds(xs, i) else x for i, x in enumerate(xs)],
        )
    for other, also in _PICKS.items():
        if other != pick:
            cases = [(_values(generator),) for _ in range(8)]
            task = f"Return the numbers in a list that {pick} and that also {other}, in their original order"
            yield _make(task, f"filter_{tail}", numbers, "List[int]", cases, lambda xs, o=also: _chosen(xs, holds, o))
            cases = [(_values(generator),) for _ in range(8)]
            task = f"Check whether a list holds more numbers that {pick} than numbers that {other}"
            yield _make(
                task,
                f"more_{tail}",
                numbers,
                "bool",
                cases,
                lambda xs, o=also: len(_chosen(xs, holds)) > len(_chosen(xs, o)),
            )
    for task, kind, pair in _PAIRS:
        twins = [(_values(generator, 0, 15), _values(generator, 0, 15)) for _ in range(8)]
        text = f"Given two lists of integers, consider only the numbers that {pick} in their list. {task}"
        yield _make(
            text,
            f"compare_{tail}",
            "first: List[int], second: List[int]",
            kind,
            twins,
            lambda a, b, p=pair: p(_chosen(a, holds), _chosen(b, holds)),
        )


_PAIRS: tuple[tuple[str, str, Callable[[list[int], list[int]], Any]], ...] = (
    ("Return the sorted values that both have", "List[int]", lambda a, b: sorted(set(a) & set(b))),
    ("Return the sorted values that only the first has", "List[int]", lambda a, b: sorted(set(a) - set(b))),
    ("Return the absolute difference of their sums", "int", lambda a, b: abs(sum(a) - sum(b))),
    (
        "Return the list that has more of them, the first one in a tie",
        "List[int]",
        lambda a, b: b if len(b) > len(a) else a,
    ),
    ("Return them merged in ascending order", "List[int]", lambda a, b: sorted(a + b)),
)


def _word_tasks(word: str, fits: Callable[[str], bool], generator: random.Random) -> Iterator[Worked]:
    tail = "_".join(word.split()[-2:])
    for change, edit in _EDITS.items():
        task = f"Return a sentence in which each of the words that {word} is {change}, and the others stay as they are"
        if change.startswith("with"):
            task = task.replace(f"is {change}", f"is written {change}")
        cases = [(_sentence(generator),) for _ in range(8)]
        yield _make(
            task,
            f"edit_{tail}",
            "sentence: str",
            "str",
            cases,
            lambda s, e=edit: " ".join(e(w) if fits(w) else w for w in s.split()),
        )
    for start, (kind, gather) in _GATHER.items():
        cases = [(_sentence(generator),) for _ in range(8)]
        task = f"{start} the words of a sentence that {word}"
        head = "_".join(start.lower().replace(",", "").replace("(", "").split()[1:3])
        yield _make(
            task,
            f"{head}_{tail}",
            "sentence: str",
            kind,
            cases,
            lambda s, g=gather: g([w for w in s.split() if fits(w)]),
        )
    for pick, holds in _PICKS.items():
        if "indices" in pick or "divisible" in pick or "odd" in pick:
            task = (
                f"Given a dictionary from words to counts, return the sorted keys that {word} and whose counts {pick}"
            )
            if "indices" not in pick:
                dicts = [
                    (dict(zip(_sentence(generator).split(), _values(generator, 0, 12), strict=False)),)
                    for _ in range(8)
                ]
                yield _make(
                    task,
                    f"keys_{tail}",
                    "counts: Dict[str, int]",
                    "List[str]",
                    dicts,
                    lambda d, h=holds: sorted(k for k, v in d.items() if fits(k) and h([v], 0)),
                )


def _letter_tasks(letters: str, is_one: Callable[[str], bool], generator: random.Random) -> Iterator[Worked]:
    tasks: Mapping[str, tuple[str, Callable[[str], Any]]] = {
        f"Remove the {letters} from a string": ("str", lambda s: "".join(c for c in s if not is_one(c))),
        f"Replace the {letters} of a string with '#'": ("str", lambda s: "".join("#" if is_one(c) else c for c in s)),
        f"Write the {letters} of a string twice": ("str", lambda s: "".join(c * 2 if is_one(c) else c for c in s)),
        f"Return the indices of the {letters} of a string": (
            "List[int]",
            lambda s: [i for i, c in enumerate(s) if is_one(c)],
        ),
        f"Move the {letters} of a string to its end and keep the order otherwise": (
            "str",
            lambda s: "".join(sorted(s, key=is_one)),
        ),
        f"Return the length of the longest run of {letters} in a string": (
            "int",
            lambda s: max(map(len, "".join(c if is_one(c) else "\n" for c in s).split("\n"))),
        ),
        f"Check whether a string begins and ends with one of the {letters}": (
            "bool",
            lambda s: is_one(s[0]) and is_one(s[-1]),
        ),
    }
    for task, (kind, solve) in tasks.items():
        cases = [(_mixed(generator),) for _ in range(8)]
        name = f"{task.split()[0].lower()}_{letters.split()[0]}"
        yield _make(task, name, "text: str", kind, cases, solve)
