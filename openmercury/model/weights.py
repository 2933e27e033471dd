"""Weights of a checkpoint folder: GGUF or safetensors shards in, one `Transformer` out. Nothing is ever unpickled.

Our network fuses q, k, v and gate, up; `sources` maps each of its parameters to the tensors it is stacked from, under
the names of GGUF (llama.cpp) and of `transformers`. A GGUF tensor too large for one shard is stored as row parts named
`NAME.rows0`, `NAME.rows1`, …. `weights.json` lists each file with its bytes and sha256, so that a missing or cut shard
is named before anything is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import gguf
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openmercury.errors import CheckpointError
from openmercury.model.config import ModelConfig, read_config
from openmercury.model.quantized import dequantize
from openmercury.model.transformer import Transformer, rotary_frequencies

MANIFEST = "weights.json"
ADAPTER_FILES = ("adapter.gguf", "adapter.safetensors")

Progress = Callable[[int, int], None]  # (done, total) in tensors


class TensorReader(Protocol):
    """Reads named tensors of one folder into given memory."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str, out: Tensor) -> None: ...


class GGUFTensors:
    """Tensors of GGUF files; row parts are joined."""

    def __init__(self, paths: list[Path]) -> None:
        self.parts: dict[str, list[Any]] = {}
        for path in paths:
            try:
                reader = gguf.GGUFReader(str(path))
            except (ValueError, IndexError, OSError) as error:
                raise CheckpointError(f"{path.name} is not a whole GGUF file ({error}): fetch it again") from None
            for tensor in reader.tensors:
                self.parts.setdefault(tensor.name.split(".rows")[0], []).append(tensor)
        for parts in self.parts.values():
            parts.sort(key=lambda part: int([*part.name.split(".rows"), "0"][1]))

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def read(self, name: str, out: Tensor) -> None:
        parts = self.parts[name]
        _check_size(name, sum(int(part.n_elements) for part in parts), out)
        flat, begin = out.view(-1), 0
        for part in parts:
            end = begin + int(part.n_elements)
            dequantize(part.data, part.tensor_type, flat[begin:end])
            begin = end


class SafeTensors:
    """Tensors of safetensors files."""

    def __init__(self, paths: list[Path]) -> None:
        self.files: dict[str, Any] = {}
        for path in paths:
            try:
                handle = safe_open(str(path), framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path.name} is not a whole safetensors file ({error}): fetch it again"
                ) from None
            self.files.update(dict.fromkeys(handle.keys(), handle))

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str, out: Tensor) -> None:
        tensor = self.files[name].get_tensor(name)
        _check_size(name, tensor.numel(), out)
        out.copy_(tensor.view(out.shape))


def _check_size(name: str, found: int, out: Tensor) -> None:
    if found != out.numel():
        raise CheckpointError(
            f"tensor {name} has {found} values where config.json asks for {out.numel()}: config.json and weights "
            "belong to different checkpoints; fetch both again"
        )


def sources(config: ModelConfig, style: str) -> dict[str, list[str]]:
    """Our base parameter → the tensors stacked into it, for style "gguf" or "hf"."""
    hf = style == "hf"
    layer = "model.layers.{}." if hf else "blk.{}."
    attention, mlp = ("self_attn.{}_proj", "mlp.{}_proj") if hf else ("attn_{}", "ffn_{}")
    out = "o" if hf else "output"
    table = {
        "attention_norm.weight": ["input_layernorm.weight" if hf else "attn_norm.weight"],
        "qkv.weight": [attention.format(x) + ".weight" for x in "qkv"],
        "out.weight": [attention.format(out) + ".weight"],
        "ffn_norm.weight": ["post_attention_layernorm.weight" if hf else "ffn_norm.weight"],
        "gate_up.weight": [mlp.format(x) + ".weight" for x in ("gate", "up")],
        "down.weight": [mlp.format("down") + ".weight"],
    }
    if config.qkv_bias:
        table["qkv.bias"] = [attention.format(x) + ".bias" for x in "qkv"]
    if config.qk_norm:
        for x in "qk":
            table[f"{x}_norm.weight"] = [f"self_attn.{x}_norm.weight" if hf else f"attn_{x}_norm.weight"]
    found = {
        "embedding.weight": ["model.embed_tokens.weight" if hf else "token_embd.weight"],
        "norm.weight": ["model.norm.weight" if hf else "output_norm.weight"],
    }
    if not config.tied:
        found["head.weight"] = ["lm_head.weight" if hf else "output.weight"]
    for index in range(config.n_layers):
        for ours, theirs in table.items():
            found[f"layers.{index}.{ours}"] = [layer.format(index) + name for name in theirs]
    return found


