"""The oracle: decoding in all modes without cache or batch, as plainly as it can be said.

Every forward reads the whole text again under the attention rule. The engine must return the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from openmercury.diffusion.chain import shortlist
from openmercury.diffusion.sample import NO_TOKEN, Choice, RowParams, choose, scores
from openmercury.diffusion.unmask import Policy, accept
from openmercury.diffusion.verify import accepted_length, standing_length
from openmercury.model.attention import DenseAttend
from openmercury.model.masks import CLEAN, visible
from openmercury.model.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """temperature, top_k, top_p, seed and the penalties, as in `SamplingParams`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0


def _penalise(logits_V: Tensor, prompt: list[int], answer: list[int], sampling: Sampling) -> None:
    """What `sample.penalise` does, one token after the other, in place."""
    for token in {*prompt, *answer}:
        logits_V[token] *= 1 / sampling.repetition if logits_V[token] > 0 else sampling.repetition
    for token in answer:
        logits_V[token] -= sampling.frequency
    for token in set(answer):
        logits_V[token] -= sampling.presence


def _predict(
    model: Transformer,
    prompt: list[int],
    answer: list[int],
    noisy: list[int],
    sampling: Sampling,
    behind: int = 0,
    allowed: Collection[int] | None = None,
) -> Choice:
    """One forward over clean text and one noisy group behind it; row i chooses the token of position i + 1.

    Its odds are those of the token that stands there; `behind` is the one behind the last. It is penalised for the
    clean text it sees. The last row chooses among what is `allowed` (None: everything).
    """
    clean = prompt + answer
    c, n = len(clean), len(clean) + len(noisy)
    position = torch.arange(n)[None]
    group = torch.where(position < c, CLEAN, 0)
    end = torch.where(position < c, position + 1, c)
    attend = DenseAttend(visible(end, group, position, group))
    hidden = model(torch.tensor([clean + noisy]), position, attend, group >= 0)[0]

    def full(value: float) -> Tensor:
        return torch.full((n,), value)

    rows = RowParams(
        full(sampling.temperature),
        full(sampling.top_k).long(),
        full(sampling.top_p),
        torch.full((n,), sampling.seed),
        position[0] + 1,
        torch.tensor([*clean[1:], *noisy, behind]),
    )
    logits = model.logits(hidden)
    for row in range(len(prompt) - 1, n):
        _penalise(logits[row], prompt, clean[len(prompt) : int(end[0, row])], sampling)
    if allowed is not None:
        for token in range(logits.shape[1]):
            if token not in allowed:
                logits[-1, token] = -torch.inf
    choice = choose(logits, rows)
    for row in range(c, n):
        _chain(model, row, noisy[row - c], hidden, logits, rows, choice)
    return choice


def _chain(
    model: Transformer, row: int, here: int, hidden: Tensor, logits: Tensor, rows: RowParams, choice: Choice
) -> None:
    """Choose anew, in place, what a noisy row chooses where it knows the token before: `here`, or behind a mask the one
    chosen there. Tokens that are not on its shortlist keep their logits and are not chosen."""
    facts, chain = model.config.diffusion, model.chain
    if chain is None or facts is None or choice.token_M[row] == NO_TOKEN:
        return
    before = max(0, int(choice.token_M[row - 1])) if here == facts.mask_id else here
    told_V = model.logits(chain(hidden[row][None], model.embedding(torch.tensor([before]))))[0]
    one = rows.rows(slice(row, row + 1))
    heat = float(rows.temperature_M[row]) or 1.0
    scored = scores(logits[row][None], one, "truncated")
    listed_C = shortlist(*scored).token_MC[0]
    plain_V, score_V = (x[0].clone() for x in scored)
    pull_C = (told_V - model.logits(hidden[row][None])[0])[listed_C] / heat
    plain_V[listed_C] += pull_C
    token = listed_C[(score_V[listed_C] + pull_C).argmax()]
    choice.token_M[row] = token
    choice.confidence_M[row] = plain_V.softmax(-1)[token]


def _cut(tokens: list[int], eos: set[int]) -> tuple[list[int], bool]:
    for index, token in enumerate(tokens):
        if token in eos:
            return tokens[: index + 1], True
    return tokens, False


def generate_ar(
    model: Transformer,
    prompt: list[int],
    count: int,
    eos: set[int],
    sampling: Sampling,
    allowed: Callable[[list[int]], Collection[int]] | None = None,
) -> list[int]:
    """One token per forward; `allowed` says what may stand behind an answer, which ends where that is only its end."""
    out: list[int] = []
    while len(out) < count and not (out and out[-1] in eos):
        only = None if allowed is None else allowed(out)
        if out and only is not None and set(only) <= eos:
            break
        out.append(int(_predict(model, prompt, out, [], sampling, allowed=only).token_M[-1]))
    return out


def generate_verified(
    model: Transformer, prompt: list[int], count: int, eos: set[int], sampling: Sampling, width: int
) -> list[int]:
    """Draft `width` tokens behind the exact next one, read them causally, keep what AR would have written."""
    assert model.config.diffusion is not None
    model.config.diffusion.check_decodable()
    mask = model.config.diffusion.mask_id
    out: list[int] = []
    while len(out) < count:
        last = len(prompt + out) - 1
        drafted = _predict(model, prompt, out, [mask] * width, sampling).token_M[last:].tolist()
        chosen = _predict(model, prompt, out + drafted, [], sampling).token_M[last:]
        kept = int(accepted_length(torch.tensor([drafted]), chosen[None, :-1])[0])
        new, done = _cut([*drafted[:kept], int(chosen[kept])], eos)
        out = (out + new)[:count]
        if done:
            break
    return out


def generate_diffusion(
    model: Transformer,
    prompt: list[int],
    count: int,
    eos: set[int],
    sampling: Sampling,
    width: int,
    policy: Policy,
    edit_below: float,
) -> list[int]:
    """Denoise a block of `width` positions that starts where the text ends.

    Its leading settled tokens run clean, so each forward also says what AR would have chosen in their places. Those
    that stand are committed, with the clean side's choice behind them. If one falls, what was settled and drafted
    behind it is masked again, for it was written on a false premise.
    """
    assert model.config.diffusion is not None
    model.config.diffusion.check_decodable()
    mask = model.config.diffusion.mask_id
    out: list[int] = []
    block: list[int] = []
    while len(out) < count:
        k = min(width, count - len(out))
        block = (block + [mask] * k)[:k]
        run = block.index(mask) if mask in block else k
        # Row last + i chooses block position i, so the last position of the block itself is not read.
        last = len(prompt + out) - 1
        choice = _predict(model, prompt, out + block[: min(run, k - 1)], block[run : k - 1], sampling, block[-1])
        token_K, confidence_K, entropy_K, odds_K = (field[last:] for field in choice)
        settled = torch.arange(k) < run
        kept = int(standing_length(odds_K[None], settled[None], torch.tensor([edit_below]))[0])
        if kept == run:
            masked = torch.tensor([block]) == mask
            take = accept(confidence_K[None], entropy_K[None], masked, policy)[0]
            block = [int(t) if yes else b for b, t, yes in zip(block, token_K, take, strict=True)]
        else:
            block = [*block[:kept], int(token_K[kept]), *[mask] * (k - kept - 1)]
        new, done = _cut(block[: kept + 1], eos)
        out, block = out + new, block[kept + 1 :]
        if done:
            break
    return out
