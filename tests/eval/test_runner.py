"""Runs go on where they stopped, judge each program once, and say what is wrong with what they find."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from openmercury.errors import DataError, SandboxError
from openmercury.eval import report, runner, sandbox
from openmercury.eval.runner import Job
from openmercury.eval.store import Kept, Store, Verdict, key_of, read_verdicts
from openmercury.eval.systems import Answer, Sampling, seed_of
from openmercury.eval.tasks.base import Program
from tests.eval.runs import Scripted, Sums, right

SETTINGS = {"model": "m", "threshold": 0.5}
DRAWN = Sampling(temperature=0.5)


def quiet(done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "run", SETTINGS, {"hardware": "none"})
    made.remember([(Sums(), "chat")])
    return made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Programs run, by a stand-in for the sandbox that runs their last line alone."""
    seen: list[str] = []
    lock = threading.Lock()

    def run(program: Any) -> sandbox.Verdict:
        with lock:
            seen.append(program.source)
        if program.language != "python":
            return sandbox.Verdict("missing", "", "no cobol", 0.0)
        code, _, wanted = program.source.strip().rpartition("\nassert f() == ")
        passed = code.endswith(f"lambda: {wanted}")
        return sandbox.Verdict("passed" if passed else "failed", "", "" if passed else "x\nAssertionError\n", 0.1)

    monkeypatch.setattr(sandbox, "run", run)
    return seen


def work(task: Sums | None = None, count: int = 6) -> Job:
    return runner.job(task or Sums(), "chat", None, count, None)


def judged(store: Store, one: Job, **given: Any) -> dict[Any, Verdict]:
    kept = store.samples(one.task, one.style)
    return runner.judge(one, kept, store.verdicts_path(one.task, one.style), quiet, workers=2, **given)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers_are_kept_as_they_come_and_asked_for_once(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    first = Scripted()
    runner.generate(first, work(count=2), 2, DRAWN, store, lambda *at: seen.append(at))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert first.warmed == 4
    kept = store.samples(Sums(), "chat")
    assert set(kept.samples) == {("Sum/0", 0), ("Sum/0", 1), ("Sum/1", 0), ("Sum/1", 1)}
    assert kept.samples["Sum/1", 0].answer == "f = lambda: 1\r\n"
    assert kept.samples["Sum/1", 0].token_ids == tuple(b"f = la")
    more = Scripted()
    runner.generate(more, work(count=3), 2, DRAWN, store, quiet)
    assert [ask.seed for ask in more.asked] == [seed_of(0, "Sum/2", 1), seed_of(0, "Sum/2", 0)]
    assert len({ask.seed for ask in (*first.asked, *more.asked)}) == 6


def test_an_interrupted_run_goes_on(store: Store) -> None:
    def dying(prompt: str) -> str:
        if prompt == "Give 2":
            raise KeyboardInterrupt
        return right(prompt)

    with pytest.raises(KeyboardInterrupt):
        runner.generate(Scripted(dying), work(), 1, DRAWN, store, quiet)
    path = store.samples_path(Sums(), "chat")
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0][:30])  # what a crash leaves of a line
    again = Scripted()
    runner.generate(again, work(), 1, DRAWN, store, quiet)
    assert len(again.asked) == 3
    kept = store.samples(Sums(), "chat")
    assert (len(kept.samples), kept.broken) == (6, 0)


def test_broken_lines_are_asked_for_again_and_told(store: Store) -> None:
    runner.generate(Scripted(), work(), 1, DRAWN, store, quiet)
    path = store.samples_path(Sums(), "chat")
    lines = path.read_text().splitlines()
    lines[0], lines[2] = "{oops", json.dumps({**json.loads(lines[2]), "answer": 3})
    path.write_bytes("".join(f"{line}\r\n" for line in [*lines, "", "[]"]).encode())
    kept = store.samples(Sums(), "chat")
    assert (len(kept.samples), kept.broken) == (4, 3)
    again = Scripted()
    runner.generate(again, work(), 1, DRAWN, store, quiet)
    assert len(again.asked) == 2
    row = report.row_of(work(), store.samples(Sums(), "chat"), None)
    assert "sums: 3 lines of the file of samples could not be read" in report.notes([row])


