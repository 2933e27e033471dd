"""From logits to a token, its confidence and its entropy, one row a position.

Sampling is Gumbel-max: token = argmax(logits/T + noise), and the noise is a hash of (seed, position, token id). So a
position draws the same noise in every mode, batch and device. A draft and its verification share that noise, which
makes them agree as often as their distributions overlap, and `verified` return the very text of `ar` at any
temperature (coupled drafts: arXiv 2408.07978).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

NO_TOKEN = -1
Sampling = Literal["greedy", "sampled", "truncated"]  # truncated: some row sets top_k or top_p


class RowParams(NamedTuple):
    """Sampling parameters of M rows. temperature 0 is greedy, top_k 0 and top_p 1 are off; seed and position int64.

    `proposal` is a token whose odds against the row's own choice are wanted; any id where none is.
    """

    temperature_M: Tensor
    top_k_M: Tensor
    top_p_M: Tensor
    seed_M: Tensor
    position_M: Tensor
    proposal_M: Tensor

    def rows(self, index: slice | Tensor) -> RowParams:
        """The parameters of some rows."""
        return RowParams(*(field[index] for field in self))


class Penalties(NamedTuple):
    """What stands before each of M rows, and what it costs to say it again. Row m belongs to text `text_M[m]` of R.

    A row counts the committed text of its request and, of the tokens read clean behind it (`ahead_RA`), the first
    `ahead_M`: all that it sees without noise. So every mode judges a position by the same counts as `ar`.
    """

    text_M: Tensor
    ahead_M: Tensor
    ahead_RA: Tensor
    prompt_RV: Tensor  # how often each token stands in the prompt
    answer_RV: Tensor  # … and in the answer so far
    presence_R: Tensor
    frequency_R: Tensor
    repetition_R: Tensor

    def rows(self, index: slice | Tensor) -> Penalties:
        """The penalties of some rows."""
        return self._replace(text_M=self.text_M[index], ahead_M=self.ahead_M[index])


class Choice(NamedTuple):
    """What each row chose; confidence is the probability of the token under the distribution it was drawn from.

    `odds` is the probability of the proposal ÷ that of the token. A row whose largest logit is NaN or infinite has
    token NO_TOKEN, confidence 0, infinite entropy and odds −1: no policy takes it, and committing it fails the request.
    """

    token_M: Tensor
    confidence_M: Tensor
    entropy_M: Tensor
    odds_M: Tensor


def _mix(x: Tensor) -> Tensor:
    """32-bit integer hash (lowbias32 constants) in int64 arithmetic."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def gumbel_keys(seed_M: Tensor, position_M: Tensor) -> Tensor:
    """Hash of (seed, position), 32 bits in int64 [M]."""
    low, high = seed_M & 0xFFFFFFFF, (seed_M >> 32) & 0xFFFFFFFF
    return _mix(_mix(_mix(low) ^ high) ^ (position_M & 0xFFFFFFFF) ^ 0x9E3779B9)


