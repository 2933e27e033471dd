"""Denoising loss over a frozen head, without ever holding [rows × vocabulary] for a whole batch.

Per row, with student p, teacher q (the same network on clean text) and the true token x:

    loss = ce · (−log p(x)) + kl · KL(q ‖ p)          ∂loss/∂logits = ce · (p − 1ₓ) + kl · (p − q)

The head is frozen, so the gradient with respect to the hidden state is ∂loss/∂logits · W, known as soon as the logits
are: it is computed slice by slice in the forward pass, and backward only scales it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

SliceLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor, Tensor, Tensor]]


class DenoisingLoss(NamedTuple):
    """`loss` is Σ weight · (ce · CE + kl · KL), differentiable; the rows' CE, KL (nats) and hits are for metrics."""

    loss: Tensor
    ce_M: Tensor
    kl_M: Tensor
    hit_M: Tensor


def slice_loss(
    student_MV: Tensor, teacher_MV: Tensor, target_M: Tensor, weight_M: Tensor, ce: float, kl: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy [M], KL [M], hit [M] and ∂loss/∂logits [M, V] of one slice of rows."""
    wide = torch.float64 if student_MV.dtype == torch.float64 else torch.float32
    log_p, log_q = student_MV.to(wide).log_softmax(-1), teacher_MV.to(wide).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    ce_M = -log_p.gather(-1, target_M[:, None])[:, 0]
    kl_M = torch.where(q > 0, q * (log_q - log_p), 0).sum(-1)
    true = torch.arange(student_MV.shape[-1], device=target_M.device) == target_M[:, None]
    gradient = weight_M[:, None] * ((ce + kl) * p - kl * q - ce * true)
    hit_M = student_MV.argmax(-1) == target_M
    return ce_M, kl_M, hit_M, gradient.to(student_MV.dtype)


class _WithGradient(torch.autograd.Function):
    """Passes `loss` through and gives `student_MD` the gradient that is already known."""

    @staticmethod
    def forward(ctx: Any, student_MD: Tensor, gradient_MD: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_MD)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient_MD,) = ctx.saved_tensors
        return gradient_MD * grads[0].to(gradient_MD.dtype), None, None


def denoising_loss(
    student_MD: Tensor,
    teacher_MD: Tensor,
    head_VD: Tensor,
    target_M: Tensor,
    weight_M: Tensor,
    *,
    ce: float,
    kl: float,
    rows: int = 4096,
    slice_fn: SliceLoss = slice_loss,
) -> DenoisingLoss:
    """Loss of M rows of hidden states against tokens and teacher; `rows` bounds the logits held at once."""
    gradient_MD = torch.empty_like(student_MD)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for begin in range(0, max(1, len(student_MD)), rows):  # one slice even of nothing: ranks stay in step
            part = slice(begin, begin + rows)
            pad = max(0, begin + rows - len(student_MD))  # every slice has one shape: compiled once
            student, teacher = (F.linear(F.pad(x[part], (0, 0, 0, pad)), head_VD) for x in (student_MD, teacher_MD))
            target, weight = F.pad(target_M[part], (0, pad)), F.pad(weight_M[part], (0, pad))
            ce_M, kl_M, hit_M, slope_MV = slice_fn(student, teacher, target, weight, ce, kl)
            keep = rows - pad
            gradient_MD[part] = (slope_MV @ head_VD)[:keep]
            found.append((ce_M[:keep], kl_M[:keep], hit_M[:keep]))
        ce_M, kl_M, hit_M = (torch.cat(parts) for parts in zip(*found, strict=True))
        total = (weight_M * (ce * ce_M + kl * kl_M)).sum()
    loss = cast(Tensor, _WithGradient.apply(student_MD, gradient_MD, total))  # type: ignore[no-untyped-call]
    return DenoisingLoss(loss, ce_M, kl_M, hit_M)
