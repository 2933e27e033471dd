"""Questions with a fixed set of answers: the prompt, and the labels whose probabilities are read behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openmercury.text import chat
from openmercury.text.tokenizer import Tokenizer

SYSTEM = "You answer one question about what you are given. Answer with one of the labels, exactly, and nothing else."


@dataclass(frozen=True)
class Question:
    """What is asked, and the labels that may answer it, each with what it stands for, if that is said."""

    instructions: str
    labels: Mapping[str, str | None]


def messages(state: str, question: Question) -> list[dict[str, str]]:
    """The conversation. The state comes first, so that all questions about it begin alike."""
    options = [label if told is None else f"{label}: {told}" for label, told in question.labels.items()]
    asked = f"{state}\n\nQuestion: {question.instructions}\n\nLabels:\n" + "\n".join(options)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def render(tokenizer: Tokenizer, state: str, question: Question, end: int) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prompt, and of each label as a whole answer, up to the token `end` that ends one.

    Without that a label would be as likely as all that begin with it.
    """
    ids = chat.render(tokenizer, messages(state, question))
    return ids, [[*tokenizer.encode(label), end] for label in question.labels]