def test_errors_are_asked_for_again(store: Store) -> None:
    class Failing(Scripted):
        def answer(self, *given: Any) -> Any:
            for number, answer in super().answer(*given):
                yield number, Answer("", "error", 0, None, 0.0, error="too long") if number == 1 else answer

    runner.generate(Failing(), work(), 1, DRAWN, store, quiet)
    row = report.row_of(work(), store.samples(Sums(), "chat"), {})
    assert (row.samples, row.errors, row.answered, row.failures) == (5, 1, 5, ("Sum/1 (0): too long",))
    assert any(
        "1 answers are missing and left out of pass@1: Sum/1 (0): too long" in told for told in report.notes([row])
    )
    again = Scripted()
    runner.generate(again, work(), 1, DRAWN, store, quiet)
    assert len(again.asked) == 1
    assert report.row_of(work(), store.samples(Sums(), "chat"), {}).errors == 0


def test_answers_to_other_prompts_are_not_taken(store: Store) -> None:
    runner.generate(Scripted(), work(), 1, DRAWN, store, quiet)
    with pytest.raises(DataError, match="to another prompt than today's: give another --out"):
        runner.generate(Scripted(), work(Sums(ask="Hand over")), 1, DRAWN, store, quiet)
    row = report.row_of(work(Sums(ask="Hand over")), store.samples(Sums(), "chat"), {})
    assert "sums: 6 answers are to other prompts than today's" in report.notes([row])


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_each_program_is_run_once(store: Store, ran: list[str]) -> None:
    runner.generate(Scripted(), work(count=3), 2, DRAWN, store, quiet)
    verdicts = judged(store, work(count=3))
    assert [verdict.status for verdict in verdicts.values()] == ["passed"] * 6
    assert list(verdicts)[:3] == [("Sum/0", 0), ("Sum/0", 1), ("Sum/1", 0)]
    assert len(ran) == 3
    assert judged(store, work(count=3)) == verdicts
    assert len(ran) == 3
    assert read_verdicts(store.verdicts_path(Sums(), "chat")) == list(verdicts.values())
    judged(store, work(count=3), again=True)
    assert len(ran) == 6


def test_judging_fewer_problems_keeps_the_verdicts_on_the_others(store: Store, ran: list[str]) -> None:
    runner.generate(Scripted(), work(), 1, DRAWN, store, quiet)
    whole = judged(store, work())
    assert len(judged(store, work(count=2))) == 2
    assert read_verdicts(store.verdicts_path(Sums(), "chat")) == list(whole.values())


def test_judging_goes_on_where_it_was_cut(store: Store, ran: list[str]) -> None:
    runner.generate(Scripted(), work(), 1, DRAWN, store, quiet)
    judged(store, work())
    path = store.verdicts_path(Sums(), "chat")
    path.write_text(path.read_text()[:-40] + "\n{}\nnot json\n")
    assert len(judged(store, work())) == 6
    assert len(ran) == 7


def test_a_missing_language_is_not_run_never_failed(store: Store, ran: list[str]) -> None:
    other = Sums(language="cobol")
    runner.generate(Scripted(), work(), 1, DRAWN, store, quiet)
    row = report.row_of(work(other), store.samples(other, "chat"), judged(store, work(other)))
    assert (row.judged, row.not_run, row.scores) == (0, 6, {})
    assert report.cells(row)[1] == "–"
    judged(store, work(other))
    assert len(ran) == 12  # tried again: it may have been installed


def test_a_program_without_its_modules_is_not_run(ran: list[str]) -> None:
    assert runner.run(Program("", modules=("json", "no_such_module"))).status == "missing"
    assert ran == []
    assert runner.run(Program("f = lambda: 1\nassert f() == 1", modules=("json",))).passed


