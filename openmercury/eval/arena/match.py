"""A match: two answers to one prompt, whose authors are told only after the vote."""

from __future__ import annotations

import datetime
import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from openmercury.errors import RequestFailedError
from openmercury.eval.arena.votes import Outcome, Vote, Votes
from openmercury.eval.systems import Answer, Ask, Sampling, System
from openmercury.eval.tasks.base import Prompt


@dataclass(frozen=True)
class Contestant:
    """A system under the name by which votes know it."""

    name: str
    system: System


@dataclass(frozen=True)
class Match:
    """Two answers in the order they are shown in."""

    id: str
    prompt: Prompt
    first: Contestant
    second: Contestant
    answers: tuple[Answer, Answer]

    @property
    def same(self) -> bool:
        """Whether there is nothing to choose between."""
        return self.answers[0].text == self.answers[1].text


class Arena:
    """Two contestants; the order of asking and of showing is random. Not for several threads at once."""

    def __init__(
        self,
        contestants: tuple[Contestant, Contestant],
        votes: Votes,
        sampling: Sampling,
        max_tokens: int,
        generator: random.Random,
    ) -> None:
        """Warms both up; raises DataError where `votes` know a contestant of this name as another system."""
        self.contestants, self.votes, self.sampling, self.max_tokens = contestants, votes, sampling, max_tokens
        self.generator = generator
        drawn = {"max_tokens": max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
        for one in contestants:
            votes.enter(one.name, {**one.system.identity, **drawn})
            one.system.warm_up(1, sampling)

    def match(self, prompt: Prompt) -> Match:
        """Have both answer; raises RequestFailedError where one cannot, ServerError where one is gone."""
        seed = self.generator.getrandbits(31)
        asked = self._shuffled()
        for one in asked:  # unmeasured: what both share (connections, graphs, the prompt in the cache) is warm for both
            self._ask(one, Ask(prompt, 1, seed))
        answers = {one.name: self._ask(one, Ask(prompt, self.max_tokens, seed)) for one in asked}
        first, second = self._shuffled()
        return Match(uuid.uuid4().hex, prompt, first, second, (answers[first.name], answers[second.name]))

    def _shuffled(self) -> Sequence[Contestant]:
        return self.generator.sample(self.contestants, 2)

    def _ask(self, one: Contestant, ask: Ask) -> Answer:
        [(_, answer)] = one.system.answer([ask], self.sampling)
        if answer.error is not None:
            raise RequestFailedError(f"{one.name} cannot answer this prompt: {answer.error}")
        return answer

    def vote(self, match: Match, outcome: Outcome) -> Vote:
        """Keep what a person said; a match that has a vote keeps that one."""
        one, other = match.answers
        vote = Vote(
            match=match.id,
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            first=match.first.name,
            second=match.second.name,
            outcome=outcome,
            first_seconds=round(one.seconds, 4),
            second_seconds=round(other.seconds, 4),
            first_tokens=one.completion_tokens,
            second_tokens=other.completion_tokens,
            prompt=json.dumps(asdict(match.prompt)),
            first_text=one.text,
            second_text=other.text,
        )
        self.votes.add(vote)
        return vote
