"""Denoising loss under a head, without ever holding [rows × vocabulary] for a whole batch.

Per row, with student p, teacher q, the true token x and the entropy H(p):

    loss = ce · (−log p(x)) + kl · KL(q ‖ p) + certainty · [x is the likeliest] · H(p)
    ∂loss/∂logits = ce · (p − 1ₓ) + kl · (p − q) − certainty · [x is the likeliest] · p · (log p + H(p))

(Certainty sharpens what is already right, so that more of it passes a threshold: LLaDA2.0's CAP, dParallel.) The mask
token is never predicted: its logit is −inf, here as in decoding. Weights are known before the logits are, so the
gradients of hidden states and head are computed slice by slice in the forward pass, and backward only scales them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

GPU_LOGITS = 5 * 2**26  # logits held at once on a GPU, 670 MB in bfloat16: 2,048 rows of the nano model
CPU_LOGITS = 2**26  # elsewhere: with what is made of them, 2 GB in float32
ROWS = 2048  # a multiple of this many rows where they fit, and four times at most: what is compiled pads the last slice


def slice_rows(vocabulary: int, *, cuda: bool) -> int:
    """How many rows may meet the vocabulary at once."""
    fit = max(1, (GPU_LOGITS if cuda else CPU_LOGITS) // vocabulary)
    return min(fit // ROWS, 4 if cuda else 1) * ROWS or fit // 128 * 128 or fit


def head_rows(head_VD: Tensor) -> int:
    """How many rows may meet this head at once."""
    return slice_rows(len(head_VD), cuda=head_VD.is_cuda)


class Terms(NamedTuple):
    """How much each part of the loss counts."""

    ce: float = 1.0
    kl: float = 0.0
    certainty: float = 0.0


class Slice(NamedTuple):
    """Cross-entropy, KL and entropy (nats), hit, [M] each, and ∂loss/∂logits [M, V] of one slice of rows."""

    ce_M: Tensor
    kl_M: Tensor
    entropy_M: Tensor
    hit_M: Tensor
    slope_MV: Tensor


SliceLoss = Callable[[Tensor, Tensor | None, Tensor, Tensor, Terms, int | None], Slice]


class DenoisingLoss(NamedTuple):
    """`loss` is Σ weight · (…), differentiable; the rows' CE, KL, entropy (nats) and hits are for metrics."""

    loss: Tensor
    ce_M: Tensor
    kl_M: Tensor
    entropy_M: Tensor
    hit_M: Tensor


def _log_softmax(logits_MV: Tensor, mask_id: int | None) -> Tensor:
    wide = logits_MV.to(torch.float64 if logits_MV.dtype == torch.float64 else torch.float32)
    if mask_id is not None:
        wide = torch.where(torch.arange(wide.shape[-1], device=wide.device) == mask_id, float("-inf"), wide)
    return wide.log_softmax(-1)


def slice_loss(
    student_MV: Tensor, teacher_MV: Tensor | None, target_M: Tensor, weight_M: Tensor, terms: Terms, mask_id: int | None
) -> Slice:
    """Loss of one slice of rows; without teacher logits its KL is 0."""
    log_p = _log_softmax(student_MV, mask_id)
    p = log_p.exp()
    ce_M = -log_p.gather(-1, target_M[:, None])[:, 0]
    true = torch.arange(log_p.shape[-1], device=target_M.device) == target_M[:, None]
    slope = (terms.ce + (terms.kl if teacher_MV is not None else 0.0)) * p - terms.ce * true
    kl_M = torch.zeros_like(ce_M)
    if teacher_MV is not None:
        log_q = _log_softmax(teacher_MV, mask_id)
        q = log_q.exp()
        kl_M = torch.where(q > 0, q * (log_q - log_p), 0).sum(-1)
        slope = slope - terms.kl * q
    hit_M = log_p.argmax(-1) == target_M
    p_log_p = torch.where(p > 0, p * log_p, 0)
    entropy_M = -p_log_p.sum(-1)
    if terms.certainty:
        slope = slope - terms.certainty * hit_M[:, None] * (p_log_p + p * entropy_M[:, None])
    return Slice(ce_M, kl_M, entropy_M, hit_M, (weight_M[:, None] * slope).to(student_MV.dtype))


class _WithGradients(torch.autograd.Function):
    """Passes `loss` through and gives hidden states and head the gradients that are already known."""

    @staticmethod
    def forward(
        ctx: Any, student_MD: Tensor, head_VD: Tensor, gradient_MD: Tensor, gradient_VD: Tensor | None, loss: Tensor
    ) -> Tensor:
        ctx.save_for_backward(gradient_MD, gradient_VD)
        ctx.head_dtype = head_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gradient_MD, gradient_VD = ctx.saved_tensors
        head = None if gradient_VD is None else (gradient_VD * grads[0].to(gradient_VD.dtype)).to(ctx.head_dtype)
        return gradient_MD * grads[0].to(gradient_MD.dtype), head, None, None, None


def denoising_loss(
    student_MD: Tensor,
    head_VD: Tensor,
    target_M: Tensor,
    weight_M: Tensor,
    terms: Terms,
    *,
    teacher: tuple[Tensor, Tensor] | None = None,
    mask_id: int | None = None,
    rows: int | None = None,
    slice_fn: SliceLoss = slice_loss,
) -> DenoisingLoss:
    """Loss of M rows of hidden states against tokens and a teacher's (hidden_MD, head_VD).

    `rows` bounds the logits held at once, by default as the machine allows. A head that requires a gradient gets one.
    """
    assert teacher is not None or not terms.kl
    rows = rows or head_rows(head_VD)
    gradient_MD = torch.empty_like(student_MD)
    gradient_VD = torch.zeros_like(head_VD, dtype=weight_M.dtype) if head_VD.requires_grad else None
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        head = head_VD.to(student_MD.dtype)
        for begin in range(0, max(1, len(student_MD)), rows):  # one slice even of nothing: ranks stay in step
            part = slice(begin, begin + rows)
            size = len(student_MD[part])
            pad = 0 if slice_fn is slice_loss else rows - size  # what is compiled sees slices of one shape
            student = F.pad(student_MD[part], (0, 0, 0, pad))
            shown = None
            if terms.kl and teacher is not None:
                shown = F.linear(F.pad(teacher[0][part], (0, 0, 0, pad)), teacher[1].to(teacher[0].dtype))
            target, weight = F.pad(target_M[part], (0, pad)), F.pad(weight_M[part], (0, pad))
            one = slice_fn(F.linear(student, head), shown, target, weight, terms, mask_id)
            gradient_MD[part] = (one.slope_MV @ head)[:size]
            if gradient_VD is not None:
                gradient_VD += one.slope_MV.T @ student
            found.append((one.ce_M[:size], one.kl_M[:size], one.entropy_M[:size], one.hit_M[:size]))
        ce_M, kl_M, entropy_M, hit_M = (torch.cat(parts) for parts in zip(*found, strict=True))
        each_M = terms.ce * ce_M + terms.kl * kl_M + terms.certainty * hit_M * entropy_M
        total = (weight_M * each_M).sum()
    loss = _WithGradients.apply(student_MD, head_VD, gradient_MD, gradient_VD, total)  # type: ignore[no-untyped-call]
    return DenoisingLoss(cast(Tensor, loss), ce_M, kl_M, entropy_M, hit_M)
