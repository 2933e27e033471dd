"""Small networks on equal tokens, autoregressive and block diffusion: how far is the bound from the likelihood?

    python docs/experiments/twins.py FOLDER_OF_PYTHON OUT [key=value …]      # OMP_NUM_THREADS=1 on a busy machine

A byte-level BPE and shards are made of the folder's files, `recipes/pretrain-150m.toml` is scaled down by the
overrides below, and the twins are trained through the trainer, from the same weights on the same rows. Eight times the
held-out texts are read: the AR twin gives their likelihood, the others their bound (`diffusion.bound`). Writes
OUT/twins.json and docs/images/twins.svg.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
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

VOCABULARY, LENGTH, HELD_OUT, BLOCKS, SAMPLES, LOOKS = 1024, 128, 32, (1, 2, 4, 8, 16), 4, 8
EOS, MASK = 0, 1
CORPUS = 5_000_000  # characters
SHAPE = {
    "architecture.vocab_size": VOCABULARY,
    "architecture.d_model": 96,
    "architecture.d_ffn": 256,
    "architecture.n_layers": 3,
    "architecture.n_heads": 3,
    "architecture.n_kv_heads": 1,
    "architecture.head_size": 32,
    "architecture.max_context": 1024,
    "mask_id": MASK,
    "learn": "full",
    "data.row_length": LENGTH,
    "data.rows": 16,
    "data.forward_rows": 16,
    "eval.share": 0.02,
    "eval.rows": 4,
    "steps": 600,
    "compile": "false",
    "optim.lr": 3e-3,
    "optim.warmup_steps": 40,
    "device": "cpu",
}
TWINS = {
    "ar": ['objective={kind = "ar"}'],
    "mixed": [f"objective.block_sizes={list(BLOCKS)}"],
    **{f"K={size}": [f"objective.block_sizes=[{size}]"] for size in (2, 16)},
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
def look(model: Transformer, held: torch.Tensor, sizes: Sequence[int]) -> dict[str, float]:
    """Nats a token of the held-out texts: exactly, and bounded for each block size that it learnt."""
    tokens = held.shape[0] * (held.shape[1] - 1)
    found = {"exact": float(read_clean(model, held).nll_BL.sum()) / tokens}
    for size in sizes:
        generator = torch.Generator().manual_seed(0)
        each = [nll_bound(model, ids, 1, size, SAMPLES, generator).mean() for ids in held]
        found[f"K={size}"] = float(torch.stack(each).sum()) / tokens
    return found


def train_twin(name: str, out: Path, held: torch.Tensor, more: list[str]) -> list[dict[str, float]]:
    """One run, looked at LOOKS times and before its first step."""
    fields = {**SHAPE, "tokenizer": out / "tokenizer", "out": out / name, "data.path": out / "shards"}
    overrides = [f"{key}={value}" for key, value in fields.items()] + TWINS[name] + more
    recipe = load_config(Recipe, Path("recipes/pretrain-150m.toml"), overrides)
    trainer, sizes = Trainer(recipe, Console()), getattr(recipe.objective, "block_sizes", ())
    rows, begin = list[dict[str, float]](), time.monotonic()
    for step in range(recipe.steps + 1):
        if step % (recipe.steps // LOOKS) == 0:
            paused = time.monotonic()
            rows.append({"tokens": trainer.tokens, "seconds": paused - begin, **look(trainer.model, held, sizes)})
            print(name, {key: round(value, 3) for key, value in rows[-1].items()}, flush=True)
            begin += time.monotonic() - paused
        if step < recipe.steps:
            trainer.train_step()
    return rows


def draw(path: Path, found: dict[str, list[dict[str, float]]]) -> None:
    """Nats a token against tokens read: one twin that learnt all block sizes, and twins that learnt one each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    lines = [{f"K={size}": "mixed" for size in BLOCKS}, {name: name for name in TWINS if name.startswith("K=")}]
    titles = "one model, all block sizes", "a model for each block size"
    for axes, shown, title in zip(panels, lines, titles, strict=True):
        for key, name in shown.items():
            rows = found[name][1:]
            colour = f"C{BLOCKS.index(int(key[2:]))}"
            label = f"bound, {key}"
            axes.plot(
                [row["tokens"] / 1e6 for row in rows], [row[key] for row in rows], ".-", color=colour, label=label
            )
        rows = found["ar"][1:]
        axes.plot([row["tokens"] / 1e6 for row in rows], [row["exact"] for row in rows], "k--", label="AR twin")
        axes.set(xlabel="million tokens read", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("held-out nats a token")
    figure.savefig(path)


def main() -> None:
    """Make data, train all, draw."""
    folder, out, more = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    torch.manual_seed(0)
    held = make_data(folder, out)
    found = {name: train_twin(name, out, held, more) for name in TWINS}
    (out / "twins.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    draw(Path("docs/images/twins.svg"), found)


if __name__ == "__main__":
    main()
