"""The number of threads, from what the system tells."""

from __future__ import annotations

import pytest
import torch

from openmercury.model import machine


@pytest.mark.parametrize(
    ("core_of", "limit", "threads"),
    [
        ({0: "0", 1: "1"}, None, 2),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, None, 2),  # two threads a core
        ({4: "4"}, None, 1),  # pinned to one CPU
        ({cpu: str(cpu) for cpu in range(16)}, 4.0, 4),  # a container's share
        ({cpu: str(cpu) for cpu in range(16)}, 2.5, 2),
        ({cpu: str(cpu) for cpu in range(16)}, 0.5, 1),
        ({0: "0", 1: "1"}, 8.0, 2),
    ],
)
def test_one_thread_a_core_within_the_share_of_time(core_of: dict[int, str], limit: float | None, threads: int) -> None:
    assert machine.choose_threads(core_of, limit) == threads


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
    ],
)
def test_the_share_of_time_under_both_versions_of_cgroups(files: dict[str, str], cpus: float | None) -> None:
    assert machine.quota(lambda path: files.get(path.removeprefix("/sys/fs/cgroup/"), "")) == cpus


def test_the_environment_decides_where_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "choose_threads", lambda core_of, limit: 3)
    monkeypatch.setenv(machine.THREADS_VARIABLE, str(before))
    assert machine.set_threads() == before
    monkeypatch.delenv(machine.THREADS_VARIABLE)
    try:
        assert machine.set_threads() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
