"""Requests in many phrasings, made from documented functions; and functions with a hole.

Kinds made here: complete (signature and docstring), describe and named (a sentence), code (work on a given function),
port (another language), fim (a function with a hole).
"""

from __future__ import annotations

import ast
import builtins
import doctest
import random
import re
from collections.abc import Iterator

from openmercury.data.functions import Function, parse
from openmercury.data.prompts.prompt import Check, Prompt, fill, pick, rank

LANGUAGES = ("JavaScript", "TypeScript", "Java", "C++", "Go", "Rust", "Bash", "PHP", "C#", "Ruby")
SOFT_LIMIT = 1_100


_VERB_LIST = (
    "return compute calculate find check test determine convert create make build generate get give yield remove add "
    "insert replace split join merge sort count format parse read write print evaluate apply estimate extract "
    "transform normalize validate verify compare search select filter group map reduce flatten rotate reverse "
    "shift scale round interpolate integrate differentiate solve simplify expand factor multiply divide subtract "
    "sum combine construct decode encode encrypt escape unescape quote strip trim pad wrap truncate fill copy "
    "clone move swap update set append prepend load save dump serialize translate render draw plot display show "
    "list iterate traverse walk visit enumerate partition sample shuffle permute perform run execute call invoke "
    "fit predict score classify cluster decompose invert transpose project reshape resize crop blur detect match "
    "tokenize stem hash index look lookup locate resolve infer guess derive produce provide rename delete drop "
    "clear reset collapse concatenate convolve correlate align assign bin clip coerce collect compress "
    "decompress cast ensure expose fetch increment decrement initialize isolate label mask measure minimize "
    "maximize optimize output pack unpack pair pick pop push raise rank recover reorder repeat rewrite simulate "
    "slice smooth sanitize store substitute tell trace turn unwrap use zip capitalize indent dedent strip "
    "consume chunk interleave intersperse approximate assert attempt break change choose clean define describe "
    "discard exclude interpret keep lower obtain order prepare process query register represent restrict rescale "
    "segment separate tile toggle uniquify unify upsample downsample wait warn weight"
)
_VERBS = frozenset(_VERB_LIST.split())


def imperative(sentence: str) -> str | None:
    """ "Returns the sum." → "return the sum"; None where the sentence does not begin with a known verb."""
    first, _, rest = sentence.rstrip(".! ").partition(" ")
    word = first.lower()
    for base in (word, word[:-1], word[:-2], word[:-3] + "y" if word.endswith("ies") else word):
        if base in _VERBS and third_person(base) in (word, third_person(word)):
            return f"{base} {rest}"
    return None


def third_person(phrase: str) -> str:
    """ "return the sum" → "returns the sum"."""
    verb, space, rest = phrase.partition(" ")
    if re.search(r"(s|x|z|ch|sh)$", verb):
        verb += "es"
    elif re.search(r"[^aeiou]y$", verb):
        verb = verb[:-1] + "ies"
    else:
        verb += "s"
    return verb + space + rest


