"""What is measured during training, on rows that are never trained on: the objective's own numbers, and drafts.

A draft counts as decoding in `verified` counts it. Behind clean text stands a group of masks; row i of it predicts
token i + 1; the clean side says what AR decoding would have chosen. Reading a given text instead of decoding, one sees
that choice only while the text follows it, so the expected run is put together from hazards: with p_k the share of
right k-th drafts among those whose forerunners were right and were followed by the text,

    expected run = Σ_k Π_{j ≤ k} p_j        and tokens a cycle = 1 + expected run.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import corrupt, cut_blocks
from openmercury.model.transformer import Transformer
from openmercury.train.config import Eval
from openmercury.train.feed import held_out_rows
from openmercury.train.needle import find_needles
from openmercury.train.objectives import Loss
from openmercury.train.objectives.base import learnt_tokens, positions, read_clean
from openmercury.train.objectives.noisy import read_noisy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openmercury.train.trainer import Trainer

Probe = Callable[[Path], Mapping[str, float]]  # an exported checkpoint folder → numbers by name

SEED = 20_261_125  # of the noise of every evaluation: they differ in the weights alone
LOGIT_ROWS = 2048


class Evaluation:
    """Measures a trainer's weights, or their average, every `every` steps."""

    def __init__(self, trainer: Trainer, config: Eval, probes: Sequence[Probe]) -> None:
        self.trainer, self.config, self.probes, self.every = trainer, config, probes, config.every
        self.part = trainer.parts[0].stop - trainer.parts[0].start  # rows of one forward, as in training
        self.rows = _even(held_out_rows(trainer.recipe), trainer.world.size * self.part)

    def measure(self) -> dict[str, float]:
        """Numbers under names that begin with `eval/`, the same on every rank but for those of probes."""
        trainer = self.trainer
        with torch.no_grad(), self._average():
            found = self._losses()
            facts = trainer.model.config.diffusion
            if facts is not None and facts.clean_attention == "causal":
                found |= self._drafts()
            for length in self.config.needles:
                filler = self.rows.tokens_BL[self.rows.document_BL >= 0]
                found[f"needle_{length}"] = find_needles(trainer.model, filler, length, SEED)
            if trainer.sharded:
                trainer.model.reshard()  # type: ignore[operator]
            if self.config.task is not None:
                found |= self._probed()
        shown = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
        trainer.console.print(f"step {trainer.step:>6}  held out: {shown}", highlight=False)
        return {f"eval/{name}": value for name, value in found.items()}

    @contextmanager
    def _average(self) -> Iterator[None]:
        ema = self.trainer.ema
        if ema is None:
            yield
            return
        ema.swap()
        try:
            yield
        finally:
            ema.swap()

    def _batches(self) -> Iterator[Batch]:
        world = self.trainer.world
        for begin in range(world.rank * self.part, len(self.rows.tokens_BL), world.size * self.part):
            yield Batch(*(field[begin : begin + self.part].to(self.trainer.device) for field in self.rows))

    def _losses(self) -> dict[str, float]:
        from openmercury.train.trainer import mean_metrics

        # A layer that was compiled for training serves here too if gradients are wanted, though nobody takes them.
        with torch.set_grad_enabled(self.trainer.recipe.compile and not self.trainer.sharded):
            return mean_metrics(list(self._each_loss()), self.trainer.world)

    def _each_loss(self) -> Iterator[Loss]:
        trainer = self.trainer
        for number, batch in enumerate(self._batches()):
            noise = torch.Generator(trainer.device).manual_seed(SEED + number)
            # As behind the curriculum: what is measured is one thing throughout.
            yield _alone(trainer.objective(trainer.model, batch, noise, slice(None), 1.0))

    def _drafts(self) -> dict[str, float]:
        counts = torch.zeros(2, self.config.drafts, dtype=torch.float64, device=self.trainer.device)
        for batch in self._batches():
            counts += count_drafts(self.trainer.model, batch, self.config.drafts)
        self.trainer.world.sum([counts])
        right, tried = counts
        run = (right / tried.clamp(min=1)).cumprod(0).sum()
        return {"draft_run": float(run), "tokens_per_cycle": 1 + float(run)}

    def _probed(self) -> dict[str, float]:
        from openmercury.train.export import export_tensors, gather

        trainer = self.trainer
        whole = gather(trainer.parameters)  # every rank takes part, rank 0 writes
        found: dict[str, float] = {}
        if trainer.world.main:
            with tempfile.TemporaryDirectory(dir=trainer.recipe.out, prefix="eval-") as folder, torch.enable_grad():
                out = Path(folder) / "checkpoint"
                export_tensors(trainer.recipe, whole, out, "F32" if trainer.recipe.adapted else "BF16", link=True)
                if trainer.device.type == "cuda":
                    torch.cuda.empty_cache()  # the engine takes its own share of what is free
                for probe in self.probes:
                    found |= probe(out)
                if trainer.device.type == "cuda":
                    gc.collect()
                    torch.cuda.empty_cache()
        trainer.world.barrier()
        return found


