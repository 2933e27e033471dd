"""schemathesis makes requests from /openapi.json: whatever it sends, no answer is a fault of the server's.

It is a program of its own, which may live in an environment of its own: it must be on PATH.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.made import MODEL, llm, serving

SECONDS = 50
REFUSED = ("logit_bias", "echo", "best_of", "extra_body")  # whatever a generator puts there
ALONE = ("threshold", "steps", "entropy_bound", "edit_below", "stream_options", "diffusing")  # refused beside others
EDIT = "<|code_to_edit|>\nx\n<|/code_to_edit|>"
MERGE = "<|original_code|>\nx\n<|/original_code|>\n<|update_snippet|>\ny\n<|/update_snippet|>"


def accepted(schemas: dict[str, Any]) -> None:
    """Narrow what is sent to what a server can say yes to, since most random requests end at the first check."""
    for schema in schemas.values():
        fields = schema.get("properties", {})
        if "max_tokens" in fields:
            for name in (*REFUSED, *ALONE):
                fields.pop(name, None)
            fields["max_tokens"] = {"type": "integer", "minimum": 1, "maximum": 24}
            fields["n"] = {"type": "integer", "minimum": 1, "maximum": 3}
            schema["required"].append("max_tokens")
    schemas["TextPart"]["properties"]["type"] = {"const": "text"}
    schemas["TextPart"]["required"] = ["type", "text"]
    for name, content in (("EditRequest", EDIT), ("ApplyRequest", MERGE)):
        one = {"type": "array", "minItems": 1, "maxItems": 1, "items": {"const": {"role": "user", "content": content}}}
        schemas[name]["properties"]["messages"] = one


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("narrow", [False, True], ids=["anything", "what may be accepted"])
def test_no_request_of_schemathesis_is_answered_by_a_fault(tmp_path: Path, narrow: bool) -> None:
    program = shutil.which("schemathesis")
    if program is None:
        pytest.skip("needs schemathesis on PATH")
    with serving(llm(context=2048)) as server:
        told = httpx.get(f"{server.url}/openapi.json").json()
        for schema in told["components"]["schemas"].values():
            if "model" in schema.get("properties", {}):
                schema["properties"]["model"] = {"const": MODEL}  # any other is a 404
        if narrow:
            accepted(told["components"]["schemas"])
        file = tmp_path / "openapi.json"
        file.write_text(json.dumps(told))
        options = ["--max-time", str(SECONDS), "--checks", "not_a_server_error", "--continue-on-failure", "--no-color"]
        more = ["--phases", "fuzzing", "--mode", "positive"] if narrow else ["--phases", "coverage,fuzzing"]
        done = subprocess.run(
            [program, "run", str(file), "--url", server.url, *options, *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        assert server.pages_free()
