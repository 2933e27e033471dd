"""The training loop: batch, loss, backward, sum over processes, clip, step, log, save."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openmercury.config import load_config
from openmercury.data.loader import Loader
from openmercury.data.shards import check_fit, fingerprint
from openmercury.errors import TrainingError
from openmercury.model.adapter import Adapter
from openmercury.model.config import AdapterFacts, DiffusionFacts, ModelConfig, read_config
from openmercury.model.transformer import Layer, Transformer
from openmercury.model.weights import load_model
from openmercury.train.checkpoint import find_state, load_adapter, load_state, save_state
from openmercury.train.config import Optim, Recipe
from openmercury.train.objectives import Loss, build_objective
from openmercury.train.parallel import World, pick_device


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """Warm-up, plateau, linear decay to zero. The plateau lets a run be lengthened when it is resumed."""
    warm = min(1.0, (step + 1) / max(1, optim.warmup_steps))
    cooldown = max(1, round(steps * optim.cooldown))
    return optim.lr * min(warm, (steps - step) / cooldown)


def model_config(recipe: Recipe) -> ModelConfig:
    """The base's architecture with the facts this run will give it."""
    base = read_config(recipe.base)
    facts = DiffusionFacts(
        mask_id=recipe.mask_id,
        block_size=max(recipe.objective.block_sizes),
        adapter=AdapterFacts(rank=recipe.rank),
    )
    return ModelConfig(**{**base.model_dump(), "diffusion": facts})


