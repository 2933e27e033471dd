"""AdamW over what learns, sharded or not: learning rate, the sum of gradients over processes, clipping."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from openmercury.train.config import Optim
from openmercury.train.parallel import World, is_sharded, local


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Warm-up, plateau, linear decay to zero. The plateau lets a run be lengthened when it is resumed."""
    warm = min(1.0, (step + 1) / max(1, optim.warmup_steps))
    cooldown = max(1, round(steps * optim.cooldown))
    return optim.lr * min(warm, (steps - step) / cooldown)


class Optimizer:
    """AdamW; matrices decay, vectors do not. One fused kernel on CUDA.

    The moments exist from the start, so that a state is read into place.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optim: Optim, world: World) -> None:
        self.parameters, self.world, self.clip = dict(parameters), world, optim.clip
        cuda = world.device.type == "cuda"
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}  # one kernel takes only sharded tensors or only whole
        for parameter in self.parameters.values():
            groups.setdefault((parameter.ndim > 1, is_sharded(parameter)), []).append(parameter)
        self.lazy = cuda and not any(sharded for _, sharded in groups)
        self.adam = torch.optim.AdamW(
            [
                {"params": params, "weight_decay": optim.weight_decay if matrix else 0.0}
                for (matrix, _), params in groups.items()
            ],
            lr=optim.lr,
            betas=optim.betas,
            fused=cuda,
        )
        for parameter in self.parameters.values():
            self.adam.state[parameter] = {
                "step": torch.zeros((), device=world.device if cuda else "cpu"),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, by name."""
        return {
            f"{key}/{name}": value
            for name, parameter in self.parameters.items()
            for key, value in self.adam.state[parameter].items()
        }

    def zero(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def reduce(self, others: list[Tensor]) -> Tensor:
        """Add gradients and `others` up over the ranks, in place; the norm of the gradients' sum.

        FSDP has averaged those of sharded weights already, so these are multiplied.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        whole = [local(g) for g in gradients if not is_sharded(g)]
        parts = [local(g) for g in gradients if is_sharded(g)]
        self.world.sum([*whole, *others])
        square = _square(whole, self.world.device)
        if parts:
            torch._foreach_mul_(parts, float(self.world.size))
            of_parts = _square(parts, self.world.device)
            dist.all_reduce(of_parts)
            square = square + of_parts
        return square.sqrt()

    def step(self, rate: float, scale: Tensor, broken: Tensor) -> None:
        """One update with the gradients times `scale`; none where `broken` is 1.

        Where it can be, the kernel itself looks at `broken`, so that nobody waits for the device (`lazy`).
        """
        gradients = [local(p.grad) for p in self.parameters.values() if p.grad is not None]
        torch._foreach_mul_(gradients, scale)
        for group in self.adam.param_groups:
            group["lr"] = rate
        if self.lazy:
            self.adam.found_inf = broken.float()  # type: ignore[attr-defined]
            self.adam.step()
        elif not broken:
            self.adam.step()


def _square(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Σ x², in float32 at least."""
    if not tensors:
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm(tensors)).square().sum()
