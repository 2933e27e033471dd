"""Under a grammar every mode writes what choosing among the allowed tokens, one by one, would have written."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from openmercury.diffusion import reference
from openmercury.engine.constraint import Words
from openmercury.engine.engine import Engine
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import Request
from openmercury.errors import InputError, RequestFailedError
from tests import tiny
from tests.engine.test_engine import random_engine, refuse_numbers

MODEL = tiny.network()
EOS = tiny.EOS


class Machine:
    """A random automaton over tokens: some states leave one way to go on, some may end, one can only end."""

    def __init__(self, rng: random.Random) -> None:
        count = rng.randint(2, 9)
        letters = [token for token in range(tiny.MASK) if token != EOS]
        self.steps: list[dict[int, int]] = []
        self.ends = [rng.random() < 0.2 for _ in range(count)]
        for _ in range(count):
            tokens = rng.sample(letters, rng.choice([1, 1, 2, 5, 40]))
            self.steps.append({token: rng.randrange(count) for token in tokens})
        self.steps[-1], self.ends[-1] = {}, True
        self.steps[0].setdefault(letters[0], rng.randrange(1, count))

    def state(self, text: Sequence[int], start: int = 0) -> int:
        for token in text:
            start = self.steps[start][token]
        return start

    def allowed(self, text: Sequence[int]) -> set[int]:
        state = self.state(text)
        return set(self.steps[state]) | ({EOS} if self.ends[state] else set())

    def reads(self, text: Sequence[int]) -> bool:
        """Is it a whole text? A KeyError: it is not even the beginning of one."""
        return self.ends[self.state(body(text))]


def body(text: Sequence[int]) -> list[int]:
    return [token for token in text if token != EOS]


class Walk:
    """A place in a machine's text, as the engine wants it."""

    def __init__(self, machine: Machine, *, forced: bool, breaks_at: int | None = None) -> None:
        self.machine, self.forced, self.breaks_at = machine, forced, breaks_at
        self.text: list[int] = []

    @property
    def finished(self) -> bool:
        return self.text[-1:] == [EOS] or self.machine.allowed(self.text) == {EOS}

    def allowed(self, drafted: Sequence[int], out: Words) -> list[int]:
        if self.breaks_at is not None and len(self.text) >= self.breaks_at:
            raise InputError("the grammar broke")
        kept: list[int] = []
        true = True
        while True:
            allowed = self.machine.allowed(self.text + kept)
            bits = np.zeros(32 * out.shape[1], dtype=np.uint8)
            bits[sorted(allowed)] = 1
            out[len(kept)] = np.packbits(bits, bitorder="little").view(np.int32)
            guess = drafted[len(kept)] if true and len(kept) < len(drafted) else None
            if self.forced and len(allowed) == 1 and EOS not in allowed:
                (token,) = allowed
                true = true and guess in (token, tiny.MASK)
            elif guess in allowed:
                token = guess
            else:
                return kept
            if len(kept) == len(out) - 1:
                return kept
            kept.append(token)
            if token == EOS:
                return kept

    def commit(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            assert token in self.machine.allowed(self.text)
            self.text.append(token)


def random_params(rng: random.Random, mode: str) -> SamplingParams:
    warm = rng.random() < 0.5
    return SamplingParams.model_validate(
        {
            "mode": mode,
            "max_tokens": rng.randint(1, 30),
            "temperature": 0.8 if warm else 0.0,
            "seed": rng.randrange(2**40),
            "top_k": rng.choice([0, 5]) if warm else 0,
            "presence_penalty": rng.choice([0.0, 0.0, 1.5]),
            "edit_below": rng.choice([0.0, 0.5, 1.0]) if mode == "diffusion" else None,
        }
    )


def expected(request: Request, machine: Machine | None) -> list[int]:
    p = request.params
    sampling = reference.Sampling(p.temperature, p.top_k, p.top_p, p.seed, p.presence_penalty)
    allowed = None if machine is None else machine.allowed
    with torch.inference_mode():
        return reference.generate_ar(MODEL, request.prompt, p.max_tokens, {EOS}, sampling, allowed)


def random_schedule(seed: int) -> None:
    """Constrained rows beside free ones, in all modes, with few pages, so that some are preempted."""
    rng = random.Random(seed)
    engine = random_engine(rng)
    machines: dict[Request, Machine | None] = {}
    for _ in range(rng.randint(2, 6)):
        machine = Machine(rng) if rng.random() < 0.75 else None
        mode = rng.choice(["ar", "verified", "diffusion", "auto"] if machine else ["ar", "verified", "auto"])
        walk = Walk(machine, forced=rng.random() < 0.5) if machine else None
        prompt = [rng.randrange(63) for _ in range(rng.randint(1, 9))]
        machines[engine.request(prompt, random_params(rng, mode), constraint=walk)] = machine
    arriving = list(machines)
    while arriving or engine.busy:
        while arriving and rng.random() < 0.6:
            engine.submit(arriving.pop())
        engine.step(wait=rng.random() < 0.2)
        engine.check_integrity()
    for request, machine in machines.items():
        assert request.error is None
        if machine is not None:
            assert request.finish_reason == ("stop" if request.constraint.finished else "length")  # type: ignore[union-attr]
            assert machine.reads(request.completion) or request.finish_reason == "length"
        if request.mode != "diffusion" or request.params.edit_below == 1.0:
            given, whole = request.completion, expected(request, machine)
            # Where nothing but the end may come, it may have come already.
            assert (given == whole) if machine is None else (body(given) == body(whole)), request.params


@pytest.mark.parametrize("seed", range(30))
def test_equals_choosing_among_the_allowed(seed: int) -> None:
    random_schedule(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30, 300))