def build_model(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Frozen base weights and a fresh adapter in float32 (float64 for float64 runs)."""
    config = model_config(recipe)
    plain = ModelConfig(**{**config.model_dump(), "diffusion": None})
    base = load_model(recipe.base, dtype=dtype, device=device, config=plain)
    torch.manual_seed(recipe.seed)
    base.config, base.adapter = (
        config,
        Adapter(config, recipe.rank).to(device, torch.promote_types(dtype, torch.float32)),
    )
    with torch.no_grad():
        base.adapter.mask_vector.copy_(base.embedding.weight.float().mean(0))
    base.adapter.requires_grad_(True)
    return base


def build_loader(recipe: Recipe, place: dict[str, Any] | None) -> Loader:
    """The recipe's data, which must go with its checkpoint and block sizes; `place` is a state of the loader."""
    data = recipe.data
    loader = Loader(data.sources, data.row_length, data.rows, recipe.seed, place)
    tokenizer, sizes = fingerprint(recipe.base), recipe.objective.block_sizes
    for source, manifest in zip(data.sources, loader.manifests, strict=True):
        check_fit(source.path, manifest, tokenizer=tokenizer, row_length=data.row_length, block_sizes=sizes)
    return loader


def describe(loader: Loader, recipe: Recipe) -> str:
    """How much there is to train on."""
    counts = [manifest.counts for manifest in loader.manifests]
    tokens, trained = sum(each.tokens for each in counts), sum(each.trained for each in counts)
    paths = ", ".join(str(source.path) for source in recipe.data.sources)
    return f"{tokens / 1e6:.2f} M tokens from {paths}, {trained / max(1, tokens):.0%} trained on"


class Trainer:
    """One run, or one process's part of it. Its state lives in `recipe.out` and is found again by itself."""

    def __init__(self, recipe: Recipe, console: Console | None = None, world: World | None = None) -> None:
        self.recipe, self.world = recipe, world or World(device=pick_device(recipe.device))
        self.console = (console or Console()) if self.world.main else Console(quiet=True)
        self.device, self.share = self.world.device, self.world.share(recipe.data.rows)
        auto = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        dtype = auto if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
        self.model = build_model(recipe, self.device, dtype)
        assert self.model.adapter is not None
        self.adapter = self.model.adapter
        parameters = list(self.adapter.parameters())
        self.optimizer = torch.optim.AdamW(
            parameters, lr=recipe.optim.lr, betas=recipe.optim.betas, weight_decay=recipe.optim.weight_decay
        )
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.deadline, self.over = math.inf, False  # rank 0's clock decides; every rank learns it in `train_step`
        place = self._resume()
        self.world.broadcast([parameter.data for parameter in parameters])
        self.loader = build_loader(recipe, place)
        self.objective = build_objective(recipe.objective, compile=recipe.compile)
        if recipe.compile:
            self._compile()
        self.console.print(
            f"{describe(self.loader, recipe)}; adapter {sum(p.numel() for p in parameters) / 1e6:.1f} M; "
            f"{self.world.size} × {self.device.type}, {dtype}; step {self.step} of {recipe.steps}"
        )

    def _resume(self) -> dict[str, Any] | None:
        """Where the data goes on; None: at its beginning."""
        state = find_state(self.recipe.out)
        if state is None:
            if self.recipe.init is not None:
                load_adapter(self.recipe.init, self.adapter, self.recipe.rank)
            return None
        counters = load_state(state, self.adapter, self.optimizer)
        self.step, self.tokens, self.seconds = counters["step"], counters["tokens"], counters["seconds"]
        place: dict[str, Any] = counters["loader"]
        return place

    def _compile(self) -> None:
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            layer.before = torch.compile(layer.before, dynamic=False)  # type: ignore[method-assign]
            layer.after = torch.compile(layer.after, dynamic=False)  # type: ignore[method-assign]

    def save(self) -> None:
        """Write adapter, optimiser and counters; rank 0 does it for all."""
        if not self.world.main:
            return
        counters: dict[str, Any] = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        counters["loader"] = self.loader.state()
        save_state(self.recipe.out, self.adapter, self.optimizer, counters)

    def train_step(self) -> Loss:
        """One optimiser step of all ranks; returns this rank's part of the loss.

        A gradient that is not finite is never applied: every rank raises TrainingError.
        """
        recipe = self.recipe
        generator = torch.Generator(self.device).manual_seed(recipe.seed * 1_000_003 + self.step)
        batch = self.loader.next(self.device)
        rate = learning_rate(recipe.optim, self.step, recipe.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.objective(self.model, batch, generator, self.share)
        self.optimizer.zero_grad(set_to_none=True)
        loss.sum.backward()
        gradients = [parameter.grad for parameter in self.adapter.parameters() if parameter.grad is not None]
        weight = loss.weight.clone()
        over = torch.full_like(weight, self.world.main and time.monotonic() > self.deadline)
        self.world.sum([*gradients, weight, over])
        for gradient in gradients:  # only now, for the weight of the whole batch came in the same all-reduce
            gradient /= weight.clamp(min=1)
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), recipe.optim.clip)
        length, stop = torch.stack((norm, over.to(norm.dtype))).tolist()  # one wait for the device tells both
        self.over = stop > 0
        if not math.isfinite(length):
            raise TrainingError(
                f"step {self.step}: the gradient is not finite; lower optim.lr and resume from {recipe.out}"
            )
        self.optimizer.step()
        self.step += 1
        self.tokens += batch.tokens_BL.numel()
        return loss._replace(sum=loss.sum.detach())

    def run(self) -> None:
        """Train until the recipe's steps or minutes are over; saves at the end and every `save_every` steps."""
        recipe = self.recipe
        if self.world.main:
            recipe.out.mkdir(parents=True, exist_ok=True)
            (recipe.out / "recipe.json").write_text(recipe.model_dump_json(indent=1), encoding="utf-8")
        begin = last = time.monotonic()
        self.deadline = begin + 60 * (recipe.minutes or math.inf)
        before = self.seconds
        window: list[Loss] = []
        try:
            while self.step < recipe.steps:
                window.append(self.train_step())
                self.seconds = before + time.monotonic() - begin
                if self.step % recipe.log_every == 0 or self.step == recipe.steps:
                    self._log(window, time.monotonic() - last)
                    last, window = time.monotonic(), []
                if self.step % recipe.save_every == 0:
                    self.save()
                if self.over:
                    break
        finally:
            self.save()
        self.world.barrier()  # no rank leaves before the run is saved

    def _log(self, window: list[Loss], seconds: float) -> None:
        names = list(window[0].metrics)
        pairs = [torch.stack((loss.sum.double(), loss.weight.double())) for loss in window]
        found = [torch.stack((pair, *loss.metrics.values())) for pair, loss in zip(pairs, window, strict=True)]
        total = torch.stack(found).sum(0)
        self.world.sum([total])
        if not self.world.main:
            return
        ratios = (total[:, 0] / total[:, 1].clamp(min=1e-9)).tolist()
        rate = len(window) * self.recipe.data.rows * self.recipe.data.row_length / seconds
        row: dict[str, Any] = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(rate),
            "lr": learning_rate(self.recipe.optim, self.step - 1, self.recipe.steps),
            **dict(zip(("loss", *names), ratios, strict=True)),
        }
        with (self.recipe.out / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in zip(("loss", *names), ratios, strict=True))
        self.console.print(
            f"step {self.step:>6}/{self.recipe.steps}  {shown}  {rate / 1e3:.1f}k tok/s  lr {row['lr']:.2e}",
            highlight=False,
        )


def train(recipe: Recipe) -> None:
    """Run a recipe in this process, as one of those that torchrun started if it did."""
    world = World.start(recipe.device)
    Trainer(recipe, world=world).run()
    world.close()  # not after an error: others may be waiting for this process, and torchrun ends them once it is gone


def run_recipe(path: Path, overrides: list[str]) -> None:
    """`openmercury train RECIPE [key=value …]`."""
    train(load_config(Recipe, path, overrides))
