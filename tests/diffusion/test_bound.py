"""The bound against its definition: every mask of a small block, read one by one, and the naive estimator."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch
from torch import Tensor

from openmercury.diffusion import bound
from openmercury.diffusion.bound import continuation_nll, draw_masks, masked_nll, nll_bound, read_clean
from openmercury.errors import UnsupportedError
from openmercury.model.attention import DenseAttend
from openmercury.model.masks import CLEAN, visible
from tests import tiny

MODEL = tiny.network(3)
IDS = torch.tensor([5, 9, 41, 17, 3, 30, 22, 8, 50, 12, 28])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_nll(ids: list[int], start: int, masked: tuple[int, ...]) -> dict[int, Tensor]:
    """−log p of the masked positions of the block that begins at `start` and ends with `ids`; the slow twin."""
    m, n = min(masked), len(ids)
    assert m >= start
    shown = [tiny.MASK if position in masked else token for position, token in enumerate(ids)]
    position = torch.arange(n)[None]
    group = torch.where(position < m, CLEAN, 0)
    end = torch.where(position < m, position + 1, m)
    attend = DenseAttend(visible(end, group, position, group))
    log_p = MODEL.logits(MODEL(torch.tensor([shown]), position, attend, position >= m)[0]).log_softmax(-1)
    return {i: -log_p[i - 1, ids[i]] for i in masked}


def enumerated(ids: list[int], start: int) -> Tensor:
    """The bound of one block as it is defined: the mean over l, and over all sets of l masked positions."""
    k = len(ids) - start
    total = torch.zeros((), dtype=torch.float64)
    for count in range(1, k + 1):
        for masked in combinations(range(start, len(ids)), count):
            total += sum(plain_nll(ids, start, masked).values()) / count / comb(k, count)
    return total


def test_clean_side_is_the_plain_network() -> None:
    position = torch.arange(len(IDS))[None]
    logits = MODEL.logits(MODEL(IDS[None], position, DenseAttend(torch.ones(1, 11, 11, dtype=torch.bool).tril()))[0])
    expected = logits.log_softmax(-1)[:-1].gather(-1, IDS[1:, None])[:, 0]
    clean = read_clean(MODEL, torch.stack((IDS, IDS.flip(0))))
    torch.testing.assert_close(clean.nll_BL[0, 1:], -expected)
    assert torch.equal(clean.greedy_BL[0, 1:], logits.argmax(-1)[:-1] == IDS[1:])
    assert not clean.nll_BL[:, 0].any()


def test_masked_tokens_as_read_one_block_at_a_time() -> None:
    first, k = 2, 4  # blocks 2‥5, 6‥9 and the stub 10
    masked = torch.rand(64, 9, generator=generator()) < 0.6
    found = masked_nll(MODEL, IDS, read_clean(MODEL, IDS[None]), first, k, masked)
    assert torch.equal(found != 0, masked)
    for row, nll in zip(masked.tolist(), found, strict=True):
        for start in range(first, len(IDS), k):
            ids = IDS[: start + k].tolist()
            chosen = tuple(i for i in range(start, len(ids)) if row[i - first])
            for i, expected in (plain_nll(ids, start, chosen) if chosen else {}).items():
                torch.testing.assert_close(nll[i - first], expected)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nll_bound(MODEL, IDS, 1, 3, 5, generator())
    monkeypatch.setattr(bound, "QUERIES", 4)
    monkeypatch.setattr(bound, "HEAD_ROWS", 2)
    torch.testing.assert_close(nll_bound(MODEL, IDS, 1, 3, 5, generator()), whole)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_unbiased(k: int) -> None:
    ids = IDS[: 3 + k]
    found = torch.cat([nll_bound(MODEL, ids, 3, k, 1, generator(seed)) for seed in range(400)])
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - enumerated(ids.tolist(), 3)) < 3 * error
    assert error < 0.05 * found.mean()


def test_stratified_samples_are_unbiased_and_vary_less_than_naive_ones() -> None:
    first, k, n = 1, 5, 4
    clean = read_clean(MODEL, IDS[None])
    exact = sum(enumerated(IDS[: start + k].tolist(), start) for start in (1, 6))
    rng = generator(1)

    def naive() -> Tensor:
        """Noise levels and masks drawn alone, weights 1/t: the mean of n."""
        t = torch.rand(n, 2, generator=rng, dtype=torch.float64).repeat_interleave(k, dim=1)
        masked = torch.rand(n, 2 * k, generator=rng, dtype=torch.float64) < t
        return (masked_nll(MODEL, IDS, clean, first, k, masked) / t).sum(-1).mean()

    plain = torch.stack([naive() for _ in range(150)])
    ours = torch.stack([nll_bound(MODEL, IDS, first, k, n, generator(seed)) for seed in range(150)])
    means = ours.mean(1)
    assert abs(means.mean() - exact) < 3 * means.std() / 150**0.5
    assert abs(plain.mean() - exact) < 4 * plain.std() / 150**0.5
    assert means.var() < plain.var() / 2
    told = ours.var(1).mean() / n  # the squared standard error that the samples of one run tell
    assert told > 0.7 * means.var()


def test_masks() -> None:
    length, k, samples = 22, 6, 4  # blocks of 6, 6, 6, 4
    draws = [draw_masks(length, k, samples, generator(seed)) for seed in range(1500)]
    weight = torch.stack([draw.weight_NQ for draw in draws])
    inside = torch.arange(length) % k > 0
    assert not weight[..., ~inside].any()  # the first term of a block is exact
    torch.testing.assert_close(weight[..., inside].mean((0, 1)), torch.ones(18), atol=0.1, rtol=0)
    count = torch.stack([draw.masked_NQ[:, :18].unflatten(1, (3, k))[..., 1:].sum(-1) for draw in draws])
    assert set(count.unique().tolist()) == {1, 2, 3, 4, 5}
    assert (count.amax(1) - count.amin(1) >= 3).all()  # four samples of a block lie in four quarters of the levels


def test_blocks_of_one_are_exact() -> None:
    found = nll_bound(MODEL, IDS, 4, 1, 3, generator())
    torch.testing.assert_close(found, read_clean(MODEL, IDS[None]).nll_BL[0, 4:].sum().expand(3))


def test_blocks_of_two_are_half_exact() -> None:
    """The second token is read beside the first half of the time, and drafted without it the other half."""
    ids = IDS[:5].tolist()
    ar = read_clean(MODEL, IDS[None, :5]).nll_BL[0]
    torch.testing.assert_close(enumerated(ids, 3), ar[3] + (ar[4] + plain_nll(ids, 3, (3, 4))[4]) / 2)


def test_refuses_a_checkpoint_without_noisy_side() -> None:
    with pytest.raises(UnsupportedError, match="use mode ar"):
        nll_bound(tiny.network(of=tiny.config(adapter=False)), IDS, 1, 4, 1, generator())


def test_continuations_cost_what_whole_texts_do(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, ends = IDS.tolist(), [[7], [9, 2, 44], [1, 1], [9, 2]]
    for before in (1, 4, 11):
        expected = []
        for end in ends:
            clean = read_clean(MODEL, torch.tensor([[*ids[:before], *end]]))
            expected.append(float(clean.nll_BL[0, before:].sum()))
        for queries in (512, 4):  # of which the second reads a text in pieces and one continuation at a time
            monkeypatch.setattr(bound, "QUERIES", queries)
            found = continuation_nll(MODEL, ids[:before], ends)
            torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
