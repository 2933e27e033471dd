"""Structured output and tools: what a request asks for, the grammar that holds the answer to it, and its way back.

    class ChatRequest(Sampled, StructuredFields): ...             # response_format, structured_outputs, tools, …

    structured = plan(body, grammars, stops=bool(body.stop))      # raises ApiError for what does not go together
    ids = chat.render(tokenizer, structured.prompt(messages), tools=structured.tools)
    constraint = await asyncio.to_thread(structured.constraint)   # a new one for each of n answers; None: free text
    reader = structured.reader()                                  # likewise
    for piece in answer:
        deltas = reader.push(piece.text)                          # objects for `delta`: content or tool_calls
    deltas, finish_reason = reader.end(piece.finish_reason)       # behind the last; in a thread if `reads_again`
    reader.message                                                # the whole answer: role, content, tool_calls
    reader.snapshot(draft)                                        # for `diffusing`: content with the draft behind it

`grammars` is one `text.grammar.Grammars` for the checkpoint, kept as long as the server runs. `messages` may hold tool
calls and tool messages, as `chat.render` takes them.

What is enforced: `json_schema` and a tool's parameters to the letter where `strict`, and else as far as the grammar can
say it; a call's name always. With tool_choice auto the text is free until `<tool_call>` begins. An answer that was cut,
by max_tokens or by a stop string, ends with "length" unless what is there is whole.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from openmercury.errors import InputError
from openmercury.server.errors import ApiError, refused
from openmercury.text.chat import ANY_JSON, told_schema
from openmercury.text.grammar import Follower, Grammars, Kind, json_grammar
from openmercury.text.stream import begun

OPEN, CLOSE = "<tool_call>", "</tool_call>"  # of Qwen's chat template
NAME = r"^[A-Za-z0-9_-]{1,64}$"
NO_PARAMETERS: dict[str, Any] = {"properties": {}, "additionalProperties": False}
MOST_TOOLS, MOST_CHOICES = 128, 1024

Name = Annotated[str, Field(pattern=NAME)]


class Strict(BaseModel):
    """An object whose keys are all known."""

    model_config = ConfigDict(strict=True, extra="forbid")


class JsonSchema(Strict):
    """A schema under its name."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's three formats of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Strict):
    """vLLM's object: exactly one of these. `grammar` is in llguidance's Lark syntax."""

    json_: dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)] | None = None
    grammar: str | None = None


class Function(Strict):
    """What a tool does; `strict` refuses parameters that cannot be enforced."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A function the model may call."""

    type: Literal["function"]
    function: Function


class Named(Strict):
    """The name of a function."""

    name: str


class Choice(Strict):
    """The one function to call."""

    type: Literal["function"]
    function: Named


class StructuredFields(BaseModel):
    """The fields of a request that say what form its answer has."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["auto", "required", "none"] | Choice | None = None
    parallel_tool_calls: bool | None = None


@dataclass(frozen=True)
class Structured:
    """What one request asks for. `tools` are as OpenAI writes them, empty where none may be called."""

    tools: tuple[dict[str, Any], ...]
    kind: Kind | None  # of the grammar; None: the text is free
    grammar: str
    param: str  # where the grammar comes from
    hint: str  # what the model is told about the form of its answer
    stops: bool
    grammars: Grammars

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The messages, with the form of the answer in the system message, for a model that only feels the grammar
        writes worse than one that knows it."""
        if not self.hint:
            return list(messages)
        if messages and messages[0].get("role") == "system":
            return [{**messages[0], "content": f"{messages[0]['content']}\n\n{self.hint}"}, *messages[1:]]
        return [{"role": "system", "content": self.hint}, *messages]

    def constraint(self) -> Follower | None:
        """A new beginning of an answer; takes up to seconds for a grammar not seen before. Raises ApiError."""
        if self.kind is None:
            return None
        try:
            return self.grammars.follow(self.kind, self.grammar)
        except InputError as error:
            raise ApiError(400, str(error), code="invalid_value", param=self.param) from None

    def reader(self) -> Reader:
        """Takes in one answer."""
        return Reader(self)

    def whole(self, text: str) -> bool:
        """Is this a whole text of the grammar?"""
        follower = self.constraint()
        return follower is None or follower.reads(text)


