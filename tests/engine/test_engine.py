"""The engine equals the reference, token for token, for every mode, batch, chunking and draft layout."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openmercury.diffusion import chain, reference
from openmercury.diffusion.sample import Sampling
from openmercury.diffusion.unmask import Policy
from openmercury.diffusion.verify import UNUSED
from openmercury.engine.config import EngineConfig
from openmercury.engine.engine import Engine
from openmercury.engine.modes import COPIED, Shape, needed_columns
from openmercury.engine.params import SamplingParams
from openmercury.engine.policy import AutoPolicy
from openmercury.engine.request import Request
from openmercury.engine.runner import Pending, edit_below, policy_fields
from openmercury.errors import ContextOverflowError, EmptyPromptError, InputError, RequestFailedError, UnsupportedError
from openmercury.model.transformer import Transformer
from tests import tiny

MODEL = tiny.network()
POISON = tiny.MASK  # as clean text it turns all that sees it into NaN; nobody ever writes it
MODEL.embedding.weight[POISON] = torch.nan
CHAINED = tiny.network(of=tiny.config(chain=3))
CHAINED.embedding.weight[POISON] = torch.nan


def random_params(rng: random.Random) -> SamplingParams:
    mode = rng.choice(["ar", "verified", "diffusion", "auto", "auto"])
    policy: dict[str, object] = {}
    if mode == "diffusion":
        policy = rng.choice([{}, {"steps": 3}, {"entropy_bound": 1.0}, {"threshold": 0.2}])
        policy["edit_below"] = rng.choice([None, 0.0, 0.7, 1.0])
    return SamplingParams.model_validate(
        {
            "mode": mode,
            "max_tokens": rng.randint(1, 30),
            "temperature": rng.choice([0.0, 0.8]),
            "seed": rng.randrange(2**40),
            "top_k": rng.choice([0, 5]),
            "top_p": rng.choice([1.0, 0.8]),
            "presence_penalty": rng.choice([0.0, 0.0, 1.5, -0.5]),
            "frequency_penalty": rng.choice([0.0, 0.0, 0.7, -0.3]),
            "repetition_penalty": rng.choice([1.0, 1.0, 1.3, 0.9]),
            "deadline": rng.choice([None, 3600.0]),
            **policy,
        }
    )


class RandomPolicy(AutoPolicy):
    """Picks shapes and steps by dice: `auto` may change both at any step without changing the text."""

    def __init__(self, rng: random.Random) -> None:
        wide = [Shape("verified", rng.randint(1, 6), rng.choice(["all", "last", 1, 2, 3, 8])) for _ in range(3)]
        super().__init__([Shape("ar", 1), *wide], "cpu", "auto")
        self.rng = rng

    def shape(self, rows: int, sampling: Sampling) -> Shape:
        return self.rng.choice(self.shapes)

    def steps(self, shape: Shape, rows: int, sampling: Sampling) -> int:
        return self.rng.choice([1, 1, 3])


def with_policy(engine: Engine, policy: AutoPolicy) -> None:
    engine.policy = engine.scheduler.policy = policy


class ScriptedPolicy(AutoPolicy):
    """Takes one shape after the other."""

    def __init__(self, *shapes: Shape) -> None:
        super().__init__(shapes, "cpu", 1)
        self.coming = list(shapes)

    def shape(self, rows: int, sampling: Sampling) -> Shape:
        return self.coming.pop(0)


def expected(request: Request, model: Transformer = MODEL) -> list[int]:
    p, eos = request.params, {tiny.EOS}
    penalties = (p.presence_penalty, p.frequency_penalty, p.repetition_penalty)
    sampling = reference.Sampling(p.temperature, p.top_k, p.top_p, p.seed, *penalties)
    with torch.inference_mode():
        if p.mode == "diffusion":
            policy = Policy(*(torch.tensor([value]) for value in policy_fields(p, request.width)))
            return reference.generate_diffusion(
                model, request.prompt, p.max_tokens, eos, sampling, request.width, policy, edit_below(p)
            )
        out = reference.generate_ar(model, request.prompt, p.max_tokens, eos, sampling)
        if p.mode == "verified":
            assert out == reference.generate_verified(model, request.prompt, p.max_tokens, eos, sampling, 4)
        return out


class Intercepted:
    """A network with something in the place of its forward."""

    def __init__(self, network: Any, forward: Any) -> None:
        self.network, self.forward = network, forward

    def __call__(self, *given: Any) -> Tensor:
        hidden: Tensor = self.forward(*given)
        return hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


def inject(engine: Engine, rng: random.Random, bomb: Request) -> None:
    """Some forwards raise by chance, in the middle of a step; every one in which `bomb` decodes does."""
    decode, network = engine.runner.decode, engine.runner.model

    def exploding(shape: Shape, slots: list[int], sampling: Sampling, forwards: int) -> Pending:
        if bomb.slot in slots:
            raise ValueError("a bomb")
        return decode(shape, slots, sampling, forwards)

    def flaky(*given: Any) -> Tensor:
        if rng.random() < 0.03:
            raise RuntimeError("by chance")
        return network(*given)

    engine.runner.decode = exploding  # type: ignore[method-assign, assignment]
    engine.runner.model = Intercepted(network, flaky)  # type: ignore[assignment]


def random_expectation(
    rng: random.Random, model: Transformer, prompt: list[int], params: SamplingParams
) -> list[int] | None:
    """Nothing, rubbish, or the text of `ar` as it was before some edits; what a mode cannot take is left out."""
    if params.mode not in ("verified", "auto") or POISON in prompt or rng.random() < 0.3:
        return None
    kind = rng.choice(["empty", "rubbish", "whole", "edited", "edited", "repeated"])
    if kind == "empty":
        return []
    if kind == "rubbish":
        return [rng.randrange(63) for _ in range(rng.randint(1, 40))]
    sampling = reference.Sampling(params.temperature, params.top_k, params.top_p, params.seed)
    with torch.inference_mode():
        text = reference.generate_ar(model, prompt, params.max_tokens, set(), sampling)
    if kind == "repeated":
        text = text[: rng.randint(1, len(text))] * 3
    if kind == "edited":
        for _ in range(rng.randint(1, 3)):
            begin = rng.randrange(len(text) + 1)
            text[begin : begin + rng.choice([0, 1, 4])] = [rng.randrange(63) for _ in range(rng.choice([0, 1, 4]))]
    return text


def random_engine(rng: random.Random, model: Transformer = MODEL) -> Engine:
    """Any settings, often with few pages, so that requests are preempted."""
    config = EngineConfig(
        draft_width=rng.randint(1, 6),
        draft_groups=rng.choice(["all", "last", 1, 2, 4]),
        prefill_tokens=rng.choice([3, 512]),
        page_size=rng.choice([1, 3, 16]),
        max_requests=rng.choice([2, 8]),
        steps_per_sync=rng.choice([1, 3]),
        cache_tokens=rng.choice([50, 1000]),
        head_rows=rng.choice([5, 2048]),
    )
    engine = Engine(model, config)
    engine.overlap = rng.random() < 0.5
    if rng.random() < 0.7:
        with_policy(engine, RandomPolicy(rng))
    return engine


def random_schedule(seed: int, model: Transformer = MODEL) -> None:
    """Requests arrive, are aborted, preempted, share prefixes and fail; each text is, or begins, the reference's."""
    rng = random.Random(seed)
    engine = random_engine(rng, model)
    common = [rng.randrange(63) for _ in range(6)]
    prompts = [
        common[: rng.choice([0, 6])] + [rng.randrange(63) for _ in range(rng.randint(1, 9))]
        for _ in range(rng.randint(1, 6))
    ]
    faulty = rng.random() < 0.5
    if faulty:
        prompts[0] += [POISON, *common[: rng.choice([0, 3])]]
    asked = [(prompt, random_params(rng)) for prompt in prompts]
    arriving = [engine.request(*each, expected=random_expectation(rng, model, *each)) for each in asked]
    requests, aborted = list(arriving), set[int]()
    if faulty:
        inject(engine, rng, requests[-1])
    while arriving or engine.busy:
        while arriving and rng.random() < 0.6:
            engine.submit(arriving.pop())
        running = [request for request in requests if request.slot is not None and request.finish_reason is None]
        if running and rng.random() < 0.03:
            victim = rng.choice(running)
            victim.finish_reason = "stop"
            aborted.add(id(victim))
        engine.step(wait=rng.random() < 0.2)
        engine.check_integrity()
    for number, request in enumerate(requests):
        assert (request.error is not None) == (request.finish_reason == "error")
        if faulty and number in (0, len(requests) - 1):
            assert not request.completion
            assert id(request) in aborted or isinstance(request.error, RequestFailedError)
            continue
        whole = expected(request, model)
        if id(request) in aborted or (faulty and request.error):
            assert request.completion == whole[: len(request.completion)], request.params
        else:
            assert request.completion == whole, request.params
            assert request.finish_reason in ("stop", "length")
    pool = engine.scheduler.pool
    assert pool.available == pool.capacity


