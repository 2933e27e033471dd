"""Checkpoints in and out: a GGUF file or a `transformers` folder becomes a checkpoint folder, and a network a folder.

GGUF blocks are copied as they are, never decoded, so an import loses nothing. Output appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from openmercury.errors import CheckpointError, UnsupportedError
from openmercury.model.config import HF_CLASS, ModelConfig, read_config, to_hf
from openmercury.model.quantized import dequantize
from openmercury.model.transformer import Transformer
from openmercury.model.weights import Progress, base_files, fused_rows, open_tensors, save_gguf, sources, write_manifest

SHARD_BYTES = 48_000_000
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
)

TokenizerFiles = Callable[[gguf.GGUFReader], Mapping[str, str]]


def import_checkpoint(
    src: Path,
    out: Path,
    tokenizer_files: TokenizerFiles,
    *,
    compact: bool = False,
    progress: Progress | None = None,
) -> None:
    """Make the checkpoint folder `out` from `src`; raises CheckpointError or UnsupportedError with the remedy.

    Some GGUF files hold a tied embedding twice, at two precisions: `compact` keeps the smaller copy.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists: name a new folder or delete it first")
    if not src.exists():
        raise CheckpointError(f"there is no {src}: give a GGUF file or a folder with config.json")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if src.is_dir():
            _import_folder(src, partial)
        else:
            _import_gguf(src, partial, tokenizer_files, compact, progress)
        write_manifest(partial)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _import_folder(src: Path, out: Path) -> None:
    config = read_config(src)
    style, paths = base_files(src)
    reader = open_tensors(paths)
    missing = [name for names in sources(config, style).values() for name in names if name not in reader]
    if missing:
        raise CheckpointError(f"{src} lacks tensor {missing[0]} and {len(missing) - 1} others: fetch the shards again")
    for path in paths:
        shutil.copyfile(path, out / path.name)
    for name in TOKENIZER_FILES:
        if (src / name).exists():
            shutil.copyfile(src / name, out / name)
    (out / "config.json").write_text(json.dumps(to_hf(config), indent=2) + "\n", encoding="utf-8")


