"""The lm-eval adapter against lm-eval's own `transformers` model on the same weights, and a task from files."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openmercury.cli import main
from openmercury.engine.params import SamplingParams
from openmercury.errors import ConfigError, ContextOverflowError, UnsupportedError
from tests.eval.made import write_checkpoint
from tests.text.made import FACTS

pytest.importorskip("lm_eval", reason="needs the extra harness")
pytest.importorskip("accelerate", reason="lm-eval's own model needs accelerate")

import transformers
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from openmercury.eval.harness import OpenMercury

CONTEXT = 48
# Nothing periodic: lm-eval's own model confuses windows of the same tokens that begin to count at different ones.
LONG = "".join(f"for i in range({n}): print(i - {n * n})  # été 世界\n" for n in range(4, 8))
TEXTS = ["def f(x):\n    return x + 1\n", LONG, "a", ""]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without adapter, whose mask token `transformers` would give a share of the probability."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "plain")
    (folder / "adapter.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["diffusion"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def ours(plain: Path) -> OpenMercury:
    return OpenMercury(str(plain), mode="ar", max_length=CONTEXT, device="cpu", dtype="float32", batch_size=3)


@pytest.fixture(scope="module")
def theirs(plain: Path) -> Any:
    # `transformers` picks the tokenizer's class by the network's, and Qwen's would split words in its own way.
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(plain / "tokenizer.json"),
        bos_token=FACTS["bos_token"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=FACTS["chat_template"],
    )
    return HFLM(str(plain), tokenizer=tokenizer, device="cpu", dtype="float32", max_length=CONTEXT, batch_size=2)


def instances(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=n) for n, each in enumerate(arguments)]


def greedy_pairs(model: OpenMercury, count: int) -> list[tuple[str, str]]:
    """Contexts with the one token that the network would write."""
    found = []
    contexts = [f"x{number} =" for number in range(200)]
    prompts = [model.tok_encode(context) for context in contexts]
    outputs = model.llm.generate_batch(prompts, SamplingParams(mode="ar", max_tokens=1, ignore_eos=True))
    for context, ids, output in zip(contexts, prompts, outputs, strict=True):
        text = model.tokenizer.decode(output.token_ids)
        if model.tok_encode(context + text) == [*ids, *output.token_ids]:
            found.append((context, text))
        if len(found) == count:
            return found
    raise AssertionError("no greedy continuation is text")


def test_loglikelihood_is_that_of_lm_eval(ours: OpenMercury, theirs: Any) -> None:
    pairs = [
        ("def f(x):", " return x"),
        ("x = ", "1"),
        ("", "for i"),
        ("a " * 60, "b c"),
        ("é", "世界\n"),
        ("x", "y z"),
    ]
    requests = instances("loglikelihood", *pairs, *greedy_pairs(ours, 2))
    found = ours.loglikelihood(requests, disable_tqdm=True)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [bool(greedy) for _, greedy in expected]
    assert [greedy for _, greedy in found][-2:] == [True, True]
    assert not found[0][1]


def test_rolling_is_that_of_lm_eval(ours: OpenMercury, theirs: Any) -> None:
    requests = instances("loglikelihood_rolling", *((text,) for text in TEXTS))
    assert len(ours.tok_encode(LONG)) > 2 * CONTEXT
    found = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(theirs.loglikelihood_rolling(requests, disable_tqdm=True), abs=1e-3)


def test_answers_are_those_of_lm_eval(ours: OpenMercury, theirs: Any) -> None:
    asked = {"until": ["\n", "zz"], "max_gen_toks": 10, "do_sample": False}
    requests = instances("generate_until", *((text, asked) for text in (*TEXTS[:3], "b " * 70)))
    assert ours.generate_until(requests, disable_tqdm=True) == theirs.generate_until(requests, disable_tqdm=True)


def test_chat_template_is_that_of_lm_eval(ours: OpenMercury, theirs: Any) -> None:
    history = [{"role": "user", "content": "Write f."}, {"role": "assistant", "content": "def f"}]
    for turns, ready in ((history[:1], True), (history, True), (history, False)):
        expected = theirs.apply_chat_template(turns, add_generation_prompt=ready)
        assert ours.apply_chat_template(turns, add_generation_prompt=ready) == expected
    assert ours.chat_template(True) == theirs.chat_template(True)


def test_bound_of_blocks_of_one_is_exact_and_of_more_is_not(checkpoint: Path) -> None:
    requests = instances("loglikelihood", ("def f(x):", " return x + 1"), ("x = ", "1"))
    rolling = instances("loglikelihood_rolling", *((text,) for text in TEXTS))

    def scores(**given: Any) -> tuple[list[tuple[float, bool]], list[float]]:
        model = OpenMercury(str(checkpoint), device="cpu", dtype="float64", max_length=CONTEXT, **given)
        return (
            model.loglikelihood(requests, disable_tqdm=True),
            model.loglikelihood_rolling(rolling, disable_tqdm=True),
        )

    exact, one, four = scores(), scores(likelihood="diffusion", bound_block_size=1), scores(likelihood="diffusion")
    for a, b in zip(exact[0], one[0], strict=True):
        assert a == pytest.approx(b)
    assert exact[1] == pytest.approx(one[1])
    assert four[0][0] != pytest.approx(exact[0][0], rel=1e-3)
    assert [greedy for _, greedy in four[0]] == [greedy for _, greedy in exact[0]]


def test_refusals(ours: OpenMercury, plain: Path) -> None:
    with pytest.raises(ConfigError, match="'num_beams'"):
        ours.generate_until(instances("generate_until", ("a", {"until": [], "num_beams": 4})))
    with pytest.raises(ContextOverflowError, match="lower max_gen_toks"):
        ours.generate_until(instances("generate_until", ("a", {"max_gen_toks": 99})))
    with pytest.raises(ContextOverflowError, match="raise max_length"):
        ours.loglikelihood(instances("loglikelihood", ("a", "b c " * 60)), disable_tqdm=True)
    with pytest.raises(ConfigError, match="batch_size 'auto'"):
        OpenMercury(str(plain), batch_size="auto")
    with pytest.raises(UnsupportedError, match="use mode ar"):
        OpenMercury(str(plain), device="cpu", likelihood="diffusion").loglikelihood(
            instances("loglikelihood", ("a", "b"))
        )


def test_sampled_answers_have_seeds_of_their_own(ours: OpenMercury) -> None:
    asked = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    first, second = ours.generate_until(instances("generate_until", ("a", asked), ("a", asked)), disable_tqdm=True)
    assert first != second


# --- tasks -----------------------------------------------------------------------------------------------------------


TASKS = ["made_choice", "made_rolling", "made_answer"]


def write_tasks(folder: Path) -> Path:
    """A multiple choice, a perplexity and a generation over one file."""
    folder.mkdir()
    rows = [{"q": f"{n} + 1 =", "choices": [f" {n + 1}", " no"], "gold": n % 2} for n in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  cache_dir: {folder / 'cache'}\n"
        f"  data_files:\n    test: {folder / 'rows.jsonl'}\ntest_split: test\n"
    )
    kinds = {
        "made_choice": 'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{gold}}"\nmetric_list:\n  - metric: acc\n',
        "made_rolling": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{q}}"\n'
        "metric_list:\n  - metric: bits_per_byte\n",
        "made_answer": 'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: " 2"\n'
        "generation_kwargs:\n  max_gen_toks: 4\n  until: []\nmetric_list:\n  - metric: exact_match\n",
    }
    for name, body in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{body}")
    return folder


def test_tasks_run(ours: OpenMercury, tmp_path: Path) -> None:
    manager = TaskManager(include_path=str(write_tasks(tmp_path / "tasks")), include_defaults=False)
    told = simple_evaluate(ours, tasks=TASKS, task_manager=manager, bootstrap_iters=0, limit=3)["results"]
    rolling = ours.loglikelihood_rolling(instances("loglikelihood_rolling", *((f"{n} + 1 =",) for n in range(3))), True)
    assert told["made_rolling"]["bits_per_byte,none"] == pytest.approx(-sum(rolling) / math.log(2) / 21, rel=1e-4)
    pairs = [(f"{n} + 1 =", choice) for n in range(3) for choice in (f" {n + 1}", " no")]
    nats = [each for each, _ in ours.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)]
    right = sum((nats[2 * n + 1] > nats[2 * n]) == (n % 2) for n in range(3))
    assert told["made_choice"]["acc,none"] == pytest.approx(right / 3)
    assert told["made_answer"]["exact_match,none"] == 0.0


@pytest.mark.slow
def test_tasks_run_from_the_command_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["harness", "made_choice", "made_answer", "--model", str(checkpoint), "--device", "cpu", "--chat"]
    line += ["--include", str(write_tasks(tmp_path / "tasks")), "--dtype", "float32", "--likelihood", "diffusion"]
    assert main.main([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["results"].keys() == {"made_choice", "made_answer"}
    assert told["config"]["bound"] == {"block_size": 4, "samples": 4, "seed": 0}
    assert main.main([*line, "--limit", "2"]) == 0
    assert "|made_choice|" in capsys.readouterr().out


@pytest.mark.slow
def test_unknown_task_names_the_nearest(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["harness", "helaswag", "--model", str(checkpoint), "--device", "cpu"]) == 1
    assert "did you mean hellaswag?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--threshold 0.5", "--threshold only acts in mode diffusion"),
        ("--mode diffusion --threshold 5", "--threshold should be less than or equal to 1"),
        ("--samples 8", "--samples only acts with --likelihood diffusion"),
        ("--block-size 8", "--block-size only acts with --likelihood diffusion"),
    ],
)
def test_options_that_nothing_would_read(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["harness", "arc_easy", *words.split()]) == 2
    assert told in capsys.readouterr().err


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main.main(["harness", "arc_easy"]) == 1
    assert "pip install 'openmercury[harness]'" in capsys.readouterr().err


@pytest.mark.slow
def test_lm_evals_own_command_line(checkpoint: Path, tmp_path: Path) -> None:
    line = ["run", "--model", "openmercury", "--model_args", f"model={checkpoint},dtype=float32", "--device", "cpu"]
    line += ["--tasks", "made_rolling", "--include_path", str(write_tasks(tmp_path / "tasks"))]
    done = subprocess.run(
        [sys.executable, "-m", "openmercury.eval.harness", *line],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bits_per_byte" in done.stdout
