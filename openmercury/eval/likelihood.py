"""Bits per byte of text: exactly by the clean, autoregressive side, or by the bound of the noisy one (diffusion/bound).

A text is read behind the token that begins or separates texts, with nothing behind it. One longer than the context is
read in windows; every token counts once, and all but the first window's have at least half the context before them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

import torch
from torch import Tensor

from openmercury.diffusion.bound import nll_bound, noisy_facts, read_clean
from openmercury.errors import CheckpointError, ConfigError, DataError
from openmercury.llm import default_model
from openmercury.model.config import read_config
from openmercury.model.costs import FORMATS, pack_as
from openmercury.model.device import pick_device
from openmercury.model.machine import set_threads
from openmercury.model.transformer import Transformer
from openmercury.model.weights import Progress, load_model
from openmercury.text.tokenizer import Tokenizer

CONTEXT = 2048  # tokens a prediction may look back on at most, unless the user says otherwise
SAMPLES = 4


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    name: str
    text: str


@dataclass(frozen=True)
class Bound:
    """Blocks of `block_size` positions, with `samples` draws of noise each."""

    block_size: int
    samples: int = SAMPLES
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """One document: its cost in nats, once if it is exact and once a sample of the bound."""

    name: str
    tokens: int
    bytes: int
    nats: tuple[float, ...]


@dataclass(frozen=True)
class Likelihood:
    """All documents together.

    `standard_error` is that of the noise drawn for the bound: at most this, since stratified samples err less than
    their spread tells; None where the likelihood is exact and for one sample. `document_error` is that of having seen
    these documents and no others (ratio estimate); None for one document.
    """

    bits_per_byte: float
    standard_error: float | None
    document_error: float | None
    bits_per_token: float
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Loaded:
    """A network and its tokenizer, without an engine."""

    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    device: torch.device
    dtype: str


def load(
    folder: str | Path | None = None, *, device: str = "auto", dtype: str = "auto", progress: Progress | None = None
) -> Loaded:
    """Load a checkpoint to read texts with; dtype "auto" is float32 on a CPU and bfloat16 elsewhere.

    Raises CheckpointError, and ConfigError for a device or dtype that cannot be had.
    """
    path = default_model() if folder is None else Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"there is no model folder {path}: give --model, or make one with `openmercury import`")
    on = pick_device(device)
    name = ("float32" if on.type == "cpu" else "bfloat16") if dtype == "auto" else dtype
    if name not in FORMATS or FORMATS[name].rounded is not None:
        raise ConfigError(f"likelihood is not measured in dtype {dtype!r}: use auto, float32, bfloat16 or float64")
    set_threads()
    kind, config = FORMATS[name], read_config(path)
    model = load_model(path, dtype=kind.dtype, device=on, config=config, progress=progress)
    pack_as(kind, model)
    return Loaded(path, model, Tokenizer.load(path), on, name)


# --- texts -----------------------------------------------------------------------------------------------------------


def read_documents(
    paths: Sequence[Path], pattern: str = "*", limit: int | None = None
) -> tuple[list[Document], Counter[str]]:
    """Files, and those of folders that match `pattern`, in order of their names; at most `limit` documents.

    Hidden files of folders are left out. The counter tells by reason what was skipped on the way. Raises DataError
    where a path does not exist or nothing is left.
    """
    documents: list[Document] = []
    skipped: Counter[str] = Counter()
    for path in _files(paths, pattern):
        if len(documents) == limit:
            break
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            skipped["not UTF-8"] += 1
            continue
        if text:
            documents.append(Document(str(path), text))
        else:
            skipped["empty"] += 1
    if not documents:
        told = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "no files"
        raise DataError(f"there is no text to read here ({told}): give UTF-8 files or folders that hold some")
    return documents, skipped


def _files(paths: Sequence[Path], pattern: str) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            inside = (each for each in sorted(path.rglob(pattern)) if each.is_file())
            yield from (each for each in inside if not any(p.startswith(".") for p in each.relative_to(path).parts))
        elif path.exists():
            yield path
        else:
            raise DataError(f"there is no file or folder {path}: check the path")


def prefix_id(tokenizer: Tokenizer) -> int:
    """The token that stands before a text: that which begins texts, else that which ends them (as in lm-eval)."""
    for name in ("bos_token", "eos_token"):
        found = tokenizer.token_id(tokenizer.named_tokens.get(name, ""))
        if found is not None:
            return found
    raise CheckpointError("the tokenizer names no token that begins or ends a text: set eos_token in its config")


# --- one text --------------------------------------------------------------------------------------------------------


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end): tokens first … end − 1 are predicted from those after `begin`, at most `context` of them.

    The first token is predicted nowhere, every other once; windows after the first move on by `stride` ≤ `context`.
    """
    assert 1 <= stride <= context
    begin, first, end = 0, 1, min(length, context + 1)
    while first < length:
        yield begin, first, end
        first, end = end, min(length, end + stride)
        begin = end - 1 - context


