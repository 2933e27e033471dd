"""Log probabilities of the tokens of a settled answer, by the clean side, in the two shapes of OpenAI's API.

They are read behind the answer, in one pass over its text: what the network thinks at temperature 1, whatever
penalties, constraint or drafts the answer was written with.
"""

from __future__ import annotations

import itertools
from typing import Any

from openmercury.server.generation import Generation
from openmercury.text.tokenizer import Tokenizer


async def chat_shape(generation: Generation, number: int, text: str, top: int) -> dict[str, Any]:
    """For chat: {"content": [{token, logprob, bytes, top_logprobs}], …}."""
    tokenizer, ids = generation.service.llm.tokenizer, _inside(generation, number, text)
    found = await generation.service.token_odds(generation.prompt, ids, max(1, top))
    content = [
        {
            **_token(tokenizer, token, odds.log_p),
            "top_logprobs": [_token(tokenizer, other, log_p) for other, log_p in odds.best[:top]],
        }
        for token, odds in zip(ids, found, strict=True)
    ]
    return {"content": content, "refusal": None}


async def completion_shape(generation: Generation, number: int, text: str, top: int) -> dict[str, Any]:
    """For completions: parallel lists of tokens, their log p, the likeliest in their place, and where they begin."""
    tokenizer, ids = generation.service.llm.tokenizer, _inside(generation, number, text)
    found = await generation.service.token_odds(generation.prompt, ids, max(1, top))
    tokens = [_name(tokenizer, token) for token in ids]
    return {
        "tokens": tokens,
        "token_logprobs": [odds.log_p for odds in found],
        "top_logprobs": [{_name(tokenizer, other): log_p for other, log_p in odds.best[:top]} for odds in found],
        "text_offset": list(itertools.accumulate((len(token) for token in tokens[:-1]), initial=0)) if tokens else [],
    }


def _inside(generation: Generation, number: int, text: str) -> list[int]:
    """The tokens that make up the text; those of a stop string behind it are left out."""
    tokenizer, ids, size = generation.service.llm.tokenizer, generation.ids[number], len(text.encode())
    ends = itertools.accumulate((len(tokenizer.token_bytes(token)) for token in ids), initial=0)
    return [token for token, begin in zip(ids, ends, strict=False) if begin < size]


def _token(tokenizer: Tokenizer, token: int, log_p: float) -> dict[str, Any]:
    return {"token": _name(tokenizer, token), "logprob": log_p, "bytes": list(tokenizer.token_bytes(token))}


def _name(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], special=True)
