"""On-policy states: what the model itself has written into a block after a few denoising steps.

Decoding commits what is settled at the beginning of a block; here too it is read causally, on base weights. The teacher
reads the block as the model would finish it, and says at each position what it would have written there: its logits on
the student's own text are the targets (OPDLM: arXiv 2606.06712).
"""

from __future__ import annotations

import torch
from torch import Tensor

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import Blocks, Corrupted, corrupt
from openmercury.diffusion.sample import Choice, RowParams, choose
from openmercury.diffusion.unmask import Policy, accept
from openmercury.model.transformer import Transformer
from openmercury.train.attention import NoisyAttend
from openmercury.train.config import BlockDiffusion
from openmercury.train.objectives.base import Clean
from openmercury.train.objectives.noisy import Chosen, places, read_noisy

CHOICE_ROWS = 2048  # rows whose logits are held at once


@torch.no_grad()
def greedy(hidden_MD: Tensor, head_VD: Tensor, mask_id: int) -> Choice:
    """The likeliest token of each row, as decoding at temperature 0 chooses it."""
    found = [choose(*_rows(part, head_VD, mask_id), "greedy") for part in hidden_MD.split(CHOICE_ROWS)]
    return Choice(*(torch.cat(fields) for fields in zip(*found, strict=True)))


def _rows(hidden_MD: Tensor, head_VD: Tensor, mask_id: int) -> tuple[Tensor, RowParams]:
    logits = hidden_MD @ head_VD.to(hidden_MD.dtype).T
    logits[:, mask_id] = float("-inf")
    zero, one = logits.new_zeros(len(logits)), logits.new_ones(len(logits))
    return logits, RowParams(zero, zero.long(), one, zero.long(), zero.long(), zero.long())


@torch.no_grad()
def own_states(
    model: Transformer,
    config: BlockDiffusion,
    clean: Clean,
    batch: Batch,
    learnt_BL: Tensor,
    blocks: Blocks,
    chosen: Chosen,
    forwards: int,
) -> Corrupted:
    """Denoise all chosen blocks from full masks, `forwards` times."""
    assert model.config.diffusion is not None
    mask_id = model.config.diffusion.mask_id
    ids_BL, masked_BL = batch.tokens_BL, learnt_BL
    one_BL = torch.ones(ids_BL.shape, device=ids_BL.device)
    whole_BL = torch.zeros_like(learnt_BL)
    whole_BL.view(-1)[chosen.at_T] = chosen.whole_T
    for _ in range(forwards):
        noisy = corrupt(ids_BL, masked_BL, learnt_BL, one_BL, blocks, mask_id)
        student_TD = read_noisy(model, clean, noisy, chosen.at_T)
        token_M = (noisy.masked_BL & whole_BL).flatten().nonzero()[:, 0]
        rows_MD = _predictors(clean, student_TD, chosen, noisy, token_M, shift=config.shift)
        take_M, choice = _accepted(greedy(rows_MD, model.head.weight, mask_id), token_M, noisy, config)
        ids_BL, masked_BL = ids_BL.clone(), masked_BL.clone()
        ids_BL.view(-1)[token_M] = torch.where(take_M, choice.token_M, ids_BL.flatten()[token_M])
        masked_BL.view(-1)[token_M] = ~take_M
    return corrupt(ids_BL, masked_BL, learnt_BL, one_BL, blocks, mask_id)


def _predictors(
    clean: Clean, inside_TD: Tensor, chosen: Chosen, noisy: Corrupted, token_M: Tensor, *, shift: bool
) -> Tensor:
    """Hidden states [M, D] that predict the tokens at flat places `token_M`: a block's, or the clean row before it."""
    row_M = token_M - int(shift)
    at_M = places(chosen.at_T, noisy.ids_BL.numel())[row_M]
    first_M = (token_M % noisy.ids_BL.shape[1] == noisy.start_BL.flatten()[token_M]) & shift
    return torch.where(first_M[:, None], clean.hidden_BLD.flatten(0, 1)[row_M], inside_TD[at_M])


def _accepted(choice: Choice, token_M: Tensor, noisy: Corrupted, config: BlockDiffusion) -> tuple[Tensor, Choice]:
    """Which choices this step takes, [M]: `unmask.accept` over the blocks as rows of [R, K]."""
    length = noisy.ids_BL.shape[1]
    start_M = token_M // length * length + noisy.start_BL.flatten()[token_M]
    start_R, row_M = start_M.unique(return_inverse=True)
    place_M = token_M - start_M
    shape = (len(start_R), max(*config.block_sizes, *config.curriculum.sizes, 1))
    confidence, entropy = (
        x.new_zeros(shape).index_put((row_M, place_M), x) for x in (choice.confidence_M, choice.entropy_M)
    )
    masked = torch.zeros(shape, dtype=torch.bool, device=token_M.device)
    masked[row_M, place_M] = True
    threshold, zero = confidence.new_full(shape[:1], config.on_policy.threshold), confidence.new_zeros(shape[0])
    taken = accept(confidence, entropy, masked, Policy(threshold, zero, zero - 1))
    return taken[row_M, place_M], choice


@torch.no_grad()
def teach(
    teacher: Transformer,
    config: BlockDiffusion,
    clean: Clean,
    noisy: Corrupted,
    student_TD: Tensor,
    chosen: Chosen,
    token_M: Tensor,
    head_VD: Tensor,
) -> tuple[Tensor, Tensor]:
    """The teacher's hidden states [M, D] and choices [M] for the tokens asked, on the text as the student finishes it.

    `clean` is the teacher's own reading of the text before the blocks, `head_VD` the student's head.
    """
    assert teacher.config.diffusion is not None
    mask_id = teacher.config.diffusion.mask_id
    open_T = noisy.masked_BL.flatten()[chosen.at_T] & chosen.whole_T
    place_M = chosen.at_T[open_T]
    rows_MD = _predictors(clean, student_TD, chosen, noisy, place_M, shift=config.shift)
    ids_BL = noisy.ids_BL.clone()
    ids_BL.view(-1)[place_M] = greedy(rows_MD, head_VD, mask_id).token_M
    text = noisy._replace(ids_BL=ids_BL, settled_BL=torch.ones_like(noisy.settled_BL))
    ids_1T, position_1T = ids_BL.flatten()[chosen.at_T][None], (chosen.at_T % ids_BL.shape[1])[None]
    read_TD = teacher(ids_1T, position_1T, NoisyAttend(clean.attend, text, chosen.at_T))[0]
    taught_MD = _predictors(clean, read_TD, chosen, noisy, token_M, shift=True)
    # The token behind a block is predicted by the block's last row, not by the clean text's.
    row_M = token_M - 1
    behind_M = noisy.block_BL.flatten()[row_M] != noisy.block_BL.flatten()[token_M]
    if config.shift:
        inside_MD = read_TD[places(chosen.at_T, ids_BL.numel())[row_M]]
        taught_MD = torch.where(behind_M[:, None], inside_MD, taught_MD)
    return taught_MD, greedy(taught_MD, teacher.head.weight, mask_id).token_M
