"""`doctor`: what this machine is, what OpenMercury chose on it and why, and whether the model is whole.

Every problem comes with its remedy; exit 1 when one of them keeps the model from running. The probe times the largest
matrix of the model over 1, 8 and 32 positions and scales it to all weights: what a forward costs, before any cache.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openmercury.cli.options import option
from openmercury.errors import CheckpointError, OpenMercuryError, SandboxError

if TYPE_CHECKING:
    import torch

    from openmercury.model.config import ModelConfig

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")  # the last two are ARM's
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
POSITIONS = (1, 8, 32)
PROBE_SECONDS = 0.25  # for each of two formats and three widths
PROBE_BYTES = 96_000_000  # more than a cache holds: a forward reads its weights from memory
PROBE_ELEMENTS = 16_000_000
SHIPPED_SHAPE = (896, 9728, 493_961_216)  # its width, widest matrix and weights, for machines where it is missing

Facts = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    model: Annotated[str | None, option("Checkpoint folder to look at.", metavar="FOLDER")] = None,
    device: Annotated[str, option("auto, cpu or cuda.")] = "auto",
    hashes: Annotated[bool, option("Read every weight file and check its sha256.", "--hashes")] = False,
    as_json: Annotated[bool, option("Print one JSON object.", "--json")] = False,
) -> None:
    """Tell whether everything needed is here, and how fast it is."""
    from openmercury.cli.show import waiting

    problems: list[str] = []
    with waiting("looking around"):
        facts = examine(model, device, hashes, problems)
    facts["problems"] = problems
    if as_json:
        print(json.dumps(facts))
    else:
        print("\n".join(report(facts)))
    if problems:
        raise typer.Exit(1)


def examine(model: str | None, device: str, hashes: bool, problems: list[str]) -> Facts:
    """All facts by section; what is broken is appended to `problems`, each with its remedy."""
    facts: Facts = {"python": _python(), "cpu": _cpu(), "memory": _memory()}
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be imported ({error}): install it again, `make clean` and `make demo` do so")
        return facts
    facts["torch"] = {"version": torch.__version__, "threads": torch.get_num_threads(), "gpus": list(_gpus())}
    config = None
    try:
        facts["model"], config = _model(model, hashes, problems)
    except OpenMercuryError as error:
        problems.append(str(error))
    try:
        facts["device"], facts["dtype"], facts["why"] = _choice(device)
        facts["forward_ms"] = _probe(facts["device"], config)
    except OpenMercuryError as error:
        problems.append(str(error))
    if config is not None:
        _check_memory(facts, config, problems)
    facts["sandbox"] = _sandbox()
    return facts


# --- the machine -----------------------------------------------------------------------------------------------------


def _python() -> Facts:
    return {"version": platform.python_version(), "platform": platform.platform()}


def _cpu() -> Facts:
    told = _read("/proc/cpuinfo").splitlines()
    lines = dict(line.partition(":")[::2] for line in reversed(told) if ":" in line)
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    present = set((lines.get("flags") or lines.get("Features") or "").split())
    return {
        "name": lines.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in present],
    }


def _memory() -> Facts:
    """Gigabytes this process may use, the container's limit included; empty where the system does not tell."""
    lines = dict(line.partition(":")[::2] for line in _read("/proc/meminfo").splitlines())
    if "MemTotal" not in lines:
        return {}
    total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal() and int(limit) < total:
        used = _read("/sys/fs/cgroup/memory.current").strip()
        total = int(limit)
        available = min(available, total - int(used or 0))
    return {"total_gb": round(total / 1e9, 1), "available_gb": round(available / 1e9, 1)}


def _gpus() -> Iterator[str]:
    import torch

    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield f"{facts.name}, {facts.total_memory / 1e9:.0f} GB"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- what was chosen, and how fast it is -----------------------------------------------------------------------------


def _choice(device: str) -> tuple[str, str, str]:
    """Device, number format and the reason for it, by the same functions that load the model."""
    from openmercury.llm import pick_device, pick_dtype

    chosen = pick_device(device)
    dtype = str(pick_dtype("auto", chosen)).removeprefix("torch.")
    found = [flag for flag in BFLOAT16_FLAGS if flag in _cpu()["flags"]]
    if chosen.type == "cuda":
        why = "GPUs multiply it in hardware"
    elif dtype == "bfloat16":
        why = f"this CPU has {' and '.join(found)}, and half the bytes are read" if found else "the CPU supports it"
    else:
        why = f"this CPU has neither {' nor '.join(BFLOAT16_FLAGS)}, so bfloat16 would be emulated"
    return str(chosen), dtype, why


