"""What all kinds of examples share: the source of chance, the tokens that end, the last touch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from openmercury.data.config import ExampleRecipe
from openmercury.data.shards import Example, pad
from openmercury.errors import UnsupportedError
from openmercury.text.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"


def chance(recipe: ExampleRecipe, key: str) -> random.Random:
    """Random numbers that are the same whenever and wherever this key is met."""
    return random.Random(hashlib.sha256(f"{recipe.seed}\n{key}".encode(errors="replace")).digest())


def end_of_text(tokenizer: Tokenizer) -> int:
    """The token that ends a file or a middle. Raises UnsupportedError where there is none."""
    number = tokenizer.token_id(END_OF_TEXT)
    return end_of_turn(tokenizer) if number is None else number


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The token that ends an answer. Raises UnsupportedError where there is none."""
    number = tokenizer.token_id(tokenizer.named_tokens.get("eos_token", ""))
    ends = tokenizer.eos_ids if number is None else (number,)
    if not ends:
        raise UnsupportedError("this checkpoint names no token that ends a text: add eos_token to its config")
    return ends[0]


def finished(examples: Sequence[Example], recipe: ExampleRecipe, tokenizer: Tokenizer) -> list[Example]:
    """The examples, padded where the recipe says so."""
    if recipe.block_size is None:
        return list(examples)
    return [pad(each, recipe.block_size, end_of_text(tokenizer)) for each in examples]
