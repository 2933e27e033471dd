"""A conversation to token ids through the checkpoint's own Jinja template.

Message content is data: a control token written in it stays ordinary text. Ordinary conversations are rendered and
encoded in one go, as everyone does. Where content could be taken for a control token, a character that no text can hold
is put inside it before rendering; what then still reads as a control token is the template's own.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from openmercury.errors import EmptyPromptError, InputError, UnsupportedError
from openmercury.text.stream import begun
from openmercury.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
EXTRAS = {"assistant": {"tool_calls"}, "tool": {"tool_call_id"}}
BREAK = "\ud800"  # half of a surrogate pair: valid text has none, and no template trims it


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of the conversation, with `add_generation_prompt` ready for the assistant's answer.

    A message has `role` (system, user, assistant or tool) and `content`. One of the assistant may have `tool_calls`
    besides or in place of content, and one of a tool the `tool_call_id` it answers, both as OpenAI writes them; `tools`
    too are OpenAI's. Raises EmptyPromptError when no message says anything, InputError for messages that are malformed
    or that the template refuses, and UnsupportedError when there is no usable template.
    """
    if tokenizer.chat_template is None:
        raise UnsupportedError("this checkpoint has no chat template: give raw text with --raw")
    if tools and "tools" not in tokenizer.chat_template:
        raise UnsupportedError("this checkpoint's chat template knows no tools: leave them out")
    _check(messages)
    names = sorted(tokenizer.special, key=len, reverse=True)  # of two that begin alike, the longer one is meant
    text = _rendered(
        tokenizer.chat_template,
        messages=[_broken(_plain(message), names) for message in messages],
        add_generation_prompt=add_generation_prompt,
        tools=_broken(list(tools), names) or None,
        **tokenizer.named_tokens,
    )
    if BREAK not in text:
        return tokenizer.encode(text, special=True)
    ids: list[int] = []
    for number, piece in enumerate(re.split(f"({_any(names)})", text)):
        # re.split alternates: text, control token, text, …
        ids += [tokenizer.special[piece]] if number % 2 else tokenizer.encode(piece.replace(BREAK, ""))
    return ids


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    calls: list[object] = []  # no set: what strangers send as an id may have no hash
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InputError(f"message {number} has role {role!r}: use one of {', '.join(ROLES)}")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise InputError(f"message {number} has no text: give its content as a string")
        unknown = message.keys() - {"role", "content"} - EXTRAS.get(role, set())
        if unknown:
            raise InputError(f"message {number} has {min(unknown)!r}, which is not supported: leave it out")
        if re.search("[\ud800-\udfff]", content or ""):
            raise InputError(f"message {number} holds half of a surrogate pair: send valid Unicode")
        made = message.get("tool_calls") or ()
        if not isinstance(made, Sequence):
            raise InputError(f"message {number} has tool calls that are no list: give one")
        calls += [_checked(call, number).get("id") for call in made]
        if message.get("tool_call_id") is not None and message["tool_call_id"] not in calls:
            raise InputError(f"message {number} answers a tool call that was not made: give the id of one that was")
    if not any((message["content"] or "").strip() or message.get("tool_calls") for message in messages):
        raise EmptyPromptError("the conversation is empty: write what you want")


def _checked(call: Any, number: int) -> Mapping[str, Any]:
    match call:
        case {"function": {"name": str(), "arguments": str()}}:
            return dict(call)
    raise InputError(f"message {number} has a tool call without a function's name and arguments: give both as text")


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates read it: arguments of tool calls are an object, not its JSON."""
    plain = {"role": message["role"], "content": message["content"] or ""}
    if message.get("tool_calls"):
        plain["tool_calls"] = [
            {"type": "function", "function": {"name": call["function"]["name"], "arguments": _arguments(call)}}
            for call in message["tool_calls"]
        ]
    return plain


def _arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InputError(f"the arguments of a call of {call['function']['name']} are no JSON object: send one")
    return arguments


# --- the form of an answer -------------------------------------------------------------------------------------------

ANY_JSON = "Answer in JSON."


def told_schema(schema: Mapping[str, Any]) -> str:
    """What a model is told that is to answer by a JSON schema."""
    return f"Answer in JSON that fulfils this schema: {json.dumps(schema, ensure_ascii=False)}"


# --- control tokens in content ---------------------------------------------------------------------------------------


def _any(names: Sequence[str]) -> str:
    return "|".join(map(re.escape, names))


def _broken(content: Any, names: Sequence[str]) -> Any:
    """The same with a break in every control token that its texts spell, and behind one that they only begin to."""
    if isinstance(content, Mapping):
        return {_broken(key, names): _broken(value, names) for key, value in content.items()}
    if isinstance(content, list):
        return [_broken(value, names) for value in content]
    if not isinstance(content, str):
        return content
    if re.search("[\ud800-\udfff]", content):
        raise InputError("a tool or a call of one holds half of a surrogate pair: send valid Unicode")
    if any(name in content for name in names):
        content = re.sub(rf"(?s)(?=(?:{_any(names)}))(.)", rf"\1{BREAK}", content)
    return content + BREAK if begun(content, names) else content


# --- the template ----------------------------------------------------------------------------------------------------


def _rendered(source: str, **variables: Any) -> str:
    try:
        return _template(source).render(variables)
    except (jinja2.TemplateError, TypeError) as error:
        raise UnsupportedError(f"the chat template does not work ({error}): give raw text with --raw") from None


@functools.lru_cache(maxsize=4)
def _template(source: str) -> jinja2.Template:
    """Compiling takes milliseconds, more than all the rest of a prompt: data pipelines render 10⁵ of them."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(source)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter of this name escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(reason: str) -> NoReturn:
    raise InputError(f"the chat template refuses these messages ({reason}): change their roles or order")


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
