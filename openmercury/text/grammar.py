"""Grammars over tokens: what an answer may become, from a JSON schema, a regular expression or a Lark grammar.

llguidance compiles them and follows a text; here it meets our tokenizer, the limits a server needs, and the engine,
whose `Constraint` a `Follower` is. Compiling may take a second of one core, so it belongs on no event loop and not on
the engine's thread.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import llguidance
import numpy as np
from numpy.typing import NDArray

from openmercury.errors import InputError
from openmercury.text.tokenizer import Tokenizer

Kind = Literal["json_schema", "regex", "lark"]

# Between the tokens of JSON: nothing, a space, or a new line with its indent; a model that hesitates writes no more.
WHITESPACE = r"\x20?|\x0A[\x20\x09]{0,40}"
LONGEST = 1 << 17  # characters of a grammar
NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}
# Their defaults let a schema of 10⁴ properties compile for seconds: a sixth of a second is enough for 1500.
LIMITS = llguidance.LLParserLimits(
    max_grammar_size=20_000, initial_lexer_fuel=300_000, max_lexer_states=20_000, verbose_errors=False
)


class Grammars:
    """Compiles grammars for one tokenizer and remembers the `most` last used; threads may share it."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Collection[int], *, most: int = 64) -> None:
        """`eos_ids` end an answer: the model's own, which the engine stops at."""
        self._tokenizer, self._eos, self._most = tokenizer, frozenset(eos_ids), most
        self._lock, self._compiling = threading.Lock(), threading.Lock()
        self._core: llguidance.LLTokenizer | None = None
        self._known: OrderedDict[tuple[Kind, str], llguidance.LLMatcher] = OrderedDict()

    def follow(self, kind: Kind, grammar: str, *, forced: bool = True) -> Follower:
        """The beginning of a text of this grammar; a JSON schema is given as what `json_grammar` returns.

        Raises InputError for a grammar that is malformed, too large, or that no text fulfils. `forced`: what the
        grammar leaves no other way than to write is guessed before the model is asked.
        """
        if len(grammar) > LONGEST:
            raise InputError(f"the {NAMES[kind]} has {len(grammar)} characters and may have {LONGEST}: shorten it")
        key: tuple[Kind, str] = (kind, grammar)
        with self._lock:
            matcher = self._known.get(key)
            if self._core is None:
                self._core = _core(self._tokenizer, self._eos)
        if matcher is None:
            with self._compiling:  # one at a time: they shall not take all cores from what runs
                matcher = _compiled(self._core, kind, grammar)
        with self._lock:
            self._known[key] = matcher
            self._known.move_to_end(key)
            if len(self._known) > self._most:
                self._known.popitem(last=False)
            return Follower(matcher.deep_copy(), self._eos, self._core, key, forced=forced)


class Follower:
    """A place in the text of one answer: the engine's `Constraint`."""

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        eos: Collection[int],
        core: llguidance.LLTokenizer,
        source: tuple[Kind, str],
        *,
        forced: bool,
    ) -> None:
        self.source, self.forced = source, forced  # what `Grammars.follow` makes another one of
        self._matcher, self._eos, self._ended = matcher, eos, False
        self._core, self._words = core, -(-core.vocab_size // 32)

    @property
    def finished(self) -> bool:
        """Is the text whole, so that nothing but its end may follow?"""
        return self._ended or bool(self._matcher.is_stopped())

    def allowed(self, drafted: Sequence[int], out: NDArray[np.int32]) -> list[int]:
        """See `engine.constraint.Constraint`. Tokens beyond the tokenizer's are never allowed."""
        kept: list[int] = []
        astray = False  # was a draft found wrong?
        consumed = 0
        while True:
            row = out[len(kept)]
            self._fill(row)
            if len(kept) == len(out) - 1:
                break
            guess = drafted[len(kept)] if len(kept) < len(drafted) and not astray else None
            token = self._next(row, guess)
            if token is None:
                break
            astray = token != guess
            kept.append(token)
            if token in self._eos:
                break
            self._matcher.consume_token(token)
            consumed += 1
        self._matcher.rollback(consumed)
        self._check()
        return kept

    def commit(self, tokens: Sequence[int]) -> None:
        """These have become text."""
        for token in tokens:
            self._ended = token in self._eos
            if not self._ended:
                self._matcher.consume_token(token)
        self._check()

    def reads(self, text: str) -> bool:
        """Is this, behind what is committed, a whole text? Nothing changes."""
        tokens = self._core.tokenize_str(text)
        matcher = self._matcher.deep_copy()
        return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())

    def _fill(self, row: NDArray[np.int32]) -> None:
        """Write what may come next into a row of at least as many words as the tokenizer's tokens need."""
        row[:] = 0
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, 4 * self._words)
        self._check()

    def _next(self, row: NDArray[np.int32], guess: int | None) -> int | None:
        """What stands next for all we know: what the grammar forces, else the guess, if it may."""
        tokens = self._matcher.compute_ff_tokens()[:1] if self.forced else []
        tokens += [] if guess is None else [guess]
        return next((token for token in tokens if row[token >> 5] >> (token & 31) & 1), None)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InputError(f"the grammar cannot be followed here ({_reason(self._matcher.get_error())}): simplify it")