def gumbel_noise(seed_M: Tensor, position_M: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise [M, V] in float32, a pure function of (seed, position, token id)."""
    token_V = torch.arange(vocabulary, device=seed_M.device)
    bits = _mix(_mix(token_V)[None, :] ^ gumbel_keys(seed_M, position_M)[:, None])
    uniform = (bits.double() + 0.5) / 2**32
    return -(-uniform.log()).log().float()


def truncate(logits_MV: Tensor, top_k_M: Tensor, top_p_M: Tensor) -> Tensor:
    """−inf outside the top-k tokens and outside the smallest set that holds top_p of the probability."""
    ordered, index = logits_MV.sort(dim=-1, descending=True)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    rank = torch.arange(logits_MV.shape[-1], device=logits_MV.device)
    drop = before >= top_p_M[:, None]
    drop |= (top_k_M[:, None] > 0) & (rank >= top_k_M[:, None])
    drop[:, 0] = False
    return logits_MV.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), float("-inf"))


def penalise(logits_MV: Tensor, p: Penalties) -> Tensor:
    """Logits less what repetition costs, in the order of vLLM.

    Seen in prompt or answer: x ÷ repetition if x > 0, else x · repetition (CTRL, arXiv 1909.05858). Then
    x − frequency · n − presence · [n > 0], where n counts the token in the answer (OpenAI).
    """
    column_A = torch.arange(p.ahead_RA.shape[1], device=logits_MV.device)
    counted = (column_A < p.ahead_M[:, None]).to(p.answer_RV.dtype)
    answer_MV = p.answer_RV[p.text_M].scatter_add(1, p.ahead_RA[p.text_M].clamp(min=0), counted)
    seen_MV = (answer_MV + p.prompt_RV[p.text_M]) > 0
    presence, frequency, repetition = (field[p.text_M, None] for field in (p.presence_R, p.frequency_R, p.repetition_R))
    x = logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()
    x = torch.where(seen_MV, torch.where(x > 0, x / repetition, x * repetition), x)
    return x - frequency * answer_MV - presence * (answer_MV > 0)


def restrict(logits_MV: Tensor, allowed_MW: Tensor) -> Tensor:
    """−inf for all tokens v whose bit, v mod 32 of the int32 word v ÷ 32 of a row, is 0."""
    bit = torch.arange(32, dtype=torch.int32, device=logits_MV.device)
    allowed_MV = (allowed_MW[..., None] >> bit & 1).flatten(1)[:, : logits_MV.shape[1]]
    return logits_MV.masked_fill(allowed_MV == 0, float("-inf"))


def scores(logits_MV: Tensor, params: RowParams, kind: Sampling) -> tuple[Tensor, Tensor]:
    """Logits ÷ temperature, cut where `kind` says so, and what the largest of is chosen: these with noise where
    temperature is not 0."""
    logits_MV = logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()
    if kind == "greedy":
        return logits_MV, logits_MV
    warm_M1 = (params.temperature_M > 0)[:, None]
    scaled = logits_MV / torch.where(warm_M1, params.temperature_M[:, None], 1.0).to(logits_MV.dtype)
    if kind == "truncated":
        scaled = torch.where(warm_M1, truncate(scaled, params.top_k_M, params.top_p_M), scaled)
    noise = gumbel_noise(params.seed_M, params.position_M, logits_MV.shape[-1])
    return scaled, torch.where(warm_M1, scaled + noise, scaled)


def choose(logits_MV: Tensor, params: RowParams, kind: Sampling = "truncated", *, statistics: bool = True) -> Choice:
    """Pick a token for each row: greedy where temperature is 0, sampled elsewhere.

    `kind` says what any row needs, so that nothing here has to ask the device. Without `statistics` confidence,
    entropy (nats) and odds are zeros, which saves two passes over the vocabulary.
    """
    return choose_scored(*scores(logits_MV, params, kind), params, statistics=statistics)


def choose_scored(logits_MV: Tensor, score_MV: Tensor, params: RowParams, *, statistics: bool) -> Choice:
    """`choose` of what `scores` gave."""
    token_M = score_MV.argmax(-1)  # finds a NaN first
    broken_M = ~score_MV.gather(-1, token_M[:, None])[:, 0].isfinite()
    named_M = token_M.masked_fill(broken_M, NO_TOKEN)
    if not statistics:
        zero = torch.zeros(len(token_M), dtype=logits_MV.dtype, device=logits_MV.device)
        return Choice(named_M, zero, zero, zero)
    log_p = logits_MV.log_softmax(-1)
    chosen_M = log_p.gather(-1, token_M[:, None])[:, 0]
    odds_M = (log_p.gather(-1, params.proposal_M[:, None])[:, 0] - chosen_M).exp()
    entropy_M = torch.special.entr(log_p.exp()).sum(-1)
    return Choice(
        named_M,
        chosen_M.exp().masked_fill(broken_M, 0.0),
        entropy_M.masked_fill(broken_M, torch.inf),
        odds_M.masked_fill(broken_M, -1.0),
    )
