"""`generate` and `fill` with a model that plays back written steps."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from openmercury.cli import generate, main
from openmercury.errors import OpenMercuryError
from tests.cli.fakes import TEXT, FakeLLM, install

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    return install(monkeypatch, FakeLLM())


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the input is told before a model is loaded."""

    def load(*_: object) -> FakeLLM:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(generate, "load_llm", load)


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


def test_text_streams_to_stdout(llm: FakeLLM, capsys: Capture) -> None:
    assert main.main(["generate", "Write add."]) == 0
    assert capsys.readouterr() == (TEXT, "")
    kind, messages, params = llm.asked[0]
    assert (kind, messages) == ("chat", [{"role": "user", "content": "Write add."}])
    assert (params.mode, params.max_tokens, params.temperature, params.stop) == ("verified", 512, 0.0, ())


def test_every_option_reaches_the_decoder(llm: FakeLLM) -> None:
    line = "generate x --mode diffusion --max-tokens 7 --temperature 0.5 --top-p 0.9 --top-k 4 --seed 3 --threshold 0.8"
    assert main.main([*line.split(), "--block-size", "8", "--stop", "\n\n", "--stop", "é"]) == 0
    given = llm.asked[0][2].model_dump(exclude_defaults=True)
    assert given == {
        "mode": "diffusion",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "seed": 3,
        "threshold": 0.8,
        "block_size": 8,
        "stop": ("\n\n", "é"),
    }
    assert main.main(["generate", "x", "--mode", "diffusion", "--steps", "4"]) == 0
    assert main.main(["generate", "x", "--mode", "diffusion", "--entropy-bound", "0.3"]) == 0
    assert (llm.asked[1][2].steps, llm.asked[2][2].entropy_bound) == (4, 0.3)


def test_model_options_reach_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def load(*given: object) -> FakeLLM:
        seen.extend(given[:3])
        return FakeLLM()

    monkeypatch.setattr(generate, "load_llm", load)
    assert main.main(["generate", "x", "--model", "here", "--device", "cpu", "--dtype", "float32"]) == 0
    assert seen == ["here", "cpu", "float32"]


def test_raw_and_system(llm: FakeLLM) -> None:
    assert main.main(["generate", "--raw", "def f("]) == 0
    assert main.main(["generate", "--system", "Be brief.", "x"]) == 0
    assert llm.asked[0][:2] == ("raw", "def f(")
    assert llm.asked[1][1] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]


def test_stdin(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, "größer\n".encode())
    assert main.main(["generate", "-"]) == 0
    feed(monkeypatch, b"x = \n")
    assert main.main(["generate", "--raw", "-"]) == 0
    assert [asked for _, asked, _ in llm.asked] == [[{"role": "user", "content": "größer"}], "x = \n"]


def test_json_is_one_object(llm: FakeLLM, capsys: Capture) -> None:
    llm.text = "\x1b[31mé\x9b"
    assert main.main(["generate", "--json", "--mode", "ar", "x"]) == 0
    out, err = capsys.readouterr()
    assert out.isascii()
    assert err == ""
    assert json.loads(out) == {
        "text": llm.text,
        "finish_reason": "stop",
        "mode": "ar",
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "forwards": 1,
            "tokens_per_forward": 7.0,
            "seconds": 0.5,
        },
        "model": "fake",
    }


