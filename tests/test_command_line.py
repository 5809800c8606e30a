"""command_line/: options keep their text, and errors and Ctrl-C print one line with the right exit status."""

from command_line.command_errors import one_line, resumable, run_command
from command_line.fire_commands import call
from command_line.option_values import parse_list, parse_value
from command_line.strict_parsers import StrictParser, at_least

import errno
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import RunScript
from lora_adapters import make_adapter

TEXTS = [
    "run#2", "2026_11_29", "o,1", "5e61787", "500", "0x10", "1e5", "007", "None", "True", "False", "[a]", "{a}",
    "{a: 1}", "(1,2)", "'quoted'", '"x', "a b", "-", "-1", "a=b", "~", "*", "__import__('os')", "李白",
]  # fmt: skip


class Calls(list[dict[str, Any]]):
    """The recorded arguments of a command's calls."""

    def command(
        self,
        folder: str,
        output: str = "out",
        samples: int = 3,
        share: float = 0.5,
        fast: bool = False,
        names: tuple[str, ...] = (),
        sizes: list[int] | None = None,
        kind: Literal["a", "b"] = "a",
    ) -> None:
        """Record the values.

        Args:
            folder: the first value.
        """
        values = dict(locals())
        del values["self"]
        self.append(values)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.mark.parametrize("text", TEXTS)
def test_text_option_keeps_its_text(calls: Calls, text: str) -> None:
    call(calls.command, [text, "--output", text])
    call(calls.command, [f"--folder={text}", f"--output={text}"])
    assert [(values["folder"], values["output"]) for values in calls] == [(text, text)] * 2


