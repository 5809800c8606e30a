"""Run every command with unusual options and damaged inputs: it succeeds, or prints one error line and writes no file.

Without --slow, only a fixed sample of values that cannot be parsed is tried. With --slow, shares of KNOWLM_FUZZ_SECONDS
are spent on option values, in random order, and on damaged inputs.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_fork_server import END
from command_options import COMMANDS, LIBRARY_OPTIONS, NO_VALUE, VALUES, Command, is_accepted, is_parsed
from fuzzing import share_of_seconds
from input_damage import damaged_inputs

RUN_SECONDS = 300  # a run that takes longer counts as endless; machines may be slow
NOTICES = ("notice: ", "WARNING: ", "[transformers] ")


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return {path: (size in bytes, time of the last change)}; folders have (0, 0)."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        found[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found


def faults(
    command: Command, answer: dict[str, Any], changed: list[str], accepted: bool, unmade: list[str]
) -> list[str]:
    """Return the faults of a run.

    changed: new and changed files; accepted: whether status 0 is permitted; unmade: outputs that do not exist.
    """
    status, lines = answer["status"], answer["err"].splitlines()
    found = []
    if status is None:
        return [f"runs longer than {RUN_SECONDS} s"]
    if status not in (0, 2, *command.other_status):
        found.append(f"exit status {status}")
    if "Traceback" in answer["err"] + answer["out"]:
        found.append("a traceback")
    if status == 0 and not accepted:
        found.append("exit status 0")
    if status == 0 and unmade and END not in answer["out"]:
        found.append(f"exit status 0 without {unmade}")
    errors = [line for line in lines if line.startswith("error: ")]
    if status == 2 and (len(errors) != 1 or not errors[0].removeprefix("error: ").strip()):
        found.append(f"{len(errors)} lines of error")
    if status == 2 and (
        more := [line for line in lines if not line.startswith(("error: ", *NOTICES)) and line.strip()]
    ):
        found.append(f"more than one line: {more[:2]}")
    if status == 2 and changed:
        found.append(f"left {changed[:3]}")
    return found


def exists(path: Path) -> bool:
    """Return whether a path exists; False if its name is too long."""
    try:
        return path.exists()
    except OSError:
        return False


def run_case(command: Command, words: list[str], fork_server: Any, folder: Path, accepted: bool) -> str:
    """Run a command in a folder with its inputs; return a report of its faults, or "" if it has none."""
    before = contents(folder)
    answer = fork_server.run(words, folder, RUN_SECONDS)
    changed = [name for name, state in contents(folder).items() if before.get(name) != state and ".rows-" not in name]
    given = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
    place = given.get("save_path", "")  # --save_prefix is relative to it
    made = [str(Path(place, given[name])) for name in command.made if given.get(name)]
    unmade = [name for name in made if not exists(folder / name) and not exists(folder / f"{name}.idx")]
    wrong = faults(command, answer, changed, accepted, unmade)
    return f"{'; '.join(wrong)}: {words}\n    {answer['err'].strip()[-600:]}" if wrong else ""


def option_cases(commands: list[Command], shuffled: random.Random) -> Iterator[tuple[Command, str, Any, str]]:
    """Yield (command, option, type, value) in random order, forever: the fixed values first, then random ones."""
    cases = [  # without the prefix /dev/null, for which a command would write /dev/null.bin
        (command, option, kind, value) for command in commands for option, kind in command.options().items()
        for value in [*VALUES, NO_VALUE] if not (value == "/dev/null" and option.endswith("_prefix"))
    ]  # fmt: skip
    shuffled.shuffle(cases)
    yield from cases
    while True:
        command, option, kind, value = shuffled.choice(cases)
        letters = [*"0123456789.,-+eE_[]{}\"' \n/\\", "中", "\udcff", "é", "nan", "inf", "True", value]
        yield command, option, kind, "".join(shuffled.choices(letters, k=shuffled.randint(1, 6)))


def test_sample_of_values_that_cannot_be_parsed_is_refused_in_one_line(
    fork_servers: Callable[[str, bool], Any], tmp_path: Path
) -> None:
    """Commands that import torch or vLLM to parse their options are left out."""
    draw, reports = random.Random(19), []
    for command in draw.sample([command for command in COMMANDS if command.script not in LIBRARY_OPTIONS], 20):
        cases = [
            (option, value) for option, kind in command.options().items() for value in VALUES
            if not is_parsed(kind, value)
        ]  # fmt: skip
        if cases:
            fork_server = fork_servers(command.script.split("/")[0], False)
            report = run_case(command, command.words_with(*draw.choice(cases)), fork_server, tmp_path, False)
            reports += [report] if report else []
    assert not reports, "\n".join(reports)


def try_cases(
    cases: Iterator[tuple[Command, list[str], bool, Callable[[Path], None]]],
    fork_servers: Callable[[str, bool], Any], inputs: Path, place: Path, seconds: float,
) -> None:  # fmt: skip
    """Run cases for a number of seconds; fail with a report of the faults.

    cases: (command, its command line, whether exit status 0 is permitted, function that damages the inputs).
    """
    count, reports, folder, end = 0, list[str](), place / "case/run", 0.0
    for command, words, accepted, damage in cases:
        fork_server = fork_servers(command.script.split("/")[0], True)
        end = end or time.monotonic() + seconds  # the start of the fork server takes seconds
        shutil.copytree(inputs, folder)
        damage(folder)
        report = run_case(command, words, fork_server, folder, accepted)
        if report:
            kept = shutil.move(folder.parent, place / f"fault-{len(reports)}")
            reports.append(f"{report}\n    files: {kept}")
            print(reports[-1])
        else:
            shutil.rmtree(folder.parent)  # with the output of ../missing/x
        count += 1
        if time.monotonic() > end:
            break
    if reports:
        pytest.fail(f"{len(reports)} of {count} runs have faults\n" + "\n".join(reports), pytrace=False)
    print(f"{count} runs")


@pytest.mark.slow
@pytest.mark.timeout(share_of_seconds(1) + 1200)
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "tools", "examples", "inference"])
def test_option_values_are_accepted_or_refused_in_one_line(
    fork_servers: Callable[[str, bool], Any], inputs: Path, tmp_path: Path, stage: str
) -> None:
    commands = [command for command in COMMANDS if command.script.startswith(f"{stage}/")]
    cases = (
        (command, command.words_with(option, value), is_accepted(command, option, kind, value), lambda _: None)
        for command, option, kind, value in option_cases(commands, random.Random())
    )
    try_cases(cases, fork_servers, inputs, tmp_path, share_of_seconds(0.08))


@pytest.mark.slow
@pytest.mark.timeout(share_of_seconds(1) + 1200)
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "tools", "examples", "inference"])
def test_damaged_inputs_are_read_or_refused_in_one_line(
    fork_servers: Callable[[str, bool], Any], inputs: Path, tmp_path: Path, stage: str
) -> None:
    commands = [command for command in COMMANDS if command.script.startswith(f"{stage}/")]
    cases = damaged_inputs(commands, inputs, random.Random())
    try_cases(cases, fork_servers, inputs, tmp_path, share_of_seconds(0.06))