def test_show_steps_in_a_pipe(llm: FakeLLM, capsys: Capture) -> None:
    assert main.main(["generate", "--show-steps", "x"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("[  1] def add(|a, b░░\n[  2] ")
    assert out.endswith("|\n" + TEXT)


def test_control_characters_do_not_reach_stdout(llm: FakeLLM, capsys: Capture) -> None:
    llm.text = "a\x1b[2J\x07b\tc\n"
    assert main.main(["generate", "x"]) == 0
    assert capsys.readouterr().out == "a[2Jb\tc\n"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([""], 1, "the prompt is empty"),
        ([" \n"], 1, "the prompt is empty"),
        (["--raw", ""], 1, "the prompt is empty"),
        (["a\udcffb"], 1, "the prompt is not UTF-8: byte 0xff at offset 1"),
        (["x", "--stop", "\udcff"], 1, "--stop is not UTF-8"),
        (["x", "--system", "\udcff"], 1, "--system is not UTF-8"),
        (["x", "--stop", ""], 2, "--stop String should have at least 1 character"),
        (["x", "--max-tokens", "0"], 2, "--max-tokens should be greater than or equal to 1, got 0"),
        (["x", "--max-tokens", "many"], 2, "--max-tokens"),
        (["x", "--temperature", "-1"], 2, "--temperature should be greater than or equal to 0"),
        (["x", "--temperature", "nan"], 2, "--temperature"),
        (["x", "--top-p", "0"], 2, "--top-p should be greater than 0"),
        (["x", "--seed", "-1"], 2, "--seed"),
        (["x", "--threshold", "0.5"], 2, "--threshold only acts in mode diffusion: drop it or set --mode diffusion"),
        (
            ["x", "--mode", "diffusion", "--steps", "2", "--entropy-bound", "1"],
            2,
            "--steps and --entropy-bound exclude",
        ),
        (["x", "--mode", "ar", "--block-size", "4"], 2, "--block-size only acts"),
        (["x", "--raw", "--system", "y"], 2, "--system has no effect with --raw"),
        (["x", "--json", "--show-steps"], 2, "--show-steps and --json exclude each other"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], code: int, told: str, capsys: Capture) -> None:
    assert main.main(["generate", *arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert told in shown.err


@pytest.mark.usefixtures("no_model")
def test_invalid_utf8_on_stdin(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    feed(monkeypatch, b"caf\xe9")
    assert main.main(["generate", "-"]) == 1
    assert capsys.readouterr().err == (
        "error: stdin is not UTF-8: byte 0xe9 at offset 3; convert it first, for example with `iconv -t UTF-8`\n"
    )
    feed(monkeypatch, b"")
    assert main.main(["generate", "-"]) == 1
    assert "the prompt is empty" in capsys.readouterr().err


def test_a_missing_model_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert main.main(["generate", "x", "--model", str(tmp_path / "none")]) == 1
    assert "there is no model folder" in capsys.readouterr().err
    assert main.main(["generate", "x", "--model", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_the_default_model_is_the_environment_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("OPENMERCURY_MODEL", str(tmp_path / "elsewhere"))
    assert main.main(["generate", "x"]) == 1
    assert str(tmp_path / "elsewhere") in capsys.readouterr().err


def test_an_error_of_the_model_is_one_line(llm: FakeLLM, capsys: Capture) -> None:
    assert main.main(["generate", "too long"]) == 1
    assert capsys.readouterr().err.startswith("error: the prompt has 9 tokens and the context holds 8")


# --- fill ------------------------------------------------------------------------------------------------------------


def test_fill_from_options_and_file(
    llm: FakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    source = tmp_path / "a.py"
    source.write_bytes(b"x = <FILL>\ny = 1\n")
    llm.text = "42"
    assert main.main(["fill", "--prefix", "a = ", "--suffix", "\nb"]) == 0
    assert capsys.readouterr().out == "42\n"
    assert main.main(["fill", "--file", str(source)]) == 0
    feed(monkeypatch, b"p@@s")
    assert main.main(["fill", "--file", "-", "--marker", "@@"]) == 0
    assert [asked for _, asked, _ in llm.asked] == [("a = ", "\nb"), ("x = ", "\ny = 1\n"), ("p", "s")]
    assert source.read_bytes() == b"x = <FILL>\ny = 1\n"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"no gap", "holds the marker <FILL> 0 times"),
        (b"<FILL> <FILL>", "holds the marker <FILL> 2 times"),
        (b"<FILL>", "prefix and suffix are both empty"),
        (b"\xff<FILL>", "not UTF-8: byte 0xff at offset 0"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_fill_refuses_a_file_without_one_gap(data: bytes | None, told: str, tmp_path: Path, capsys: Capture) -> None:
    source = tmp_path / "a.py"
    if data is not None:
        source.write_bytes(data)
    assert main.main(["fill", "--file", str(source)]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
def test_fill_refuses_what_does_not_go_together(capsys: Capture) -> None:
    assert main.main(["fill"]) == 1
    assert main.main(["fill", "--file", "x", "--prefix", "y"]) == 2
    assert main.main(["fill", "--file", "x", "--marker", ""]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_errors_are_ours() -> None:
    with pytest.raises(OpenMercuryError):
        generate.read_prompt("\udc80")


def test_penalties_and_deadline_reach_the_decoder(llm: FakeLLM) -> None:
    asked = ["--presence-penalty", "0.5", "--frequency-penalty", "-1", "--repetition-penalty", "1.1", "--deadline", "9"]
    assert main.main(["generate", "x", *asked]) == 0
    params = llm.asked[0][2]
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.5, -1.0, 1.1)
    assert params.deadline == 9
    assert main.main(["generate", "x", "--presence-penalty", "2.5"]) == 2
    assert main.main(["generate", "x", "--deadline", "0"]) == 2
