"""What is compiled trains as what is not: the same loss and the same gradients, on a CPU and on CUDA.

PyTorch 2.11 once compiled the spreading of noisy positions without the gradient of the attention behind, silently.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openmercury.data.loader import Batch
from openmercury.train.build import wrap_layers
from openmercury.train.config import AR, BlockDiffusion, MaskedDiffusion, OnPolicy
from openmercury.train.objectives import build_objective
from tests import tiny

FULL = {"mask_id": tiny.MASK, "block_size": 6}
CASES = {
    "adapter": (BlockDiffusion(block_sizes=(4, 8), noisy_share=0.8), False),
    "complementary": (BlockDiffusion(block_sizes=(8,), complementary=True, align=0.5, certainty=0.1), False),
    "on_policy": (BlockDiffusion(block_sizes=(8,), on_policy=OnPolicy(share=1.0)), False),
    "full": (BlockDiffusion(block_sizes=(4, 8), ar=1.0), True),
    "ar": (AR(), True),
    "masked": (MaskedDiffusion(), True),
}


def gradients(case: str, device: str, compiled: bool) -> tuple[float, dict[str, Tensor]]:
    config, full = CASES[case]
    shape = tiny.config(adapter=not full).model_dump() | {"head_size": 16}
    if full and not isinstance(config, AR):
        facts = FULL | ({"clean_attention": "bidirectional"} if isinstance(config, MaskedDiffusion) else {})
        shape |= {"diffusion": facts}
    model = tiny.network(dtype=torch.float32, of=type(tiny.config()).model_validate(shape)).to(device)
    learns = model if full else model.adapter
    assert learns is not None
    learns.requires_grad_(True)
    if compiled and device == "cuda":
        wrap_layers(model, compile=True, checkpointing=False)
    elif compiled:
        for layer in model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False, backend="aot_eager")
    tokens = torch.randint(0, 60, (2, 256), generator=torch.Generator().manual_seed(1))
    document = (torch.arange(256) // 100).expand(2, 256)
    batch = Batch(*(field.to(device).contiguous() for field in (tokens, document >= 0, document)))
    objective = build_objective(config, model, compile=False)
    loss = objective(model, batch, torch.Generator(device).manual_seed(0), slice(None), 0.0)
    loss.sum.backward()
    slopes = {name: parameter.grad for name, parameter in learns.named_parameters()}
    return float(loss.sum.detach()), {name: slope.cpu() for name, slope in slopes.items() if slope is not None}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("case", CASES)
def test_compiled_equals_eager(case: str, device: str) -> None:
    """Against the same device, whose generator draws the noise. Attention on CUDA is one kernel for both, which
    tests/train/kernels.py compares with dense attention."""
    torch.compiler.reset()
    (plain, expected), (found, slopes) = gradients(case, device, False), gradients(case, device, True)
    assert found == pytest.approx(plain, rel=1e-4)
    assert slopes.keys() == expected.keys()
    for name, slope in expected.items():
        assert slope.norm() > 0, name
        assert (slopes[name] - slope).norm() <= 1e-3 * slope.norm(), name
