"""Requests made from exercises and from the training splits of MBPP and GSM8K, beside those made from functions.

Kinds made here: exercise, complete (an exercise as a stub), port (an exercise for another language), mbpp, gsm8k.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from openmercury.data.prompts.code import COMPLETE, LANGUAGES, PORT_TEXT, third_person
from openmercury.data.prompts.exercises import Exercise
from openmercury.data.prompts.prompt import Check, Prompt, fill, pick, rank
from openmercury.data.prompts.worked import Worked

_STUB_TYPES = {"k": "int", "n": "int", "ch": "str", "source": "str"}
_RETURNS = (
    ("Check", "bool"),
    ("Count", "int"),
    ("Return the number", "int"),
    ("Return the index", "int"),
    ("Return a list", "list"),
)


def exercise_stub(exercise: Exercise, seed: int) -> str | None:
    """An exercise as a function with a docstring and an empty body; None where its arguments are not fixed."""
    if not exercise.arguments or exercise.domain in ("classes", "algorithms", "trees"):
        return None
    quoted = [name for name in re.findall(r"`(\w+)`", exercise.task) if name.isidentifier()]
    extra = [f"{name}: {_STUB_TYPES.get(name, 'int')}" for name in dict.fromkeys(quoted)]
    arguments = _arguments(exercise, seed)
    if exercise.domain == "number" and extra:
        arguments = []
    typed = rank(seed, "typed", exercise.task) % 3 > 0
    returns = next((f" -> {kind}" for start, kind in _RETURNS if exercise.task.startswith(start)), "") if typed else ""
    signature = ", ".join(part if typed else part.split(":")[0] for part in (*arguments, *extra))
    doc = ". ".join(filter(None, (exercise.task, exercise.edge.rstrip(".")))) + "."
    typing = sorted({name for name in ("List", "Dict") if f"{name}[" in signature})
    imports = f"from typing import {', '.join(typing)}\n\n\n" if typing else ""
    return f'{imports}def {task_name(exercise.task)}({signature}){returns}:\n    """{wrap(doc)}"""'


def _arguments(exercise: Exercise, seed: int) -> list[str]:
    task = exercise.task
    if re.search(r"[Gg]iven two lists", task):
        return ["first: List[int]", "second: List[int]"]
    if re.search(r"another (string|one|tree)|two strings", task):
        return (
            ["first: str", "second: str"] if "string" in task else ["first: Dict[str, int]", "second: Dict[str, int]"]
        )
    if re.search(r"two dates|two time", task):
        return ["start: str", "end: str"]
    if task.startswith("Given a dictionary") or "to a query string" in task:
        return [pick(("data: Dict[str, int]", "mapping: dict", "values: Dict[str, float]"), seed, task)]
    if re.search(r"\b(in|of) a list\b|for every item", task) and exercise.domain == "text":
        return ["items: List[str]"]
    if exercise.domain == "times" and not re.search(r"dates|timestamps|events|meetings|ranges", task):
        return ["date: str"]
    if exercise.domain == "numbers":
        return [pick(("numbers: List[int]", "nums: List[int]", "values: List[int]", "lst: List[int]"), seed, task)]
    if exercise.domain == "text":
        return [pick(("text: str", "s: str", "sentence: str", "string: str"), seed, task)]
    return [exercise.arguments]


_NAME_WORDS = "a an the of to in and or for from by with on is are be that it its as given return which"
_NAME_STOP = frozenset(_NAME_WORDS.split())


def task_name(task: str) -> str:
    """A function name of up to four words of the task."""
    core = re.sub(r"^given .*?, (return )?", "", task.lower())
    words = [word for word in re.findall(r"[a-z]+", core) if word not in _NAME_STOP and len(word) > 1]
    name = "_".join(words[:4])
    return name or "solve"


def wrap(text: str, width: int = 90) -> str:
    """Docstring text broken into indented lines."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n    ".join([*lines, line])


