"""Kept items as training examples: plain code, whole."""

from __future__ import annotations

from openmercury.data.config import PrepareRecipe
from openmercury.data.document import Document
from openmercury.data.shards import Example
from openmercury.data.stages import Item
from openmercury.text.tokenizer import Tokenizer


def make_rows(item: Item, recipe: PrepareRecipe, tokenizer: Tokenizer) -> list[Example]:
    """The examples of one item; a pure function of its arguments."""
    document = item if isinstance(item, Document) else item.after
    ids = [*tokenizer.encode(document.text), *tokenizer.eos_ids[:1]]
    return [Example(ids, 0, "code", document.language, document.licence)]
