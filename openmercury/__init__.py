"""OpenMercury: a diffusion language model for code. This is the public door; what stands behind it loads on first use.

from openmercury import LLM, SamplingParams
print(LLM().chat([{"role": "user", "content": "Write is_prime(n) in Python."}]).text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmercury.config import load_config
    from openmercury.engine.params import SamplingParams
    from openmercury.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__", "load_config"]

# torch takes a second to import, and most commands never need it: a name is fetched when it is asked for (PEP 562).
_HOMES = {
    "LLM": "openmercury.llm",
    "SamplingParams": "openmercury.engine.params",
    "load_config": "openmercury.config",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