_EXERCISE = (
    "{task}. {edge}",
    "Write a Python function to {lower}. {edge}",
    "Write a function that {lowers}. {edge}",
    "{task} in Python. {edge}",
    "Write Python code for this task: {lower}. {edge}",
    "Write a python function named `{name}` to {lower}. {edge}",
    "Task: {task}. {edge}\nWrite the solution as a Python function `{name}`.",
    "Solve this exercise in Python.\n\n{task}. {edge}",
    "Could you write a Python function that {lowers}? {edge}",
    "I'm practising Python. {task}. {edge} Please explain briefly.",
    "Write a short Python program with a function that {lowers}, and show two example calls. {edge}",
    "You are an expert Python programmer, and here is your task: Write a function to {lower}. {edge}",
)
_GIVEN = (
    "{task}. {edge}",
    "Write a Python function for this: {lower}. {edge}",
    "{task}. {edge} Use Python.",
    "In Python: {lower}. {edge}",
)


_PYTHON_EDGE = re.compile(
    r"comprehension|dataclass|import|type hints|docstring|assert|tuple|Error|None|collections|"
    r"standard library|dictionary|Booleans",
    re.IGNORECASE,
)


def exercise_prompt(exercise: Exercise, kind: str, seed: int) -> Prompt | None:
    """The exercise as a request (exercise), a stub (complete) or for another language (port)."""
    key = (seed, kind, exercise.task, exercise.edge)
    edge = "" if kind == "port" and _PYTHON_EDGE.search(exercise.edge) else exercise.edge
    base = {"task": exercise.task, "edge": edge, "name": task_name(exercise.task)}
    task = (
        exercise.task.replace("dictionaries", "maps").replace("dictionary", "map") if kind == "port" else exercise.task
    )
    base["task"], lower = task, task[0].lower() + task[1:]
    verbal = not exercise.task.startswith(("Given", "Read ")) and exercise.domain != "classes"
    base |= {"lower": lower, "lowers": third_person(lower)}
    if kind == "complete":
        body = exercise_stub(exercise, seed)
        if body is None:
            return None
        text = pick(COMPLETE, *key).replace("{stub}", body)
    elif kind == "port":
        languages = LANGUAGES[:6] if exercise.domain in ("trees", "classes", "algorithms") else LANGUAGES
        port = {"language": pick(languages, "language", *key), "verb": lower, "verbs": base["lowers"]}
        if exercise.domain == "classes" and "class for" not in lower:
            return None
        template = pick(PORT_TEXT, *key) if verbal else "{task} in {language}. {edge}"
        if not verbal and exercise.domain != "classes":
            template = pick(("Write {language} code for this: {lower}. {edge}", "In {language}: {lower}. {edge}"), *key)
        text = fill(template, base | port)
    else:
        text = fill(pick(_EXERCISE if verbal else _GIVEN, *key), base)
    text = re.sub(r" +(\n|$)", r"\1", re.sub(r" {2,}(?=\S)", " ", text) if kind != "complete" else text)
    about: dict[str, Any] = {"name": base["name"], "description": exercise.task, "source": exercise.task}
    return Prompt(f"{kind}/{rank(*key):015x}", kind, text.strip(), **about)


_WORKED = (
    "{opening}.\n\n{tests}",
    "Write a Python function `{name}` to {lower}.\nYour code should pass these tests:\n\n{tests}",
    (
        "You are an expert Python programmer, and here is your task: Write a function to {lower}. Your code should "
        "pass these tests:\n\n{tests}\n"
    ),
    (
        "Please provide a self-contained Python script that solves the following problem in a markdown code "
        'block:\n```\n"""\nWrite a function to {lower}.\n{first}\n"""\n```'
    ),
    "{opening}. For example, `{call}` should return `{result}`.",
    "Write a function that {lowers}.\n\nExamples:\n{shown}",
)