@pytest.mark.parametrize("seed", range(30))
def test_equals_reference(seed: int) -> None:
    random_schedule(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30, 200))
def test_equals_reference_long(seed: int) -> None:
    random_schedule(seed)


@pytest.mark.parametrize("seed", range(200, 220))
def test_a_chain_equals_the_reference(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Drafts that know the token before them, in all modes."""
    monkeypatch.setattr(chain, "RUN", 6)  # so that there is something to choose from
    random_schedule(seed, CHAINED)


def test_a_chain_changes_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is in no checkpoint that has none."""
    monkeypatch.setattr(chain, "RUN", 6)
    drafted = []
    for pull in (1.0, 0.0):
        model = copy.deepcopy(CHAINED)
        assert model.adapter is not None
        assert model.adapter.chain is not None
        model.adapter.chain.out.mul_(pull)
        engine = Engine(model, EngineConfig(draft_width=5))
        request = engine.request([5, 6, 7], SamplingParams(mode="verified", max_tokens=8))
        engine.submit(request)
        while not request.completion:
            engine.step(wait=True)
        drafted.append(engine.runner.drafts(request))
        assert len(drafted[-1]) == 5
    assert drafted[0] != drafted[1]
    assert Engine(MODEL).runner.linker is None


def test_verified_samples_the_text_of_ar() -> None:
    """Coupled noise: at any temperature the two modes return the same tokens for the same seed."""
    engine = Engine(MODEL)
    for seed in range(10):
        texts = []
        for mode in ("ar", "verified"):
            params = SamplingParams(mode=mode, max_tokens=25, temperature=1.2, seed=seed)  # type: ignore[arg-type]
            request = engine.request([5, 6, 7], params)
            list(engine.generate([request]))
            texts.append(request.completion)
        assert texts[0] == texts[1]


@pytest.mark.parametrize("mode", ["verified", "auto"])
@pytest.mark.parametrize("overlap", [False, True])
def test_expected_text_saves_forwards(mode: str, overlap: bool) -> None:
    engine = Engine(MODEL)
    engine.overlap = overlap
    params = SamplingParams.model_validate({"mode": mode, "max_tokens": 60, "ignore_eos": True})
    text = reference.generate_ar(MODEL, [5, 6, 7], 60, set(), reference.Sampling())
    inserted, dropped = [*text[:20], 1, 2, *text[20:]], [*text[:20], *text[22:]]
    forwards = []
    for expected in (text, inserted, dropped, None):
        request = engine.request([5, 6, 7], params, expected=expected)
        list(engine.generate([request]))
        assert request.completion == text
        forwards.append(request.forwards)
    assert forwards[0] == 2  # 32 tokens and 28
    assert max(forwards[1:3]) <= 2 + 5 < forwards[3]


def test_expected_text_needs_no_adapter() -> None:
    engine = Engine(tiny.network(of=tiny.config(adapter=False)))
    params, texts = SamplingParams(mode="auto", max_tokens=30, ignore_eos=True), []
    for expected in (None, [1, 2, 3]):
        request = engine.request([5, 6, 7], params, expected=expected)
        list(engine.generate([request]))
        texts.append(request.completion)
    request = engine.request([5, 6, 7], params, expected=texts[0])
    list(engine.generate([request]))
    assert texts[0] == texts[1] == request.completion
    assert request.forwards == 1


def test_auto_keeps_only_the_drafts_that_the_next_forward_can_verify() -> None:
    wide, narrow, ar = Shape("verified", 6), Shape("verified", 2, "last"), Shape("ar", 1)
    engine = Engine(MODEL)
    with_policy(engine, ScriptedPolicy(wide, narrow, wide, ar, narrow))
    request = engine.request([5, 6, 7], SamplingParams(mode="auto", max_tokens=60, ignore_eos=True))
    engine.submit(request)
    engine.step()  # reads the prompt
    engine.step()
    assert request.slot is not None
    rows = torch.tensor([request.slot])
    assert len(engine.runner.drafts(request)) == 6
    assert needed_columns(engine.runner.slots, rows, narrow) == 3
    for _ in range(3):
        engine.step()
    assert engine.runner.drafts(request) == []  # they were made for an older end of the text
    assert needed_columns(engine.runner.slots, rows, narrow) == 1
    engine.step()
    assert len(engine.runner.drafts(request)) == 2


@pytest.mark.parametrize("mode", ["ar", "verified", "auto"])
def test_forwards_under_way_have_pages(mode: str) -> None:
    """Launches that run ahead of what the host has read write no token beyond the pages."""
    engine = Engine(MODEL, EngineConfig(page_size=1, steps_per_sync=3, prefix_cache=False))
    engine.overlap = True
    params = SamplingParams.model_validate({"mode": mode, "max_tokens": 25, "ignore_eos": True})
    request = engine.request([5, 6, 7], params)
    list(engine.generate([request]))
    assert request.completion == reference.generate_ar(MODEL, request.prompt, 25, set(), reference.Sampling())


def test_auto_without_an_adapter_is_ar() -> None:
    engine = Engine(tiny.network(of=tiny.config(adapter=False)))
    request = engine.request([5, 6, 7], SamplingParams(mode="auto", max_tokens=9, ignore_eos=True))
    list(engine.generate([request]))
    assert request.forwards == len(request.completion) == 9


def test_diffusion_that_lets_only_equal_tokens_stand_is_ar() -> None:
    engine = Engine(MODEL)
    for threshold in (0.02, 0.5):
        texts = []
        for asked in ({"mode": "ar"}, {"mode": "diffusion", "edit_below": 1.0, "threshold": threshold}):
            request = engine.request([5, 6, 7], SamplingParams.model_validate({"max_tokens": 40, **asked}))
            list(engine.generate([request]))
            texts.append(request.completion)
        assert texts[0] == texts[1]


class NoNumbers(TorchDispatchMode):
    """Refuses `tensor[index] = number`: on CUDA that copies from the host, which cannot be captured in a graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.index_put_:
            assert args[2].dim() > 0, "a number is assigned by index: use index_fill_"
        return func(*args, **(kwargs or {}))


def refuse_numbers(engine: Engine) -> None:
    """Have its decoding forwards raise where they assign a number by index."""
    decode = engine.runner._decode

    def watched(shape: Shape, sampling: Sampling, forwards: int) -> Any:
        def run(rows: Tensor) -> Tensor:
            with NoNumbers():
                return decode(shape, sampling, forwards)(rows)

        return run

    engine.runner._decode = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("mode", ["ar", "verified", "diffusion"])
def test_a_forward_copies_no_number_from_the_host(mode: str) -> None:
    engine = Engine(MODEL, EngineConfig(cache_tokens=256, page_size=4))
    params = SamplingParams.model_validate({"mode": mode, "max_tokens": 6, "ignore_eos": True})
    requests = [engine.request([1, 2, 3, 4, 5], params) for _ in range(2)]  # values of one row would lose their axis
    refuse_numbers(engine)
    list(engine.generate(requests))
    assert [(request.error, len(request.completion)) for request in requests] == [(None, 6)] * 2


def test_forwards_are_counted() -> None:
    engine = Engine(MODEL, EngineConfig(prefill_tokens=4))
    request = engine.request(list(range(4, 14)), SamplingParams(mode="ar", max_tokens=7, ignore_eos=True))
    list(engine.generate([request]))
    assert request.forwards == 7
    assert request.finish_reason == "length"


def test_a_caller_can_end_a_request() -> None:
    engine = Engine(MODEL)
    params = SamplingParams(mode="ar", max_tokens=20, ignore_eos=True)
    first, second = (engine.request([5, 6], params) for _ in range(2))
    for _ in engine.generate([first, second]):
        if len(first.completion) == 3:
            first.finish_reason = "stop"
    assert (len(first.completion), len(second.completion)) == (3, 20)


def test_bad_requests() -> None:
    engine = Engine(MODEL)
    with pytest.raises(EmptyPromptError):
        engine.request([], SamplingParams())
    with pytest.raises(ContextOverflowError, match="256"):
        engine.request([5] * 256, SamplingParams())
    with pytest.raises(InputError, match="tokenizer"):
        engine.request([5, 64], SamplingParams())
    with pytest.raises(InputError, match="expected text has ids"):
        engine.request([5], SamplingParams(), expected=[64])
    with pytest.raises(InputError, match="modes verified and auto"):
        engine.request([5], SamplingParams(mode="ar"), expected=[5])
    plain = Engine(tiny.network(of=tiny.config(adapter=False)))
    with pytest.raises(UnsupportedError, match="mode ar"):
        plain.request([5], SamplingParams(mode="diffusion"))
    assert engine.request([5] * 250, SamplingParams(max_tokens=100)).params.max_tokens == 6


def test_params_refuse_what_nobody_reads() -> None:
    for wrong in (
        {"mode": "ar", "steps": 4},
        {"mode": "auto", "threshold": 0.5},
        {"mode": "auto", "block_size": 4},
        {"mode": "diffusion", "steps": 4, "threshold": 0.5},
        {"max_tokens": 0},
    ):
        with pytest.raises(ValidationError):
            SamplingParams.model_validate(wrong)


@pytest.mark.parametrize(
    "fact", [{"clean_attention": "bidirectional"}, {"block_aligned": True}, {"logit_shift": False}]
)
def test_facts_it_does_not_decode_are_refused(fact: dict[str, object]) -> None:
    config = tiny.config()
    assert config.diffusion is not None
    other = config.model_copy(update={"diffusion": config.diffusion.model_copy(update=fact)})
    model = tiny.network(of=other)
    for decode in (
        lambda: Engine(model),
        lambda: reference.generate_verified(model, [5, 6], 4, set(), reference.Sampling(), 3),
    ):
        with pytest.raises(UnsupportedError, match=r"was trained with .*, which cannot be decoded"):
            decode()


@pytest.mark.parametrize("mode", ["ar", "verified", "diffusion", "auto"])
def test_weights_that_learnt_as_a_whole_decode_without_an_adapter(mode: str) -> None:
    """The mask token is a row of the embedding; the rest is the reference's."""
    config = tiny.config()
    assert config.diffusion is not None
    facts = config.diffusion.model_copy(update={"adapter": None})
    model = tiny.network(of=config.model_copy(update={"diffusion": facts}))
    engine = Engine(model)
    policy = {"steps": 2} if mode == "diffusion" else {}
    params = SamplingParams.model_validate({"mode": mode, "max_tokens": 25, **policy})
    request = engine.request([8, 30, 41], params)
    list(engine.generate([request]))
    assert request.completion == expected(request, model)
    assert mode != "diffusion" or request.forwards < len(request.completion)


def test_a_closed_loop_keeps_so_many_under_way() -> None:
    engine = Engine(MODEL)
    requests = [engine.request([5, 6 + n], SamplingParams(mode="ar", max_tokens=4 + n)) for n in range(5)]
    most = 0
    for _ in engine.generate(requests, concurrency=2):
        most = max(most, len(engine.scheduler.running) + len(engine.scheduler.waiting))
    assert most == 2
    assert [request.completion for request in requests] == [expected(request) for request in requests]


def test_graphs_are_captured_for_what_will_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, captured = Engine(MODEL), set[tuple[Shape, int, Sampling]]()
    engine.runner.fused = True

    def capture(shape: Shape, rows: int, sampling: Sampling, steps: int) -> float:
        captured.add((shape, rows, sampling))
        return 1e-3

    monkeypatch.setattr(engine.runner, "warm_prefill", lambda: None)
    monkeypatch.setattr(engine.runner, "warm_decode", capture)
    engine.warm_up(2, SamplingParams(mode="ar"))
    assert captured == {(Shape("ar", 1), 1, "greedy"), (Shape("ar", 1), 2, "greedy")}
    captured.clear()
    engine.warm_up(1, SamplingParams(temperature=0.2, presence_penalty=1.0), expected=True)
    assert {(shape.groups, shape.penalised, sampling) for shape, _, sampling in captured} == {
        ("none", True, "sampled"), (engine.config.draft_groups, True, "sampled"),
    }  # fmt: skip
    assert (COPIED._replace(penalised=True), 1, "sampled") in captured
    with pytest.raises(InputError, match="modes verified and auto"):
        engine.warm_up(1, SamplingParams(mode="ar"), expected=True)


def test_groups_stand_behind_what_a_grammar_forces() -> None:
    """Lengths of a former draft mean nothing for it: it is likely kept whole."""
    engine = Engine(tiny.network(), EngineConfig(draft_width=4, draft_groups=2, max_requests=2, cache_tokens=100))
    slots = engine.runner.slots
    slots.behind[1, :3] = torch.tensor([0, 1, 3])
    engine.runner.stand([1], [([5, 6], 2)])
    assert slots.behind[1].tolist() == [2] + [UNUSED] * (slots.behind.shape[1] - 1)