def _probe(device: str, config: ModelConfig | None) -> dict[str, dict[str, float]]:
    """Milliseconds of a forward's matrix products, by number format and positions; packed where decoding packs them."""
    import torch

    from openmercury.model.packed import PackedLinear, can_pack

    width, rows, weights = SHIPPED_SHAPE if config is None else (config.d_model, 2 * config.d_ffn, _weights(config))
    rows = min(rows, PROBE_ELEMENTS // width)
    copies = -(-PROBE_BYTES // (4 * width * rows))
    scale = weights / (copies * width * rows)
    found: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrices = [torch.full((rows, width), 0.01, dtype=dtype, device=device) for _ in range(copies)]
        linear = torch.nn.functional.linear
        products: list[Callable[[torch.Tensor], torch.Tensor]]
        products = [functools.partial(linear, weight=matrix) for matrix in matrices]
        if device == "cpu" and can_pack(dtype):
            products = [PackedLinear(matrix, None) for matrix in matrices]
        del matrices
        times = {n: _seconds(products, torch.ones(n, width, dtype=dtype, device=device)) for n in POSITIONS}
        found[str(dtype).removeprefix("torch.")] = {str(n): round(1e3 * scale * s, 1) for n, s in times.items()}
    return found


def _seconds(products: Sequence[Callable[[torch.Tensor], torch.Tensor]], x_ND: torch.Tensor) -> float:
    """Least time of one pass over all matrix products; the first pass is not counted."""
    import torch

    best, begin, passes = float("inf"), time.perf_counter(), 0
    while passes < 2 or time.perf_counter() - begin < PROBE_SECONDS:
        start = time.perf_counter()
        for product in products:
            product(x_ND)
        if x_ND.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start) if passes else best
        passes += 1
    return best


def _weights(config: ModelConfig) -> int:
    """Weights a forward reads: all matrices, and the embedding once, as the output head."""
    heads = (2 * config.n_heads + 2 * config.n_kv_heads) * config.head_size
    return config.n_layers * config.d_model * (heads + 3 * config.d_ffn) + config.vocab_size * config.d_model


# --- the model -------------------------------------------------------------------------------------------------------


def _model(model: str | None, hashes: bool, problems: list[str]) -> tuple[Facts, ModelConfig]:
    """State of the checkpoint folder; raises CheckpointError where it is none."""
    from openmercury.llm import SHIPPED, default_model
    from openmercury.model.config import read_config
    from openmercury.model.weights import ADAPTER_FILES, base_files, damaged_files

    folder = default_model() if model is None else Path(model)
    remedy = "`git checkout -- models` brings it back" if folder == SHIPPED else "fetch it again"
    if folder == SHIPPED and not (folder / "config.json").exists():
        raise CheckpointError(f"the shipped model is not in {folder}: {remedy}, or give --model")
    config = read_config(folder)
    damaged = list(damaged_files(folder, hashes=hashes))
    problems += [f"{folder / name} {what}: {remedy}" for name, what in damaged]
    files = [] if damaged else [path.name for path in base_files(folder)[1]]
    adapter = next((name for name in ADAPTER_FILES if (folder / name).exists()), None)
    facts = config.diffusion
    if facts is not None and facts.adapter is not None and adapter is None and not damaged:
        problems.append(f"{folder} lacks its adapter ({' or '.join(ADAPTER_FILES)}): {remedy}")
    size = sum((folder / name).stat().st_size for name in [*files, adapter] if name)
    return {
        "folder": str(folder),
        "architecture": config.architecture,
        "weights": _weights(config),
        "files": len(files),
        "megabytes": round(size / 1e6, 1),
        "adapter": None if facts is None or facts.adapter is None else {"file": adapter, "rank": facts.adapter.rank},
        "damaged": [name for name, _ in damaged],
        "hashes_checked": hashes,
    }, config


def _check_memory(facts: Facts, config: ModelConfig, problems: list[str]) -> None:
    available = facts["memory"].get("available_gb")
    needed = _weights(config) * (4 if facts.get("dtype") == "float32" else 2) / 1e9
    if available is not None and facts.get("device") == "cpu" and available < needed:
        problems.append(f"the weights take {needed:.1f} GB and {available} GB are free: close programs or add memory")


def _sandbox() -> str:
    """What runs generated code, or why nothing can; only the demo and evaluation need it."""
    from openmercury.eval.sandbox import usable_backend

    try:
        return usable_backend()
    except SandboxError as error:
        return f"none: {error}"


# --- in words --------------------------------------------------------------------------------------------------------


def report(facts: Facts) -> Iterator[str]:
    """The facts as aligned lines, problems last."""
    for name, told in _lines(facts):
        yield f"{name:<10}{told}"
    for problem in facts["problems"]:
        yield f"problem   {problem}"
    if not facts["problems"]:
        yield "all well"


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    cpu, memory = facts["cpu"], facts["memory"]
    yield "python", f"{facts['python']['version']} on {facts['python']['platform']}"
    yield "cpu", f"{cpu['name']}, {cpu['cores']} cores, {' '.join(cpu['flags']) or 'no flags of interest'}"
    if memory:
        yield "memory", f"{memory['available_gb']} of {memory['total_gb']} GB free"
    if "torch" in facts:
        yield "torch", f"{facts['torch']['version']}, {facts['torch']['threads']} threads"
        yield "gpu", "; ".join(facts["torch"]["gpus"]) or "none that torch sees"
    if "model" in facts:
        yield "model", _model_line(facts["model"])
    if "dtype" in facts:
        yield "chosen", f"{facts['device']}, {facts['dtype']}: {facts['why']}"
    for dtype, times in facts.get("forward_ms", {}).items():
        told = ", ".join(f"{ms} ms over {n}" for n, ms in times.items())
        yield "forward", f"{dtype}: {told} positions"
    if "sandbox" in facts:
        yield "sandbox", facts["sandbox"]


def _model_line(model: Facts) -> str:
    adapter = "no adapter, mode ar only" if model["adapter"] is None else f"adapter of rank {model['adapter']['rank']}"
    checked = "sha256 checked" if model["hashes_checked"] else "sizes checked"
    told = f"{model['folder']}: {model['architecture']}, {model['weights'] / 1e6:.0f} M weights, {adapter}"
    return f"{told}, {model['files']} files of {model['megabytes']} MB, {checked}"