def _value(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def gguf_config(reader: gguf.GGUFReader, eos_ids: tuple[int, ...]) -> ModelConfig:
    """Architecture from GGUF metadata; an output matrix is read as tied when it is a copy of the embedding."""
    name = _value(reader, "general.architecture")
    if name not in HF_CLASS:
        raise UnsupportedError(f"GGUF architecture {name!r} is not supported: use one of {', '.join(sorted(HF_CLASS))}")
    shapes = {tensor.name: [int(n) for n in tensor.shape] for tensor in reader.tensors}
    heads = int(_value(reader, f"{name}.attention.head_count"))
    width = int(_value(reader, f"{name}.embedding_length"))
    if _value(reader, f"{name}.rope.scaling.type", "none") not in ("none", None) or "rope_freqs.weight" in shapes:
        raise UnsupportedError(
            "GGUF files with scaled rope are not supported: import the `transformers` folder instead"
        )
    return ModelConfig(
        architecture=name,
        vocab_size=shapes["token_embd.weight"][1],
        d_model=width,
        d_ffn=int(_value(reader, f"{name}.feed_forward_length")),
        n_layers=int(_value(reader, f"{name}.block_count")),
        n_heads=heads,
        n_kv_heads=int(_value(reader, f"{name}.attention.head_count_kv", heads)),
        head_size=int(_value(reader, f"{name}.attention.key_length", width // heads)),
        norm_eps=float(f"{_value(reader, f'{name}.attention.layer_norm_rms_epsilon', 1e-6):.6g}"),
        rope_theta=float(_value(reader, f"{name}.rope.freq_base", 10_000.0)),
        max_context=int(_value(reader, f"{name}.context_length")),
        tied=_is_tied(reader),
        qkv_bias=name == "qwen2",
        qk_norm=name == "qwen3",
        eos_ids=eos_ids,
    )


def _is_tied(reader: gguf.GGUFReader) -> bool:
    """Converters store a tied matrix once, or twice at two precisions; copies differ by rounding only (< 10 %)."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "output.weight" not in tensors:
        return True
    head, embedding = (torch.empty(1024, int(tensors[n].shape[0])) for n in ("output.weight", "token_embd.weight"))
    for out, name in ((head, "output.weight"), (embedding, "token_embd.weight")):
        dequantize(tensors[name].data[:1024], tensors[name].tensor_type, out)
    return bool((head - embedding).norm() < 0.1 * head.norm())


def _unpermute(data: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's interleaving of rotary halves; rows move, so quantised blocks stay whole."""
    return data.reshape(heads, data.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(data.shape)


def _gguf_tensors(reader: gguf.GGUFReader, config: ModelConfig, compact: bool) -> Iterator[tuple[str, Any, np.ndarray]]:
    """(name, type, data) of the tensors a checkpoint needs; of a matrix stored twice one copy."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for names in sources(config, "gguf").values():
        for name in names:
            tensor = tensors.get(name)
            if name == "token_embd.weight" and config.tied and "output.weight" in tensors:
                pick = min if compact else max
                tensor = pick(tensors[name], tensors["output.weight"], key=lambda copy: int(copy.n_bytes))
            if tensor is None:
                raise CheckpointError(f"the GGUF file lacks tensor {name}: fetch it again")
            data = tensor.data
            if config.architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
                data = _unpermute(data, config.n_heads if "attn_q" in name else config.n_kv_heads)
            yield name, tensor.tensor_type, data


def _import_gguf(
    src: Path, out: Path, tokenizer_files: TokenizerFiles, compact: bool, progress: Progress | None
) -> None:
    try:
        reader = gguf.GGUFReader(str(src))
    except (ValueError, IndexError, OSError) as error:
        raise CheckpointError(f"{src} is not a whole GGUF file ({error}): fetch it again") from None
    for name, text in tokenizer_files(reader).items():
        (out / name).write_text(text, encoding="utf-8")
    eos = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_ids", ())
    config = gguf_config(reader, tuple(eos))
    (out / "config.json").write_text(json.dumps(to_hf(config), indent=2) + "\n", encoding="utf-8")
    write_shards(out, _gguf_tensors(reader, config, compact), config.architecture, progress)


def write_shards(
    out: Path, tensors: Iterator[tuple[str, Any, np.ndarray]], architecture: str, progress: Progress | None = None
) -> None:
    """Spread tensors over GGUF files below `SHARD_BYTES`; larger ones are split by rows."""
    shards: list[dict[str, tuple[np.ndarray, Any]]] = [{}]
    room = SHARD_BYTES
    for name, kind, data in tensors:
        for part_name, part in _row_parts(name, data):
            if part.nbytes > room:
                shards.append({})
                room = SHARD_BYTES
            shards[-1][part_name] = (np.ascontiguousarray(part), kind)
            room -= part.nbytes
    for number, shard in enumerate(shards):
        save_gguf(out / f"base-{number + 1:05d}-of-{len(shards):05d}.gguf", shard, architecture)
        if progress is not None:
            progress(number + 1, len(shards))


def _row_parts(name: str, data: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    parts = -(-data.nbytes // SHARD_BYTES)
    if parts == 1:
        yield name, data
        return
    step = -(-len(data) // parts)
    for index in range(parts):
        yield f"{name}.rows{index}", data[index * step : (index + 1) * step]


def save_hf(model: Transformer, out: Path) -> None:
    """Write base weights and config.json as `transformers` names them (the adapter is not part of it)."""
    out.mkdir(parents=True, exist_ok=True)
    table, tensors = sources(model.config, "hf"), dict[str, Tensor]()
    state = dict(model.named_parameters())
    for ours, names in table.items():
        parameter = state[ours].data
        parts = parameter.split(fused_rows(model.config, ours) or [len(parameter)])
        tensors.update({name: part.contiguous().clone() for name, part in zip(names, parts, strict=True)})
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(to_hf(model.config), indent=2) + "\n", encoding="utf-8")
