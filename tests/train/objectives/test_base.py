"""What the objectives share: frozen copies, and a base that no adapter training moves."""

from __future__ import annotations

import pytest
import torch

from openmercury.model.config import AdapterFacts
from openmercury.train.config import DPO, BlockDiffusion, MaskedDiffusion, ObjectiveConfig
from openmercury.train.objectives import build_objective, diffusion_facts
from openmercury.train.objectives.base import base_learns, frozen_base, read_clean
from tests.train.objectives.slow import batch_of
from tests.train.objectives.test_block import ALL, generator, prepared
from tests.train.objectives.test_dpo import pairs

OBJECTIVES: list[ObjectiveConfig] = [
    BlockDiffusion(block_sizes=(4,), align=1.0, certainty=0.1, complementary=True),
    BlockDiffusion.model_validate({"block_sizes": (4,), "on_policy": {"share": 1.0}}),
    BlockDiffusion(block_sizes=(4,), weights="bound", shift=False),
    MaskedDiffusion(),
    DPO(block_sizes=(4,)),
]


@pytest.mark.parametrize("config", OBJECTIVES, ids=lambda config: config.kind)
def test_adapter_training_leaves_ar_logits_bit_identical(config: ObjectiveConfig) -> None:
    model = prepared("adapter")
    batch = pairs() if isinstance(config, DPO) else batch_of()
    before = model.logits(read_clean(model, batch, gradient=False).hidden_BLD)
    objective = build_objective(config, model, compile=False)
    assert model.adapter is not None
    start = [p.clone() for p in model.adapter.parameters()]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        objective(model, batch, generator(step), ALL, 0.0).sum.backward()
        optimizer.step()
    assert any(not torch.equal(p, old) for p, old in zip(model.adapter.parameters(), start, strict=True))
    assert torch.equal(model.logits(read_clean(model, batch, gradient=False).hidden_BLD), before)


def test_a_frozen_base_is_a_copy_without_adapter() -> None:
    model = prepared("adapter")
    assert not base_learns(model)
    copy = frozen_base(model)
    assert copy.adapter is None
    assert model.adapter is not None
    model.embedding.weight.add_(1.0)
    assert not torch.equal(copy.embedding.weight, model.embedding.weight)
    assert copy.head.weight is copy.embedding.weight
    assert not any(p.requires_grad for p in copy.parameters())
    assert base_learns(prepared("full"))


def test_facts() -> None:
    facts = diffusion_facts(BlockDiffusion(block_sizes=(4, 8), shift=False), 9, AdapterFacts(rank=16))
    assert facts is not None
    assert (facts.mask_id, facts.block_size, facts.logit_shift, facts.clean_attention) == (9, 8, False, "causal")
    assert facts.adapter is not None
    assert facts.adapter.rank == 16
    masked = diffusion_facts(MaskedDiffusion(), 9, None)
    assert masked is not None
    assert (masked.clean_attention, masked.adapter, masked.logit_shift) == ("bidirectional", None, False)
