"""Requests for JSON of a given form, and requests that come with tools, as clients of the server send them.

Kinds made here: json (with the very system message that the server adds for a `response_format`) and tool.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from openmercury.data.prompts.chats import SLOTS
from openmercury.data.prompts.exercises import Slots, expand
from openmercury.data.prompts.prompt import Prompt
from openmercury.text.chat import ANY_JSON, told_schema

_FACTS: Slots = SLOTS | {
    "fact": "[person], [age], is [job] from [city]|The order of [k] [goods] by [person] was sent to [city] on [when]|"
    "On [when] [person] gave a talk about [topic] in [city] to [age] people|[person] rated the [goods] [k] of 10 and "
    "wrote: 'works as described'|Flight from [city] to [city] on [when], seat [k]A, booked for [person]|[person] "
    "reported on [when]: `[error]` [where]|The meeting in [city] on [when] is about [topic]; [person] and [person] "
    "take part|Invoice [age][k]: [k] [goods] at [age] EUR each, due [when]|[city]: [age] degrees, wind [k] m/s, "
    "measured [when]|[person] wants to learn [topic] in [k] weeks and has [k] hours a week",
}
_FIELDS: dict[str, dict[str, Any]] = {
    "name": {"type": "string"},
    "age": {"type": "integer"},
    "city": {"type": "string"},
    "date": {"type": "string", "description": "YYYY-MM-DD"},
    "quantity": {"type": "integer", "minimum": 0},
    "product": {"type": "string"},
    "price": {"type": "number"},
    "topic": {"type": "string"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "participants": {"type": "array", "items": {"type": "string"}},
    "priority": {"type": "string", "enum": ["low", "medium", "high"]},
    "category": {"type": "string", "enum": ["person", "order", "event", "report", "other"]},
    "summary": {"type": "string"},
    "is_urgent": {"type": "boolean"},
    "rating": {"type": "integer", "minimum": 1, "maximum": 10},
    "error": {"type": "string"},
    "address": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
        "required": ["city"],
    },
}
_ASKED = (
    "Extract the facts: {fact}.",
    "{fact}.",
    "Turn this note into JSON: {fact}.",
    "Fill in what the text says, and null or an empty list otherwise. Text: {fact}.",
    "Read this and answer in the given form.\n\n{fact}.",
)
_FREE = (
    "Return a JSON object with the keys {keys} for this text: {fact}.",
    "Extract {keys} as JSON: {fact}.",
    "{fact}. Give me only JSON with {keys}.",
)


def json_prompts(count: int, seed: int) -> Iterator[Prompt]:
    """Texts to be read into JSON: by a schema, or in half of the cases any JSON with the keys that are named."""
    generator = random.Random(seed)
    for number in range(count):
        fact = expand("[fact]", _FACTS, generator)
        names = generator.sample(sorted(_FIELDS), generator.randint(2, 5))
        if generator.random() < 0.5:
            schema: dict[str, Any] = {"type": "object", "properties": {name: _FIELDS[name] for name in names}}
            schema |= {"required": names} if generator.random() < 0.7 else {}
            schema |= {"additionalProperties": False} if generator.random() < 0.5 else {}
            text = generator.choice(_ASKED).replace("{fact}", fact)
            yield Prompt(f"json/{number}", "json", text, system=told_schema(schema))
        else:
            keys = ", ".join(names[:-1]) + f" and {names[-1]}"
            text = generator.choice(_FREE).replace("{fact}", fact).replace("{keys}", keys)
            yield Prompt(f"json/{number}", "json", text, system=ANY_JSON if generator.random() < 0.5 else "")


# name, what it does, parameters with their types ("?": may be left out), requests for it
_TOOLS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("get_weather", "Current weather of a city.", "city:string unit:string?",
     ("What's the weather in [city]?", "Is it warm in [city] today, in Fahrenheit?", "Weather in [city] and [city]?")),
    ("search_flights", "Flights between two cities on a date.", "origin:string destination:string date:string",
     ("Find a flight from [city] to [city] on [when].", "I have to be in [city] on [when], I start in [city].")),
    ("create_event", "Adds an event to the calendar.", "title:string date:string place:string? guests:array?",
     ("Put a meeting about [topic] into my calendar for [when].", "Invite [person] to a review in [city] on [when].")),
    ("send_email", "Sends an e-mail.", "to:string subject:string body:string",
     ("Write to [person] that the [goods] arrived.", "Tell [person] by mail that the meeting on [when] is off.")),
    ("run_sql", "Runs a read-only SQL query and returns rows.", "query:string limit:integer?",
     ("From [sql_table], show the first [k]0 rows.", "How many rows does [sql_table] hold?")),
    ("read_file", "Returns the text of a file.", "path:string start:integer? end:integer?",
     ("Show me README.md.", "What is in lines [k] to [age] of src/main.py?", "Open config/settings.yaml, please.")),
    ("write_file", "Writes a text file.", "path:string content:string",
     ("Create hello.py that prints hello.", "Save a requirements.txt with flask and requests.")),
    ("run_tests", "Runs the tests of a project.", "path:string? verbose:boolean?",
     ("Run the tests in tests/unit.", "Do all tests pass?", "Run the test suite with details.")),
    ("search_code", "Finds text in a repository.", "pattern:string path:string? regex:boolean?",
     ("Where is `parse_config` used?", "Find all TODO comments in src.", "Which files import requests?")),
    ("run_command", "Runs a shell command.", "command:string timeout:integer?",
     ("List the files here.", "Which Python version is installed?", "Delete the build folder.")),
    ("git_commit", "Commits all changes.", "message:string amend:boolean?",
     ("Commit this with a message about [page].", "Commit what I changed: it fixes `[error]`.")),
    ("convert_currency", "Converts an amount.", "amount:number source:string target:string",
     ("How much is [age] EUR in USD?", "Convert [k]00 yen to pounds.")),
    ("get_stock_price", "Latest price of a share.", "symbol:string",
     ("What does a share of AAPL cost?", "Price of MSFT and NVDA, please.")),
    ("book_table", "Books a table in a restaurant.", "city:string date:string people:integer",
     ("Book a table for [k] in [city] on [when].",)),
    ("translate", "Translates text.", "text:string language:string",
     ("Translate 'The build failed' to [human].", "How do you say 'good morning' in [human]?")),
    ("calculate", "Evaluates an arithmetic expression.", "expression:string",
     ("What is [age] * [age] + [k]?", "Compute [age] percent of [k]000.")),
    ("resize_image", "Resizes an image file.", "path:string width:integer height:integer?",
     ("Make photo.png [k]00 pixels wide.",)),
    ("list_issues", "Issues of a repository.", "repository:string state:string? label:string?",
     ("Which bugs are open in acme/shop?", "Show closed issues of acme/site.")),
)  # fmt: skip
_NEITHER = ("Explain [topic] [audience].", "What is the difference between [pair]?", "Thanks, that helped!", "[small].")


def tool_prompts(count: int, seed: int) -> Iterator[Prompt]:
    """Requests beside up to five tools, of which one mostly fits."""
    generator = random.Random(seed)
    for number in range(count):
        chosen = generator.sample(_TOOLS, generator.randint(1, 5))
        patterns = generator.choice(chosen)[3] if generator.random() < 0.85 else _NEITHER
        text = expand(generator.choice(patterns), SLOTS, generator).replace("?.", "?")
        yield Prompt(f"tool/{number}", "tool", text, tools=tuple(map(_tool, chosen)))


def _tool(tool: tuple[str, str, str, tuple[str, ...]]) -> dict[str, Any]:
    """As OpenAI writes it, and as the server shows it to the template."""
    name, does, parameters, _ = tool
    split = [part.rstrip("?").split(":") for part in parameters.split()]
    kinds = {
        key: {"type": kind, "items": {"type": "string"}} if kind == "array" else {"type": kind} for key, kind in split
    }
    needed = [part.split(":")[0] for part in parameters.split() if not part.endswith("?")]
    schema = {"type": "object", "properties": kinds, "required": needed}
    return {"type": "function", "function": {"name": name, "description": does, "parameters": schema}}
