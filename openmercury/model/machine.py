"""What the processor offers this process, and how many threads to run on it.

Products of few rows are bound by memory: a second thread on the same core only waits for the first one's loads, and
threads beyond the container's share of time stop each other at every barrier. Importing this imports no torch.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

THREADS_VARIABLE = "OMP_NUM_THREADS"


def read(path: str) -> str:
    """Text of a system file; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processor() -> tuple[str, frozenset[str]]:
    """Name of the CPU and what it can do, as Linux tells."""
    lines = [line.partition(":")[::2] for line in read("/proc/cpuinfo").splitlines() if ":" in line]
    first = {key.strip(): value.strip() for key, value in reversed(lines)}
    flags = first.get("flags") or first.get("Features") or ""
    return first.get("model name") or platform.processor() or platform.machine(), frozenset(flags.split())


def available_cpus() -> frozenset[int]:
    """Logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def siblings(cpus: Iterable[int]) -> dict[int, str]:
    """Logical CPU → the list of CPUs on its core, or itself where the system does not tell."""
    path = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {cpu: read(path.format(cpu)).strip() or str(cpu) for cpu in cpus}


def quota(read: Callable[[str], str] = read) -> float | None:
    """CPUs' worth of time the container may use, by either version of cgroups; None where it is not limited."""
    limit, _, period = read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not limit:
        limit = read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
        period = read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return int(limit) / int(period) if limit.isdecimal() and period.strip().isdecimal() else None


def choose_threads(core_of: Mapping[int, str], limit: float | None) -> int:
    """One thread for each physical core, and no more than the container's share of time."""
    cores = len(set(core_of.values()))
    return max(1, cores if limit is None else min(cores, int(limit)))


def set_threads() -> int:
    """Let torch run on the cores this process has; OMP_NUM_THREADS in the environment decides where it is set."""
    import torch

    if not os.environ.get(THREADS_VARIABLE):
        wanted = choose_threads(siblings(available_cpus()), quota())
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
    return torch.get_num_threads()
