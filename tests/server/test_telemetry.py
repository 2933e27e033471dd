"""Traces: a span of each request with its facts and no text, its parent, its stages, and when there are none."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import httpx
import pytest

from openmercury.cli.main import main
from openmercury.errors import ConfigError, RequestFailedError, UnsupportedError
from openmercury.server import telemetry
from openmercury.server.generation import STAGES
from openmercury.server.telemetry import Telemetry
from tests.server.made import MODEL, llm, serving, slow

sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "a secret question"}], "max_tokens": 4}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


class Traced:
    """A server and the spans of what it was asked."""

    def __init__(self, http: httpx.Client, exporter: Any) -> None:
        self.http, self._exporter = http, exporter

    def spans(self, count: int) -> list[Any]:
        """So many, once they are there: the parent, then its stages; they are made behind the response."""
        end = time.monotonic() + 5
        while len(found := self._exporter.get_finished_spans()) < count and time.monotonic() < end:
            time.sleep(0.01)
        assert len(found) == count
        self._exporter.clear()
        return sorted(found, key=lambda span: (span.parent is not None and not span.parent.is_remote, span.start_time))


@pytest.fixture
def traced() -> Iterator[Traced]:
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    with (
        serving(slow(llm(), 0.005), Telemetry(provider)) as served,
        httpx.Client(base_url=served.url, timeout=20) as http,
    ):
        yield Traced(http, exporter)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_its_stages(traced: Traced, stream: bool) -> None:
    before = time.time_ns()
    asked = {**ASK, "mode": "verified", "temperature": 0.5, "stream": stream}
    answer = traced.http.post(CHAT, json=asked, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    request, *stages = traced.spans(4)
    assert request.name == f"POST {CHAT}"
    assert request.kind.name == "SERVER"
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    found = dict(request.attributes)
    seconds = found.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < seconds * 1e9 <= request.end_time - request.start_time
    assert found.pop("openmercury.forwards") >= 1
    assert answer.headers["x-request-id"] == found.pop("openmercury.request.id")
    assert found.pop("gen_ai.response.id").startswith("chatcmpl-")
    assert found == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openmercury",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.usage.input_tokens": found["gen_ai.usage.input_tokens"],
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ("length",),
        "openmercury.mode": "verified",
    }
    assert tuple(stage.name for stage in stages) == STAGES
    assert all(stage.parent.span_id == request.context.span_id for stage in stages)
    assert [stage.start_time for stage in stages[1:]] == [stage.end_time for stage in stages[:-1]]
    assert before <= request.start_time <= stages[0].start_time < stages[-1].end_time <= request.end_time


def test_text_is_never_in_a_span(traced: Traced) -> None:
    text = traced.http.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"]
    traced.http.post(CHAT, json={**ASK, "temperature": 9, "stop": "secret"})
    shown = "".join(span.to_json() for span in traced.spans(5))
    assert "secret" not in shown
    assert text
    assert text not in shown


def test_refusals_and_faults_are_spans_and_probes_are_none(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    traced.http.get("/health")
    traced.http.post(CHAT, json={**ASK, "temperature": 9})
    [refused] = traced.spans(1)
    assert refused.attributes["http.response.status_code"] == 400
    assert refused.status.is_ok or refused.status.is_unset
    assert "gen_ai.request.model" not in refused.attributes
    monkeypatch.setattr("openmercury.server.service.TextStream.push", _fail)
    traced.http.post(CHAT, json=ASK)
    request, *_ = traced.spans(3)
    assert request.attributes["http.response.status_code"] == 500
    assert request.attributes["error.type"] == "500"
    assert not request.status.is_ok
    with pytest.raises(httpx.RemoteProtocolError):
        traced.http.post(CHAT, json={**ASK, "stream": True})
    request, *_ = traced.spans(3)
    assert (request.attributes["http.response.status_code"], request.attributes["error.type"]) == (200, "server_error")
    assert request.attributes["gen_ai.response.finish_reasons"] == ("abort",)


def _fail(*_: Any) -> str:
    raise RequestFailedError("the logits are not finite: try float32")


def test_each_answer_of_several_has_its_stages(traced: Traced) -> None:
    traced.http.post("/v1/completions", json={"model": MODEL, "prompt": "def", "max_tokens": 3, "n": 2})
    request, *stages = traced.spans(7)
    assert request.attributes["gen_ai.operation.name"] == "text_completion"
    assert request.attributes["gen_ai.response.finish_reasons"] == ("length", "length")
    assert sorted((span.attributes["openmercury.choice.index"], span.name) for span in stages) == sorted(
        (number, name) for number in (0, 1) for name in STAGES
    )


@pytest.mark.parametrize(
    ("variables", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        (ON, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({**ON, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ON, "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_only_the_standard_variables_switch_it_on(variables: dict[str, str], on: bool) -> None:
    assert telemetry.asked(variables) == on


def test_what_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="OTEL_TRACES_EXPORTER=zipkin is not supported: use otlp"):
        telemetry.from_environment({"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(ConfigError, match="PROTOCOL=grpc is not supported: use http/protobuf"):
        telemetry.from_environment({**ON, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'openmercury\[telemetry\]'"):
        telemetry.from_environment(ON)
    assert telemetry.from_environment({}) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", ON["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert main(["serve", "--port", "0"]) == 1  # before anything is loaded
    assert "openmercury[telemetry]" in capsys.readouterr().err


class Collector(BaseHTTPRequestHandler):
    """Takes what is sent to it."""

    got: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("variables", "name"), [({}, "openmercury"), ({"OTEL_SERVICE_NAME": "ours"}, "ours")])
def test_spans_go_where_the_variables_say(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    Collector.got.clear()
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever).start()
        variables = {**variables, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        made = telemetry.from_environment(variables)
        assert made is not None
        facts = {"method": "GET", "path": "/v1/models", "status": 200, "id": "req_1"}
        assert made.request({}, time.monotonic(), facts, None)
        made.close()
        collector.shutdown()
    [(path, body)] = Collector.got
    assert path == "/v1/traces"
    assert all(word.encode() in body for word in (name, "GET /v1/models", "req_1"))
