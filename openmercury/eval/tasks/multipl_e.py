"""MultiPL-E: HumanEval in other languages (Cassano et al. 2022, arXiv 2208.08227), in DeepSeek's selection of problems.

A prompt ends where the function's body begins; `tests` go on behind the body (C++, Java, Bash: with its closing brace)
and end with an exit status other than 0 where the function is wrong. The data may not be trained on. HumanEval_23 in
PHP cannot be solved: it declares `strlen`, which PHP has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from openmercury.errors import DataError
from openmercury.eval.languages import LANGUAGES
from openmercury.eval.tasks import data
from openmercury.eval.tasks.base import Chat, Continue, Problem, Program, Style
from openmercury.eval.tasks.stitch import stitch

TIMEOUT_SECONDS = 15.0  # that of the authors
MEMORY_BYTES = 1 << 30
FIELDS = ("name", "prompt", "tests", "stop_tokens")
CHAT = (
    "Complete this {title} function. Answer with the whole function in one markdown code block, without tests or "
    "examples.\n```{fence}\n{prompt}\n```"
)


@dataclass(frozen=True)
class MultiPLE:
    """The problems of one language: the data set's word for it, the sandbox's, and the mark of its fenced blocks."""

    suffix: str
    language: str
    fence: str
    styles: tuple[Style, ...] = ("chat", "completion")
    max_tokens: int = 1024

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"multipl-e-{self.suffix}"

    @property
    def prompts(self) -> str:
        """No other task asks the same."""
        return self.name

    @property
    def title(self) -> str:
        """As in tables."""
        return f"MultiPL-E {LANGUAGES[self.language].title}"

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """All items, from `multipl_e/humaneval-*.jsonl.xz` of a folder; raises DataError."""
        if style not in self.styles:
            raise DataError(f"{self.name} has no prompts of style {style!r}: it has {' and '.join(self.styles)}")
        rows = data.read(folder, f"multipl_e/humaneval-{self.suffix}.jsonl.xz", FIELDS)
        return [Problem(row["name"], self._prompt(row["prompt"], row["stop_tokens"], style), row) for row in rows]

    def program(self, problem: Problem, answer: str) -> Program:
        """The function as answered, and its tests."""
        row = problem.row
        if isinstance(problem.prompt, Continue):
            source = f"{row['prompt']}{answer}\n{row['tests']}"
        else:
            source = stitch(self.language, row["prompt"], answer, row["tests"])
        return Program(source, self.language, TIMEOUT_SECONDS, MEMORY_BYTES)

    def _prompt(self, prompt: str, stop: list[str], style: Style) -> Chat | Continue:
        if style == "completion":
            return Continue(prompt, tuple(stop))
        title = LANGUAGES[self.language].title
        return Chat(CHAT.format(title=title, fence=self.fence, prompt=prompt.rstrip("\n")))


_ALL = (
    MultiPLE("cpp", "cpp", "cpp"),
    MultiPLE("java", "java", "java"),
    MultiPLE("js", "js", "javascript"),
    MultiPLE("php", "php", "php"),
    MultiPLE("sh", "bash", "bash"),
    MultiPLE("ts", "ts", "typescript"),
)
TASKS = {task.name: task for task in _ALL}
