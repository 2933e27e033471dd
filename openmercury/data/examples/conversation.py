"""Conversations to examples: the answers are trained on, in the tokens that a request would be answered with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openmercury.data.config import ExampleRecipe
from openmercury.data.examples.common import end_of_turn, finished
from openmercury.data.shards import Example
from openmercury.text import chat
from openmercury.text.tokenizer import Tokenizer


def make_chat_examples(
    messages: Sequence[Mapping[str, Any]],
    recipe: ExampleRecipe,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    language: str = "",
    licence: str = "",
) -> list[Example]:
    """Examples of one conversation; messages and tools as `chat.render` takes them.

    What stands before an answer is what a request with the messages before it sends. Where the template shows earlier
    turns as they were answered, all turns are one example; where it does not (it may leave out their reasoning), a turn
    begins an example of its own. Turns that end beyond `max_tokens` are left out. Raises what `chat.render` does.
    """
    plain = [_stripped(message) for message in messages]
    end, found = end_of_turn(tokenizer), list[Example]()
    for number, message in enumerate(plain):
        if message.get("role") != "assistant" or number == 0:
            continue
        prompt = chat.render(tokenizer, plain[:number], tools=tools)
        shown = chat.render(tokenizer, plain[: number + 1], tools=tools, add_generation_prompt=False)
        answer = shown[len(prompt) :]
        if shown[: len(prompt)] != prompt or end not in answer:
            continue  # the template hides this answer, or shows it otherwise than it is given
        answer = answer[: len(answer) - answer[::-1].index(end)]
        if len(prompt) + len(answer) > recipe.max_tokens:
            break
        before = found[-1] if found else Example([], 0)
        if prompt[: len(before.ids)] != before.ids:
            before = Example([], 0)
        else:
            found = found[:-1]
        flags = before.flags().tolist()
        flags += [False] * (len(prompt) - len(flags)) + [True] * len(answer)
        found.append(Example([*prompt, *answer], flags, "chat", language, licence))
    return finished(found, recipe, tokenizer)


def _stripped(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Answers without the blanks around them: no request's answer begins with what its prompt ends with."""
    if message.get("role") != "assistant" or not isinstance(message.get("content"), str):
        return message
    return {**message, "content": message["content"].strip()}
