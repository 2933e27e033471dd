"""The training loop: batch, loss, backward, sum over processes, clip, step, average, log, measure, save."""

from __future__ import annotations

import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from openmercury.config import load_config
from openmercury.data.loader import Batch
from openmercury.errors import ConfigError, TrainingError
from openmercury.model.device import pick_device
from openmercury.model.transformer import Transformer
from openmercury.train.build import build_model, learning, pick_dtype, wrap_layers
from openmercury.train.checkpoint import Checkpointer, find_state, read_counters, read_state
from openmercury.train.config import Recipe
from openmercury.train.ema import Ema
from openmercury.train.feed import Feed, describe, trained_share
from openmercury.train.flops import peak_flops, training_flops
from openmercury.train.hooks import Evaluation, Probe
from openmercury.train.metrics import Tracker, open_trackers
from openmercury.train.objectives import Loss, build_objective
from openmercury.train.optim import Optimizer, learning_rate
from openmercury.train.parallel import World, shard


class Trainer:
    """One run, or one process's part of it. Its state lives in `recipe.out` and is found again by itself.

    `probes` measure an exported checkpoint folder at every evaluation, on the process that writes.
    """

    def __init__(
        self,
        recipe: Recipe,
        console: Console | None = None,
        world: World | None = None,
        probes: Sequence[Probe] = (),
    ) -> None:
        self.recipe, self.world = recipe, world or World(device=pick_device(recipe.device))
        self.console = (console or Console()) if self.world.main else Console(quiet=True)
        self.device, self.parts = self.world.device, self.world.share(recipe.data.rows, recipe.data.forward_rows)
        self.compute = pick_dtype(recipe, self.device)
        self.sharded = self.world.size > 1 and (recipe.learn != "adapter" if recipe.shard is None else recipe.shard)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.deadline, self.over = math.inf, False  # rank 0's clock decides; every rank learns it in `_check`
        self.interrupted = False
        self._build()
        self.checkpointer = Checkpointer(recipe.out, self.world, recipe.keep)
        self.feed = Feed(recipe, self.device, self._resume())
        self.evaluation = None if recipe.eval is None else Evaluation(self, recipe.eval, probes)
        self.trackers: Sequence[Tracker] = ()
        self._unchecked: list[tuple[int, Batch, Tensor, Tensor]] = []  # step, batch, norm, loss of the last few steps
        learns = sum(parameter.numel() for parameter in self.parameters.values())
        self.console.print(
            f"{describe(self.feed.loader, recipe)}; {learns / 1e6:.1f} M parameters learn ({recipe.learn}); "
            f"{self.world.size} × {self.device.type}{', sharded' if self.sharded else ''}, {self.compute}; "
            f"step {self.step} of {recipe.steps}"
        )

    def _build(self) -> None:
        recipe, home = self.recipe, torch.device("cpu") if self.sharded else self.device
        self.model = build_model(recipe, home, self.compute)
        self.objective = build_objective(recipe.objective, self.model, compile=recipe.compile)
        wrap_layers(self.model, compile=recipe.compile, checkpointing=recipe.checkpointing)
        for frozen in (each for each in vars(self.objective).values() if isinstance(each, Transformer)):
            frozen.to(self.device, self.compute)
            if frozen.layers is self.model.layers and self.sharded:
                raise ConfigError(f"objective {recipe.objective.kind} reads its base twice: write shard = false")
            if frozen.layers is not self.model.layers:
                wrap_layers(frozen, compile=recipe.compile, checkpointing=False)
        if self.sharded:
            shard(self.model, self.world, self.compute)
        chosen = {id(parameter) for parameter in learning(recipe, self.model)}
        self.parameters = {name: p for name, p in self.model.named_parameters() if id(p) in chosen}
        if not self.sharded:
            self.world.broadcast([parameter.data for parameter in self.parameters.values()])
        self.optimizer = Optimizer(self.parameters, recipe.optim, self.world)
        self.ema = None if recipe.ema is None else Ema(self.parameters, recipe.ema)

    def tensors(self) -> dict[str, Tensor]:
        """All that a state holds, by name."""
        found = {f"model/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        average = {} if self.ema is None else {f"ema/{name}": value for name, value in self.ema.average.items()}
        return {**found, **self.optimizer.tensors(), **average}

    def _resume(self) -> Mapping[str, Any] | None:
        """Where the data goes on; None: at its beginning."""
        state = find_state(self.recipe.out)
        if state is None:
            return None
        counters = read_counters(state)
        if counters.get("facts", self._facts()) != self._facts():  # states before 25 November 2026 have none
            raise TrainingError(
                f"{state} was trained with {counters['facts']}, and the recipe says {self._facts()}: use its recipe, "
                "or a new `out`"
            )
        read_state(state, self.tensors(), self.world)
        self.step, self.tokens, self.seconds = counters["step"], counters["tokens"], counters["seconds"]
        place: Mapping[str, Any] = counters["loader"]
        return place

    def _facts(self) -> dict[str, Any]:
        """What weights mean, though no shape shows it. The block size may change from session to session."""
        config = self.model.config.model_dump(mode="json")
        facts = config["diffusion"] or {}
        names = ("mask_id", "clean_attention", "logit_shift")
        return {"rope_scaling": config["rope_scaling"], **{name: facts.get(name) for name in names}}

    def save(self) -> None:
        """Begin to write the state; `checkpointer.wait` ends it."""
        counters = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loader": self.feed.state(),
            "ranks": self.world.size,
            "facts": self._facts(),
        }
        self.checkpointer.save(self.step, self.tensors(), counters)

    def noise(self) -> torch.Generator:
        """The generator of this step's noise: the same on every rank and for every part of the batch."""
        return torch.Generator(self.device).manual_seed(self.recipe.seed * 1_000_003 + self.step)

    def train_step(self) -> Loss:
        """One optimiser step of all ranks; returns this rank's part of the loss.

        A gradient that is not finite is never applied; `check` raises for it.
        """
        recipe, batch = self.recipe, self.feed.next()
        rate, progress = learning_rate(recipe.optim, self.step, recipe.steps), self.step / recipe.steps
        self.optimizer.zero()
        losses = []
        for rows in self.parts:
            loss = self.objective(self.model, batch, self.noise(), rows, progress)
            loss.sum.backward()
            losses.append(loss._replace(sum=loss.sum.detach()))
        loss = add_losses(losses)
        self.feed.draw_ahead()  # while the device is busy with what it was given
        weight, total = loss.weight.detach().clone(), loss.sum.clone()
        norm = self.optimizer.reduce([weight, total])
        weight = weight.clamp(min=1)  # only now, for the weight of the whole batch came in the same all-reduce
        norm = norm / weight
        scale = (recipe.optim.clip / (norm + 1e-6)).clamp(max=1) / weight
        broken = ~(norm.isfinite() & total.isfinite())
        if self.sharded:
            self.model.reshard()  # type: ignore[operator]
        self.optimizer.step(rate, scale, broken)
        self._unchecked.append((self.step, batch, norm, total))
        if not self.optimizer.lazy:
            self.check()
        self.step += 1
        self.tokens += batch.tokens_BL.numel()
        if self.ema is not None:
            self.ema.update(self.step)
        return loss

    def check(self) -> None:
        """Wait for the device; raises TrainingError where a loss or gradient since the last check was not finite."""
        if not self._unchecked:
            return
        late = torch.tensor(float(self.interrupted or time.monotonic() > self.deadline), device=self.device)
        if self.world.size > 1:
            self.world.broadcast([late])
        found = torch.stack([torch.stack((norm, total.to(norm.dtype))) for _, _, norm, total in self._unchecked])
        *numbers, stop = [*found.tolist(), float(late)]
        self.over = stop > 0
        for (step, batch, _, _), (norm, total) in zip(self._unchecked, numbers, strict=True):
            if not (math.isfinite(norm) and math.isfinite(total)):
                raise self._broken(step, batch, "loss" if not math.isfinite(total) else "gradient")
        self._unchecked = []

    def _broken(self, step: int, batch: Batch, what: str) -> TrainingError:
        path = self.recipe.out / f"batch-{step:08d}.safetensors"
        if self.world.main:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.cpu().contiguous() for name, value in batch._asdict().items()}, path)
        return TrainingError(
            f"step {step}: the {what} is not finite; its batch is in {path}, to look at; "
            f"lower optim.lr and resume from {self.recipe.out}"
        )

    def run(self) -> None:
        """Train until the recipe's steps or minutes are over; saves at the end and every `save_every` steps.

        The first Ctrl-C ends the session as its minutes do, for within a step no state is exact; a second one at once.
        """
        if self.world.main:
            self._begin()
        restore = self._catch_interrupt()
        try:
            self._loop()
            self.save()
            if self.interrupted:
                raise KeyboardInterrupt
        finally:
            restore()
            gc.unfreeze()
            self.checkpointer.wait()
            for tracker in self.trackers:
                tracker.close()
        self.world.barrier()  # no rank leaves before the run is saved

    def _catch_interrupt(self) -> Callable[[], object]:
        """Let Ctrl-C end the session behind a step; returns what undoes this."""
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            return lambda: None
        before = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: object) -> None:
            self.interrupted = True
            self.console.print("saving after this step; Ctrl-C once more ends at once")
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, handle)
        return lambda: signal.signal(signal.SIGINT, before)

    def _begin(self) -> None:
        out = self.recipe.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "recipe.json").write_text(self.recipe.model_dump_json(indent=1), encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"{out} cannot be written ({error.strerror}): free some space or change out") from None
        self.trackers = open_trackers(self.recipe, self.step)

    def _loop(self) -> None:
        recipe = self.recipe
        begin = last = time.monotonic()
        first = self.step + 1
        self.deadline = begin + 60 * (recipe.minutes or math.inf)
        before, window = self.seconds, list[Loss]()
        while self.step < recipe.steps and not self.over:
            window.append(self.train_step())
            if self.step == first:
                gc.collect()
                gc.freeze()  # what compiling left behind need not be looked through again and again
            saving = self.step % recipe.save_every == 0
            logging = self.step % recipe.log_every == 0 or self.step == recipe.steps
            if saving or logging:
                self.check()
            self.seconds = before + time.monotonic() - begin
            if logging or self.over:
                self._log(window, time.monotonic() - last)
                last, window = time.monotonic(), []
            if saving:
                self.save()
            if self.evaluation is not None and self.step % self.evaluation.every == 0:
                paused = time.monotonic()
                self._tell(self.evaluation.measure())
                last += time.monotonic() - paused  # tokens per second are those of training

    def _log(self, window: list[Loss], seconds: float) -> None:
        ratios = mean_metrics(window, self.world)
        tokens = len(window) * self.recipe.data.rows * self.recipe.data.row_length
        rate = tokens / seconds
        row: dict[str, float] = {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(rate),
            "lr": learning_rate(self.recipe.optim, self.step - 1, self.recipe.steps),
        }
        row |= self._mfu(window, tokens, rate)
        self._tell({**row, **ratios})
        shown = "  ".join(f"{name} {value:.3f}" for name, value in ratios.items())
        mfu = f"  MFU {row['mfu']:.0%}" if "mfu" in row else ""
        self.console.print(
            f"step {self.step:>6}/{self.recipe.steps}  {shown}  {rate / 1e3:.1f}k tok/s{mfu}  lr {row['lr']:.2e}",
            highlight=False,
        )

    def _mfu(self, window: list[Loss], tokens: int, rate: float) -> dict[str, float]:
        peak = peak_flops(self.device)
        if peak is None:
            return {}
        if self.recipe.objective.kind == "dpo":  # its weight counts pairs
            trained = trained_share(self.feed.loader.manifests)
        else:
            trained = float(sum(_asked(loss) for loss in window)) * self.world.size / tokens
        flops = training_flops(self.recipe, self.model.config, trained)
        return {"mfu": round(flops * rate / peak / self.world.size, 4)}

    def _tell(self, row: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(self.step, row)


def _asked(loss: Loss) -> Tensor:
    """Rows of the loss: the weight of each may be below 1."""
    lost = loss.metrics.get("left_out")
    return loss.weight.double() if lost is None else lost[1] - lost[0]


def add_losses(losses: Sequence[Loss]) -> Loss:
    """Of the parts of a batch, that of the whole."""
    first, *others = losses
    for loss in others:
        metrics = {name: value + loss.metrics[name] for name, value in first.metrics.items()}
        first = Loss(first.sum + loss.sum, first.weight + loss.weight, metrics)
    return first


def mean_metrics(window: Sequence[Loss], world: World) -> dict[str, float]:
    """Loss per token and the ratios of all metrics, over steps and ranks."""
    pairs = [torch.stack((loss.sum.double(), loss.weight.double())) for loss in window]
    found = [torch.stack((pair, *loss.metrics.values())) for pair, loss in zip(pairs, window, strict=True)]
    total = torch.stack(found).sum(0)
    world.sum([total])
    ratios = (total[:, 0] / total[:, 1].clamp(min=1e-9)).tolist()
    return dict(zip(("loss", *window[0].metrics), ratios, strict=True))


def train(recipe: Recipe, make_probes: Callable[[Recipe], Sequence[Probe]] | None = None) -> None:
    """Run a recipe in this process, as one of those that torchrun started if it did."""
    world = World.start(recipe.device)
    probes = make_probes(recipe) if make_probes is not None and world.main else ()
    Trainer(recipe, world=world, probes=probes).run()
    world.close()  # not after an error: others may be waiting for this process, and torchrun ends them once it is gone


def run_recipe(
    path: Path, overrides: list[str], make_probes: Callable[[Recipe], Sequence[Probe]] | None = None
) -> None:
    """`openmercury train RECIPE [key=value …]`."""
    train(load_config(Recipe, path, overrides), make_probes)