def test_equals_choosing_among_the_allowed_long(seed: int) -> None:
    random_schedule(seed)


class Chain(Machine):
    """One text, forced from its first token to its last."""

    def __init__(self, text: Sequence[int]) -> None:
        self.steps = [{token: number} for number, token in enumerate(text, 1)] + [{}]
        self.ends = [False] * len(text) + [True]


@pytest.mark.parametrize("mode", ["verified", "diffusion"])
def test_forced_tokens_take_few_forwards(mode: str) -> None:
    text = [5, 9, 2, 44, 13, 27, 8, 8, 31, 50, 6, 19]
    forwards = {}
    for forced in (False, True):
        engine = Engine(MODEL)
        params = SamplingParams.model_validate({"mode": mode, "max_tokens": 40})
        request = engine.request([7, 8], params, constraint=Walk(Chain(text), forced=forced))
        list(engine.generate([request]))
        assert (body(request.completion), request.finish_reason) == (text, "stop")
        forwards[forced] = request.forwards
    assert forwards[True] <= 3 < forwards[False]


def test_a_cut_answer_ends_with_length_and_a_whole_one_with_stop() -> None:
    engine = Engine(MODEL)
    ends = {}
    for most in (4, 5):
        request = engine.request(
            [7], SamplingParams(max_tokens=most), constraint=Walk(Chain([5, 6, 9, 2, 4]), forced=True)
        )
        list(engine.generate([request]))
        ends[most] = len(request.completion), request.finish_reason
    assert ends == {4: (4, "length"), 5: (5, "stop")}


def test_a_grammar_that_breaks_ends_its_own_request() -> None:
    engine = Engine(MODEL)
    params = SamplingParams(mode="ar", max_tokens=9)
    chains = [Chain([5, 6, 9, 2]) for _ in range(3)]
    sound, broken, bug = (
        engine.request([7], params, constraint=Walk(chain, forced=False, breaks_at=at))
        for chain, at in zip(chains, (None, 2, None), strict=True)
    )
    chains[2].ends = []  # an index error
    list(engine.generate([sound, broken, bug]))
    assert (sound.completion, sound.finish_reason) == ([5, 6, 9, 2], "stop")
    assert (broken.completion, type(broken.error)) == ([5, 6], InputError)
    assert isinstance(bug.error, RequestFailedError)
    engine.check_integrity()


def test_what_does_not_go_with_a_grammar_is_refused() -> None:
    walk = Walk(Chain([5]), forced=False)
    with pytest.raises(InputError, match="ignore_eos"):
        Engine(MODEL).request([7], SamplingParams(ignore_eos=True), constraint=walk)
    with pytest.raises(InputError, match="expected tokens and a grammar"):
        Engine(MODEL).request([7], SamplingParams(), expected=[1, 2], constraint=walk)


@pytest.mark.parametrize("mode", ["ar", "verified", "diffusion"])
def test_a_constrained_forward_copies_no_number_from_the_host(mode: str) -> None:
    engine = Engine(MODEL)
    refuse_numbers(engine)
    params = SamplingParams.model_validate({"mode": mode, "max_tokens": 6})
    walks = [Walk(Chain([5, 6, 9, 2]), forced=True) for _ in range(2)]  # values of one row would lose their axis
    requests = [engine.request([7], params, constraint=walk) for walk in walks]
    list(engine.generate(requests))
    assert [(request.error, body(request.completion)) for request in requests] == [(None, [5, 6, 9, 2])] * 2
