"""A made-up benchmark in HumanEval's format, and a model that answers it without a network."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from openmercury.engine.params import SamplingParams
from openmercury.model.config import AdapterFacts, DiffusionFacts
from openmercury.model.convert import save_hf
from tests import tiny
from tests.text.made import FACTS, byte_level_core

TASKS = 164

HELPED = '''import math
from typing import List, Optional

LIMIT = """a
text"""


def helper(number: int) -> int:
    """Helps."""
    return number + 1


def sum_0(numbers: List[int]) -> Optional[int]:
    """Return the sum of helped numbers."""
'''


def rows(count: int = TASKS) -> list[dict[str, str]]:
    """Task 0 has imports, a constant and a helper; the others only a function."""
    made = [
        {
            "task_id": f"Made/{number}",
            "prompt": f'def sum_{number}(numbers):\n    """Return the sum and {number}."""\n',
            "entry_point": f"sum_{number}",
            "test": f"def check(candidate):\n    assert candidate([1, 2]) == {3 + number}\n",
            "canonical_solution": f"    return sum(numbers) + {number}\n",
        }
        for number in range(count)
    ]
    made[0] |= {
        "prompt": HELPED,
        "canonical_solution": "    return sum(map(helper, numbers))\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 5 and helper(1) == 2 and math.pi > 3\n",
    }
    return made


def mbpp_rows(count: int = 40) -> list[dict[str, object]]:
    """Test tasks of MBPP, numbered from 11 on, behind the examples of the prompt and one that is no test task."""
    return [
        {
            "task_id": number,
            "text": f"Write a function to add {number}.",
            "code": f"def add_{number}(x):\r\n  return x + {number}",
            "test_list": [f"assert add_{number}(1) == {number + 1}"],
            "test_setup_code": "",
        }
        for number in (2, 3, 4, *range(10, 11 + count))
    ]


def write_checkpoint(folder: Path) -> Path:
    """A tiny random network with its adapter and a tokenizer."""
    config = tiny.config().model_copy(
        update={
            "vocab_size": 512,
            "max_context": 2048,
            "diffusion": DiffusionFacts(mask_id=511, block_size=4, adapter=AdapterFacts(rank=4)),
        }
    )
    model = tiny.network(dtype=torch.float32, of=config)
    save_hf(model, folder)
    assert model.adapter is not None
    save_file(dict(model.adapter.named_parameters()), folder / "adapter.safetensors")
    byte_level_core().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(FACTS))
    return folder


def write_data(folder: Path, made: Sequence[dict[str, str]] | None = None) -> Path:
    """The evaluation folder, with HumanEval and MBPP in it."""
    write_rows(folder, "humaneval/HumanEval.jsonl.xz", rows() if made is None else made)
    write_rows(folder, "mbpp/mbpp.jsonl.xz", mbpp_rows())
    return folder


def write_rows(folder: Path, name: str, made: Sequence[Mapping[str, Any]], *, lines: bool = True) -> None:
    """A file of evaluation data, which the folder lists as its own version."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ("".join(json.dumps(row) + "\n" for row in made) if lines else json.dumps(made)).encode()
    path.write_bytes(lzma.compress(text))
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write(f"{hashlib.sha256(text).hexdigest()}  {name}\n")


class DemoLLM:
    """Says one thing, in one step; `engine.model` has two parameters of 3 million values in all."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.folder, self.device, self.dtype, self.load_seconds = Path("models/fake"), "cpu", "float32", 0.1
        numels = [SimpleNamespace(numel=lambda: 1_000_000), SimpleNamespace(numel=lambda: 2_000_000)]
        self.engine = SimpleNamespace(model=SimpleNamespace(parameters=lambda: numels))

    def stream_chat(self, messages: Any, params: SamplingParams, *, show_draft: bool = False) -> Any:
        from tests.cli.fakes import steps_of

        assert show_draft
        return iter(steps_of(self.text, size=80, mode=params.mode))
