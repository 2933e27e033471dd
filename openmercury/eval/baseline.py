"""Plain `transformers.generate`: what the same weights give without this engine.

Its own KV cache, nothing compiled; speed is measured greedy at batch 1. The only module that imports `transformers`,
and only when asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmercury.errors import CheckpointError, ConfigError
from openmercury.llm import LLM
from openmercury.model.config import HF_CLASS, read_config, to_hf
from openmercury.model.costs import FORMATS
from openmercury.model.device import pick_device
from openmercury.model.transformer import Transformer
from openmercury.model.weights import fused_rows, load_model, sources
from openmercury.text.stream import TextStream

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
    transformers = _library()
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


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError("this needs the library transformers: pip install 'openmercury[bench]'") from None
    return transformers


# --- speed -----------------------------------------------------------------------------------------------------------


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


# --- any checkpoint, any way to draw ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """A network of `transformers`, and what it says of itself."""

    network: Any
    eos_ids: tuple[int, ...]
    context: int
    device: str
    dtype: str

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Sequence[Sequence[int]],
        most: Sequence[int],
        streams: Sequence[TextStream],
        *,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> list[tuple[tuple[int, ...], str]]:
        """Tokens and finish_reason ("stop" or "length") of each prompt, decoded as one batch padded on the left.

        The text goes into `streams`, whose stop strings end an answer as the ids in `ends` do. No other setting of the
        checkpoint's own (a repetition penalty, say) takes part.
        """
        length = max(map(len, prompts))
        ids_BL = torch.tensor([[0] * (length - len(one)) + list(one) for one in prompts], device=self.device)
        mask_BL = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in prompts], device=self.device)
        drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        torch.manual_seed(seed)
        rows = _Rows(ends, most, streams)
        self.network.generate(
            ids_BL,
            attention_mask=mask_BL,
            max_new_tokens=max(most),
            stopping_criteria=_library().StoppingCriteriaList([rows]),
            pad_token_id=0,
            **(drawn if temperature else {"do_sample": False}),
        )
        return [(tuple(tokens), reason or "length") for tokens, reason in zip(rows.tokens, rows.reasons, strict=True)]


class _Rows:
    """Ends each row of a batch where its own answer ends: a stopping criterion of `transformers`."""

    def __init__(self, ends: Sequence[Sequence[int]], most: Sequence[int], streams: Sequence[TextStream]) -> None:
        self.ends, self.most, self.streams = ends, most, streams
        self.tokens: list[list[int]] = [[] for _ in ends]
        self.reasons: list[str | None] = [None] * len(ends)

    def __call__(self, ids_BL: Tensor, scores: object, **_: object) -> Tensor:
        for row, token in enumerate(ids_BL[:, -1].tolist()):
            if self.reasons[row] is None:
                self._take(row, token)
        return torch.tensor([reason is not None for reason in self.reasons], device=ids_BL.device)

    def _take(self, row: int, token: int) -> None:
        stream = self.streams[row]
        self.tokens[row].append(token)
        if token in self.ends[row]:
            self.reasons[row] = "stop"
        else:
            stream.push([token])
            full = len(self.tokens[row]) == self.most[row]
            self.reasons[row] = "stop" if stream.finished_by_stop else "length" if full else None
        if self.reasons[row] is not None:
            stream.flush()
            if stream.finished_by_stop:
                self.reasons[row] = "stop"


def load(folder: Path, device: str, dtype: str) -> Plain:
    """The network of a checkpoint: ours with GGUF weights by `same_network`, else a folder `transformers` can read.

    `dtype` "auto" is float32 on a CPU and bfloat16 elsewhere. Raises ConfigError and CheckpointError.
    """
    transformers, on = _library(), pick_device(device)
    name = ("float32" if on.type == "cpu" else "bfloat16") if dtype == "auto" else dtype
    if FORMATS[name].rounded is not None:
        raise ConfigError(f"dtype {name} is of our engine alone: give transformers float32 or bfloat16")
    kind = FORMATS[name].dtype
    if any(folder.glob("*.gguf")):
        config = read_config(folder)
        network = same_network(load_model(folder, dtype=kind, device=on, config=config))
        return Plain(network, config.eos_ids, config.max_context, str(on), name)
    try:
        network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"transformers cannot load {folder} ({error}): give a checkpoint of its kind") from None
    ends = network.generation_config.eos_token_id
    ends = network.config.eos_token_id if ends is None else ends
    eos = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
    network.generation_config = transformers.GenerationConfig()
    network = network.to(on).eval().requires_grad_(False)
    return Plain(network, eos, network.config.max_position_embeddings, str(on), name)
