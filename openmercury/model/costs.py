"""A short measurement of the machine: what a forward's matrix products cost, by format of the weights and by rows.

The matrices of one layer, repeated until no cache holds them, are multiplied in the form that decoding uses, and the
time is scaled to all weights of the checkpoint. The least of several interleaved passes counts: other work on the
machine only ever adds. What was found is kept for this processor, PyTorch, number of threads and shape of network,
since it takes about a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.log import get_logger
from openmercury.model import machine
from openmercury.model.config import ModelConfig
from openmercury.model.packed import Int8Linear, PackedLinear, can_pack

ROWS = (1, 2, 4, 8, 12, 16, 24, 32)
SECONDS = 0.8  # of measuring, beside which packing takes as long again
LEAST_PASSES, MOST_PASSES = 2, 8
BYTES = 96_000_000  # of each format: more than a cache holds, since a forward reads its weights from memory
CACHE = "probe.json"

Costs = dict[int, float]  # rows → milliseconds
Product = Callable[[Tensor], Tensor]


class Format(NamedTuple):
    """How weights are held, and the dtype of the activations they meet."""

    dtype: torch.dtype
    int8: bool = False

    @property
    def bytes(self) -> int:
        """Of one weight."""
        return 1 if self.int8 else self.dtype.itemsize


FORMATS = {
    "float32": Format(torch.float32),
    "bfloat16": Format(torch.bfloat16),
    "float64": Format(torch.float64),
    "int8": Format(torch.float32, int8=True),
}


def packable(kind: Format) -> bool:
    """Are there packed products for this format on this CPU?"""
    return can_pack(Int8Linear if kind.int8 else PackedLinear, kind.dtype)


def candidates(device: str) -> list[str]:
    """Formats worth measuring: on a CPU those with packed products, else the plain ones."""
    plain = ["float32", "bfloat16"]
    if device != "cpu":
        return plain
    return [name for name in ("float32", "bfloat16", "int8") if packable(FORMATS[name])] or plain


def weights_read(config: ModelConfig) -> int:
    """Weights of one forward: all matrices, and the embedding once, as the output head."""
    return config.n_layers * sum(o * i for o, i in _layer(config)) + config.vocab_size * config.d_model


def _layer(config: ModelConfig) -> list[tuple[int, int]]:
    """[out, in] of the matrices of one layer."""
    d, e = config.d_model, config.head_size
    qkv = (config.n_heads + 2 * config.n_kv_heads) * e
    return [(qkv, d), (d, config.n_heads * e), (2 * config.d_ffn, d), (d, config.d_ffn)]


def measure(config: ModelConfig, device: str = "cpu", seconds: float = SECONDS) -> dict[str, Costs]:
    """Milliseconds of one forward's matrix products on this machine, for each candidate format and each of `ROWS`."""
    products = {name: _products(config, FORMATS[name], device) for name in candidates(device)}
    best = {name: dict.fromkeys(ROWS, float("inf")) for name in products}
    begin, passes = time.perf_counter(), 0
    while passes < LEAST_PASSES or (passes < MOST_PASSES and time.perf_counter() - begin < seconds):
        for name, (layers, scale) in products.items():
            for rows in ROWS:
                best[name][rows] = min(best[name][rows], 1e3 * scale * _seconds(layers, rows))
        passes += 1
    return {name: rising(costs) for name, costs in best.items()}


def rising(costs: Costs) -> Costs:
    """The same with no number of rows dearer than a larger one: what exceeds that was another program's doing."""
    return {rows: round(min(ms for more, ms in costs.items() if more >= rows), 2) for rows in costs}


Layers = list[tuple[Product, Tensor]]  # a product and the widest input for it, [rows, in]


def _products(config: ModelConfig, kind: Format, device: str) -> tuple[Layers, float]:
    """A few layers' products, and all weights of the network ÷ theirs."""
    shapes = _layer(config)
    count = sum(o * i for o, i in shapes)
    copies = min(config.n_layers, -(-BYTES // (count * kind.bytes)))
    matrices = [torch.full(shape, 0.01, dtype=kind.dtype, device=device) for shape in shapes]
    layers: Layers = []
    for _ in range(copies):
        for matrix in matrices:
            x = torch.ones(max(ROWS), matrix.shape[1], dtype=kind.dtype, device=device)
            layers.append((_product(matrix, kind), x))
    return layers, weights_read(config) / (copies * count)


def _product(matrix: Tensor, kind: Format) -> Product:
    if matrix.device.type == "cpu" and packable(kind):
        return Int8Linear(matrix, None) if kind.int8 else PackedLinear(matrix, None)
    own = matrix.clone()
    return lambda x: F.linear(x, own)


@torch.inference_mode()
def _seconds(layers: Layers, rows: int) -> float:
    begin = time.perf_counter()
    for product, x in layers:
        product(x[:rows])
    if layers[0][1].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


# --- what is remembered ----------------------------------------------------------------------------------------------


def cache_file() -> Path:
    """Under XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openmercury" / CACHE


def _key(config: ModelConfig) -> str:
    told = (machine.processor()[0], torch.__version__, torch.get_num_threads(), _layer(config), weights_read(config))
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def recall(config: ModelConfig) -> dict[str, Costs] | None:
    """What was measured here for this shape before; None where nothing was, or nothing usable is kept."""
    try:
        kept = json.loads(cache_file().read_text(encoding="utf-8"))[_key(config)]
        found = {str(name): {int(rows): float(ms) for rows, ms in costs.items()} for name, costs in kept.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found and all(name in FORMATS and costs for name, costs in found.items()) else None


def remember(config: ModelConfig, found: Mapping[str, Costs]) -> None:
    """Keep it for the next start; a folder that cannot be written only means measuring again."""
    path = cache_file()
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError):
        kept = {}
    kept = {**(kept if isinstance(kept, dict) else {}), _key(config): found}
    whole = path.with_suffix(f".{os.getpid()}")  # another process may be reading
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(json.dumps(kept), encoding="utf-8")
        whole.replace(path)
    except OSError as error:
        get_logger().info("the measurement of this CPU is not kept: %s", error)


def costs_of(config: ModelConfig, *, afresh: bool = False) -> dict[str, Costs]:
    """The costs of this CPU, measured now if they are not known yet."""
    found = None if afresh else recall(config)
    if found is None:
        found = measure(config)
        remember(config, found)
    return found
