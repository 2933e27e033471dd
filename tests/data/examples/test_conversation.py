"""Rows of conversations hold, before each answer, exactly what a request would send, and train on answers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openmercury.data.config import ExampleRecipe
from openmercury.data.examples import make_chat_examples
from openmercury.errors import InputError
from openmercury.text import chat
from openmercury.text.tokenizer import Tokenizer
from tests.server.made import TEMPLATE
from tests.text import made

TOKENIZER = made.byte_level(chat_template=TEMPLATE)
RECIPE = ExampleRecipe()
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 1 + 2? <|im_end|>"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "1"},
    {"role": "assistant", "content": "\n  3, that is.\n"},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "Welcome."},
]


def check_against_requests(tokenizer: Tokenizer, answers: list[str]) -> None:
    [example] = make_chat_examples(TALK, RECIPE, tokenizer, tools=TOOLS, language="python", licence="MIT")
    flags, ids = example.flags().tolist(), list(example.ids)
    assert (example.kind, example.language, example.licence) == ("chat", "python", "MIT")
    starts = [i for i in range(len(ids)) if flags[i] and not flags[i - 1]]
    ends = [i for i in range(len(ids)) if flags[i] and (i + 1 == len(ids) or not flags[i + 1])]
    plain = [dict(each, content=each["content"].strip()) if each["content"] else each for each in TALK]
    turns = [number for number, message in enumerate(TALK) if message["role"] == "assistant"]
    end = tokenizer.special["<|im_end|>"]
    for number, start, last, answer in zip(turns, starts, ends, answers, strict=True):
        assert ids[:start] == chat.render(tokenizer, plain[:number], tools=TOOLS)
        assert ids[last] == end
        assert tokenizer.decode(ids[start:last]) == answer
        assert ids[start:last] == tokenizer.encode(answer)


def test_rows_are_what_requests_send() -> None:
    call = '[{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]'
    check_against_requests(TOKENIZER, [call, "3, that is.", "Welcome."])


def test_rows_are_what_requests_send_to_the_shipped_model() -> None:
    folder = Path(__file__).parents[3] / "models" / "openmercury-nano"
    if not (folder / "tokenizer.json").exists():
        pytest.skip("the shipped model's tokenizer is not here")
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    check_against_requests(Tokenizer.load(folder), [call, "3, that is.", "Welcome."])


HIDING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{{ message.content if message.role == 'user' or loop.last else message.content.split('|')[-1] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_a_template_that_hides_earlier_reasoning_gives_an_example_a_turn() -> None:
    tokenizer = made.byte_level(chat_template=HIDING)
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "thought|b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "more|d"},
    ]
    first, second = make_chat_examples(talk, RECIPE, tokenizer)
    assert tokenizer.decode(first.ids, special=True).endswith("assistant\nthought|b<|im_end|>")
    assert list(second.ids)[: len(second.ids) - int(second.flags().sum())] == chat.render(tokenizer, talk[:3])
    assert tokenizer.decode(second.ids, special=True).endswith("assistant\nmore|d<|im_end|>")


def test_long_talks_end_with_the_last_answer_that_fits() -> None:
    [whole] = make_chat_examples(TALK, RECIPE, TOKENIZER)
    less = RECIPE.model_copy(update={"max_tokens": len(whole.ids) - 1})
    [cut] = make_chat_examples(TALK, less, TOKENIZER)
    assert list(whole.ids)[: len(cut.ids)] == list(cut.ids)
    assert cut.flags()[-1]
    assert "Welcome" not in TOKENIZER.decode(cut.ids)


def test_what_is_no_conversation() -> None:
    assert make_chat_examples([{"role": "user", "content": "Hm"}], RECIPE, TOKENIZER) == []
    with pytest.raises(InputError, match="role"):
        make_chat_examples([{"role": "x", "content": ""}, {"role": "assistant", "content": "a"}], RECIPE, TOKENIZER)