def fused_rows(config: ModelConfig, parameter: str) -> list[int] | None:
    """Row counts of the tensors stacked into a fused parameter; None where there is only one."""
    heads, groups = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
    if ".qkv." in parameter:
        return [heads, groups, groups]
    return [config.d_ffn, config.d_ffn] if ".gate_up." in parameter else None


def _fill(name: str, parameter: Tensor, names: list[str], rows: list[int] | None, reader: TensorReader) -> None:
    for part, source in zip(parameter.split(rows or [len(parameter)]), names, strict=True):
        if source not in reader:
            raise CheckpointError(f"tensor {source} is missing from the weights: fetch the checkpoint again")
        reader.read(source, part)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """`weights.json` as file name → {"bytes", "sha256"}; empty when the folder has none."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        files: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is broken ({error}): fetch the checkpoint again") from None
    return files


def write_manifest(folder: Path) -> None:
    """Record bytes and sha256 of every weight file in `folder`."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.suffix in (".gguf", ".safetensors")
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damaged_files(folder: Path, *, hashes: bool = False) -> Iterator[tuple[str, str]]:
    """(file name, what is wrong) for every listed file that is missing or cut, or, with `hashes`, altered."""
    for name, facts in read_manifest(folder).items():
        path = folder / name
        if not path.exists():
            yield name, "is missing"
        elif path.stat().st_size != facts["bytes"]:
            yield name, f"has {path.stat().st_size} bytes instead of {facts['bytes']}"
        elif hashes and sha256(path) != facts["sha256"]:
            yield name, "has the wrong sha256"


def base_files(folder: Path) -> tuple[str, list[Path]]:
    for style, suffix in (("gguf", ".gguf"), ("hf", ".safetensors")):
        paths = sorted(p for p in folder.glob(f"*{suffix}") if p.name not in ADAPTER_FILES)
        if paths:
            return style, paths
    raise CheckpointError(f"{folder} holds no GGUF or safetensors weights: fetch the checkpoint again")


def open_tensors(paths: list[Path]) -> TensorReader:
    """Reader for files of one kind."""
    return GGUFTensors(paths) if paths[0].suffix == ".gguf" else SafeTensors(paths)


def empty_model(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """A network whose weights are allocated but not set."""
    with torch.device("meta"):
        model = Transformer(config)
    model.to(dtype).to_empty(device=device)
    model.frequency = rotary_frequencies(config).to(device)
    if config.tied:
        model.head.weight = model.embedding.weight
    return model.requires_grad_(False)


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    config: ModelConfig | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """Load the checkpoint in `folder`; raises CheckpointError naming the file or tensor that is wrong."""
    config = config or read_config(folder)
    for name, problem in damaged_files(folder):
        raise CheckpointError(f"{folder / name} {problem}: fetch that file again")
    style, paths = base_files(folder)
    model = empty_model(config, dtype, "cpu")
    reader, table = open_tensors(paths), sources(config, style)
    state = dict(model.named_parameters())
    for done, (name, names) in enumerate(table.items()):
        _fill(name, state[name].data, names, fused_rows(config, name), reader)
        if progress is not None:
            progress(done + 1, len(table))
    if model.adapter is not None:
        _load_adapter(folder, model)
    return model.to(device)


def _load_adapter(folder: Path, model: Transformer) -> None:
    assert model.adapter is not None
    paths = [folder / name for name in ADAPTER_FILES if (folder / name).exists()]
    if not paths:
        raise CheckpointError(f"{folder} names an adapter in config.json but holds none of {', '.join(ADAPTER_FILES)}")
    reader = open_tensors(paths[:1])
    for name, parameter in model.adapter.named_parameters():
        _fill(name, parameter.data, [name], None, reader)


def save_gguf(
    path: Path, tensors: Mapping[str, tuple[Any, gguf.GGMLQuantizationType | None]], architecture: str
) -> None:
    """Write one GGUF file; data with a type is raw blocks, without one a float32 array."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
