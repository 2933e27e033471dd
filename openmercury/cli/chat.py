"""`chat`: a conversation in the terminal, or one message a line from a pipe.

In a terminal Ctrl-C stops the answer and keeps what was written, Ctrl-D leaves, and a message that cannot be answered
costs one line. In a pipe every message must succeed, and Ctrl-C ends the program as anywhere else.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from openmercury.cli import generate
from openmercury.cli.errors import describe
from openmercury.cli.options import Settings, decode, option, takes_settings, valid_text
from openmercury.errors import InputError

if TYPE_CHECKING:
    from openmercury.engine.params import SamplingParams
    from openmercury.llm import LLM, Step

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="chat")(chat)


@takes_settings
def chat(
    settings: Settings,
    system: Annotated[str | None, option("System message.", metavar="TEXT")] = None,
) -> None:
    """Talk with the model; from a pipe, one message a line."""
    params = settings.sampling()
    opening = generate.system_message(system)
    conversation = Conversation(generate.load(settings), settings, params, opening)
    if sys.stdin.isatty() and sys.stdout.isatty():
        print(HELP, file=sys.stderr)
        _in_terminal(conversation)
    else:
        _in_pipe(conversation)


class Conversation:
    """The messages so far, in memory only."""

    def __init__(
        self, llm: LLM, settings: Settings, params: SamplingParams, opening: list[dict[str, str]] | None = None
    ) -> None:
        self.llm, self.settings, self.params = llm, settings, params
        self.opening = list(opening or [])
        self.messages = list(self.opening)
        self.written = ""

    def reset(self) -> None:
        """Back to the opening."""
        self.messages = list(self.opening)

    def say(self, content: str) -> None:
        """Show the answer to one message. Both join the conversation, however much of the answer was written."""
        self.written = ""
        asked = [*self.messages, {"role": "user", "content": content}]
        steps = self.llm.stream_chat(asked, self.params, show_draft=self.settings.show_steps)
        try:
            generate.answer(self.llm, self._noting(steps), self.settings)
        finally:
            if self.written:
                self.messages = [*asked, {"role": "assistant", "content": self.written}]

    def _noting(self, steps: Iterator[Step]) -> Iterator[Step]:
        for step in steps:
            self.written = step.text
            yield step


def _in_terminal(conversation: Conversation) -> None:
    with contextlib.suppress(ImportError):  # line editing and history, where Python has them
        import readline  # noqa: F401
    while True:
        try:
            line = valid_text(input("> "), "the message").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}", file=sys.stderr)
            continue
        except (InputError, UnicodeDecodeError) as error:
            print(describe(error), file=sys.stderr)
            continue
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
        elif line:
            _answer_in_terminal(conversation, line)


def _answer_in_terminal(conversation: Conversation, line: str) -> None:
    try:
        conversation.say(line)
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)
    except InputError as error:
        print(f"{describe(error)}; or /reset", file=sys.stderr)


def _in_pipe(conversation: Conversation) -> None:
    for number, data in enumerate(sys.stdin.buffer, 1):
        line = decode(data, f"line {number} of stdin").strip()
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
        elif line:
            conversation.say(line)
