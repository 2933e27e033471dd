"""What import-linter cannot see: the modules behind `openmercury --help` load without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "openmercury"
LIGHT = [
    PACKAGE / "__init__.py",
    PACKAGE / "log.py",
    PACKAGE / "errors.py",
    PACKAGE / "engine" / "params.py",
    *sorted(PACKAGE.glob("**/config.py")),
    *sorted(PACKAGE.glob("cli/**/*.py")),
]
CHECK = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = [heavy for heavy in ("torch", "transformers") if heavy in sys.modules]
    if heavy:
        sys.exit(f"importing {name} imports {heavy[0]}: move that import into the function that needs it")
"""


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_settings_and_command_line_load_without_torch() -> None:
    names = [dotted(path) for path in LIGHT if path.exists()]
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *names], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
