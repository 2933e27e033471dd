"""Source files to examples of code and of holes in it.

A file is taken whole, or as its functions; what is longer than an example is split at line ends, at those between
functions where there are any near. Only the last piece ends with the token that ends a text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from openmercury.data.config import ExampleRecipe
from openmercury.data.document import Document
from openmercury.data.examples.common import chance, end_of_text, finished
from openmercury.data.examples.spans import definitions, random_span, syntax_span
from openmercury.data.shards import Example
from openmercury.text.fim import render_fill
from openmercury.text.tokenizer import Tokenizer

MARKS = 16  # tokens kept free for the marks of a hole, and for words that its ends break
CHARACTERS, ROOM = 3.2, 0.9  # a token, to begin with; of what the piece before had
SHORTEST = 8  # characters of a piece that a hole is made in
FRESH = re.compile(r"\n(?=\n*[^\s)\]}])")  # line ends before a line that begins at the margin


def make_examples(document: Document, recipe: ExampleRecipe, tokenizer: Tokenizer) -> list[Example]:
    """Examples of one file, each at most `max_tokens` long (up to its padding).

    Raises UnsupportedError where the recipe asks for holes and the tokenizer has no marks for them.
    """
    drawn = chance(recipe, document.id)
    whole = [document.text]
    parts = definitions(document) or whole if drawn.random() < recipe.functions else whole
    found: list[Example] = []
    for part in parts:
        left = len(part)
        for piece, ids in split(part, tokenizer, recipe.max_tokens - MARKS):
            left -= len(piece)
            example = _hole(piece, document, recipe, tokenizer, drawn) if drawn.random() < recipe.fim else None
            if example is None:
                example = Example(ids if left else [*ids, end_of_text(tokenizer)], 0, "code")
            found.append(example._replace(language=document.language, licence=document.licence))
    return finished([one for one in found if len(one.ids) > 1], recipe, tokenizer)


def _hole(
    text: str, document: Document, recipe: ExampleRecipe, tokenizer: Tokenizer, drawn: random.Random
) -> Example | None:
    """A hole in the text; None where it is too short, or would grow beyond an example by words that are broken."""
    if len(text) < SHORTEST:
        return None
    span = syntax_span(text, document.language, drawn) if drawn.random() < recipe.syntax else None
    begin, end = span or random_span(text, drawn)
    prompt = render_fill(tokenizer, text[:begin], text[end:], suffix_first=drawn.random() < recipe.spm)
    ids = [*prompt, *tokenizer.encode(text[begin:end]), end_of_text(tokenizer)]
    if len(ids) > recipe.max_tokens:
        return None
    return Example(ids, len(prompt) if recipe.fim_loss == "middle" else 0, "fim")


def split(text: str, tokenizer: Tokenizer, most: int) -> Iterator[tuple[str, list[int]]]:
    """Pieces that join to the text, with their ids, at most `most` of them."""
    rate = CHARACTERS  # a token; what a piece shows of it is the guess for the next, so that each is encoded once
    while text:
        size = int(most * rate)
        cut = len(text) if len(text) <= size else _border(text, size, size // 4)
        ids = tokenizer.encode(text[:cut])
        rate = max(1.0, ROOM * cut / len(ids))
        if len(ids) <= most or cut == 1:
            yield text[:cut], ids
            text = text[cut:]


def _border(text: str, near: int, reach: int) -> int:
    """Where to cut shortly before a place: between definitions, else between lines, else there."""
    low, high = max(1, near - reach), near
    for ends in (FRESH, re.compile("\n")):
        places = [found.end() for found in ends.finditer(text, low, high)]
        if places:
            return places[-1]
    return max(1, near)