COMPLETE = (
    "Complete the following Python function:\n```python\n{stub}\n```",
    "Complete the following Python function. Write the full function, including imports.\n```python\n{stub}\n```",
    "Write the full function, including imports.\n\n```python\n{stub}\n```",
    (
        "Please provide a self-contained Python script that solves the following problem in a markdown code "
        "block:\n```\n{stub}\n```"
    ),
    (
        "Read the following function signature and docstring, and fully implement the function described. Your "
        "response should only contain the code for this function.\n\n{stub}"
    ),
    "Implement this function:\n\n```python\n{stub}\n```",
    "```python\n{stub}\n```\n\nFill in the body of this function and return the whole function.",
    "{stub}\n\nPlease finish this Python function.",
    "Complete this code. Answer with one Python code block and no explanation.\n\n```python\n{stub}\n```",
    "You are given a Python function with its docstring. Write its body.\n\n```python\n{stub}\n```",
    "Can you complete this for me?\n```python\n{stub}\n    # your code here\n```",
)
_DESCRIBE = (
    "Write a Python function to {verb}.",
    "Write a Python function that {verbs}.",
    "Write a function to {verb}.",
    "Write a python function to {verb}.",
    "I need a Python function that {verbs}.",
    "How can I {verb} in Python? Please write a function.",
    "Can you write a function in Python to {verb}?",
    "Create a Python function that {verbs}. Return only the code.",
    "Implement a function that {verbs} in Python, with type hints and a docstring.",
    "Python: {verb}.",
    (
        "Please provide a self-contained Python script that solves the following problem in a markdown code "
        'block:\n```\n"""\nWrite a function to {verb}.{tests}\n"""\n```'
    ),
    "You are an expert Python programmer, and here is your task: Write a function to {verb}.",
)
_TESTED = (
    "{request}\nYour code should pass these tests:\n\n{tests}",
    "{request}\n\n{tests}",
    "{request}\nFor example:\n```python\n{tests}\n```",
    "{request} It should satisfy:\n```\n{tests}\n```",
)
_NAMED = (
    "Write a function `{call}` that {verbs}.",
    "Write a Python function `{call}` that {verbs}. Include the imports it needs.",
    "Implement `{call}` in Python: it {verbs}.",
    "Define a Python function named `{name}` to {verb}.",
    "Write a Python function called `{name}` that takes {arguments} and {verbs}.",
    "Implement the function `def {call}:` so that it {verbs}.",
    "Write `{call}`, which {verbs}. Only the code, please.",
    "Create a function {name} with the parameters {arguments} to {verb}.",
)
_CODE = (
    "Explain what this function does:\n```python\n{code}\n```",
    "Explain the following code step by step.\n\n```python\n{code}\n```",
    "Refactor this function to make it more readable:\n```python\n{code}\n```",
    "Add type hints to this function.\n```python\n{code}\n```",
    "Add a docstring to the following function. Return the whole function.\n```python\n{code}\n```",
    "Write unit tests with pytest for this function:\n```python\n{code}\n```",
    "Write a few assert statements that test this function.\n\n```python\n{code}\n```",
    "What is the time complexity of this function?\n```python\n{code}\n```",
    "Simplify this code without changing what it does:\n\n```python\n{code}\n```",
    (
        "Are there any bugs or unhandled edge cases in this function? If so, show a corrected "
        "version.\n```python\n{code}\n```"
    ),
    "Add input validation with clear error messages to this function.\n```python\n{code}\n```",
    "Rename the variables of this function so that it reads better, and keep its behaviour.\n```python\n{code}\n```",
    "Add comments to this code:\n```python\n{code}\n```",
    "Give an example of how to call this function, with the expected result.\n```python\n{code}\n```",
    "Write a one-paragraph summary of this function.\n\n{code}",
    "Can this be made faster?\n```python\n{code}\n```",
)
PORT_TEXT = (
    "Write in {language} a function that {verbs}.",
    "Write a {language} function to {verb}.",
    "Implement a function in {language} that {verbs}. Only code, please.",
    "How do I {verb} in {language}?",
    "Write a {language} program with a function that {verbs}, and a short usage example.",
    "{language}: write a function to {verb}.",
)
_PORT_CODE = (
    "Translate the following Python function to {language}:\n```python\n{code}\n```",
    "Port this Python code to {language}.\n\n```python\n{code}\n```",
    "Rewrite this function in {language}:\n```python\n{code}\n```",
    "What is the {language} equivalent of this Python function?\n```python\n{code}\n```",
)
_PYTHON_ONLY = re.compile(
    r"python|numpy|pandas|array_?like|ndarray|dataframe|series\b|dict\b|tuple|kwarg|iterator|generator|iterable|decorator|"
    r"pickle|dtype|`\w+\.|module|docstring|None\b|matplotlib|sparse",
    re.IGNORECASE,
)


def function_prompts(function: Function, seed: int, limit: int) -> Iterator[Prompt]:
    """At most `limit` prompts of different kinds from one function; 1 from a method, 2 from what needs its file."""
    builders = {"complete": _complete, "describe": _describe, "named": _named, "code": _code, "port": _port}
    order = sorted(builders, key=lambda kind: rank(seed, "order", kind, function.id))
    if function.self_contained and not function.owner:
        order.remove("complete")
        order.insert(0, "complete")
    limit = 1 if function.owner else (limit if function.self_contained else min(limit, 2))
    for kind in order:
        prompt = builders[kind](function, seed) if limit else None
        if prompt is not None:
            limit -= 1
            yield prompt


