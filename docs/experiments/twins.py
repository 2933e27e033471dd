"""Two small networks on equal tokens, one autoregressive, one block diffusion: how far is bound from likelihood?

    python docs/experiments/twins.py FOLDER_OF_PYTHON OUT [key=value …]

A byte-level BPE and shards are made of the folder's files, `recipes/pretrain-150m.toml` is scaled down by the
overrides below, and both twins are trained through the trainer. Every tenth of the run the held-out texts are read: the
AR twin gives their likelihood, the diffusion twin its bound for blocks of 1 … 16 (`diffusion.bound`). Writes
OUT/twins.json and docs/images/twins.svg.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import tokenizers
import torch
from rich.console import Console

from openmercury.config import load_config
from openmercury.data.shards import Example, write_manifest, write_shard
from openmercury.diffusion.bound import nll_bound, read_clean
from openmercury.model.transformer import Transformer
from openmercury.text.tokenizer import Tokenizer
from openmercury.train.config import Recipe
from openmercury.train.trainer import Trainer

VOCABULARY, LENGTH, HELD_OUT, BLOCKS, SAMPLES, LOOKS = 2048, 256, 48, (1, 2, 4, 8, 16), 4, 10
EOS, MASK = 0, 1
CORPUS = 8_000_000  # bytes
SHAPE = {
    "architecture.vocab_size": VOCABULARY,
    "architecture.d_model": 128,
    "architecture.d_ffn": 384,
    "architecture.n_layers": 4,
    "architecture.n_heads": 4,
    "architecture.n_kv_heads": 2,
    "architecture.head_size": 32,
    "architecture.max_context": 1024,
    "mask_id": MASK,
    "learn": "full",
    "data.row_length": LENGTH,
    "data.rows": 16,
    "steps": 600,
    "compile": "false",
    "optim.lr": 2e-3,
    "optim.warmup_steps": 40,
    "device": "cpu",
}
TWINS = {
    "ar": ["objective.kind=ar"],
    "diffusion": [
        "objective.kind=block_diffusion",
        f"objective.block_sizes={list(BLOCKS)}",
        "objective.weights=bound",
        "objective.ce=1.0",
        "objective.kl=0.0",
    ],
}


def make_data(folder: Path, out: Path) -> torch.Tensor:
    """Tokenizer and training shards under `out`; returns held-out texts [HELD_OUT, LENGTH]."""
    paths = sorted(folder.rglob("*.py"), key=lambda path: hashlib.sha256(path.name.encode()).digest())
    texts, size = list[str](), 0
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="ignore")
        if 2_000 < len(text) < 60_000:
            texts.append(text)
            size += len(text)
        if size > CORPUS:
            break
    held, kept = texts[: HELD_OUT * 2], texts[HELD_OUT * 2 :]
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<eos>", "<mask>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(kept, trainer)
    (out / "tokenizer").mkdir(parents=True)
    core.save(str(out / "tokenizer" / "tokenizer.json"))
    tokenizer = Tokenizer.load(out / "tokenizer")
    examples = [Example([*tokenizer.encode(text), EOS], 0) for text in kept]
    write_shard(out / "shards" / "python.safetensors", examples, tokenizer=tokenizer.fingerprint)
    write_manifest(out / "shards", {"corpus": "Python files of installed packages"})
    rows = [tokenizer.encode(text) for text in held]
    return torch.tensor([row[:LENGTH] for row in rows if len(row) >= LENGTH][:HELD_OUT])


@torch.inference_mode()
def look(model: Transformer, held: torch.Tensor) -> dict[str, float]:
    """Nats a token of the held-out texts: exactly, and where the model denoises, bounded for each block size."""
    tokens = held.shape[0] * (held.shape[1] - 1)
    found = {"exact": float(read_clean(model, held).nll_BL.sum()) / tokens}
    for size in BLOCKS if model.config.diffusion is not None else ():
        generator = torch.Generator().manual_seed(0)
        each = [nll_bound(model, ids, 1, size, SAMPLES, generator).mean() for ids in held]
        found[f"K={size}"] = float(torch.stack(each).sum()) / tokens
    return found


def train_twin(name: str, out: Path, held: torch.Tensor, more: list[str]) -> list[dict[str, float]]:
    """One run, looked at LOOKS times and before its first step."""
    fields = {**SHAPE, "tokenizer": out / "tokenizer", "out": out / name, "data.path": out / "shards"}
    overrides = [f"{key}={value}" for key, value in fields.items()] + TWINS[name] + more
    recipe = load_config(Recipe, Path("recipes/pretrain-150m.toml"), overrides)
    trainer = Trainer(recipe, Console())
    rows, begin = list[dict[str, float]](), time.monotonic()
    for step in range(recipe.steps + 1):
        if step % (recipe.steps // LOOKS) == 0:
            paused = time.monotonic()
            rows.append({"tokens": trainer.tokens, "seconds": paused - begin, **look(trainer.model, held)})
            print(name, {key: round(value, 3) for key, value in rows[-1].items()}, flush=True)
            begin += time.monotonic() - paused
        if step < recipe.steps:
            trainer.train_step()
    return rows


def draw(path: Path, found: dict[str, list[dict[str, float]]]) -> None:
    """Nats a token against tokens read."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ar, diffusion = found["ar"], found["diffusion"]
    for shade, size in zip((0.95, 0.8, 0.62, 0.45, 0.3), BLOCKS, strict=True):
        values = [row[f"K={size}"] for row in diffusion[1:]]
        colour = (0.1, 0.35 + 0.5 * (1 - shade), shade)
        axes.plot(
            [row["tokens"] / 1e6 for row in diffusion[1:]], values, marker=".", color=colour, label=f"bound, K = {size}"
        )
    axes.plot([row["tokens"] / 1e6 for row in ar[1:]], [row["exact"] for row in ar[1:]], "k--", label="AR twin")
    axes.set(
        xlabel="million tokens read",
        ylabel="held-out nats a token",
        title="The bound of block diffusion and its AR twin",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    """Make data, train both, draw."""
    folder, out, more = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    torch.manual_seed(0)
    held = make_data(folder, out)
    found = {name: train_twin(name, out, held, more) for name in TWINS}
    (out / "twins.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    draw(Path("docs/images/twins.svg"), found)


if __name__ == "__main__":
    main()