def test_a_sandbox_that_breaks_down_keeps_the_verdicts(
    store: Store, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.generate(Scripted(), work(), 1, DRAWN, store, quiet)
    good = sandbox.run

    def breaking(program: Any) -> sandbox.Verdict:
        if "== 4" in program.source:
            raise SandboxError("no memory: free some")
        return good(program)

    monkeypatch.setattr(sandbox, "run", breaking)
    with pytest.raises(SandboxError):
        judged(store, work())
    assert len(read_verdicts(store.verdicts_path(Sums(), "chat"))) == 4


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_counts(store: Store, ran: list[str]) -> None:
    def mixed(prompt: str) -> str:
        return {"Give 0": "", "Give 1": " \n", "Give 2": "f = lambda: 7"}.get(prompt, right(prompt))

    runner.generate(Scripted(mixed), work(), 1, DRAWN, store, quiet)
    row = report.row_of(work(), store.samples(Sums(), "chat"), judged(store, work()))
    assert (row.samples, row.judged, row.passed, row.empty) == (6, 6, 3, 2)
    assert row.scores is not None
    assert row.scores[1].value == 0.5
    assert row.statuses == {"failed": 3, "passed": 3}
    assert row.cost is not None
    assert row.cost.tpf == 3.0
    report.write(store, [row])
    told = json.loads((store.folder / "report.json").read_text())
    assert told["tasks"][0]["scores"]["1"]["value"] == 0.5
    assert told["run"]["settings"] == SETTINGS
    page = (store.folder / "report.md").read_text()
    assert "| sums | 50.0% | " in page
    assert "- sums: 2 answers are empty and count as wrong" in page
    assert "- hardware: none" in page


def test_a_model_that_says_nothing_is_told(store: Store, ran: list[str]) -> None:
    runner.generate(Scripted(lambda _: ""), work(), 1, DRAWN, store, quiet)
    row = report.row_of(work(), store.samples(Sums(), "chat"), judged(store, work()))
    assert (row.empty, row.passed, row.problem) == (6, 0, None)
    assert "sums: all answers are empty: the system said nothing" in report.notes([row])


def test_no_sample_at_all_is_a_problem() -> None:
    row = report.row_of(work(), Kept(), {})
    assert row.problem == "there are no samples"
    assert report.cells(row)[1] == "not run"


def test_speed_is_that_of_the_whole_file(store: Store) -> None:
    runner.generate(Scripted(), work(), 1, DRAWN, store, quiet)
    kept = store.samples(Sums(), "chat")
    kept.seconds = 9.0
    assert report.row_of(work(count=2), kept, None).tokens_per_second == pytest.approx(6 * 6 / 9.0)


# --- the folder ------------------------------------------------------------------------------------------------------


def test_another_run_s_folder_is_refused_by_what_differs(store: Store) -> None:
    assert Store.create(store.folder, SETTINGS, {}).run["tasks"] == [["sums", "chat"]]
    with pytest.raises(DataError, match=r"other settings \(threshold 0\.5, now None\): give another --out"):
        Store.create(store.folder, {"model": "m"}, {})
    assert key_of(SETTINGS) == key_of(dict(reversed(SETTINGS.items()))) != key_of({"model": "m"})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": {}, "how": {}, "tasks": 3}'])
def test_a_broken_run_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Store.read(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DataError, match="is broken"):
        Store.read(tmp_path)


def test_one_run_at_a_time(store: Store) -> None:
    with store.locked(), pytest.raises(DataError, match="another run writes"), Store.read(store.folder).locked():
        pass
    with store.locked():
        pass


def test_time_is_summed_over_sessions(store: Store) -> None:
    runner.generate(Scripted(), work(count=2), 1, DRAWN, store, quiet)
    path = store.samples_path(Sums(), "chat")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    told = [{**rows[0], "at": 3.0}, {**rows[1], "at": 1.0}, {**rows[1], "index": 1, "session": "next", "at": 2.5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    assert store.samples(Sums(), "chat").seconds == 5.5