def _prompt(function: Function, kind: str, content: str, check: Check | None = None) -> Prompt:
    return Prompt(
        id=f"{kind}/{rank(kind, function.id):015x}",
        kind=kind,
        content=content,
        code=function.source,
        name=function.name,
        description=function.summary,
        check=check if function.name in content else None,
        source=function.id,
    )


def doctest_check(function: Function) -> Check | None:
    """The examples of a function's docstring as a check of its answers; None where it cannot stand alone."""
    tests = doctest_asserts(function.doc, function.name)
    if not tests or function.owner or not function.self_contained:
        return None
    return Check(function.name, "\n".join(function.imports), "\n".join(tests))


def stub(function: Function, budget: int = SOFT_LIMIT) -> str:
    """Imports, signature and docstring; a method stands in its class. Long docstrings lose their last sections."""
    doc = trim_doc(function.doc, function.name, max(200, budget - len(function.header)))
    quote = "'''" if '"""' in doc else '"""'
    prefix = "r" if "\\" in doc else ""
    text = f"{function.header}\n" + _indent(f"{prefix}{quote}{doc}{' ' if doc.endswith(chr(34)) else ''}")
    text += f"\n    {quote}" if "\n" in doc else quote
    if function.owner:
        text = f"class {function.owner}:\n" + _indent(text)
    return "\n".join(function.imports) + ("\n\n\n" if function.imports else "") + text


_DROPPED_SECTION = re.compile(
    r"see also|references?|notes?|warnings?|warns|other parameters|attributes|todo|author|methods"
)


def trim_doc(doc: str, name: str, budget: int) -> str:
    """The docstring without cross-references, directives and foreign examples, cut between paragraphs to the budget."""
    kept: list[str] = []
    section, size = "", 0
    paragraphs = re.split(r"\n\s*\n", doc.strip())
    for number, paragraph in enumerate(paragraphs):
        lines = paragraph.splitlines()
        if len(lines) > 1 and re.fullmatch(r"\s*[-=~]{3,}\s*", lines[1]):
            section = lines[0].strip().lower()
        directive = paragraph.lstrip().startswith((".. ", "[1]"))
        foreign = section.startswith("example") and f"{name}(" not in paragraph
        dropped = _DROPPED_SECTION.fullmatch(section) is not None
        if number and (directive or dropped or foreign or size + len(paragraph) > budget):
            if not (directive or dropped or foreign):
                break
            if kept and kept[-1].endswith(":"):
                kept[-1] = kept[-1][:-1] + "."
            continue
        kept.append(paragraph)
        size += len(paragraph)
    return "\n\n".join(kept).rstrip()


def doctest_asserts(doc: str, name: str) -> list[str]:
    """`assert f(1) == 2` for each doctest of one call with a literal result that needs nothing set up before it."""
    found = []
    try:
        examples = doctest.DocTestParser().get_examples(doc)
    except ValueError:
        return []
    for example in examples:
        call, want = example.source.strip(), example.want.strip()
        test = f"assert {call} == {want}"
        if call.startswith(f"{name}(") and call.count("\n") == 0 and _literal(want) and _stands_alone(test, name):
            found.append(test)
    return found


def _stands_alone(test: str, name: str) -> bool:
    """Is it one comparison that reads nothing but `name` and builtins?"""
    tree = parse(test)
    if tree is None or not isinstance(node := tree.body[0], ast.Assert) or not isinstance(node.test, ast.Compare):
        return False
    read = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
    return node.msg is None and all(each == name or hasattr(builtins, each) for each in read)


def _literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError):
        return False
    return "\n" not in text and len(text) < 80


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" if line.strip() else "" for line in text.splitlines())


def _request(function: Function) -> dict[str, str] | None:
    verb = imperative(function.summary)
    return None if verb is None else {"verb": verb, "verbs": third_person(verb)}


def _complete(function: Function, seed: int) -> Prompt | None:
    if not function.header_known or (function.owner and not function.self_contained):
        return None
    text = stub(function)
    template = pick(COMPLETE, seed, "complete", function.id)
    return _prompt(function, "complete", template.replace("{stub}", text), doctest_check(function))


