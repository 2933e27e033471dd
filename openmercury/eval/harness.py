"""`openmercury` as a model of lm-eval (EleutherAI's lm-evaluation-harness), so that any of its tasks runs.

Answers come from the engine in any of its modes. Likelihoods come from the clean side, exactly, or from the bound of
the noisy side. lm-eval knows no plugins, so its own command line is reached through this module:

    python -m openmercury.eval.harness run --model openmercury --model_args model=FOLDER,mode=ar --tasks …
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table, setup_logging
from tqdm import tqdm

from openmercury.diffusion.bound import noisy_facts
from openmercury.engine.params import SamplingParams
from openmercury.errors import ConfigError, ContextOverflowError, DataError, InputError
from openmercury.eval.likelihood import SAMPLES, Bound, Loaded, bounded, exact, load, prefix_id, windows
from openmercury.llm import LLM, default_model
from openmercury.model.config import read_config
from openmercury.text import chat
from openmercury.text.tokenizer import Tokenizer

MAX_TOKENS = 256  # of an answer, where the task does not say
Side = Literal["ar", "diffusion"]

# What a task may ask of the decoder beside `until`, the length and `do_sample`, by the names we give it.
ASKED = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "repetition_penalty")

Pair = tuple[tuple[str, str] | None, list[int], list[int]]  # the request as text, context, continuation


@register_model("openmercury")
class OpenMercury(TemplateLM):
    """A checkpoint. Arguments, as in `--model_args`:

    model                  folder; None: `OPENMERCURY_MODEL`, else the shipped one
    mode, threshold        how answers are decoded
    likelihood             "ar": exact; "diffusion": minus the bound, and greedy as the clean side says
    bound_block_size       of the bound; None: the checkpoint's
    bound_samples          draws of noise for each likelihood
    batch_size             requests under way at once
    max_length             tokens of context; None: the checkpoint's
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        mode: str = "verified",
        threshold: float | None = None,
        likelihood: Side = "ar",
        bound_block_size: int | None = None,
        bound_samples: int = SAMPLES,
        batch_size: int | str = 8,
        max_length: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if likelihood not in get_args(Side):
            raise ConfigError(f"likelihood {likelihood!r} is unknown: use ar or diffusion")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size {batch_size!r} is no number of requests: give one, such as 8")
        self.folder = default_model() if model is None else Path(model)
        self.config = read_config(self.folder)
        self.tokenizer = Tokenizer.load(self.folder)
        self.params = SamplingParams.model_validate({"mode": mode, "threshold": threshold, "seed": seed})
        self.side, self.seed = likelihood, seed
        self.bound_block_size, self.bound_samples = bound_block_size, bound_samples
        self.batch_size = int(batch_size)
        self.max_length = max_length or self.config.max_context
        self.asked_device, self.asked_dtype = device, dtype

    # Decoding and likelihood hold weights in different ways; a task needs one or the other.
    @cached_property
    def llm(self) -> LLM:
        """The engine, loaded when a task wants answers."""
        return LLM(self.folder, device=self.asked_device, dtype=self.asked_dtype)

    @cached_property
    def loaded(self) -> Loaded:
        """The bare network, loaded when a task wants likelihoods."""
        return load(self.folder, device=self.asked_device, dtype=self.asked_dtype)

    @property
    def bound(self) -> Bound | None:
        """How the bound is drawn; None where likelihoods are exact."""
        if self.side == "ar":
            return None
        block_size = noisy_facts(self.config).block_size
        return Bound(self.bound_block_size or block_size, self.bound_samples, self.seed)

    # --- tokens ------------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return (*self.tokenizer.eos_ids, *self.config.eos_ids)[0]

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by."""
        return prefix_id(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of requests."""
        return str(self.folder.resolve()).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids; control tokens, as chat templates write them, act as such. Our tokenizers never add any."""
        assert not add_special_tokens
        return self.tokenizer.encode(string, special=True)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, ready for an answer or, without `add_generation_prompt`, to go on with the last."""
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in chat_history]
        ids = chat.render(self.tokenizer, messages, add_generation_prompt=add_generation_prompt)
        text = self.tokenizer.decode(ids, special=True)
        if add_generation_prompt:
            return text
        begun = messages[-1]["content"].strip()
        return text[: text.rindex(begun) + len(begun)]

    # --- answers -----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers, in order; contexts too long for the context lose their beginning."""
        params = [self._sampling(request.args[1], number) for number, request in enumerate(requests)]
        prompts = [
            self.tok_encode(request.args[0])[-self._room(one) :] for request, one in zip(requests, params, strict=True)
        ]
        with tqdm(total=len(requests), disable=disable_tqdm, desc="openmercury: answers") as bar:
            outputs = self.llm.generate_batch(
                prompts, params, lambda done, _: bar.update(done - bar.n), concurrency=self.batch_size
            )
        for request, output in zip(requests, outputs, strict=True):
            if output.error is not None:
                raise output.error
            self.cache_hook.add_partial("generate_until", request.args, output.text)
        return [output.text for output in outputs]

    def _room(self, params: SamplingParams) -> int:
        room = self.max_length - params.max_tokens
        if room < 1:
            raise ContextOverflowError(
                f"answers of {params.max_tokens} tokens leave no room in a context of {self.max_length}: "
                "lower max_gen_toks"
            )
        return room

    def _sampling(self, asked: Mapping[str, Any], number: int) -> SamplingParams:
        """The decoder's parameters of one request; a sampled one has a seed of its own, for tasks that ask twice."""
        kwargs = dict(normalize_gen_kwargs(dict(asked), MAX_TOKENS))
        stop, max_tokens, sampled = kwargs.pop("until"), kwargs.pop("max_gen_toks"), kwargs.pop("do_sample")
        unknown = sorted(kwargs.keys() - set(ASKED))
        if unknown:
            raise ConfigError(
                f"the task asks for {unknown[0]!r} of decoding, which we do not have: override gen_kwargs"
            )
        given = {**self.params.model_dump(), **kwargs, "stop": tuple(filter(None, stop)), "max_tokens": max_tokens}
        return SamplingParams.model_validate({**given, "seed": self.seed + number * bool(sampled)})

    # --- likelihoods -------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p of the continuation in nats, would greedy decoding write it?) of each request."""
        texts = []
        for _text, context, continuation in requests:
            ids = [*context, *continuation][-(self.max_length + 1) :]
            if len(continuation) >= len(ids):
                raise ContextOverflowError(
                    f"a continuation of {len(continuation)} tokens has no context left in {self.max_length}: "
                    "raise max_length"
                )
            texts.append((ids, len(ids) - len(continuation)))
        found = self._scored(texts, disable_tqdm)
        for (text, _context, _continuation), each in zip(requests, found, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, each)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts in nats, in windows that meet at one token, as lm-eval defines it."""
        texts: list[tuple[list[int], int]] = []
        owner = []
        for number, request in enumerate(requests):
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            for begin, first, end in windows(len(ids), self.max_length, self.max_length):
                texts.append((ids[begin:end], first - begin))
                owner.append(number)
        totals = [0.0] * len(requests)
        for number, (log_p, _greedy) in zip(owner, self._scored(texts, disable_tqdm), strict=True):
            totals[number] += log_p
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _scored(self, texts: Sequence[tuple[list[int], int]], quiet: bool) -> list[tuple[float, bool]]:
        model, bound = self.loaded.model, self.bound
        generator = torch.Generator().manual_seed(self.seed)
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(texts), disable=quiet, desc="openmercury: likelihoods") as bar:
            for batch in _batches([len(ids) for ids, _ in texts], self.batch_size):
                each = exact(model, [texts[number] for number in batch])
                for number, (nats, greedy) in zip(batch, each, strict=True):
                    if bound is not None:
                        nats = float(bounded(model, *texts[number], bound, generator).mean())
                    found[number] = (-nats, greedy)
                bar.update(len(batch))
        return [found[number] for number in range(len(texts))]

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results."""
        return {
            "openmercury": self.folder.resolve().name,
            "mode": self.params.mode,
            "threshold": self.params.threshold,
            "likelihood": self.side,
            "bound": self.bound and vars(self.bound),
            "max_length": self.max_length,
            "dtype": self.asked_dtype,
        }


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Texts of like length together, the longest first, so that little is padded and memory runs out early."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def run(
    model: OpenMercury,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    chat_template: bool = False,
    include: Path | None = None,
) -> dict[str, Any]:
    """Results of lm-eval's `simple_evaluate`. Raises InputError for unknown tasks, DataError where one cannot run."""
    setup_logging("WARNING")
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in tasks:
        if not manager.match_tasks([name]):
            near = difflib.get_close_matches(name, manager.all_tasks, 1)
            raise InputError(
                f"lm-eval has no task {name!r}" + (f": did you mean {near[0]}?" if near else ": see `lm_eval ls tasks`")
            )
    try:
        results = simple_evaluate(
            model=model,
            tasks=list(tasks),
            limit=limit,
            num_fewshot=fewshot,
            apply_chat_template=chat_template,
            task_manager=manager,
            log_samples=False,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"lm-eval cannot run these tasks ({error}): see what they need in its documentation") from error
    assert results is not None
    return dict(results)


def table(results: Mapping[str, Any]) -> str:
    """Results as lm-eval prints them, groups behind tasks."""
    return "\n".join(make_table(results, column) for column in ("results", "groups") if column in results)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