def worked_prompts(task: Worked, seed: int) -> Iterator[Prompt]:
    """A worked exercise as a stub with doctests (complete) and as a request with asserts or examples (exercise)."""
    calls = [(f"{task.name}({arguments})", result) for arguments, result in task.examples]
    typed = rank(seed, "typed", task.task) % 3 > 0
    arguments = task.arguments
    if not typed:
        arguments = ", ".join(part.split(":")[0] for part in re.split(r", (?=\w+:)", task.arguments))
    signature = f"def {task.name}({arguments})" + (f" -> {task.returns}:" if typed else ":")
    typing = sorted({name for name in ("List", "Dict", "Optional") if f"{name}[" in signature})
    imports = f"from typing import {', '.join(typing)}\n\n\n" if typing else ""
    examples = "\n".join(f"    >>> {call}\n    {result}" for call, result in calls[: 2 + rank(seed, task.task) % 2])
    stubbed = f'{imports}{signature}\n    """{wrap(task.task + ".")}\n\n{examples}\n    """'
    text = pick(COMPLETE, seed, "worked", task.task).replace("{stub}", stubbed)
    wanted = "\n".join(f"assert {task.name}({arguments}) == {result}" for arguments, result in task.cases)
    about: dict[str, Any] = {"name": task.name, "description": task.task, "source": task.task}
    check = Check(task.name, imports.strip(), wanted)
    yield Prompt(f"complete/{rank('worked', task.task):015x}", "complete", text, check=check, **about)
    lower = task.task[0].lower() + task.task[1:]
    opening = task.task if lower.startswith("given") else f"Write a Python function to {lower}"
    values = {"opening": opening, "lower": lower, "lowers": third_person(lower), "name": task.name}
    values |= {"call": calls[0][0], "result": calls[0][1], "first": f"assert {calls[0][0]} == {calls[0][1]}"}
    values |= {"tests": "\n".join(f"assert {call} == {result}" for call, result in calls)}
    values |= {"shown": "\n".join(f"{call} -> {result}" for call, result in calls[:2])}
    templates = (_WORKED[0], _WORKED[4]) if lower.startswith("given") else _WORKED
    text = fill(pick(templates, seed, "asked", task.task), values)
    yield Prompt(f"exercise/{rank('worked', task.task):015x}", "exercise", text, check=check, **about)


_MBPP = (
    (
        "You are an expert Python programmer, and here is your task: {text} Your code should pass these "
        "tests:\n\n{tests}\n"
    ),
    "{text}\n\n{first}",
    "{text}",
    (
        "Please provide a self-contained Python script that solves the following problem in a markdown code "
        'block:\n```\n"""\n{text}\n{first}\n"""\n```'
    ),
    "{text} The function should be named `{name}`.",
    "{text}\nYour code should satisfy these tests:\n```python\n{tests}\n```\nAnswer with Python code only.",
)


def mbpp_prompts(row: dict[str, Any]) -> Iterator[Prompt]:
    """An MBPP training task in each of its customary forms."""
    name = (re.findall(r"def (\w+)", row["code"]) or [""])[-1]
    code = row["code"].replace("\r\n", "\n").replace("\t", "    ").strip()
    tests = [test.strip() for test in row["test_list"]]
    values = {"text": row["text"].strip(), "tests": "\n".join(tests), "first": tests[0], "name": name}
    about: dict[str, Any] = {"code": code, "name": name, "description": values["text"]}
    about["source"] = f"mbpp/{row['task_id']}"
    check = Check(name, row.get("test_setup_code") or "", values["tests"])
    for number, template in enumerate(_MBPP):
        content = fill(template, values)
        # One form does not name the function.
        yield Prompt(
            f"mbpp/{row['task_id']}-{number}", "mbpp", content, check=check if name in content else None, **about
        )


_GSM8K = (
    "Write a Python function solution() that computes the answer: {question}",
    "{question}\n\nWrite a Python function `solution()` that returns the answer.",
    "Solve this problem with a short Python program and print the result.\n\n{question}",
    (
        "Let's use Python to solve this math problem. Write `solution()` with one variable for each "
        "quantity.\n\n{question}"
    ),
    'def solution():\n    """{question}"""\n\nComplete this function so that it returns the answer.',
)


def gsm8k_prompt(number: int, row: dict[str, Any], seed: int) -> Prompt:
    """A GSM8K training question as a request for a program."""
    content = fill(pick(_GSM8K, seed, "gsm8k", number), {"question": row["question"].strip()})
    answer = row["answer"].rpartition("####")[2].strip().replace(",", "")
    check = Check("solution", "", f"assert abs(float(solution()) - {float(answer)}) < 1e-6")
    check_if = check if "solution()" in content else None
    return Prompt(f"gsm8k/{number}", "gsm8k", content, description=row["question"], check=check_if)
