"""MultiPL-E: HumanEval in other languages (Cassano et al. 2022, arXiv 2208.08227), in DeepSeek's selection of problems.

A prompt ends where the function's body begins; `tests` go on behind the body (C++, Java, Bash: with its closing brace)
and end with an exit status other than 0 where the function is wrong. The data may not be trained on. HumanEval_23 in
PHP cannot be solved: it declares `strlen`, which PHP has.
"""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from pathlib import Path

from openmercury.data.decontaminate import eval_folder, read_rows
from openmercury.errors import DataError
from openmercury.eval.languages import LANGUAGES
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
    """The problems of one language. `suffix` is the data set's word for it; `sha256` that of the data as such."""

    suffix: str
    language: str
    fence: str
    rows: int
    sha256: str
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
        path = eval_folder(folder) / "multipl_e" / f"humaneval-{self.suffix}.jsonl.xz"
        rows = read_rows(path)
        if len(rows) != self.rows or any(field not in row for row in rows for field in FIELDS):
            raise DataError(f"{path.name} is not the file of {self.rows} problems that it should be: restore it")
        if hashlib.sha256(lzma.decompress(path.read_bytes())).hexdigest() != self.sha256:
            raise DataError(f"{path.name} has another sha256 than the file that results are compared on: restore it")
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


# suffix, language of the sandbox, mark of a fenced block, problems, sha256
_FILES = (
    ("cpp", "cpp", "cpp", 161, "8717eabdf202137158c84506144b0fb1e73d5ecccbe5363ec79009ca014df629"),
    ("java", "java", "java", 158, "b21b015763452ec4f9f4e0e6425148ec331ace4da1232c8b4d441186185f6265"),
    ("js", "js", "javascript", 161, "634e2eee8d6e22de07c121b972207683dd96be76256bf44bdfc1a3386b739287"),
    ("php", "php", "php", 161, "bebd86875b1d8e65a8b7e692ed7bdf64612b44aa388825ea4dab40c7047c786b"),
    ("sh", "bash", "bash", 158, "2f702106e9ce4aa7385de568d9248d6c57c90382d782b162cb9e072fbd01ccf8"),
    ("ts", "ts", "typescript", 159, "4b1af1050c9f226335d54a8c80553c39454a525cace3e67bdcfcc9092ba02637"),
)
TASKS = {task.name: task for task in (MultiPLE(*facts) for facts in _FILES)}
