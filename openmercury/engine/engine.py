"""The engine: requests step together, join one batch, and leave it when they finish.

`generate` is a generator of steps so that callers can show settled and draft text, stop a request, or just drain it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openmercury.engine import modes
from openmercury.engine.config import EngineConfig
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import Request
from openmercury.engine.runner import Runner
from openmercury.errors import ContextOverflowError, EmptyPromptError, UnsupportedError
from openmercury.model.transformer import Transformer


class Engine:
    """Decodes batches of prompts with one network."""

    def __init__(self, model: Transformer, config: EngineConfig | None = None) -> None:
        facts = model.config.diffusion
        if facts is not None and (facts.clean_attention != "causal" or facts.block_aligned or not facts.logit_shift):
            raise UnsupportedError(
                "only checkpoints with causal clean attention, free blocks and logit shift can be decoded: "
                "use one trained by `openmercury train`"
            )
        self.model = model
        self.config = config or EngineConfig()
        self.runner = Runner(model, self.config)

    def request(self, prompt: Sequence[int], params: SamplingParams, eos: Sequence[int] | None = None) -> Request:
        """Check a prompt against the checkpoint; raises InputError or UnsupportedError with the remedy.

        `max_tokens` beyond the context is lowered to what fits; such an answer ends with finish_reason "length".
        """
        config = self.model.config
        if not prompt:
            raise EmptyPromptError("the prompt is empty: give at least one token")
        if len(prompt) >= config.max_context:
            raise ContextOverflowError(
                f"the prompt has {len(prompt)} tokens and the context holds {config.max_context}: shorten the prompt"
            )
        if params.mode != "ar" and (config.diffusion is None or config.diffusion.adapter is None):
            raise UnsupportedError(
                f"this checkpoint has no diffusion adapter, so mode {params.mode} cannot run: use mode ar or train one"
            )
        room = config.max_context - len(prompt)
        if params.max_tokens > room:
            params = params.model_copy(update={"max_tokens": room})
        facts = config.diffusion
        block = min(facts.block_size, self.config.block_limit) if facts is not None else 1
        width = params.block_size or (self.config.draft_width if params.mode == "verified" else block)
        ends = frozenset() if params.ignore_eos else frozenset(config.eos_ids if eos is None else eos)
        return Request(list(prompt), params, ends, width)

    def generate(self, requests: list[Request]) -> Iterator[list[Request]]:
        """Run until all are finished; yields the running requests after each forward.

        A caller ends a request early by setting its `finish_reason`.
        """
        running = list(requests)
        self.runner.start(running)
        while running:
            spans = [modes.plan(request, self.config, self.runner.mask_id) for request in running]
            tokens, accepted = self.runner.forward(spans)
            for request, span, token, taken in zip(running, spans, tokens, accepted, strict=True):
                modes.apply(request, span, token, taken, self.runner.mask_id)
            yield running
            alive = [row for row, request in enumerate(running) if request.finish_reason is None]
            if alive and len(alive) < len(running):
                self.runner.keep(alive)
            running = [running[row] for row in alive]
