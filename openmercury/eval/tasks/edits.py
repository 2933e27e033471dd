"""Edits of code: EditEval (Hu et al. 2023, arXiv 2310.20329), 194 instructions each with code to change and tests.

`apply` asks less: the change is given as a snippet in which comments stand for what stays, and is to be merged into the
code, as an editor's assistant has to. Its snippets are made of EditEval's own solutions.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from openmercury.eval.tasks import data
from openmercury.eval.tasks.base import Chat, Problem, Program, Style
from openmercury.eval.tasks.extract import blocks
from openmercury.eval.tasks.functions import judged_by_tests

EDIT = (
    "Edit the code as instructed. Answer with the whole edited code in one markdown code block.\n\n"
    "Instruction: {instruction}\n\n```python\n{code}\n```"
)
APPLY = (
    "Merge the update into the code. In the update, a comment `{kept}` stands for code that stays as it is. Answer "
    "with the whole merged code in one markdown code block.\n\n"
    "Code:\n```python\n{code}\n```\n\nUpdate:\n```python\n{update}\n```"
)
KEPT = "# ... existing code ..."
CONTEXT_LINES = 2
SECONDS = 10.0  # some tests measure the time of slow twins


@dataclass(frozen=True)
class EditEval:
    """From instruction and code, or from code and `merging` an update, to the whole edited code."""

    name: str
    title: str
    merging: bool = False
    styles: tuple[Style, ...] = ("chat",)
    max_tokens: int = 768

    @property
    def prompts(self) -> str:
        """Nobody else asks these."""
        return self.name

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """All 194."""
        fields = ("task_id", "instruction", "input", "output", "test")
        rows = data.read(folder, "editeval/edit_eval.jsonl.xz", fields)
        return [
            Problem(row["task_id"], Chat(self._ask(row["instruction"], row["input"], row["output"])), row)
            for row in rows
        ]

    def _ask(self, instruction: str, code: str, edited: str) -> str:
        if self.merging:
            return APPLY.format(kept=KEPT, code=code.strip("\n"), update=update(code, edited))
        return EDIT.format(instruction=instruction.strip(), code=code.strip("\n"))

    def program(self, problem: Problem, answer: str) -> Program:
        """The edited code, in its surroundings where it has some, and its tests."""
        row = problem.row
        code = next(iter(blocks(answer)), answer)
        around = row.get("context") or "{{Code}}"
        return judged_by_tests(f"{around.replace('{{Code}}', code)}\n{row['test']}\ncheck()", SECONDS)


def update(code: str, edited: str) -> str:
    """The edited code, its unchanged runs cut to a few lines beside the changes."""
    old, new = code.strip("\n").split("\n"), edited.strip("\n").split("\n")
    shown: list[str] = []
    for tag, _, _, begin, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        head = begin + CONTEXT_LINES if begin > 0 else 0
        tail = end - CONTEXT_LINES if end < len(new) else end
        if tag != "equal" or tail - head < 2:
            shown += new[begin:end]
        else:
            indent = new[head][: len(new[head]) - len(new[head].lstrip())]
            shown += [*new[begin:head], indent + KEPT, *new[tail:end]]
    return "\n".join(shown)