def json_grammar(schema: Mapping[str, Any], *, strict: bool) -> str:
    """The grammar of JSON texts that fulfil a schema, for `Grammars.follow`.

    Properties come in the order of the schema. A keyword that cannot be enforced is refused later on if `strict`, and
    ignored otherwise; so is the difference between oneOf and anyOf, where alternatives may overlap.
    """
    if not isinstance(schema, Mapping):
        raise InputError("the JSON schema is no object: give one")
    options: dict[str, Any] = {"whitespace_pattern": WHITESPACE, "lenient": not strict, "coerce_one_of": not strict}
    return json.dumps({**schema, "x-guidance": options})


def _core(tokenizer: Tokenizer, eos: Collection[int]) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(_Vocabulary(tokenizer, min(eos, default=0)), eos_token=sorted(eos))  # type: ignore[arg-type]


class _Vocabulary:
    """Our tokenizer as llguidance reads it; control tokens are marked by a byte that no text has."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        self.encode, self.eos_token_id = tokenizer.encode, eos
        self.special_token_ids = sorted(tokenizer.special.values())
        names = {number: b"\xff" + text.encode() for text, number in tokenizer.special.items()}
        ids = range(tokenizer.vocab_size)
        self.tokens = [names.get(number) or tokenizer.token_bytes(number) for number in ids]

    def __call__(self, text: str | bytes) -> list[int]:
        return self.encode(text if isinstance(text, str) else text.decode())


def _compiled(core: llguidance.LLTokenizer, kind: Kind, grammar: str) -> llguidance.LLMatcher:
    """Compile, and take the first step, which is where much of the work of a large grammar is done."""
    make: dict[Kind, Callable[[str], str]] = {
        "json_schema": llguidance.LLMatcher.grammar_from_json_schema,
        "regex": llguidance.LLMatcher.grammar_from_regex,
        "lark": llguidance.LLMatcher.grammar_from_lark,
    }
    try:
        matcher = llguidance.LLMatcher(core, make[kind](grammar), log_level=0, limits=LIMITS)
        matcher.compute_bitmask()
    except ValueError as error:
        raise InputError(f"the {NAMES[kind]} cannot be used ({_reason(str(error))}): mend it") from None
    if matcher.is_error() and matcher.get_error().startswith("NoExtension"):
        raise InputError(f"no text fulfils the {NAMES[kind]}: mend it")
    if matcher.is_error():
        raise InputError(f"the {NAMES[kind]} cannot be used ({_reason(matcher.get_error())}): mend it")
    return matcher


def _reason(message: str) -> str:
    """The first sentence of what llguidance says; the rest shows its insides."""
    if message.startswith("panic"):  # an assertion of its own, about sizes
        return "it is too large"
    lines = message.replace("<non-verbose/>", "").strip().split("\n")
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    return line[:200] or "no reason was given"
