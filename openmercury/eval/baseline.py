"""Plain `transformers.generate` on our base weights: what the same model gives without this engine.

Greedy, batch 1, its own KV cache, nothing compiled. The only module that imports `transformers`, and only when asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from openmercury.errors import ConfigError
from openmercury.llm import LLM
from openmercury.model.config import HF_CLASS, to_hf
from openmercury.model.costs import FORMATS
from openmercury.model.transformer import Transformer
from openmercury.model.weights import fused_rows, load_model, sources

WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Baseline:
    """Answers one after the other; the text ends on the host, so all time counts."""

    name: str
    requests: int
    tokens: int
    seconds: float
    tokens_per_second: float


def same_network(model: Transformer) -> Any:
    """The model of `transformers` with our base weights, on the same device and in the same number format.

    Raises ConfigError where `transformers` is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError("--baseline transformers needs that library: pip install 'openmercury[bench]'") from None
    config, weight = model.config, model.embedding.weight
    # Where a text ends is said when it is asked for: defaults would go on ending it there.
    raw = {name: value for name, value in to_hf(config).items() if name not in ("diffusion", "eos_token_id")}
    kind = getattr(transformers, HF_CLASS[config.architecture])
    theirs = transformers.AutoModelForCausalLM.from_config(kind.config_class(**raw), dtype=weight.dtype)
    own, state = dict(model.named_parameters()), theirs.state_dict()
    with torch.no_grad():
        for name, names in sources(config, "hf").items():
            parts = own[name].split(fused_rows(config, name) or [len(own[name])])
            for part, source in zip(parts, names, strict=True):
                state[source].copy_(part)
    return theirs.to(weight.device).eval().requires_grad_(False)


def measure(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    ignore_eos: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> Baseline:
    """Time answers to prompts, after a short one that is not counted."""
    answer = _answerer(llm, ignore_eos=ignore_eos)
    answer(prompts[0], WARM_UP_TOKENS)
    tokens, begin = 0, time.perf_counter()
    for done, prompt in enumerate(prompts, 1):
        tokens += len(answer(prompt, max_tokens))
        if on_progress is not None:
            on_progress(done, len(prompts))
    seconds = time.perf_counter() - begin
    return Baseline("transformers", len(prompts), tokens, seconds, tokens / seconds)


def answers(llm: LLM, prompts: Sequence[Sequence[int]], max_tokens: int, *, ignore_eos: bool) -> list[tuple[int, ...]]:
    """The tokens themselves."""
    answer = _answerer(llm, ignore_eos=ignore_eos)
    return [answer(prompt, max_tokens) for prompt in prompts]


def _answerer(llm: LLM, *, ignore_eos: bool) -> Callable[[Sequence[int], int], tuple[int, ...]]:
    device = torch.device(llm.device)
    # The engine may have laid its own weights out in another way, so they are read again.
    network = same_network(load_model(llm.folder, dtype=FORMATS[llm.dtype].dtype, device=device, config=llm.config))
    ends = None if ignore_eos else list(llm.config.eos_ids)

    def answer(prompt: Sequence[int], most: int) -> tuple[int, ...]:
        ids = torch.tensor([list(prompt)], device=device)
        text = network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, eos_token_id=ends,
            pad_token_id=0,
        )  # fmt: skip
        return tuple(text[0, len(prompt) :].tolist())

    return answer