def plan(fields: StructuredFields, grammars: Grammars, *, stops: bool = False) -> Structured:
    """What the fields ask for; `stops`: may stop strings cut the answer? Raises ApiError for what does not go together.

    Schemas are looked at only when `Structured.constraint` compiles them.
    """
    tools = [] if fields.tool_choice == "none" else fields.tools or []
    if not fields.tools and not (fields.tool_choice is None or fields.tool_choice in ("auto", "none")):
        raise refused("tool_choice", "asks for a call and there are no tools: give some")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise refused("tools", f"holds two functions of one name ({max(names, key=names.count)}): rename one")
    kind, grammar, param, hint = _answer(fields)
    if tools:
        if param == "structured_outputs":
            raise refused("structured_outputs", "does not go with tools: leave one of them out")
        kind, grammar, param = "lark", _calls(fields, tools, grammar), "tools"
        hint = f"Unless you call a function: {hint}" if hint else ""
    return Structured(tuple(map(_shown, tools)), kind, grammar, param, hint, stops, grammars)


def _shown(tool: Tool) -> dict[str, Any]:
    """A tool as the chat template shows it to the model."""
    facts = {name: getattr(tool.function, name) for name in ("name", "description", "parameters")}
    return {"type": "function", "function": {name: fact for name, fact in facts.items() if fact is not None}}


def _answer(fields: StructuredFields) -> tuple[Kind | None, str, str, str]:
    """Grammar of an answer that calls nothing: kind, grammar, the parameter it comes from, what the model is told."""
    form, other = fields.response_format, fields.structured_outputs
    if other is not None:
        if form is not None and form.type != "text":
            raise refused("structured_outputs", "does not go with response_format: leave one of them out")
        return _other(other)
    if form is None or form.type == "text":
        return None, "", "response_format", ""
    if form.type == "json_object":
        return "json_schema", _json({"type": "object"}, "response_format"), "response_format", ANY_JSON
    if form.json_schema is None:
        raise refused("response_format.json_schema", "is missing: give a name and a schema")
    schema, strict = form.json_schema.schema_, bool(form.json_schema.strict)
    param = "response_format.json_schema.schema"
    return "json_schema", _json(schema, param, strict=strict), param, told_schema(schema)


def _other(asked: StructuredOutputs) -> tuple[Kind | None, str, str, str]:
    given = {name: value for name, value in asked if value is not None}
    if len(given) != 1:
        raise refused("structured_outputs", "has exactly one of json, regex, choice and grammar")
    param = "structured_outputs"
    match next(iter(given.items())):
        case "json_", schema:
            return "json_schema", _json(schema, param, strict=True), param, told_schema(schema)
        case "regex", pattern:
            return "regex", pattern, param, f"Answer with text that matches this regular expression: {pattern}"
        case "choice", texts:
            return "regex", "|".join(map(re.escape, texts)), param, f"Answer with one of: {', '.join(texts)}"
        case _, grammar:
            return "lark", grammar, param, f"Answer with text of this grammar:\n{grammar}"


def _json(schema: Mapping[str, Any], param: str, *, strict: bool = False) -> str:
    try:
        return json_grammar(schema, strict=strict)
    except (InputError, RecursionError) as error:
        raise refused(param, "is nested too deeply" if isinstance(error, RecursionError) else str(error)) from None


