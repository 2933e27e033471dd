"""The sliced loss with its ready-made gradient against autograd in float64, and the forward process."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from openmercury.diffusion.corrupt import corrupt
from openmercury.diffusion.loss import denoising_loss
from openmercury.diffusion.schedule import block_rates


def test_equals_autograd() -> None:
    torch.manual_seed(0)
    m, d, v = 23, 8, 31
    student = torch.randn(m, d, dtype=torch.float64, requires_grad=True)
    teacher, head = torch.randn(m, d, dtype=torch.float64), torch.randn(v, d, dtype=torch.float64)
    target, weight = torch.randint(0, v, (m,)), torch.rand(m, dtype=torch.float64)
    found = denoising_loss(student, teacher, head, target, weight, ce=0.7, kl=0.4, rows=10)
    (found.loss * 3).backward()
    plain = student.detach().clone().requires_grad_(True)
    log_p, log_q = F.linear(plain, head).log_softmax(-1), F.linear(teacher, head).log_softmax(-1)
    ce = F.nll_loss(log_p, target, reduction="none")
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    expected = (weight * (0.7 * ce + 0.4 * kl)).sum()
    (expected * 3).backward()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(student.grad, plain.grad)
    assert torch.equal(found.hit_M, log_p.argmax(-1) == target)


def test_first_position_of_a_block_is_masked_and_rates_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, length = 64, 512
    size, offset = torch.full((rows,), 16), torch.randint(0, 16, (rows,))
    rate = torch.full((rows, 40), 0.3)
    noisy = corrupt(torch.zeros(rows, length, dtype=torch.long), size, offset, rate, 9, generator)
    at = torch.arange(length)[None].expand(rows, -1)
    assert noisy.masked_BL[at == noisy.start_BL].all()
    assert abs(float(noisy.masked_BL[at != noisy.start_BL].double().mean()) - 0.3) < 0.01
    assert torch.equal(noisy.ids_BL == 9, noisy.masked_BL)


def test_block_rates() -> None:
    rate = block_rates(100, 100, 0.5, 0.2, torch.Generator().manual_seed(0))
    assert abs(float((rate == 1).double().mean()) - 0.5) < 0.02
    assert float(rate.min()) >= 0.2