@pytest.mark.parametrize("text", ["-x", "--deep", "--", "-e=1"])
def test_text_that_looks_like_an_option_is_written_with_an_equals_sign(calls: Calls, text: str) -> None:
    call(calls.command, [f"--folder={text}"])
    assert calls[0]["folder"] == text
    with pytest.raises(ValueError, match=r"^--folder needs a value; .*--folder=-VALUE$"):
        call(calls.command, ["--folder", text])


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--samples", "12"], "samples", 12),
        (["--samples=-1"], "samples", -1),
        (["--samples", "-1"], "samples", -1),
        (["--share", "1"], "share", 1.0),
        (["--share", "-2.5e-1"], "share", -0.25),
        (["--fast"], "fast", True),
        (["--nofast"], "fast", False),
        (["--fast", "True"], "fast", True),
        (["--fast=false"], "fast", False),
        (["--names", "a,b"], "names", ("a", "b")),
        (["--names", "[a,b]"], "names", ("a", "b")),
        (["--names", "['a', 'o,1']"], "names", ("a", "o,1")),
        (["--names="], "names", ()),
        (["--sizes", "[10, 20]"], "sizes", [10, 20]),
        (["--sizes", "10"], "sizes", [10]),
        (["--sizes", "None"], "sizes", None),
        (["--kind", "b"], "kind", "b"),
    ],
)
def test_option_is_read_by_the_type_of_its_parameter(
    calls: Calls, arguments: list[str], name: str, value: object
) -> None:
    call(calls.command, ["folder", *arguments])
    assert calls[0][name] == value and type(calls[0][name]) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "x"], "--samples takes a whole number, not 'x'"),
        (["--samples", "3.0"], "--samples takes a whole number, not '3.0'"),
        (["--samples", "9" * 19], f"--samples takes a whole number, not '{'9' * 19}' (more than 18 digits)"),
        (["--samples="], "--samples takes a whole number, not ''"),
        (["--samples", "1_000"], "--samples takes a whole number, not '1_000'"),
        (["--samples", "٣"], "--samples takes a whole number, not '٣'"),
        (["--share", "nan"], "--share takes a number, not 'nan'"),
        (["--share", "1e999"], "--share takes a number, not '1e999'"),
        (["--fast", "yes"], "--fast takes True or False, not 'yes'"),
        (["--kind", "c"], "--kind takes one of a, b, not 'c'"),
        (["--sizes", "[1,x]"], "--sizes takes a list of whole numbers such as [1,2], not '[1,x]'"),
        (["--names", "[a"], "--names takes a list of text such as [a,b], not '[a' ([ is not closed)"),
        (["--names", "a,,b"], "--names takes a list of text such as [a,b], not 'a,,b' (an item is empty)"),
        (["--sample", "1"], "unknown option --sample; did you mean --samples?"),
        (["-s", "1"], "unknown option -s; see --help"),
        (["--nosamples"], "unknown option --nosamples; did you mean --samples?"),
        (["--zzzz", "1"], "unknown option --zzzz; see --help"),
        (["--samples"], "--samples needs a value; one that begins with - is written --samples=-VALUE"),
        (["--output", "--fast"], "--output needs a value; one that begins with - is written --output=-VALUE"),
        (["--samples", "1", "--samples=2"], "--samples is given twice, as '1' and as '2'; give it once"),
        (["--output", "a", "--fast", "--output", "a"], "--output is given twice, as 'a' and as 'a'; give it once"),
        (["--fast", "--nofast"], "--fast is given twice, as 'True' and as 'False'; give it once"),
        (["--", "--trace"], "Python Fire's own options, which follow --, are not accepted; remove -- and all after it"),
        (["out", "1", "0.5", "True", "a", "1", "a", "more"], "unexpected value 'more'; see --help"),
    ],
)
def test_mistake_is_an_error_before_the_command_runs(calls: Calls, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        call(calls.command, ["folder", *arguments])
    assert str(error.value) == message
    assert not calls


def test_missing_option_is_an_error(calls: Calls) -> None:
    with pytest.raises(ValueError, match=r"^--folder is missing; see --help$"):
        call(calls.command, ["--output", "x"])


def test_empty_value_is_an_error_for_a_required_option_only(calls: Calls) -> None:
    """An empty folder name would be the current folder."""
    for arguments in (["--folder="], ["--folder", ""], [""]):
        with pytest.raises(ValueError, match=r"^--folder is empty; see --help$"):
            call(calls.command, arguments)
    call(calls.command, ["folder", "--output="])
    assert [(values["folder"], values["output"]) for values in calls] == [("folder", "")]


def test_dashes_in_option_names_are_underscores(calls: Calls) -> None:
    def command(max_new_tokens: int) -> None:
        calls.append({"max_new_tokens": max_new_tokens})

    call(command, ["--max-new-tokens", "7"])
    assert calls == [{"max_new_tokens": 7}]


def test_published_option_without_effect_is_a_notice(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    call(
        calls.command, ["--device", "cuda", "folder", "--check"], None, {"device": "no GPU is used", "check": "always"}
    )
    assert calls[0]["folder"] == "folder"
    assert capsys.readouterr().err == (
        "notice: --device has no effect: no GPU is used\nnotice: --check has no effect: always\n"
    )


def test_keyword_options_are_read_by_their_types_and_other_names_refused(calls: Calls) -> None:
    def command(folder: str, **options: object) -> None:
        calls.append({"folder": folder, **options})

    call(command, ["x", "--top_k", "5", "--do_sample"], {"top_k": int, "do_sample": bool})
    call(command, ["x", "--top_k", "5", "--do_sample"])
    assert calls == [
        {"folder": "x", "top_k": 5, "do_sample": True}, {"folder": "x", "top_k": "5", "do_sample": "True"}
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown option --top_p; did you mean --top_k"):
        call(command, ["x", "--top_p", "5"], {"top_k": int})


def test_unknown_command_lists_the_commands(calls: Calls) -> None:
    for arguments, fault in (([], "the command is missing"), (["sea"], "unknown command 'sea'")):
        with pytest.raises(ValueError, match=f"^{fault}; give one of seal, show$"):
            call({"seal": calls.command, "show": calls.command}, arguments)


def test_help_names_types_and_defaults_and_no_abbreviations(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    call({"seal": calls.command}, ["seal", "--samples", "x", "--help"])
    text = capsys.readouterr().out
    assert "--samples=SAMPLES" in text and "Type: int" in text and "Default: 3" in text
    assert not re.search(r"^ *-\w,", text, re.MULTILINE)
    assert not calls


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("q_proj,k_proj", ["q_proj", "k_proj"]),
        ("[q_proj,k_proj]", ["q_proj", "k_proj"]),
        ("['corpus/en','corpus/zh']", ["corpus/en", "corpus/zh"]),
        ('("a", "b",)', ["a", "b"]),
        ("'a,b', c d ,it's", ["a,b", "c d", "it's"]),
        ("['[x]', '(', \"it's\"]", ["[x]", "(", "it's"]),
        (" [ ] ", []),
        ("", []),
        ("__import__('os').system('true')", ["__import__('os').system('true')"]),
        (["a,b", "c"], ["a", "b", "c"]),
        (["['a',", "'b c']"], ["a", "b c"]),
        ([], []),
    ],
)
def test_list_is_read_in_every_notation(text: str | list[str], items: list[str]) -> None:
    assert parse_list(text) == items


@pytest.mark.parametrize("text", ["[a", "(a]", "a,,b", ",", "['a' b]", "'a", "['a','b]"])
def test_list_with_an_unclosed_bracket_or_quote_or_an_empty_item_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_list(text)


def test_lists_and_numbers_are_read_in_linear_time() -> None:
    started = time.process_time()
    for hostile in ("[" * 200_000, "'" * 200_001, "a," * 200_000, " " * 200_000 + ",", "'a' " * 100_000):
        for kind in (list[str], float, int):
            try:
                parse_value("--x", hostile, kind)
            except ValueError:
                continue
    for kind in (float, int):
        with pytest.raises(ValueError):
            parse_value("--x", "1" * 1_000_000 + "x", kind)
    assert time.process_time() - started < 5


def raised(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def exit_status(work: Callable[[], None], failures: dict[type[Exception], int] | None = None) -> object:
    with pytest.raises(SystemExit) as end:
        run_command(work, failures)
    return end.value.code


def test_user_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(raised(ValueError("x is\n  wrong; mend it"))) == 2
    assert exit_status(raised(FileNotFoundError("x does not exist"))) == 2
    assert exit_status(raised(RuntimeError("the engine failed")), {RuntimeError: 1}) == 1
    lines = ["x is wrong; mend it", "x does not exist", "the engine failed"]
    assert capsys.readouterr().err == "".join(f"error: {line}\n" for line in lines)
    with pytest.raises(RuntimeError):
        exit_status(raised(RuntimeError("a bug")))
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("a\x1b[31m\a é 山\r\n\x85b\udc80")) == r"a\x1b[31m\x07 é 山 b\udc80"
    full = "cannot be read or written (No space left on device); make room, or check the disk"
    assert one_line(OSError(errno.ENOSPC, "No space left on device")) == f"a file {full}"
    assert one_line(OSError(errno.ENOSPC, "No space left on device", "a.json")) == f"a.json {full}"
    assert one_line(OSError(errno.ENOSPC, "No space left on device", "a", None, "b")) == f"b {full}"


def test_argument_that_is_not_utf8_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a file name of another encoding, the byte 0xff becomes a lone surrogate in sys.argv."""
    monkeypatch.setattr(sys, "argv", ["x.py", "--output", "\udcff.json"])
    assert exit_status(raised(AssertionError("the work began"))) == 2
    line = r"error: the argument '\udcff.json' is not UTF-8; rename the file, or set the terminal to UTF-8"
    assert capsys.readouterr().err == f"{line}\n"


def test_interrupt_is_one_line_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def resumes() -> None:
        with resumable("the same command resumes"):
            raise KeyboardInterrupt

    def hidden_by_a_library() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("numpy.core failed") from None

    for work, line in (
        (raised(KeyboardInterrupt()), "interrupted"),
        (resumes, "interrupted; the same command resumes"),
        (hidden_by_a_library, "interrupted"),
    ):
        assert exit_status(work) == 130
        assert capsys.readouterr().err == f"{line}\n"


def test_strict_parser_refuses_abbreviations_repeated_options_and_invalid_values() -> None:
    parser = StrictParser("a description")
    parser.add_argument("--samples", type=at_least(1))
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--fast", action="store_true")
    assert parser.parse_args(["--fast", "--names", "a", "b", "--fast"]).names == ["a", "b"]
    assert parser.parse_args(["--samples", "2"]).samples == 2
    for arguments, message in (
        (["--sample", "2"], "unknown option --sample; did you mean --samples?"),
        (["--samples", "0"], "--samples: '0' is not a whole number of 1 or more; see --help"),
        (["--samples", "1_0"], "--samples: '1_0' is not a whole number of 1 or more; see --help"),
        (["x"], "unrecognized arguments: x; see --help"),
        (["--samples", "2", "--samples=3"], "--samples is given twice, as '2' and as '3'; give it once"),
        (["--names", "a", "b", "--names", "c"], "--names is given twice, as 'a b' and as 'c'; give it once"),
    ):
        with pytest.raises(ValueError) as error:
            parser.parse_args(arguments)
        assert str(error.value) == message


@pytest.mark.parametrize("name", ["run#2", "2026_11_29", "o,1", "500", "None", "[a]", "{a}"])
def test_tokenizer_is_written_to_a_folder_of_any_name(
    tiny_tokenizer: Path, run_script: RunScript, tmp_path: Path, name: str
) -> None:
    model, short = tiny_tokenizer / "tokenizer.model", tmp_path / "t.jsonl"
    short.write_text('{"text": "short"}\n')
    arguments = ("--tokenizer_model", model, "--output_dir", name, "--check_path", short)
    run_script("tools/build_tokenizer.py", *arguments, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "t.jsonl"])


def test_compare_takes_folders_of_any_name_and_refuses_a_third_one(
    tiny_checkpoint: Path, run_script: RunScript, tmp_path: Path
) -> None:
    for name in ("base", "base#1"):
        shutil.copytree(tiny_checkpoint, tmp_path / name)
    file = tmp_path / "base#1" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = run_script("tools/checkpoint.py", "compare", "base", "base#1", cwd=tmp_path, status=1)
    assert done.stdout.startswith("different: 1 of ")
    surplus = run_script("tools/checkpoint.py", "compare", "base", "base", "base#1", cwd=tmp_path, status=2)
    assert (surplus.stdout, surplus.stderr) == ("", "error: unexpected value 'base#1'; see --help\n")


def test_merge_takes_an_adapter_and_a_target_with_any_name(
    tiny_checkpoint: Path, run_script: RunScript, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "2026_11_29")
    make_adapter(tiny_checkpoint, tmp_path / "500")
    arguments = ("merge", "--path_zhixi", "2026_11_29", "--path_lora", "500", "--path_sfted", "run#2")
    run_script("tools/weight_diff.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "run#2/model.safetensors").is_file()
    assert not (tmp_path / "run").exists()


def test_revision_that_looks_like_a_number_is_not_converted_to_infinity(run_script: RunScript, tmp_path: Path) -> None:
    done = run_script(
        "tools/download.py", "--download_path", tmp_path / "x", "--specify", "--repo_name", "some/thing",
        "--revision", "5e61787", "--endpoint", "http://127.0.0.1:9", status=2,
    )  # fmt: skip
    assert "inf" not in re.findall(r"\w+", done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "arguments", "line"),
    [
        ("tools/checkpoint.py", ["show", "--folde", "x"], "unknown option --folde; did you mean --folder?"),
        ("tools/checkpoint.py", ["-f", "x"], "unknown command '-f'; give one of seal, verify, show, compare"),
        ("tools/checkpoint.py", ["show", "x", "--", "--trace"], "Python Fire's own options, which follow --, are not"),
        ("inference/batch.py", ["--url", "u", "--input", "a", "--input", "b"], "--input is given twice, as 'a' and as"),
        ("pretrain/plan.py", ["--gpus", "1", "--gpus", "2"], "--gpus is given twice, as '1' and as '2'; give it once"),
        ("examples/make_demo.py", ["world", "--people", "x"], "--output_dir is missing; see --help"),
        ("examples/make_demo.py", ["world", "o", "--people", "x"], "--people takes a whole number, not 'x'"),
        ("examples/generate_lora.py", ["--base", "x"], "unknown option --base; did you mean --base_model?"),
        ("examples/generate_finetune.py", ["b", "--top_k", "x"], "--top_k takes a whole number, not 'x'"),
        ("finetune/ie_eval.py", [*"pgo", "True", "True", *"tncge", "5", "x", "more"], "unexpected value 'more'; see"),
        ("finetune/ie_run.py", ["b", "d", "o", "--batch-size", "x"], "--batch_size takes a whole number, not 'x'"),
        ("finetune/ie_build.py", ["a", "o", "--verbose", "x"], "unknown option --verbose; see --help"),
        ("inference/batch.py", ["--input", "--output", "o"], "--input needs a value; one that begins with - "),
        ("pretrain/plan.py", ["--gpu", "x", "--gpus", "0"], "--gpu: invalid choice: 'x'"),
        ("pretrain/clean.py", ["--skip", "speed"], "--skip: speed is not one of quality, repetition"),
        ("pretrain/preprocess.py", ["--mod", "read"], "the following arguments are required: --mode; see --help"),
    ],
)  # fmt: skip
def test_commands_report_a_mistake_with_one_line(
    run_script: RunScript, tmp_path: Path, script: str, arguments: list[str], line: str
) -> None:
    done = run_script(script, *arguments, cwd=tmp_path, status=2)
    assert done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1
    assert done.stdout == "" and not list(tmp_path.iterdir())


def test_command_outside_the_environment_names_the_missing_package(repository: Path) -> None:
    """Python runs without its site packages (-S), as if the environment were not active."""
    command = [sys.executable, "-S", str(repository / "tools/checkpoint.py"), "show", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.executable} has no package fire; activate the environment: source ")
    assert done.stderr.count("\n") == 1