def exact(model: Transformer, texts: Sequence[tuple[Sequence[int], int]]) -> list[tuple[float, bool]]:
    """For each (ids, first): −log p of ids[first:] behind ids[:first] in nats, and is each of them the likeliest?

    All texts are read in one forward.
    """
    longest = max(len(ids) for ids, _ in texts)
    rows = [[*ids, *[0] * (longest - len(ids))] for ids, _ in texts]
    clean = read_clean(model, torch.tensor(rows, device=model.embedding.weight.device))
    return [
        (float(nll[first : len(ids)].double().sum()), bool(greedy[first : len(ids)].all()))
        for (ids, first), nll, greedy in zip(texts, clean.nll_BL, clean.greedy_BL, strict=True)
    ]


def bounded(model: Transformer, ids: Sequence[int], first: int, bound: Bound, generator: torch.Generator) -> Tensor:
    """Samples of the bound on −log p of ids[first:] behind ids[:first], in nats, [N] on the CPU."""
    ids_L = torch.tensor(ids, device=model.embedding.weight.device)
    return nll_bound(model, ids_L, first, bound.block_size, bound.samples, generator).double().cpu()


def nats(
    model: Transformer, ids: Sequence[int], bound: Bound | None, context: int, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Window by window: how many tokens were predicted, and what they cost; `ids` begin with the prefix."""
    block_size = 1 if bound is None else bound.block_size
    context -= context % block_size  # so that only the last block of a text is cut short
    for begin, first, end in windows(len(ids), context, max(context // 2 // block_size, 1) * block_size):
        part = ids[begin:end]
        if bound is None:
            yield end - first, torch.tensor([exact(model, [(part, first - begin)])[0][0]], dtype=torch.float64)
        else:
            yield end - first, bounded(model, part, first - begin, bound, generator)


# --- many texts ------------------------------------------------------------------------------------------------------


def measure(
    loaded: Loaded,
    documents: Sequence[Document],
    bound: Bound | None = None,
    context: int = CONTEXT,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Score documents one by one; `bound` None is exact. `on_progress(done, total)` counts tokens.

    Raises ConfigError for a context that the checkpoint or the blocks do not fit, UnsupportedError where the
    checkpoint has no bound.
    """
    if context > loaded.model.config.max_context:
        raise ConfigError(f"context {context} is more than the {loaded.model.config.max_context} of this checkpoint")
    if bound is not None:
        noisy_facts(loaded.model.config)
        if bound.block_size > context:
            raise ConfigError(f"blocks of {bound.block_size} do not fit a context of {context}: make one of them fit")
    generator = torch.Generator().manual_seed(0 if bound is None else bound.seed)
    before = prefix_id(loaded.tokenizer)
    texts = [[before, *loaded.tokenizer.encode(document.text)] for document in documents]
    done, total, scores = 0, sum(len(ids) - 1 for ids in texts), []
    for document, ids in zip(documents, texts, strict=True):
        parts = []
        for tokens, cost in nats(loaded.model, ids, bound, context, generator):
            parts.append(cost)
            done += tokens
            if on_progress is not None:
                on_progress(done, total)
        found = tuple(torch.stack(parts).sum(0).tolist())
        scores.append(Score(document.name, len(ids) - 1, len(document.text.encode()), found))
    return scores


def summarise(scores: Sequence[Score]) -> Likelihood:
    """Bits per byte over all documents, and how sure they are."""
    samples, count = len(scores[0].nats), len(scores)
    size, tokens = sum(score.bytes for score in scores), sum(score.tokens for score in scores)
    means = [fmean(score.nats) for score in scores]
    per_byte = sum(means) / size
    noise = sum(variance(score.nats) for score in scores) / samples if samples > 1 else None
    off = sum((mean - per_byte * score.bytes) ** 2 for mean, score in zip(means, scores, strict=True))
    bit = math.log(2)
    return Likelihood(
        bits_per_byte=per_byte / bit,
        standard_error=None if noise is None else math.sqrt(noise) / size / bit,
        document_error=math.sqrt(off * count / (count - 1)) / size / bit if count > 1 else None,
        bits_per_token=sum(means) / tokens / bit,
        documents=count,
        tokens=tokens,
        bytes=size,
    )
