"""A short measurement of the machine: what a forward costs, by format of the weights and by rows.

A network of a few of the layers, and of as large a share of the vocabulary, is packed as decoding packs it and run over
noisy rows; its time is scaled to all layers. It is larger than caches are, since a forward reads its weights from
memory. The least of several interleaved passes counts: other work on the machine only ever adds. What was found is kept
for this processor, PyTorch, number of threads and shape of network, since it takes more than a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from openmercury.log import get_logger
from openmercury.model import machine
from openmercury.model.attention import DenseAttend
from openmercury.model.config import ModelConfig
from openmercury.model.float8 import FLOAT8, round_weights
from openmercury.model.packed import Int8Linear, PackedLinear, can_pack, pack
from openmercury.model.transformer import Transformer
from openmercury.model.weights import empty_model

ROWS = (1, 2, 4, 8, 12, 16, 24, 32)
SECONDS = 0.8  # of measuring, beside which packing takes as long
LEAST_PASSES, MOST_PASSES = 2, 8
BYTES = 96_000_000  # of each format: more than a cache holds, since a forward reads its weights from memory
CACHE = "probe.json"

Costs = dict[int, float]  # rows → milliseconds


class Format(NamedTuple):
    """The dtype of activations, and that of the weights where they are rounded further, with a scale an output row."""

    dtype: torch.dtype
    rounded: torch.dtype | None = None

    @property
    def bytes(self) -> int:
        """Of one weight."""
        return (self.rounded or self.dtype).itemsize


FORMATS = {
    "float32": Format(torch.float32),
    "bfloat16": Format(torch.bfloat16),
    "float64": Format(torch.float64),
    "int8": Format(torch.float32, torch.int8),
    "fp8": Format(torch.bfloat16, FLOAT8),
}


def packable(kind: Format) -> bool:
    """Are there packed products for this format on this CPU?"""
    return kind.rounded != FLOAT8 and can_pack(_packed(kind), kind.dtype)


def _packed(kind: Format) -> type[Int8Linear | PackedLinear]:
    return PackedLinear if kind.rounded is None else Int8Linear


def pack_as(kind: Format, network: Transformer) -> None:
    """Round weights to fp8; pack those of a CPU network where there are packed products for its format."""
    if kind.rounded == FLOAT8:
        round_weights(network)
    elif network.embedding.weight.device.type == "cpu" and packable(kind):
        pack(network, _packed(kind))


def candidates(device: str) -> list[str]:
    """Formats worth measuring: on a CPU those with packed products, else the plain ones."""
    plain = ["float32", "bfloat16"]
    if device != "cpu":
        return plain
    return [name for name in ("float32", "bfloat16", "int8") if packable(FORMATS[name])] or plain


def weights_read(config: ModelConfig) -> int:
    """Weights of one forward: all matrices, and the embedding once, as the output head."""
    return config.n_layers * sum(o * i for o, i in layer_shapes(config)) + config.vocab_size * config.d_model


def layer_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """[out, in] of the matrices of one layer."""
    d, e = config.d_model, config.head_size
    qkv = (config.n_heads + 2 * config.n_kv_heads) * e
    return [(qkv, d), (d, config.n_heads * e), (2 * config.d_ffn, d), (d, config.d_ffn)]


def measure(config: ModelConfig, device: str = "cpu", seconds: float = SECONDS) -> dict[str, Costs]:
    """Milliseconds of one forward on this machine, its head included, for each candidate format and each of `ROWS`."""
    networks = {name: _network(config, FORMATS[name], device) for name in candidates(device)}
    best = {name: dict.fromkeys(ROWS, float("inf")) for name in networks}
    begin, passes = time.perf_counter(), 0
    while passes < LEAST_PASSES or (passes < MOST_PASSES and time.perf_counter() - begin < seconds):
        for name, network in networks.items():
            scale = 1e3 * config.n_layers / network.config.n_layers
            for rows in ROWS:
                best[name][rows] = min(best[name][rows], scale * _seconds(network, rows))
        passes += 1
    return {name: rising(costs) for name, costs in best.items()}


def rising(costs: Costs) -> Costs:
    """The same with no number of rows dearer than a larger one: what exceeds that was another program's doing."""
    return {rows: round(min(ms for more, ms in costs.items() if more >= rows), 2) for rows in costs}


def _network(config: ModelConfig, kind: Format, device: str) -> Transformer:
    """The first layers of a network, and the same share of its vocabulary, with some weights."""
    each = sum(o * i for o, i in layer_shapes(config)) * kind.bytes
    layers = min(config.n_layers, -(-BYTES // each))
    facts = config.diffusion and config.diffusion.model_copy(update={"mask_id": 0})
    share = -(-config.vocab_size * layers // config.n_layers)
    small = config.model_copy(update={"n_layers": layers, "vocab_size": share, "diffusion": facts})
    network = empty_model(small, kind.dtype, device)
    for parameter in network.parameters():
        parameter.fill_(0.01)
    pack_as(kind, network)
    return network


@torch.inference_mode()
def _seconds(network: Transformer, rows: int) -> float:
    device = network.embedding.weight.device
    position = torch.arange(rows, device=device)[None]
    attend = DenseAttend(torch.ones(1, rows, rows, dtype=torch.bool, device=device))
    ids, noisy = torch.ones_like(position), torch.ones_like(position, dtype=torch.bool)
    begin = time.perf_counter()
    network.logits(network(ids, position, attend, noisy)[0]).argmax(-1).tolist()
    return time.perf_counter() - begin


# --- what is remembered ----------------------------------------------------------------------------------------------


def cache_file() -> Path:
    """Under XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openmercury" / CACHE


def _key(config: ModelConfig) -> str:
    told = (
        machine.processor()[0],
        torch.__version__,
        torch.get_num_threads(),
        layer_shapes(config),
        weights_read(config),
    )
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
