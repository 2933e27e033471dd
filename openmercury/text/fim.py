"""Fill-in-the-middle prompts: prefix, suffix, then the model writes the middle (arXiv 2207.14255).

Requests are in the order PSM. In SPM, which training knows too, the prefix stands last and the middle goes on with it.
"""

from __future__ import annotations

from openmercury.errors import EmptyPromptError, UnsupportedError
from openmercury.text.tokenizer import Tokenizer

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
STOPS = (PREFIX, SUFFIX, MIDDLE, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|endoftext|>", "<|im_end|>")

TELLING = 4  # visible characters that make a line one of its own


def render_fill(tokenizer: Tokenizer, prefix: str, suffix: str, *, suffix_first: bool = False) -> list[int]:
    """Token ids that ask for the text between `prefix` and `suffix`; control tokens written in them stay text.

    `suffix_first` gives the order SPM: the marks of both parts, suffix, mark of the middle, prefix.

    Raises EmptyPromptError when both are empty, UnsupportedError when the tokenizer has no such tokens.
    """
    if not prefix and not suffix:
        raise EmptyPromptError("prefix and suffix are both empty: give the code around the gap")
    before, behind, middle = map(tokenizer.token_id, (PREFIX, SUFFIX, MIDDLE))
    if before is None or behind is None or middle is None:
        raise UnsupportedError("this checkpoint has no fill-in-the-middle tokens: use a model trained for it")
    if suffix_first:
        return [before, behind, *tokenizer.encode(suffix), middle, *tokenizer.encode(prefix)]
    return [before, *tokenizer.encode(prefix), behind, *tokenizer.encode(suffix), middle]


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end a middle: the end of text, and whatever would begin another part or file."""
    found = (*tokenizer.eos_ids, *map(tokenizer.token_id, STOPS))
    return tuple(dict.fromkeys(number for number in found if number is not None))


def suffix_stops(suffix: str) -> tuple[str, ...]:
    """Stop strings that end a middle where it goes on with its suffix, as models do that never learned to stop there.

    Up to the first line that can be told from others: the suffix itself, and that line alone, whatever blank lines or
    closing brackets the model has put before it. None where the suffix has no such line.
    """
    lines = suffix.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if len("".join(line.split())) >= TELLING:
            exact, alone = "".join(lines[: number + 1]).rstrip(), f"\n{line.rstrip()}"
            if number == 0:  # an indented line begins here; anything else goes on with the line of the gap
                return (alone,) if line.startswith(("  ", "\t")) else (exact,)
            return tuple(dict.fromkeys((exact, alone)))
    return ()
