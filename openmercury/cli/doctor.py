"""`doctor`: what this machine is, what OpenMercury chose on it and why, and whether the model is whole.

Every problem comes with its remedy; exit 1 when one of them keeps the model from running. What forwards
cost is measured afresh, and what loading a model remembers of it is renewed.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openmercury.cli.options import option
from openmercury.errors import CheckpointError, OpenMercuryError, SandboxError
from openmercury.model import machine

if TYPE_CHECKING:
    from openmercury.model.config import ModelConfig

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")  # the last two are ARM's
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
    facts["torch"] = {"version": torch.__version__, **_threads(), "gpus": list(_gpus())}
    config = None
    try:
        facts["model"], config = _model(model, hashes, problems)
    except OpenMercuryError as error:
        problems.append(str(error))
    try:
        facts |= _choice(device, config)
    except OpenMercuryError as error:
        problems.append(str(error))
    if config is not None:
        _check_memory(facts, config, problems)
    facts["sandbox"] = _sandbox()
    facts["languages"] = _languages()
    return facts


# --- the machine -----------------------------------------------------------------------------------------------------


def _python() -> Facts:
    return {"version": platform.python_version(), "platform": platform.platform()}


def _cpu() -> Facts:
    name, flags = machine.processor()
    return {
        "name": name,
        "cores": len(machine.available_cpus()),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def _threads() -> Facts:
    """How many threads torch runs, and what decided it."""
    asked = os.environ.get(machine.THREADS_VARIABLE)
    why = f"{machine.THREADS_VARIABLE}={asked}" if asked else "one for each core this process may use"
    return {"threads": machine.set_threads(), "threads_why": why}


def _memory() -> Facts:
    """Gigabytes this process may use, the container's limit included; empty where the system does not tell."""
    lines = dict(line.partition(":")[::2] for line in machine.read("/proc/meminfo").splitlines())
    if "MemTotal" not in lines:
        return {}
    total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = machine.read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal() and int(limit) < total:
        used = machine.read("/sys/fs/cgroup/memory.current").strip()
        total = int(limit)
        available = min(available, total - int(used or 0))
    return {"total_gb": round(total / 1e9, 1), "available_gb": round(available / 1e9, 1)}


def _gpus() -> Iterator[str]:
    import torch

    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield f"{facts.name}, {facts.total_memory / 1e9:.0f} GB"


# --- what was chosen, and how fast it is -----------------------------------------------------------------------------


def _choice(device: str, config: ModelConfig | None) -> Facts:
    """Device, number format and the reason for it, by the same functions that load the model; costs measured afresh."""
    from openmercury.engine.setup import setup
    from openmercury.model.costs import costs_of, measure
    from openmercury.model.device import pick_device

    on = pick_device(device)
    if config is None:
        return {"device": str(on)}
    costs = costs_of(config, afresh=True) if on.type == "cpu" else measure(config, on.type)
    chosen = setup("auto", on.type, config, costs)
    widths = chosen.engine.model_dump(include={"draft_width", "draft_groups", "block_limit"})
    return {"device": str(on), "dtype": chosen.dtype, "why": chosen.why, "forward_ms": costs, "widths": widths}


# --- the model -------------------------------------------------------------------------------------------------------


def _model(model: str | None, hashes: bool, problems: list[str]) -> tuple[Facts, ModelConfig]:
    """State of the checkpoint folder; raises CheckpointError where it is none."""
    from openmercury.llm import SHIPPED, default_model
    from openmercury.model.config import read_config
    from openmercury.model.costs import weights_read
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
        "weights": weights_read(config),
        "files": len(files),
        "megabytes": round(size / 1e6, 1),
        "denoises": facts is not None,
        "adapter": None
        if facts is None or facts.adapter is None
        else {"file": adapter, "rank": facts.adapter.rank, "chain": facts.adapter.chain},
        "damaged": [name for name, _ in damaged],
        "hashes_checked": hashes,
    }, config


def _check_memory(facts: Facts, config: ModelConfig, problems: list[str]) -> None:
    from openmercury.model.costs import FORMATS, weights_read

    available = facts["memory"].get("available_gb")
    if available is None or facts.get("device") != "cpu" or "dtype" not in facts:
        return
    needed = weights_read(config) * FORMATS[facts["dtype"]].dtype.itemsize / 1e9  # int8 is made of float32
    if available < needed:
        problems.append(f"the weights take {needed:.1f} GB and {available} GB are free: close programs or add memory")


def _sandbox() -> str:
    """What runs generated code, or why nothing can; only the demo and evaluation need it."""
    from openmercury.eval.sandbox import usable_backend

    try:
        return usable_backend()
    except SandboxError as error:
        return f"none: {error}"


def _languages() -> dict[str, str | None]:
    """Versions of the languages that evaluation runs besides Python; None: not installed."""
    from openmercury.eval.languages import PYTHON, versions

    return {name: told for name, told in versions().items() if name != PYTHON}


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
        yield "torch", "{version}, {threads} threads: {threads_why}".format(**facts["torch"])
        yield "gpu", "; ".join(facts["torch"]["gpus"]) or "none that torch sees"
    if "model" in facts:
        yield "model", _model_line(facts["model"])
    if "dtype" in facts:
        yield "chosen", f"{facts['device']}, {facts['dtype']}: {facts['why']}"
        yield (
            "widths",
            "drafts of {draft_width}, groups {draft_groups}; blocks of at most {block_limit}".format(**facts["widths"]),
        )
    for dtype, costs in facts.get("forward_ms", {}).items():
        told = ", ".join(f"{ms:.0f} over {rows}" for rows, ms in costs.items())
        yield "forward", f"{dtype}: milliseconds {told} positions"
    if "sandbox" in facts:
        yield "sandbox", facts["sandbox"]
    for language, version in facts.get("languages", {}).items():
        yield language, version or f"not installed: pass@1 for {language} is not run"


def _model_line(model: Facts) -> str:
    adapter = "all weights denoise" if model["denoises"] else "no adapter, mode ar only"
    if model["adapter"] is not None:
        chain = model["adapter"]["chain"]
        adapter = f"adapter of rank {model['adapter']['rank']}" + (f" with a chain of rank {chain}" if chain else "")
    checked = "sha256 checked" if model["hashes_checked"] else "sizes checked"
    told = f"{model['folder']}: {model['architecture']}, {model['weights'] / 1e6:.0f} M weights, {adapter}"
    return f"{told}, {model['files']} files of {model['megabytes']} MB, {checked}"
