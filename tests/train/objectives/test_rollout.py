"""On-policy states and their targets, block by block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import Blocks, Corrupted, corrupt
from openmercury.model.attention import DenseAttend
from openmercury.model.transformer import Transformer
from openmercury.train.config import BlockDiffusion
from openmercury.train.objectives import block, build_objective
from openmercury.train.objectives.base import learnt_tokens
from tests import tiny
from tests.train.objectives.slow import Read, batch_of, blocks_of, causal, learnt
from tests.train.objectives.test_block import ALL, generator, prepared, row_loss


def chosen_tokens(model: Transformer, batch: Batch, read: Read, masked: list[int], shift: bool) -> dict[int, Tensor]:
    """log p of each masked position: by the row before it, the clean side's where the block begins, or by its own."""
    clean, _ = causal(model, batch, read.b)
    rows = {p: read.log_p[p] if not shift else clean[p - 1] if p == read.at[0] else read.log_p[p - 1] for p in masked}
    return rows


def slow_decode(model: Transformer, config: BlockDiffusion, batch: Batch, blocks: Blocks, forwards: int) -> Corrupted:
    ids, masked, one = batch.tokens_BL.clone(), learnt_tokens(batch), torch.ones(batch.tokens_BL.shape)
    for _ in range(forwards):
        for read in blocks_of(model, batch, corrupt(ids, masked, learnt_tokens(batch), one, blocks, tiny.MASK)):
            open_ = [p for p in read.at if masked[read.b, p]]
            log_p = chosen_tokens(model, batch, read, open_, config.shift)
            sure = sorted(open_[1:], key=lambda p: -float(log_p[p].detach().max()))
            take, joint = [open_[0]], float(log_p[open_[0]].detach().max().exp())
            for p in sure:
                joint *= float(log_p[p].detach().max().exp())
                if joint <= config.on_policy.threshold:
                    break
                take.append(p)
            for p in take:
                ids[read.b, p] = log_p[p].argmax()
            read_masked = masked.clone()
            read_masked[read.b, take] = False
            masked = read_masked
    return corrupt(ids, masked, learnt_tokens(batch), one, blocks, tiny.MASK)


def slow_loss(model: Transformer, config: BlockDiffusion, batch: Batch, noisy: Corrupted) -> Tensor:
    """The student's rows on its own state, against the clean side on the text as the student finishes it."""
    total, shift, length = torch.zeros((), dtype=torch.float64), int(config.shift), batch.tokens_BL.shape[1]
    for read in blocks_of(model, batch, noisy):
        b, masked = read.b, [p for p in read.at if noisy.masked_BL[read.b, p]]
        text = batch.tokens_BL[b].clone()
        text[read.at] = noisy.ids_BL[b, read.at]
        for p, log_p in chosen_tokens(model, batch, read, masked, config.shift).items():
            text[p] = log_p.argmax()
        same = batch.document_BL[b][:, None] == batch.document_BL[b]
        at = torch.arange(length)
        attend = DenseAttend((same & (at <= at[:, None]))[None])
        log_q = model.logits(model(text[None], at[None], attend))[0].log_softmax(-1).detach()
        for i in read.at[read.settled :]:
            target = i + shift
            if target >= length or not learnt(batch, b, target) or (target in read.at and target not in masked):
                continue
            total = total + row_loss(config, read.log_p[i], log_q[target - 1], int(log_q[target - 1].argmax()))
    return total


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("forwards", [1, 3])
@pytest.mark.parametrize("learn", ["adapter", "full"])
def test_equals_slow_decoding(monkeypatch: pytest.MonkeyPatch, shift: bool, forwards: int, learn: str) -> None:
    model, batch = prepared(learn), batch_of()
    policy = {"share": 1.0, "forwards": 3, "threshold": 0.2}
    config = BlockDiffusion.model_validate({"block_sizes": (4, 7), "shift": shift, "on_policy": policy})
    monkeypatch.setattr(block.BlockDiffusionObjective, "_own_forwards", lambda self, generator: forwards)
    seen: list[tuple[Blocks, Corrupted]] = []
    original = block.own_states

    def spy(*args: object) -> Corrupted:
        found = original(*args)  # type: ignore[arg-type]
        seen.append((args[5], found))  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(block, "own_states", spy)
    loss = build_objective(config, model, compile=False)(model, batch, generator(1), ALL, 0.0)
    ((blocks, found),) = seen
    expected = slow_decode(model, config, batch, blocks, forwards)
    assert torch.equal(found.ids_BL, expected.ids_BL)
    assert torch.equal(found.masked_BL, expected.masked_BL)
    assert (found.ids_BL != batch.tokens_BL)[~found.masked_BL].any()
    assert found.masked_BL.any()
    slow = slow_loss(model, config, batch, expected)
    torch.testing.assert_close(loss.sum, slow)
    learning = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss.sum, learning, allow_unused=True)
    for one, other in zip(slopes, torch.autograd.grad(slow, learning, allow_unused=True), strict=True):
        torch.testing.assert_close(one, other)
    assert loss.metrics["own_hit"][1] == loss.weight
    assert not loss.metrics["ce_level_3"].any()


def test_share_of_the_steps() -> None:
    model, batch = prepared("adapter"), batch_of()
    config = BlockDiffusion.model_validate({"block_sizes": (4,), "on_policy": {"share": 0.4, "forwards": 2}})
    objective = build_objective(config, model, compile=False)
    found = [objective(model, batch, generator(seed), ALL, 0.0).metrics["own_hit"][1] > 0 for seed in range(40)]
    assert 8 <= sum(found) <= 24
