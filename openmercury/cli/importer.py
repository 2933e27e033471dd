"""`import` makes a checkpoint folder from somebody else's weights, `export` from a training run of ours.

A source is a GGUF file, a `transformers` folder, or the same on the Hugging Face hub: `owner/name` or
`owner/name/file.gguf`. What exists on this machine goes before what may exist on the hub.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from openmercury.cli.options import option
from openmercury.errors import CheckpointError, InputError

HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<file>.+\.gguf))?")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "LICENSE*"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="import")(import_)
    app.command(name="export")(export)


def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="GGUF file, transformers folder, or a hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    compact: Annotated[bool, option("GGUF: of a matrix stored twice keep the smaller copy.", "--compact")] = False,
) -> None:
    """Make a checkpoint folder from a Llama, Qwen2 or Qwen3 model."""
    if out.exists():  # told before anything is fetched
        raise CheckpointError(f"{out} exists: name a new folder or delete it first")
    from openmercury.cli.show import waiting

    with waiting(f"importing {source}") as tell:
        from openmercury.model.convert import import_checkpoint
        from openmercury.text.gguf_tokenizer import tokenizer_files

        import_checkpoint(
            _local(source),
            out,
            tokenizer_files,
            compact=compact,
            progress=lambda done, total: tell(f"writing shard {done} of {total}"),
        )
    print(f'{out} is ready: try openmercury generate --model {out} --mode ar "Write is_prime(n) in Python."')


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The `out` folder of a training run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    quantization: Annotated[
        str | None, option("Number format: of an adapter Q8_0, of all weights BF16 by default.", metavar="TYPE")
    ] = None,
) -> None:
    """Make a checkpoint folder from a training run: its base and its adapter, or all its weights."""
    if not run.is_dir():
        raise InputError(f"there is no folder {run}: give the `out` folder of `openmercury train`")
    from openmercury.cli.show import waiting

    with waiting(f"exporting {run}"):
        from openmercury.train.export import export_run

        export_run(run, out, quantization)
    print(f'{out} is ready: try openmercury generate --model {out} "Write is_prime(n) in Python."')


def _local(source: str) -> Path:
    """Where the source lies on this machine, fetched from the hub if need be."""
    path, hub = Path(source), HUB_ID.fullmatch(source)
    if path.exists() or hub is None:
        return path
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(
            f"there is no {source} here, and hub ids need huggingface_hub: pip install 'openmercury[hub]'"
        ) from None
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if hub["file"]:
            return Path(huggingface_hub.hf_hub_download(hub["repository"], hub["file"]))
        return Path(huggingface_hub.snapshot_download(hub["repository"], allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{source} is not here, and the hub did not give it ({reason}): check the name and the network"
        ) from None
