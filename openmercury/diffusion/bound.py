"""How likely the network finds a text: exactly by its clean side, and bounded from above by its noisy side.

Block diffusion writes a block x of K tokens behind clean text c in some random order σ, one token after the other. By
Jensen's inequality, averaging over all orders and collecting the terms of equal count l of masked positions,

    −log p(x | c)  ≤  Σ_i E_σ[−log p(x_σi | c, x_σ1 … x_σi−1)]  =  E_l E_M [ (K / l) Σ_{i ∈ M} −log p(x_i | c, x \\ M) ]

with l uniform on 1 … K and M a uniform set of l masked positions. It is the NELBO of masked diffusion with noise level
t uniform and weight 1/t (arXiv 2406.07524; in blocks: 2503.09573), integrated over t given l (2502.09992).

What stands unmasked is read as decoding reads it: the leading run is clean, and one noisy group begins at the first
masked position, m. Rows predict the token behind them, so x_m comes from the clean row m − 1, the others of M from
noisy rows:

    block, M = {2, 3, 5}      0  1 | 2  3  4  5        0 and 1 clean; ▒ ▒ x ▒ are the noisy group, its end at 2
                              x  x | ▒  ▒  x  ▒

The term of position 0 is the same whatever is masked, exact, and has weight 1 in expectation: it is taken as it is.
Over the K − 1 others the count j of masked ones is again uniform, weighs (K − 1) / j, and position 0 is masked beside
them with probability j / K. (Of l = j + 1 with 0 masked and l = j without, the joint weights are 1/K and 1/j − 1/K.)
At K = 1 the bound is the exact likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.errors import UnsupportedError
from openmercury.model.attention import grouped_attention
from openmercury.model.config import DiffusionFacts, ModelConfig
from openmercury.model.masks import CLEAN, NOBODY, visible
from openmercury.model.transformer import Transformer

QUERIES = 512  # positions of a text in one forward, which bounds masks and scores
HEAD_ROWS = 256  # rows that meet the vocabulary at once
STORED_COPIES = 2**17  # tokens whose keys and values stand side by side for continuations of one text


class CleanText(NamedTuple):
    """Texts as the clean side reads them.

    nll_BL (nats) and greedy_BL (is it the likeliest token?) of each token given those before; the first has 0 and
    False, since nothing predicts it. `stored` holds keys and values [B, L, G, E] of each layer.
    """

    nll_BL: Tensor
    greedy_BL: Tensor
    stored: list[tuple[Tensor, Tensor]]


class TokenOdds(NamedTuple):
    """log p (nats) of one token given those before it, and the likeliest tokens in its place, best first."""

    log_p: float
    best: list[tuple[int, float]]


class Masks(NamedTuple):
    """N draws over Q positions that lie in consecutive blocks: what is masked, and what its term weighs."""

    masked_NQ: Tensor
    weight_NQ: Tensor


class _Beside:
    """`Attend` over keys that are stored and those of the forward, as `mask` says; keeps the latter if asked."""

    def __init__(self, stored: list[tuple[Tensor, Tensor]], seen: int, mask: Tensor, *, keep: bool) -> None:
        self.stored, self.seen, self.mask, self.keep = stored, seen, mask, keep

    def __call__(self, layer: int, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        if self.seen:
            own = (key_BNGE, value_BNGE)
            old = (part[:, : self.seen].expand(len(query_BNHE), -1, -1, -1) for part in self.stored[layer])
            key_BNGE, value_BNGE = (torch.cat(pair, dim=1) for pair in zip(old, own, strict=True))
        if self.keep:
            self.stored[layer : layer + 1] = [(key_BNGE, value_BNGE)]
        return grouped_attention(query_BNHE, key_BNGE, value_BNGE, self.mask)


def token_nll(model: Transformer, hidden_MD: Tensor, target_M: Tensor) -> tuple[Tensor, Tensor]:
    """−log p of the target (nats, in float32 at least) and whether it is the likeliest token, for each of M rows."""
    nll, greedy = [], []
    for hidden, target in zip(hidden_MD.split(HEAD_ROWS), target_M.split(HEAD_ROWS), strict=True):
        logits = model.logits(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        nll.append(F.cross_entropy(logits, target, reduction="none"))
        greedy.append(logits.argmax(-1) == target)
    return torch.cat(nll), torch.cat(greedy)


@torch.inference_mode()
def read_clean(model: Transformer, ids_BL: Tensor) -> CleanText:
    """Read texts of one length; what pads a shorter one at its end changes nothing before it."""
    b, length = ids_BL.shape
    hidden_BLD, stored = _read(model, ids_BL)
    rows_MD = hidden_BLD[:, :-1].flatten(0, 1)
    nll_M, greedy_M = token_nll(model, rows_MD, ids_BL[:, 1:].flatten())
    nll_BL, greedy_BL = (F.pad(each.view(b, length - 1), (1, 0)) for each in (nll_M, greedy_M))
    return CleanText(nll_BL, greedy_BL, stored)


@torch.inference_mode()
def token_odds(model: Transformer, ids: Sequence[int], begin: int, top: int) -> list[TokenOdds]:
    """What the clean side thinks of each token from index `begin` ≥ 1 on, and of the `top` likeliest in its place."""
    assert 1 <= begin < len(ids)
    ids_1L = torch.tensor([ids], device=model.embedding.weight.device)
    hidden_MD = _read(model, ids_1L[:, :-1])[0][0, begin - 1 :]
    found: list[TokenOdds] = []
    for hidden, target in zip(hidden_MD.split(HEAD_ROWS), ids_1L[0, begin:].split(HEAD_ROWS), strict=True):
        logits = model.logits(hidden)
        log_p_MV = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        own = log_p_MV.gather(1, target[:, None])[:, 0].tolist()
        best = log_p_MV.topk(top)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        rows = [list(zip(*pair, strict=True)) for pair in pairs]
        found += map(TokenOdds, own, rows)
    return found


def _read(model: Transformer, ids_BL: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Hidden states [B, L, D], and keys and values [B, L, G, E] of each layer."""
    (b, length), device = ids_BL.shape, ids_BL.device
    stored: list[tuple[Tensor, Tensor]] = []
    hidden = []
    for begin in range(0, length, QUERIES):
        end = min(begin + QUERIES, length)
        at = torch.arange(end, device=device)
        attend = _Beside(stored, begin, (at <= at[begin:, None]).expand(b, -1, -1), keep=True)
        hidden.append(model(ids_BL[:, begin:end], at[begin:].expand(b, -1), attend))
    return torch.cat(hidden, dim=1), stored


@torch.inference_mode()
def continuation_nll(model: Transformer, ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
    """−log p (nats) of each continuation behind `ids` by the clean side; what they share is read once.

    All of them must hold at least one token, and so must `ids`.
    """
    device, before = model.embedding.weight.device, len(ids) - 1
    stored: list[tuple[Tensor, Tensor]] = []
    if before:
        _, stored = _read(model, torch.tensor([ids[:-1]], device=device))
    widest = max(map(len, continuations))
    rows = [[ids[-1], *each, *[0] * (widest - len(each))] for each in continuations]
    position_W = torch.arange(before, before + widest, device=device)
    mask_WT = torch.arange(before + widest, device=device) <= position_W[:, None]
    found: list[float] = []
    count = max(1, min(QUERIES // widest, STORED_COPIES // (before + 1)))
    for begin in range(0, len(rows), count):
        part, asked = torch.tensor(rows[begin : begin + count], device=device), continuations[begin : begin + count]
        attend = _Beside(stored, before, mask_WT.expand(len(part), -1, -1), keep=False)
        hidden_CWD = model(part[:, :-1], position_W.expand(len(part), -1), attend)
        nll_M, _ = token_nll(model, hidden_CWD.flatten(0, 1), part[:, 1:].flatten())
        nll_CW = nll_M.view(len(part), widest).double()
        found += [float(nll[: len(each)].sum()) for nll, each in zip(nll_CW, asked, strict=True)]
    return found


def draw_masks(length: int, block_size: int, samples: int, generator: torch.Generator) -> Masks:
    """Masks of the bound for `length` positions in blocks of K, the last one perhaps shorter, on the CPU.

    Levels are stratified: u = (u₀ + σ(c)/C + n/N) mod 1 for block c of C and sample n of N, σ a permutation: the blocks
    of one sample cover the levels evenly, and so do the samples of one block (for rows: arXiv 2107.00630).
    """
    blocks = -(-length // block_size)
    size_C1 = (length - torch.arange(blocks) * block_size).clamp(max=block_size)[:, None]
    others_C1 = size_C1 - 1

    u_0 = torch.rand((), generator=generator)
    spread_C = torch.randperm(blocks, generator=generator) / blocks
    u_NC1 = ((u_0 + spread_C + torch.arange(samples)[:, None] / samples) % 1)[..., None]
    j_NC1 = (1 + (u_NC1 * others_C1).long()).minimum(others_C1)  # 0 where a block has one position only

    at_K = torch.arange(block_size)
    shuffle_NCK = torch.rand(samples, blocks, block_size, generator=generator)
    shuffle_NCK = shuffle_NCK.masked_fill((at_K == 0) | (at_K >= size_C1), torch.inf)
    masked_NCK = shuffle_NCK.argsort(-1).argsort(-1) < j_NC1
    weight_NCK = masked_NCK * (others_C1 / j_NC1.clamp(min=1))
    first_NC = torch.rand(samples, blocks, generator=generator) * size_C1[:, 0] < j_NC1[..., 0]
    masked_NCK[..., 0] = first_NC
    return Masks(masked_NCK.flatten(1)[:, :length], weight_NCK.flatten(1)[:, :length])


@torch.inference_mode()
def masked_nll(
    model: Transformer, ids_L: Tensor, clean: CleanText, first: int, block_size: int, masked_NQ: Tensor
) -> Tensor:
    """−log p (nats) of each masked token given all that is not masked in its block and before it, [N, Q]; 0 elsewhere.

    The Q positions from `first` on to the end of the text lie in blocks of `block_size`; masks are independent rows.
    """
    device, (samples, length) = ids_L.device, masked_NQ.shape
    at_Q = torch.arange(length, device=device)
    lead_NQ = _first_masked(masked_NQ, block_size)
    nll_NQ = torch.where(masked_NQ & (at_Q == lead_NQ), clean.nll_BL[:, first:], 0)
    drafted_NQ = masked_NQ & (at_Q > lead_NQ)
    noisy_NQ = torch.where(masked_NQ, noisy_facts(model.config).mask_id, ids_L[first:])
    group_NQ = torch.where(at_Q < lead_NQ, NOBODY, at_Q // block_size)  # the leading run is read clean
    step = max(1, QUERIES // block_size) * block_size
    for begin in range(0, length, step):
        part = slice(begin, begin + step)
        drafted = drafted_NQ[:, part]
        if not drafted.any():
            continue
        position_N = (first + at_Q[part]).expand(samples, -1)
        seen = first + begin + drafted.shape[1]
        key_group = F.pad(group_NQ[:, part], (seen, 0), value=CLEAN)
        key_position = torch.cat((torch.arange(seen, device=device).expand(samples, -1), position_N), dim=1)
        mask = visible(first + lead_NQ[:, part], group_NQ[:, part], key_position, key_group)
        attend = _Beside(clean.stored, seen, mask, keep=False)
        hidden = model(noisy_NQ[:, part], position_N, attend, torch.ones_like(drafted))
        n, q = drafted.nonzero(as_tuple=True)
        nll_NQ[n, begin + q] = token_nll(model, hidden[n, q - 1], ids_L[first + begin + q])[0]
    return nll_NQ


def _first_masked(masked_NQ: Tensor, block_size: int) -> Tensor:
    """The first masked position of the block of each position, [N, Q]; Q where there is none."""
    length = masked_NQ.shape[1]
    at_Q = torch.arange(length, device=masked_NQ.device)
    spare = -length % block_size
    padded_NP: Tensor = F.pad(torch.where(masked_NQ, at_Q, length), (0, spare), value=length)
    found = padded_NP.view(len(padded_NP), -1, block_size)
    return found.amin(-1, keepdim=True).expand_as(found).flatten(1)[:, :length]


def noisy_facts(config: ModelConfig) -> DiffusionFacts:
    """What the checkpoint's noisy side is; raises UnsupportedError where it is not the one of `masked_nll`."""
    facts = config.diffusion
    if facts is None:
        raise UnsupportedError("this checkpoint was not trained to denoise, so there is no bound: use mode ar")
    facts.check_decodable()
    return facts


def nll_bound(
    model: Transformer, ids_L: Tensor, first: int, block_size: int, samples: int, generator: torch.Generator
) -> Tensor:
    """N unbiased estimates of the bound on −log p(ids[first:] | ids[:first]) in nats, [N]; `first` ≥ 1.

    Blocks start at `first`. The samples are stratified among each other, so that the spread between them tells at most
    too large an error of their mean.
    """
    clean = read_clean(model, ids_L[None])
    masks = Masks(*(field.to(ids_L.device) for field in draw_masks(len(ids_L) - first, block_size, samples, generator)))
    nll_NQ = masked_nll(model, ids_L, clean, first, block_size, masks.masked_NQ)
    return clean.nll_BL[0, first::block_size].sum() + (masks.weight_NQ * nll_NQ).sum(-1)