def _calls(fields: StructuredFields, tools: Sequence[Tool], answer: str) -> str:
    """The Lark grammar of answers that may, or must, call functions, as the chat template writes calls."""
    choice = fields.tool_choice
    if isinstance(choice, Choice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            raise refused("tool_choice", f"names {choice.function.name}, which is none of the tools: give one of them")
    once = fields.parallel_tool_calls is False or isinstance(choice, Choice)
    more = "" if once else f" ({json.dumps(chr(10) + OPEN)} body)*"
    rules = [f"calls: body{more}", *_bodies(tools)]
    if isinstance(choice, Choice) or choice == "required":
        rules.append(f'start: "{OPEN}" calls')
    elif answer:
        rules += [f'start: answer | "{OPEN}" calls', f"answer: %json {answer}"]
    else:
        rules += [
            "start: TEXT | HEAD calls",
            f"TEXT: /(?s:.*)/ & ~/(?s:.*{OPEN}.*)/",
            f"HEAD: /(?s:.*){OPEN}/ & ~/(?s:.*{OPEN}.+)/",  # to the first call and no further
        ]
    return "\n".join(rules) + "\n"


def _bodies(tools: Sequence[Tool]) -> list[str]:
    """Rules of what stands between OPEN and CLOSE. Each schema is a grammar of its own, so its references hold."""
    each = " | ".join(f"call_{number}" for number in range(len(tools)))
    rules = [f"body: {json.dumps(HEADING)} ( {each} ) {json.dumps('}' + chr(10) + CLOSE)}"]
    for number, tool in enumerate(tools):
        function, where = tool.function, f"tools.{number}.function.parameters"
        schema = NO_PARAMETERS if function.parameters is None else function.parameters
        if schema.get("type", "object") != "object":
            raise refused(where, 'is of another type than "object": arguments are named')
        grammar = _json({"type": "object", **schema}, where, strict=bool(function.strict))
        rules.append(f"call_{number}: {json.dumps(function.name + MIDDLE)} args_{number}")
        rules.append(f"args_{number}: %json {grammar}")
    return rules


# --- the way back ----------------------------------------------------------------------------------------------------

HEADING, MIDDLE = '\n{"name": "', '", "arguments": '  # before a function's name, and behind it


class Reader:
    """Takes in one answer as it comes and gives it on as OpenAI's deltas."""

    def __init__(self, structured: Structured) -> None:
        self.content = ""
        self.calls: list[dict[str, Any]] = []
        self._structured, self._text = structured, ""
        self._held = ""  # taken in and not yet given on
        self._inside = False  # a call has begun
        self._arguments: _Nesting | None = None  # … and its arguments have

    @property
    def message(self) -> dict[str, Any]:
        """The message of the whole answer."""
        calls = {"tool_calls": self.calls} if self.calls else {}
        return {"role": "assistant", "content": self.content or (None if self.calls else ""), "refusal": None, **calls}

    @property
    def reads_again(self) -> bool:
        """Does `end` read the whole text by its grammar, which takes milliseconds?"""
        return self._structured.stops and self._structured.kind is not None

    def push(self, text: str) -> list[dict[str, Any]]:
        """Settled text; returns the deltas that it makes certain."""
        self._text += text
        if not self._structured.tools:
            return self._said(text)
        self._held += text
        deltas: list[dict[str, Any]] = []
        while (step := self._step()) is not None:
            deltas += step
        return deltas

    def end(self, finish_reason: str) -> tuple[list[dict[str, Any]], str]:
        """No more comes: the last deltas, and the finish_reason on the wire."""
        if finish_reason == "stop" and self.reads_again and not self._structured.whole(self._text):
            finish_reason = "length"
        # What was cut in the midst of <tool_call> was to be a call.
        cut = 0 if finish_reason == "stop" else begun(self._held, [OPEN])
        rest = [] if self._inside or self.calls else self._said(self._held[: len(self._held) - cut])
        return rest, "tool_calls" if finish_reason == "stop" and self.calls else finish_reason

    def snapshot(self, draft: str) -> str:
        """The content as it stands with a draft behind it; calls are not shown before they are settled."""
        if self._inside or self.calls:
            return self.content
        shown = self.content + self._held + draft
        return shown.split(OPEN)[0] if self._structured.tools else shown

    def _said(self, text: str) -> list[dict[str, Any]]:
        self.content += text
        return [{"content": text}] if text else []

    def _step(self) -> list[dict[str, Any]] | None:
        """Give on some of what is held; None where more has to come first."""
        if not self._inside:
            return self._begin()
        if self._arguments is None:
            return self._name()
        if self._arguments.closed:
            return self._leave()
        count = self._arguments.feed(self._held)
        if not count:
            return None
        taken, self._held = self._held[:count], self._held[count:]
        self.calls[-1]["function"]["arguments"] += taken
        return [{"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": taken}}]}]

    def _begin(self) -> list[dict[str, Any]] | None:
        """Text up to the next call; white space before that is its own."""
        at = self._held.find(OPEN)
        if at >= 0:
            said, self._held = self._held[:at].rstrip(), self._held[at + len(OPEN) :]
            self._inside = True
            return [] if self.calls else self._said(said)
        if self.calls:
            return None
        sure = self._held[: len(self._held) - begun(self._held, [OPEN])].rstrip()
        self._held = self._held[len(sure) :]
        return self._said(sure) or None

    def _name(self) -> list[dict[str, Any]] | None:
        end = self._held.find(MIDDLE)
        if end < 0:
            return None
        name, self._held = self._held[len(HEADING) : end], self._held[end + len(MIDDLE) :]
        self._arguments = _Nesting()
        self.calls.append(
            {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": name, "arguments": ""}}
        )
        call = self.calls[-1]
        return [{"tool_calls": [{"index": len(self.calls) - 1, **call, "function": dict(call["function"])}]}]

    def _leave(self) -> list[dict[str, Any]] | None:
        at = self._held.find(CLOSE)
        if at < 0:
            return None
        self._held, self._inside, self._arguments = self._held[at + len(CLOSE) :], False, None
        return []


class _Nesting:
    """Finds the end of one JSON object."""

    def __init__(self) -> None:
        self.closed = False
        self._depth, self._quoted, self._escaped = 0, False, False

    def feed(self, text: str) -> int:
        """How many characters belong to the object; `closed` once it has ended there."""
        for number, character in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.closed = True
                    return number
        return len(text)