def _alone(loss: Loss) -> Loss:
    """Without its graph. No name may hold that while the next batch is read: it is as large as a training step's."""
    return loss._replace(sum=loss.sum.detach())


def _even(rows: Batch, multiple: int) -> Batch:
    """With rows of nothing behind, so that every process has as many forwards, all of one shape."""
    more = -len(rows.tokens_BL) % multiple
    nothing = Batch(*(torch.zeros_like(field[:1]).expand(more, -1) for field in rows))
    nothing = nothing._replace(document_BL=nothing.document_BL - 1)
    return Batch(*(torch.cat(pair) for pair in zip(rows, nothing, strict=True)))


def count_drafts(model: Transformer, batch: Batch, drafts: int) -> Tensor:
    """Right drafts and those that had a chance, for the 1st … last of a group, [2, drafts] in float64."""
    facts = model.config.diffusion
    assert facts is not None
    tokens_BL, learnt_BL = batch.tokens_BL, learnt_tokens(batch)
    (rows, length), size = tokens_BL.shape, drafts + 1
    offset_B = torch.arange(rows, device=tokens_BL.device) % size
    blocks = cut_blocks(batch.document_BL, learnt_BL, torch.full_like(offset_B, size), offset_B)
    weight_BL = torch.ones(rows, length, device=tokens_BL.device)
    masks = corrupt(tokens_BL, learnt_BL, learnt_BL, weight_BL, blocks, facts.mask_id)
    clean = read_clean(model, batch, gradient=False)
    student_TD = read_noisy(model, clean, masks, torch.arange(rows * length, device=tokens_BL.device))
    if model.chain is not None:
        # A draft counts only behind right ones, and then the token before it is that of the text.
        before_BL = tokens_BL if facts.logit_shift else F.pad(tokens_BL[:, :-1], (1, 0))
        student_TD = model.chain(student_TD, model.embedding(before_BL.flatten()))
    teacher_TD = clean.hidden_BLD.flatten(0, 1)
    draft_BL, choice_BL = (greedy(model, x).view(rows, length) for x in (student_TD, teacher_TD))
    if not facts.logit_shift:  # the row of a token drafts it, not the one before; the group has as many masks
        draft_BL = F.pad(draft_BL[:, 1:], (0, 1))
    counted_BL, followed_BL = torch.zeros_like(learnt_BL), torch.zeros_like(learnt_BL)
    counted_BL[:, :-1] = learnt_BL[:, 1:] & (blocks.size_BL == size)[:, :-1]  # decoding drafts whole groups
    followed_BL[:, :-1] = choice_BL[:, :-1] == tokens_BL[:, 1:]
    return _hazards(positions(batch) - blocks.start_BL, draft_BL == choice_BL, followed_BL, counted_BL, drafts)


def _hazards(at_BL: Tensor, right_BL: Tensor, followed_BL: Tensor, counted_BL: Tensor, drafts: int) -> Tensor:
    found = torch.zeros(2, drafts, dtype=torch.float64, device=at_BL.device)
    alive_BL = counted_BL & (at_BL == 0)
    for k in range(drafts):
        found[0, k], found[1, k] = (alive_BL & right_BL).sum(), alive_BL.sum()
        after_BL = torch.zeros_like(alive_BL)
        after_BL[:, 1:] = (alive_BL & right_BL & followed_BL)[:, :-1]
        alive_BL = after_BL & counted_BL & (at_BL == k + 1)
    return found


def greedy(model: Transformer, hidden_MD: Tensor) -> Tensor:
    """The likeliest token of each row [M]; logits are held of a part at a time."""
    return torch.cat([model.logits(part).argmax(-1) for part in hidden_MD.split(LOGIT_ROWS)])
