"""What `data prepare` did, as Markdown with pictures."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openmercury.data.pipeline import Outcome
from openmercury.data.shards import Counts, write_whole
from openmercury.data.stages import DECONTAMINATE, READ, Ledger
from openmercury.errors import DataError

NO_PICTURES = "pictures need matplotlib: pip install 'openmercury[data]', or set pictures=false"
NAME = "report.md"
MB = 1e6


def check(pictures: bool) -> None:
    """Raise DataError where the package that draws is missing."""
    if pictures:
        _pyplot()


def write(outcome: Outcome) -> None:
    """`out`/report.md and its pictures."""
    out = outcome.recipe.out
    names = _pictures(outcome, out) if outcome.recipe.pictures else []
    write_whole(out / NAME, markdown(outcome, names).encode())


def markdown(outcome: Outcome, pictures: Iterable[str] = ()) -> str:
    """The whole report."""
    facts, ledger, counts = outcome.facts, outcome.ledger, outcome.facts.counts
    dropped = sum(ledger.drops.values())
    parts = [
        f"# Prepared data\n\n{counts.examples:,} examples, {counts.tokens:,} tokens ({counts.trained:,} trained on) in "
        f"{len(outcome.shards)} shards, from {outcome.kept:,} kept files and edits; {dropped:,} were left out. "
        f"{ledger.scrubbed:,} texts had e-mail addresses or secrets replaced.",
        *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
        "## Stages\n\nCPU seconds, and the speed of one core in the text that reaches the stage.\n\n" + _stages(ledger),
        _phases(outcome),
        "## Left out\n\n" + _table(("stage", "reason", "count"), _drops(ledger)),
        "## Contamination\n\n" + _contamination(ledger, outcome.recipe.decontaminate),
        *(
            f"## {title}\n\n" + _counts(title.lower(), table)
            for title, table in (
                ("Kinds", facts.kinds),
                ("Languages", facts.languages),
                ("Licences", facts.licences),
            )
        ),
        "## Lengths of examples\n\n" + _table(("tokens", "examples"), _lengths(outcome.lengths)),
    ]
    return "\n\n".join(parts) + "\n"


def _stages(ledger: Ledger) -> str:
    rows = []
    for stage, documents in ledger.documents.items():
        seconds, size = ledger.seconds[stage], ledger.bytes[stage]
        drops = sum(count for (where, _), count in ledger.drops.items() if where == stage)
        speed = f"{size / MB / seconds:,.1f}" if seconds else ""
        rows.append((stage, f"{documents:,}", f"{drops:,}", f"{size / MB:,.1f}", f"{seconds:,.1f}", speed))
    return _table(("stage", "files in", "dropped", "MB in", "CPU seconds", "MB/s"), rows)


def _phases(outcome: Outcome) -> str:
    recipe, size = outcome.recipe, outcome.ledger.bytes[READ]
    rows = []
    for phase, seconds in outcome.seconds.items():
        peak = outcome.ledger.memory.get(phase, 0)
        rows.append((phase, f"{seconds:,.1f}", f"{size / MB / max(seconds, 1e-9):,.1f}", f"{peak / MB:,.0f}"))
    whole = sum(outcome.seconds.values())
    rows.append(("all", f"{whole:,.1f}", f"{size / MB / max(whole, 1e-9):,.1f}", ""))
    head = ("phase", "seconds", "MB/s of the text read", "peak MB of a process")
    told = f"{recipe.workers} workers ({recipe.executor}), time of the last start alone."
    return f"## Phases\n\n{told}\n\n" + _table(head, rows)


def _drops(ledger: Ledger) -> Iterable[tuple[str, str, str]]:
    for (stage, reason), count in sorted(ledger.drops.items(), key=lambda item: (-item[1], item[0])):
        yield stage, reason, f"{count:,}"


def _contamination(ledger: Ledger, looked: bool) -> str:
    if not looked:
        return "Not looked for: `decontaminate = false`."
    found: Counter[tuple[str, str]] = Counter()
    for (stage, reason), count in ledger.drops.items():
        if stage == DECONTAMINATE:
            name, _, how = reason.partition(": ")
            found[name, how] += count
    if not found:
        return f"None of {ledger.documents[DECONTAMINATE]:,} files repeats an evaluation item."
    return _table(("set", "how", "files left out"), ((*key, f"{count:,}") for key, count in sorted(found.items())))


def _counts(what: str, table: Mapping[str, Counts]) -> str:
    rows = sorted(table.items(), key=lambda item: (-item[1].tokens, item[0]))
    shown = ((key or "none", f"{one.examples:,}", f"{one.tokens:,}", f"{one.trained:,}") for key, one in rows)
    return _table((what, "examples", "tokens", "trained on"), shown)


def _lengths(lengths: Mapping[int, int]) -> Iterable[tuple[str, str]]:
    for bits, count in sorted(lengths.items()):
        yield f"{1 << bits - 1:,} to {(1 << bits) - 1:,}", f"{count:,}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


# --- pictures --------------------------------------------------------------------------------------------------------


def _pictures(outcome: Outcome, out: Path) -> list[str]:
    drops: Counter[str] = Counter()
    for (stage, reason), count in outcome.ledger.drops.items():
        drops[f"{stage}: {reason}"] += count
    languages = Counter({key or "none": one.tokens for key, one in outcome.facts.languages.items()})
    lengths = {f"{1 << bits - 1}": count for bits, count in sorted(outcome.lengths.items())}
    drawn = (
        ("languages", "tokens", dict(languages.most_common(12)), True),
        ("drops", "files", dict(drops.most_common(12)), True),
        ("lengths", "examples", lengths, False),
    )
    for name, label, values, across in drawn:
        write_whole(out / f"{name}.png", _bars(label, values, across))
    return [f"{name}.png" for name, *_ in drawn]


def _bars(label: str, values: Mapping[str, int], across: bool) -> bytes:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.3 * len(values) if across else 3), layout="constrained")
    if across:
        axes.barh(list(values), list(values.values()))
        axes.invert_yaxis()
        axes.set_xlabel(label)
    else:
        axes.bar(list(values), list(values.values()))
        axes.set_ylabel(label)
        axes.set_xlabel("tokens, at least")
        axes.tick_params(axis="x", rotation=45)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    plt.close(figure)
    return data.getvalue()


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise DataError(NO_PICTURES) from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt
