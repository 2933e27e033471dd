"""Traces for OpenTelemetry (extra `telemetry`): a span of each request, and of what its answers went through.

Set by the standard variables OTEL_… alone, and off where none of them names a place to send traces to. Spans are made
when a request has ended, from moments noted on its way; they hold facts, never the text of prompts or answers. Names of
attributes: OpenTelemetry's semantic conventions for HTTP servers and generative AI; what these do not know is under
`openmercury.`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from openmercury.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from openmercury.server.generation import Generation

TRACES, ANY = "OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"


def asked(environment: Mapping[str, str]) -> bool:
    """Do the variables ask for traces? Raises ConfigError for what cannot be had."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter == "none" or not (exporter or any(environment.get(f"{name}ENDPOINT") for name in (TRACES, ANY))):
        return False
    if exporter not in ("", "otlp"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER={exporter} is not supported: use otlp, or none")
    protocol = environment.get(f"{TRACES}PROTOCOL") or environment.get(f"{ANY}PROTOCOL") or "http/protobuf"
    if protocol != "http/protobuf":
        raise ConfigError(f"{ANY}PROTOCOL={protocol} is not supported: use http/protobuf")
    return True


def from_environment(environment: Mapping[str, str]) -> Telemetry | None:
    """What the variables ask for; None: nothing.

    Raises ConfigError as `asked`, and UnsupportedError where the extra is missing.
    """
    if not asked(environment):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"the OTEL_ variables ask for traces, which need {error.name}: pip install 'openmercury[telemetry]', "
            "or set OTEL_SDK_DISABLED=true"
        ) from None
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "openmercury"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Telemetry(provider)


class Telemetry:
    """Makes spans of finished requests; `close` sends those that have not gone yet."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider, self._tracer = provider, provider.get_tracer("openmercury.server")

    def close(self) -> None:
        """Blocks until all are sent, or the exporter gives up."""
        self._provider.shutdown()

    def request(
        self, headers: Mapping[str, str], begin: float, facts: Mapping[str, Any], generation: Generation | None
    ) -> str | None:
        """Trace one that began at `begin` (time.monotonic) and ends now; its parent is the client's span, if the
        headers name one. `facts` are those of the log. Returns the id of its trace, None where it is not sampled."""
        from opentelemetry import propagate, trace

        now = time.monotonic()
        offset = time.time_ns() - round(now * 1e9)

        def moment(at: float) -> int:
            return round(at * 1e9) + offset

        span = self._tracer.start_span(
            f"{facts['method']} {facts['path']}",
            propagate.extract(headers),
            trace.SpanKind.SERVER,
            {**_of_http(facts), **({} if generation is None else _of_generation(generation))},
            start_time=moment(begin),
        )
        error = facts["status"] if facts["status"] >= 500 else None if generation is None else generation.error
        if error is not None:
            span.set_attribute("error.type", str(error))
            span.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(span)
        for number, stages in enumerate([] if generation is None else generation.stages(now)):
            for name, start, end in stages:
                told = {"openmercury.choice.index": number}
                self._tracer.start_span(name, inside, attributes=told, start_time=moment(start)).end(moment(end))
        span.end(moment(now))
        context = span.get_span_context()
        return trace.format_trace_id(context.trace_id) if context.trace_flags.sampled else None


def _of_http(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "http.request.method": facts["method"],
        "http.route": facts["path"],
        "http.response.status_code": facts["status"],
        "openmercury.request.id": facts["id"],
    }


def _of_generation(generation: Generation) -> dict[str, Any]:
    params, head = generation.params, generation.head
    told = {
        "gen_ai.operation.name": "chat" if head["id"].startswith("chat") else "text_completion",
        "gen_ai.provider.name": "openmercury",
        "gen_ai.request.model": head["model"],
        "gen_ai.response.model": generation.service.name,
        "gen_ai.response.id": head["id"],
        "gen_ai.request.choice.count": len(generation.tokens),
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.usage.input_tokens": generation.prompt_tokens,
        "gen_ai.usage.output_tokens": sum(generation.tokens),
        "gen_ai.usage.cache_read.input_tokens": generation.cached,
        "gen_ai.response.finish_reasons": [finish or "abort" for finish in generation.finish],
        "openmercury.mode": params.mode,
        "openmercury.forwards": sum(generation.forwards),
    }
    if generation.first_text:
        told["gen_ai.response.time_to_first_chunk"] = generation.first_text - generation.begin
    return told
