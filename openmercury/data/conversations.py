"""Files of conversations to shards: JSON Lines whose rows have `messages`, and `tools` where functions may be called.

Both are as OpenAI writes them. Rows may also name their `language` and `licence`, which are counted. A row that is no
conversation, has no answer that fits, or repeats an evaluation item is left out, and counted by reason.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from openmercury.data.config import ExampleRecipe
from openmercury.data.decontaminate import BenchmarkIndex
from openmercury.data.examples import make_chat_examples
from openmercury.data.shards import MANIFEST, Example, Manifest, check_out, write_manifest, write_shard
from openmercury.data.sources.base import Drop
from openmercury.data.sources.tables import UNPACKING, json_lines, open_packed
from openmercury.errors import DataError, InputError
from openmercury.text.tokenizer import Tokenizer

SHARD, SHARDS = 8192, "chat-*.safetensors"  # examples of one, and their names
LONGEST = 16_000_000  # bytes of a row

Drops: TypeAlias = Counter[str]


def write_conversations(
    paths: Sequence[Path],
    out: Path,
    recipe: ExampleRecipe,
    tokenizer: Tokenizer,
    benchmarks: BenchmarkIndex | None,
) -> tuple[Manifest, Drops]:
    """Shards of all conversations in order, and how many rows were left out by reason.

    Raises DataError where a file cannot be read, `out` is in use, or nothing is left.
    """
    if (out / MANIFEST).exists():
        raise DataError(f"{out} holds shards already: name another folder, or delete it")
    check_out(out, SHARDS)
    for left in out.glob(SHARDS):  # of a run that was stopped
        left.unlink()
    drops: Drops = Counter()
    examples = itertools.chain.from_iterable(_examples(path, recipe, tokenizer, benchmarks, drops) for path in paths)
    for number in itertools.count():
        found = list(itertools.islice(examples, SHARD))
        if not found:
            break
        path = out / f"chat-{number:05d}.safetensors"
        write_shard(path, found, tokenizer=tokenizer.fingerprint, block_size=recipe.block_size)
    if not list(out.glob("*.safetensors")):
        raise DataError(f"no conversation is left of {', '.join(map(str, paths))} ({_told(drops)}): correct the files")
    told = {"conversations": [path.name for path in paths], **recipe.model_dump(mode="json")}
    return write_manifest(out, told), drops


def _told(drops: Drops) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in drops.most_common()) or "they are empty"


def _examples(
    path: Path, recipe: ExampleRecipe, tokenizer: Tokenizer, benchmarks: BenchmarkIndex | None, drops: Drops
) -> Iterator[Example]:
    for row in _rows(path, drops):
        messages, tools = row.get("messages"), row.get("tools") or []
        if not messages or not _are_objects(messages) or not _are_objects(tools):
            drops["without messages"] += 1
            continue
        if benchmarks is not None and (hit := benchmarks.find(_text(messages))) is not None:
            drops[f"near {hit[0]}"] += 1
            continue
        about = [str(row.get(name) or "") for name in ("language", "licence")]
        try:
            found = make_chat_examples(messages, recipe, tokenizer, tools=tools, language=about[0], licence=about[1])
        except InputError:
            drops["malformed"] += 1
            continue
        drops["without an answer that fits"] += not found
        yield from found


def _rows(path: Path, drops: Drops) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            for _, row in json_lines(open_packed(file, path.name), LONGEST):
                if isinstance(row, Drop):
                    drops[row.reason] += 1
                else:
                    yield row
    except UNPACKING as error:
        raise DataError(f"{path} cannot be read ({error}): give JSON Lines, plain, .gz, .xz or .zst") from None


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _text(messages: Sequence[dict[str, Any]]) -> str:
    """All that the messages say, tool calls aside."""
    return "\n".join(str(each.get("content") or "") for each in messages)
