"""How alike the answers of two runs are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openmercury.errors import DataError
from openmercury.eval.store import Place, Store, read_verdicts
from openmercury.eval.tasks import find
from openmercury.eval.tasks.base import Sample, Style


@dataclass(frozen=True)
class Agreement:
    """One task of two runs, over the answers that both have; pass@1 over those of them that both have judged."""

    task: str
    style: Style
    compared: int
    identical: int
    judged: int
    passed: tuple[int, int]
    different: tuple[str, ...]


def agreements(left: Store, right: Store) -> list[Agreement]:
    """All tasks that both runs have; raises DataError where there is none, or no answer in common."""
    have = [tuple(pair) for pair in right.run["tasks"]]
    both: list[tuple[str, Style]] = [(name, style) for name, style in left.run["tasks"] if (name, style) in have]
    if not both:
        raise DataError("the two runs have no task in common: generate the same tasks in both, with the same --style")
    return [_agreement(left, right, name, style) for name, style in both]


def _agreement(left: Store, right: Store, name: str, style: Style) -> Agreement:
    [task] = find([name])
    both = [store.samples(task, style) for store in (left, right)]
    first, second = (_answers(kept.samples) for kept in both)
    places = [place for place in first if place in second]
    if not places:
        raise DataError(f"the two runs have no answer of {name} in common: generate the same problems in both")
    if any(both[0].asked[place] != both[1].asked[place] for place in places):
        raise DataError(
            f"the two runs asked {name} otherwise (the prompts or --max-tokens): generate one of them again"
        )
    different = [place for place in places if not identical(first[place], second[place])]
    ends = [
        {(one.problem, one.index): one.status for one in read_verdicts(store.verdicts_path(task, style))}
        for store in (left, right)
    ]
    judged = [place for place in places if all(place in end and end[place] != "missing" for end in ends)]
    passed = [sum(end[place] == "passed" for place in judged) for end in ends]
    told = tuple(problem if index == 0 else f"{problem} ({index})" for problem, index in different)
    return Agreement(name, style, len(places), len(places) - len(different), len(judged), (passed[0], passed[1]), told)


def _answers(samples: Mapping[Place, Sample]) -> dict[Place, Sample]:
    return {place: sample for place, sample in samples.items() if sample.finish_reason != "error"}


def identical(one: Sample, other: Sample) -> bool:
    """Token for token where both runs tell the tokens, else by text."""
    if one.token_ids is not None and other.token_ids is not None:
        return one.token_ids == other.token_ids
    return one.answer == other.answer
