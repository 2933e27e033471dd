"""The sliced loss with its ready-made gradients against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from openmercury.diffusion.loss import Terms, denoising_loss


@pytest.mark.parametrize("terms", [Terms(1.0), Terms(0.7, 0.4), Terms(0.3, 0.2, 0.5), Terms(0.0, 1.0)])
@pytest.mark.parametrize("mask_id", [None, 4])
@pytest.mark.parametrize("trainable", [False, True])
def test_equals_autograd(terms: Terms, mask_id: int | None, trainable: bool) -> None:
    """Hidden states and, where it learns, the head; rows that share a slice and rows that do not."""
    torch.manual_seed(0)
    m, d, v = 23, 8, 31
    student = torch.randn(m, d, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(m, d, dtype=torch.float64), torch.randn(v, d, dtype=torch.float64)
    head = torch.randn(v, d, dtype=torch.float64, requires_grad=trainable)
    target, weight = torch.randint(5, v, (m,)), torch.rand(m, dtype=torch.float64)
    target[:12] = F.linear(student, head).detach()[:12, 5:].argmax(-1) + 5  # some right, so that certainty acts
    found = denoising_loss(student, head, target, weight, terms, teacher=teacher, mask_id=mask_id, rows=10)
    (found.loss * 3).backward()

    plain, plain_head = (x.detach().clone().requires_grad_(True) for x in (student, head))
    keep = [i for i in range(v) if i != mask_id]
    log_p, log_q = (
        F.linear(plain, plain_head[keep]).log_softmax(-1),
        F.linear(teacher[0], teacher[1][keep]).log_softmax(-1),
    )
    place = target - int(mask_id is not None)
    ce = F.nll_loss(log_p, place, reduction="none")
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    entropy, hit = -(log_p.exp() * log_p).sum(-1), log_p.argmax(-1) == place
    assert 5 < hit.sum() < m
    expected = (weight * (terms.ce * ce + terms.kl * kl + terms.certainty * hit * entropy)).sum()
    (expected * 3).backward()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(student.grad, plain.grad)
    assert torch.equal(found.hit_M, hit)
    torch.testing.assert_close(found.entropy_M, entropy)
    if trainable:
        torch.testing.assert_close(head.grad, plain_head.grad)
    else:
        assert head.grad is None