def _describe(function: Function, seed: int) -> Prompt | None:
    request = _request(function)
    if request is None or function.owner:
        return None
    tests = doctest_asserts(function.doc, function.name)[:3]
    template = pick(_DESCRIBE, seed, "describe", function.id)
    embedded = "".join(f"\n{test}" for test in tests[:1])
    text = fill(template, request | {"tests": embedded})
    if tests and "{tests}" not in template and rank(seed, "tests", function.id) % 4:
        text = fill(pick(_TESTED, seed, "tested", function.id), {"request": text, "tests": "\n".join(tests)})
    elif rank(seed, "name", function.id) % 4 == 0:
        text += f" The function should be named `{function.name}`."
    return _prompt(function, "describe", text, doctest_check(function))


def _named(function: Function, seed: int) -> Prompt | None:
    request = _request(function)
    if request is None or function.owner or not function.arguments or len(function.arguments) > 120:
        return None
    parts = [f"`{part}`" for part in function.arguments.split(", ")]
    arguments = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    names = {"call": f"{function.name}({function.arguments})", "name": function.name, "arguments": arguments}
    text = fill(pick(_NAMED, seed, "named", function.id), request | names)
    tests = doctest_asserts(function.doc, function.name)[:2]
    if tests and rank(seed, "tests", function.id) % 2:
        text += "\n\n" + "\n".join(tests)
    return _prompt(function, "named", text, doctest_check(function))


def without_docstring(function: Function) -> str:
    """The source with its docstring left out."""
    return f"{function.header}\n{function.body}"


def _code(function: Function, seed: int) -> Prompt | None:
    template = pick(_CODE, seed, "code", function.id)
    bare = "docstring" in template or rank(seed, "bare", function.id) % 2 == 0
    code = without_docstring(function) if bare else function.source
    if ("type hints" in template and function.typed) or not 2 <= code.count("\n") <= 30 or len(code) > SOFT_LIMIT:
        return None
    if function.owner and "test" in template:
        return None
    return _prompt(function, "code", template.replace("{code}", code))


def _port(function: Function, seed: int) -> Prompt | None:
    language = pick(LANGUAGES, seed, "language", function.id)
    request, code = _request(function), without_docstring(function)
    if function.self_contained and len(code) < 700 and not _PYTHON_ONLY.search(code) and rank(seed, function.id) % 2:
        template = pick(_PORT_CODE, seed, "port", function.id)
        return _prompt(function, "port", fill(template, {"language": language, "code": code}))
    if request is None or function.owner or _PYTHON_ONLY.search(function.summary) or "`" in function.summary:
        return None
    template = pick(PORT_TEXT, seed, "port", function.id)
    return _prompt(function, "port", fill(template, request | {"language": language}))


def fim_prompt(function: Function, seed: int) -> Prompt | None:
    """A hole in a function: one line, several lines, or a random span, each a third. None where no hole fits."""
    lead = "\n".join(function.imports) + ("\n\n\n" if function.imports else "")
    text = lead + (f"class {function.owner}:\n{_indent(function.source)}" if function.owner else function.source) + "\n"
    first = len(text.rstrip("\n").splitlines()) - len(function.body.splitlines())
    lines = text.splitlines(keepends=True)
    holes = [i for i in range(first, len(lines)) if lines[i].strip() and not lines[i].strip().startswith("#")]
    if not holes or not 120 <= len(text) <= 2_000:
        return None
    generator = random.Random(rank(seed, "fim", function.id))
    form, start = generator.choice(("line", "lines", "span")), generator.choice(holes)
    if form == "span":
        begin = sum(len(line) for line in lines[:first])
        cut = sorted(generator.randrange(begin, len(text)) for _ in range(2))
        begin, end = cut[0], min(cut[1], cut[0] + 300)
    else:
        end_line = start + 1 if form == "line" else min(len(lines), start + generator.randint(2, 6))
        begin, end = (sum(len(line) for line in lines[:stop]) for stop in (start, end_line))
    prefix, middle, suffix = text[:begin], text[begin:end], text[end:]
    if len(middle.strip()) < 3 or len(middle) > 500:
        return None
    key = f"fim/{rank('fim', function.id):015x}"
    return Prompt(
        key,
        "fim",
        code=function.source,
        name=function.name,
        description=function.summary,
        prefix=prefix,
        middle=middle,
        suffix=suffix,
        source=function.id,
    )
