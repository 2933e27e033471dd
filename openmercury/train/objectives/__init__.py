"""Training objectives: each turns a batch into a loss, and the trainer knows nothing else of them."""

from openmercury.train.objectives.base import Loss, Objective
from openmercury.train.objectives.build import build_objective, diffusion_facts

__all__ = ["Loss", "Objective", "build_objective", "diffusion_facts"]
