"""The recorder, the open loop, and forwards alone, on a tiny network."""

from __future__ import annotations

import time

import pytest
import torch

from openmercury.engine import probe
from openmercury.engine.config import EngineConfig
from openmercury.engine.engine import Engine
from openmercury.engine.params import DecodeMode, SamplingParams
from openmercury.errors import InputError
from openmercury.model.float8 import round_weights
from openmercury.model.shapes import SHAPES, random_model
from openmercury.model.transformer import Transformer
from tests import tiny

CONFIG = EngineConfig(page_size=4, max_requests=4, cache_tokens=4096, prefix_cache=False)


def engine() -> Engine:
    wide = tiny.config().model_copy(update={"max_context": 2048})
    return Engine(tiny.network(dtype=torch.float32, of=wide), CONFIG)


def test_shares_are_parts_of_the_wall_time() -> None:
    one = engine()
    stats = one.record()
    requests = [one.request([5] * 9, SamplingParams(mode="verified", max_tokens=12, ignore_eos=True)) for _ in range(6)]
    begin = time.perf_counter()
    for _ in one.generate(requests, concurrency=3):
        time.sleep(0.002)
    report = stats.report(time.perf_counter() - begin)
    assert report.forward + report.head + report.idle == pytest.approx(1)
    assert min(report.forward, report.head, report.host) > 0
    assert report.host <= report.idle  # on a CPU the host's work is not beside the forwards
    assert stats.host_seconds["text"] >= 0.002 * report.decode_forwards / 2
    assert report.decode_forwards == len(stats.steps["decode"]) >= max(request.forwards for request in requests)
    assert 0 < report.kv_mean <= report.kv_peak <= 3 * (9 + 12 + 16) / 4096
    stats.reset()
    empty = stats.report(1.0)
    assert (empty.decode_forwards, empty.idle, empty.kv_peak) == (0, 1.0, 0.0)


def test_recording_changes_no_token() -> None:
    texts = []
    for recorded in (False, True):
        one = engine()
        if recorded:
            one.record()
        request = one.request([5, 6, 7], SamplingParams(mode="diffusion", max_tokens=20))
        for _ in one.generate([request]):
            pass
        texts.append(request.completion)
    assert texts[0] == texts[1]
    assert texts[0]


def test_requests_of_an_open_loop_come_at_their_time() -> None:
    one = engine()
    params = SamplingParams(mode="ar", max_tokens=3, ignore_eos=True)
    requests, first, begin = [one.request([5] * 4, params) for _ in range(3)], dict[int, float](), time.monotonic()
    arrivals = [0.0, 0.5, 0.5]
    for moved in one.generate(requests, arrivals=arrivals):
        for request in moved:
            first.setdefault(requests.index(request), time.monotonic() - begin)
    assert [request.finish_reason for request in requests] == ["length"] * 3
    assert all(first[number] >= arrival for number, arrival in enumerate(arrivals))
    assert first[0] < arrivals[1]
    one.check_integrity()


def test_forwards_alone() -> None:
    one = engine()
    rows = list(probe.forward_times(one, [1, 4, 100], 1e9, 64))
    assert [row.positions for row in rows] == [1, 4, 100]
    assert all(row.ms > 0 and row.floor_ms == pytest.approx(row.weight_bytes / 1e6) for row in rows)
    assert rows[0].weight_bytes == 4 * sum(w.numel() for w in matrices(one.model))
    assert rows[1].weight_bytes - rows[0].weight_bytes == 4 * sum(w.numel() for w in adapter_matrices(one.model))
    one.check_integrity()
    assert one.scheduler.pool.available == one.scheduler.pool.capacity
    with pytest.raises(InputError, match="use 1 to 128"):
        list(probe.forward_times(one, [200], 1e9, 64))
    with pytest.raises(InputError, match="use a smaller one"):
        list(probe.forward_times(one, [1], 1e9, 2000))


def test_rounded_weights_are_counted_as_they_are_held() -> None:
    model = engine().model
    assert model.adapter is not None
    whole, adapter = matrices(model), adapter_matrices(model)
    a = sum(w.numel() for name, w in model.adapter.named_parameters() if name.endswith(".a"))
    scales = [sum(len(w) for w in whole), sum(len(layer.a) for layer in model.adapter.modules() if hasattr(layer, "a"))]
    b_bytes = 4 * (sum(w.numel() for w in adapter) - a)
    round_weights(model)
    clean = sum(w.numel() for w in whole) + 4 * scales[0]
    assert probe.weight_bytes(model, noisy=False) == clean
    assert probe.weight_bytes(model, noisy=True) == clean + a + 4 * scales[1] + b_bytes


def matrices(model: Transformer) -> list[torch.Tensor]:
    """A tied head is the embedding."""
    return [w for name, w in model.named_parameters() if w.dim() == 2 and not name.startswith("adapter")]


def adapter_matrices(model: Transformer) -> list[torch.Tensor]:
    assert model.adapter is not None
    return [w for w in model.adapter.parameters() if w.dim() == 2]


@pytest.mark.parametrize("mode", ["ar", "verified", "diffusion"])
def test_simulated_speed_is_tpf_times_forwards(mode: DecodeMode) -> None:
    row = probe.simulate(engine(), mode, 3, 16, 2.5)
    assert row.simulated_tokens_per_second == pytest.approx(2.5 * 3 * row.forwards_per_second)
    assert row.forwards_per_second <= 1e3 / row.forward_ms  # device time is part of all time
    with pytest.raises(InputError, match="do not fit"):
        probe.simulate(engine(), mode, 4, 1000, 2.5)


@pytest.mark.parametrize(("name", "billions"), [("qwen2.5-1.5b", 1.54), ("qwen2.5-7b", 7.6), ("llada-8b", 8.0)])
def test_shapes_have_the_published_size(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = Transformer(SHAPES[name])
    base = sum(w.numel() for key, w in model.named_parameters() if not key.startswith("adapter"))
    assert base / 1e9 == pytest.approx(billions, rel=0.01)


def test_random_weights_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", tiny.config())
    one = Engine(random_model("small", torch.float32, torch.device("cpu")), CONFIG)
    request = one.request([1, 2], SamplingParams(mode="verified", max_tokens=5, ignore_eos=True))
    for _ in one.generate([request]):
        pass
    assert len(request.completion) == 5
    with pytest.raises(InputError, match="no shape 'huge': use one of qwen2"):
        random_model("huge", torch.float32, torch.device("cpu"))


def test_a_copy_has_a_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probe.COPIED_BYTES, "cpu", 1 << 20)
    assert probe.copy_bandwidth(torch.device("cpu")) > 1e6
