"""What Prometheus reads at /metrics; a registry of each application's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from openmercury.server.generation import Generation
from openmercury.server.limits import Room
from openmercury.server.service import Service

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Meters:
    """Counts of finished requests; the state of the engine is read when somebody looks."""

    def __init__(self, service: Service, room: Room) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "openmercury_requests", "HTTP requests by path and status.", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "openmercury_request_seconds", "Time of a request.", ("path",), registry=registry, buckets=SECONDS
        )
        self._first = Histogram(
            "openmercury_first_text_seconds", "Time to the first text.", registry=registry, buckets=SECONDS
        )
        self._prompt = Counter("openmercury_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._completion = Counter("openmercury_completion_tokens", "Tokens written.", ("mode",), registry=registry)
        self._forwards = Counter("openmercury_forwards", "Forwards of requests.", ("mode",), registry=registry)
        engine = service.llm.engine
        gauges = {
            "requests_in_flight": lambda: room.running,
            "engine_running": lambda: engine.counts().running,
            "engine_waiting": lambda: engine.counts().waiting,
            "cache_pages": lambda: engine.counts().pages,
            "cache_pages_free": lambda: engine.counts().pages_free,
        }
        for name, read in gauges.items():
            Gauge(f"openmercury_{name}", name.replace("_", " ").capitalize() + ".", registry=registry).set_function(
                read
            )

    def request(self, path: str, status: int, seconds: float, generation: Generation | None) -> None:
        """Count one that has ended."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
        if generation is None:
            return
        self._prompt.inc(generation.prompt_tokens)
        self._completion.labels(generation.params.mode).inc(sum(generation.tokens))
        self._forwards.labels(generation.params.mode).inc(sum(generation.forwards))
        if generation.first_text:
            self._first.observe(generation.first_text - generation.begin)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)
