"""The options that commands share; those of `generate`, `chat` and `fill` are declared once as a dataclass.

`takes_settings` spreads its fields over a command's signature, where typer finds them. Ranges are checked by
`SamplingParams` alone; this file turns its complaints into the user's words.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from openmercury.cli.errors import UsageProblem
from openmercury.errors import InputError

if TYPE_CHECKING:
    from openmercury.engine.params import SamplingParams

MODEL, DECODING, SHOWN = "Model", "Decoding", "Output"

# As in SamplingParams, whose import would cost the help page pydantic.
ModeName = Literal["diffusion", "verified", "ar", "auto"]
DtypeName = Literal["auto", "float32", "bfloat16", "float64", "int8", "fp8"]
# What commands that follow a recipe take.
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Instead of the recipe's: seed=1.")
]


def option(help: str, *names: str, panel: str | None = None, metavar: str | None = None) -> Any:
    """A typer option; the field's name makes its own flag where no `names` are given."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar)


def given(invocation: typer.Context, name: str) -> bool:
    """Whether the user wrote an option, whatever its value."""
    source = invocation.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def flag(name: str) -> str:
    """A parameter as it is written on the command line."""
    return "--" + name.replace("_", "-")


def refuse_unread(invocation: typer.Context, needs: Mapping[str, str], there: Mapping[str, bool]) -> None:
    """Raise UsageProblem for an option whose need (option → need) is not `there`: nothing would read it."""
    for name, need in needs.items():
        if given(invocation, name) and not there[need]:
            told = {"contestants": "a contestant", "json_out": "--json"}.get(name, flag(name))
            raise UsageProblem(f"{told} goes with {need}: drop it")


@dataclass(frozen=True)
class Settings:
    """How to load the model, how to decode, what to show."""

    model: Annotated[
        str | None,
        option("Checkpoint folder. Default: $OPENMERCURY_MODEL, else the shipped one.", panel=MODEL, metavar="FOLDER"),
    ] = None
    device: Annotated[str, option("auto, cpu or cuda.", panel=MODEL)] = "auto"
    dtype: Annotated[DtypeName, option("Number format of the weights.", panel=MODEL)] = "auto"
    mode: Annotated[
        ModeName, option("verified gives ar's text in fewer forwards, auto in the fastest.", panel=DECODING)
    ] = "verified"
    max_tokens: Annotated[int, option("Tokens to write at most.", panel=DECODING)] = 512
    temperature: Annotated[float, option("0 is greedy.", panel=DECODING)] = 0.0
    top_p: Annotated[float, option("Sample from this share of the probability.", panel=DECODING)] = 1.0
    top_k: Annotated[int, option("Sample from this many tokens; 0 is all.", panel=DECODING)] = 0
    seed: Annotated[int, option("Seed of the sampling.", panel=DECODING)] = 0
    threshold: Annotated[
        float | None, option("diffusion: accept predictions at least this sure. Default: 0.15.", panel=DECODING)
    ] = None
    steps: Annotated[int | None, option("diffusion: forwards for each block, instead.", panel=DECODING)] = None
    entropy_bound: Annotated[
        float | None, option("diffusion: accept while summed entropy is below, instead.", panel=DECODING)
    ] = None
    edit_below: Annotated[
        float | None, option("diffusion: replace a token this unlikely beside the clean choice.", panel=DECODING)
    ] = None
    block_size: Annotated[
        int | None, option("Positions denoised together. Default: the checkpoint's.", panel=DECODING)
    ] = None
    presence_penalty: Annotated[
        float, option("Taken off the logits of tokens the answer holds (-2 to 2).", panel=DECODING)
    ] = 0.0
    frequency_penalty: Annotated[
        float, option("Taken off them each time they were written (-2 to 2).", panel=DECODING)
    ] = 0.0
    repetition_penalty: Annotated[
        float, option("Divides the logits of tokens in prompt and answer; 1 is off.", panel=DECODING)
    ] = 1.0
    stop: Annotated[
        list[str] | None, option("Text that ends the answer, itself left out; repeatable.", panel=DECODING)
    ] = None
    deadline: Annotated[
        float | None, option("Stop after so long and give what is there.", panel=DECODING, metavar="SECONDS")
    ] = None
    show_steps: Annotated[bool, option("Draw the denoising.", "--show-steps", panel=SHOWN)] = False
    json: Annotated[bool, option("Print one JSON object with text and usage.", "--json", panel=SHOWN)] = False

    def check(self) -> None:
        """Raise UsageProblem for options that exclude each other."""
        if self.show_steps and self.json:
            raise UsageProblem("--show-steps and --json exclude each other: drop one")

    def sampling(self) -> SamplingParams:
        """The decoder's parameters; raises UsageProblem for values it refuses."""
        from pydantic import ValidationError

        from openmercury.config import explain
        from openmercury.engine.params import SamplingParams

        given = {name: value for name, value in vars(self).items() if name in SamplingParams.model_fields}
        stop = tuple(valid_text(text, "--stop") for text in self.stop or ())
        try:
            return SamplingParams(**{**given, "stop": stop})
        except ValidationError as error:
            raise UsageProblem(_in_flags(explain(error, SamplingParams))) from None


NAMES = {field.name: flag(field.name) for field in dataclasses.fields(Settings)}


def _in_flags(told: str) -> str:
    """Field names as the flags that set them: "max_tokens should …" becomes "--max-tokens should …"."""
    told = re.sub(r"\bstop\.\d+", "stop", told)
    told = re.sub(r"\bmode=(\w+)", r"--mode \1", told)
    fields = "|".join(name for name in NAMES if name != "mode")
    return re.sub(rf"(?<![\w-])({fields})\b", lambda found: NAMES[found[1]], told)


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `settings: Settings` of a command by one option for each of its fields."""
    own = inspect.signature(command, eval_str=True)
    hints = get_type_hints(Settings, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter for name, parameter in own.parameters.items() if name != "settings"]
    parameters += [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=hints[field.name])
        for field in dataclasses.fields(Settings)
    ]

    @functools.wraps(command)
    def spread(*positional: object, **given: Any) -> None:
        settings = Settings(**{name: given.pop(name) for name in NAMES})
        settings.check()
        command(*positional, settings=settings, **given)

    spread.__dict__["__signature__"] = inspect.Signature(parameters)
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


# --- text from outside -----------------------------------------------------------------------------------------------


def decode(data: bytes, source: str) -> str:
    """UTF-8 bytes as text; raises InputError naming the first byte that is not, counted from 0."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it first, for example with `iconv -t UTF-8`"
        ) from None


def valid_text(text: str, source: str) -> str:
    """An argument as it came, checked: Python smuggles a shell's invalid bytes in as lone surrogates."""
    return decode(text.encode("utf-8", "surrogateescape"), source)
