"""`eval --sweep`: the same tasks at several settings, one run each, for `openmercury frontier` to lay side by side.

Each run has a process of its own: the prompts that one run left in the cache would make the next look faster, and its
memory on the device must be free before the next takes its share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from openmercury.cli.errors import FAILED, OK, UsageProblem
from openmercury.cli.options import ModeName, Settings

if TYPE_CHECKING:
    from openmercury.cli.eval_runs import Wanted

MODES: tuple[str, ...] = get_args(ModeName)
ACTS_IN = {
    "mode": MODES,
    "threshold": ("diffusion",),
    "edit_below": ("diffusion",),
    "block_size": ("diffusion", "verified"),
}
KINDS: Mapping[str, Callable[[str], Any]] = {"mode": str, "threshold": float, "edit_below": float, "block_size": int}
USUAL = {"mode": ("ar", "verified", "diffusion"), "threshold": (0.05, 0.1, 0.15, 0.3, 0.5, 0.8)}


def run(wanted: Wanted, swept: Mapping[str, tuple[Any, ...]]) -> int:
    """One run for each of the settings, each in a folder of its own in --out; returns the worst exit code."""
    from openmercury.eval.store import RUNS
    from openmercury.eval.tasks import find

    tasks, settings = find(wanted.tasks), each(swept, wanted.decoding)
    folder = wanted.out or RUNS / "sweep"
    codes = []
    for number, (name, decoding) in enumerate(settings, 1):
        print(f"{number} of {len(settings)}: {name}", flush=True)
        codes.append(in_own_process(replace(wanted, decoding=decoding, out=folder / name)))
    runs = " ".join(str(folder / name) for name, _ in settings)
    for task in tasks:
        print(f"side by side: openmercury frontier {runs} --task {task.name} --picture {task.name}.svg")
    return FAILED if any(code != OK for code in codes) else OK


def in_own_process(wanted: Wanted) -> int:
    """`eval_runs.run` in a process that ends with it; what it raises is raised here."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from openmercury.cli import eval_runs

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(eval_runs.run, wanted).result()


def read(sweeps: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Values by name, from words such as "threshold=0.1,0.2", or "threshold,mode" for the usual ones."""
    found: dict[str, tuple[Any, ...]] = {}
    for word in sweeps:
        names, given, values = word.partition("=")
        for name in names.split(","):
            if name not in KINDS or name in found or (given and "," in names):
                raise UsageProblem(f"--sweep {word}: give each of {', '.join(KINDS)} once, as in threshold=0.1,0.2")
            if not given and name not in USUAL:
                raise UsageProblem(f"--sweep {name} has no usual values: give some, as in {name}=1,2")
            found[name] = _values(name, values) if given else USUAL[name]
    return found


def _values(name: str, text: str) -> tuple[Any, ...]:
    try:
        values = tuple(KINDS[name](value) for value in text.split(","))
    except ValueError:
        raise UsageProblem(f"--sweep {name}={text}: these are no values of it") from None
    if name == "mode" and not set(values) <= set(MODES):
        raise UsageProblem(f"--sweep mode={text}: the modes are {', '.join(MODES)}")
    return values


def each(swept: Mapping[str, tuple[Any, ...]], base: Settings) -> list[tuple[str, Settings]]:
    """(name, settings) of every combination; what does not act in a mode is left out there. Raises UsageProblem."""
    modes = swept.get("mode", (base.mode,))
    for name in swept:
        if not set(ACTS_IN[name]) & set(modes):
            raise UsageProblem(
                f"--sweep {name} does nothing in {', '.join(modes)}: add --sweep mode={ACTS_IN[name][0]}"
            )
    found: dict[str, Settings] = {}
    for values in itertools.product(*swept.values()):
        given = dict(zip(swept, values, strict=True))
        mode = given.pop("mode", base.mode)
        acting = {name: value for name, value in given.items() if mode in ACTS_IN[name]}
        changed: dict[str, Any] = {name: None for name, acts_in in ACTS_IN.items() if mode not in acts_in}
        settings = replace(base, **changed | acting, mode=mode)
        settings.sampling()  # a value out of range is refused before anything takes long
        found["-".join([mode, *(f"{name}-{value:g}" for name, value in acting.items())])] = settings
    return list(found.items())
