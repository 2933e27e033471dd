"""What is measured during training: drafts as a slow reading counts them, and needles."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch

from openmercury.data.loader import Batch
from openmercury.model.adapter import unit
from openmercury.model.attention import DenseAttend
from openmercury.model.masks import visible
from openmercury.model.transformer import Transformer
from openmercury.train.hooks import Evaluation, count_drafts
from openmercury.train.needle import KEY, VALUE, find_needles, plant
from openmercury.train.objectives import Loss
from openmercury.train.parallel import World
from tests import tiny

DRAFTS = 3


def choice(model: Transformer, clean: list[int], before: list[int]) -> list[int]:
    """The likeliest token behind each position of clean text, then of a group of masks behind it, whose rows a chain
    tells the tokens `before` theirs."""
    n, noisy = len(clean), len(before)
    position = torch.arange(n + noisy)[None]
    group = torch.tensor([[-1] * n + [0] * noisy])
    end = torch.where(group < 0, position + 1, n)
    ids = torch.tensor([[*clean, *[tiny.MASK] * noisy]])
    hidden = model(ids, position, DenseAttend(visible(end, group, position, group)), group >= 0)[0]
    assert model.adapter is not None
    if model.adapter.chain is not None:
        hidden[n:] = model.adapter.chain(hidden[n:], model.embedding.weight[before])
    return [int(token) for token in model.logits(hidden).argmax(-1)]


def slow(model: Transformer, tokens: list[int], offset: int, shift: bool) -> torch.Tensor:
    """Group by group behind its own clean text."""
    found = torch.zeros(2, DRAFTS, dtype=torch.float64)
    starts = [s for s in range(len(tokens)) if s > 0 and (s - offset) % (DRAFTS + 1) == 0]
    for start in starts:
        if start + DRAFTS + 1 > len(tokens):
            continue  # decoding drafts whole groups
        told = start if shift else start - 1
        drafts = choice(model, tokens[:start], tokens[told : told + DRAFTS + 1])[start:]
        for k in range(DRAFTS):
            ar = choice(model, tokens[: start + k + 1], [])[-1]
            found[1, k] += 1
            draft = drafts[k] if shift else drafts[k + 1]
            found[0, k] += draft == ar
            if draft != ar or ar != tokens[start + k + 1]:
                break
    return found


def follow(model: Transformer, text: list[int]) -> None:
    """Make the chain, one rank a token, say what follows the token before in a text."""
    assert model.adapter is not None
    assert model.adapter.chain is not None
    chain, table = model.adapter.chain, model.embedding.weight
    chain.state.zero_()
    chain.before.copy_(unit(table))
    chain.out.zero_()
    chain.out[text[:-1]] = 10 * table[text[1:]]


@pytest.mark.parametrize("chain", [0, 64])
@pytest.mark.parametrize("shift", [True, False])
def test_drafts_are_counted_as_decoding_would(shift: bool, chain: int) -> None:
    config = tiny.config(chain=chain)
    assert config.diffusion is not None
    facts = config.diffusion.model_copy(update={"logit_shift": shift})
    model = tiny.network(of=config.model_copy(update={"diffusion": facts}))
    first = torch.randint(0, 60, (1,), generator=torch.Generator().manual_seed(0)).tolist()
    greedy = list(first)
    while len(greedy) < 30:  # text that AR decoding wrote, then a row that it did not
        greedy.append(choice(model, greedy, [])[-1])
    if chain:
        follow(model, greedy)
    other = torch.randint(0, 60, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    rows = torch.tensor([greedy, other])
    batch = Batch(rows, torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows))
    found = count_drafts(model, batch, DRAFTS)
    # The first token of a document is given: the grid of a row begins behind it.
    expected = sum(slow(model, text, 1 + row, shift) for row, text in enumerate((greedy, other)))
    assert isinstance(expected, torch.Tensor)
    assert expected[1, 0] > 5
    torch.testing.assert_close(found, expected)
    assert (found[0, 1] > 0) == bool(chain), "it takes the chain for two right ones in a row"


class Copier:
    """Names the token that followed what the last two tokens were when they stood together before, `reach` back."""

    def __init__(self, reach: int) -> None:
        self.reach, self.embedding = reach, SimpleNamespace(weight=torch.zeros(1))

    def __call__(self, ids: torch.Tensor, *_: object) -> torch.Tensor:
        text, found = ids[0].tolist(), torch.zeros(1, ids.shape[1], 200)
        for i in range(1, len(text)):
            for j in range(i - 1, max(0, i - self.reach), -1):
                if text[j - 1 : j + 1] == text[i - 1 : i + 1]:
                    found[0, i, text[j + 1]] = 1
                    break
        return found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_one_graph_at_a_time() -> None:
    """Where layers are compiled gradients are wanted, though nobody takes them: no graph outlives its reading."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def objective(*_: object) -> Loss:
        assert all(graph() is None for graph in alive)
        sum_ = torch.ones((), requires_grad=True) * 1
        alive.append(weakref.ref(sum_))
        return Loss(sum_, torch.ones(()), {})

    rows = torch.zeros(3, 4, dtype=torch.long)
    evaluation = object.__new__(Evaluation)
    evaluation.trainer = SimpleNamespace(  # type: ignore[assignment]
        recipe=SimpleNamespace(compile=True), sharded=False, world=World(), device=rows.device, model=None,
        objective=objective,
    )  # fmt: skip
    evaluation.part, evaluation.rows = 1, Batch(rows, rows > 0, rows)
    assert evaluation._losses() == {"loss": 1.0}
    assert len(alive) == 3


def test_needles_are_found_as_far_as_a_model_reaches() -> None:
    filler = torch.arange(100, 160)
    shares = [find_needles(Copier(reach), filler, 200, 0) for reach in (200, 110, 20)]  # type: ignore[arg-type]
    assert shares[0] > 0.9
    assert shares[0] > shares[1] > shares[2]


def test_needles() -> None:
    filler = torch.arange(100, 160)
    row = plant(filler, 200, 0.5, torch.Generator().manual_seed(0))
    assert len(row) == 200
    needle = row[-KEY - VALUE :]
    at = round(0.5 * (200 - 2 * (KEY + VALUE)))
    assert torch.equal(row[at : at + KEY + VALUE], needle)
    assert not torch.equal(needle, filler[: KEY + VALUE])
    with pytest.raises(ValueError, match="no room"):
        plant(filler, 20, 0.5, torch.Generator())
