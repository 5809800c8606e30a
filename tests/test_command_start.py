"""Start of the commands: Ctrl-C prints one line in every phase, and --help is quick and needs only one stage."""

import ast
import compileall
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

STAGES = ("pretrain", "finetune", "tools", "examples", "inference")
COMMANDS = sorted(path for stage in STAGES for path in (REPOSITORY / stage).glob("*.py"))
HEAVY = [
    "torch",
    "transformers",
    "datasets",
    "vllm",
    "peft",
    "sentencepiece",
    "tokenizers",
    "datatrove",
    "gradio",
    "matplotlib",
    "deepspeed",
]
TRAINERS = ("train", "finetune")
CPU_SECONDS = dict.fromkeys(TRAINERS, 3.0)  # user + system time of --help; 0.5 for all other commands
SLACK = 2  # for slow and busy machines


def start(*arguments: object, cwd: Path) -> "subprocess.Popen[str]":
    """Start a command as a shell does, with Python's own handling of SIGINT."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@pytest.fixture(scope="module")
def small_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage folder whose command and modules print "ready" where they are to be interrupted."""
    folder = tmp_path_factory.mktemp("stage")
    shutil.copytree(REPOSITORY / "tools/command_line", folder / "command_line")
    (folder / "long_import.py").write_text("print('ready', flush=True)\nimport time\ntime.sleep(60)\n")
    (folder / "short_import.py").write_text("print('ready', flush=True)\nimport time\ntime.sleep(1)\nprint('done')\n")
    (folder / "command.py").write_text(
        "from command_line.command_errors import resumable, run_command\n"
        "import atexit, importlib, sys, time\n"
        "class Finalized:\n"
        "    def __del__(self):\n"
        "        wait()\n"
        "def wait():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "def work():\n"
        "    with resumable('run it again'):\n"
        "        if sys.argv[1] == 'work':\n"
        "            wait()\n"
        "        elif sys.argv[1] == 'finalizer':\n"
        "            Finalized()\n"
        "            time.sleep(60)\n"
        "        elif sys.argv[1] != 'end':\n"
        "            importlib.import_module(sys.argv[1])\n"
        "            time.sleep(60)\n"
        "if sys.argv[1] == 'before':\n"
        "    import long_import\n"
        "if sys.argv[1] == 'end':\n"
        "    atexit.register(wait)\n"
        "run_command(work)\n"
    )
    return folder


@pytest.mark.parametrize(
    ("place", "signals", "out", "err"),
    [
        ("before", 1, "", "interrupted\n"),  # imports before the work
        ("work", 1, "", "interrupted; run it again\n"),
        ("finalizer", 1, "", "interrupted; run it again\n"),  # Python discards the exceptions of __del__
        ("short_import", 1, "done\n", "interrupted; run it again\n"),  # the import ends first
        ("long_import", 2, "", "interrupted\n"),
        ("end", 1, "", ""),  # Python's own clean-up
    ],
)
def test_interrupt_is_one_line_in_every_phase_of_a_command(
    small_stage: Path, place: str, signals: int, out: str, err: str
) -> None:
    process = start("command.py", place, cwd=small_stage)
    assert process.stdout and process.stdout.readline() == "ready\n"
    for _ in range(signals):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=30), process.returncode) == (out, err, 130)


def cpu_seconds(process: "subprocess.Popen[str]") -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.integration
@pytest.mark.parametrize("seconds", [0.3, 1.2])
@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain/train.py", "--model_name_or_path", "CHECKPOINT", "--data_path", "none", "--output_dir", "OUT"],
        ["finetune/finetune.py", "--base_model", "CHECKPOINT", "--data_path", "ROWS", "--output_dir", "OUT"],
        ["examples/generate_finetune.py", "--base_model", "CHECKPOINT", "--interactive"],
    ],
    ids=lambda arguments: Path(arguments[0]).stem,
)
@pytest.mark.integration
def test_interrupt_while_a_command_starts_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], seconds: float
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "input": "", "output": "b"}\n' * 20_000)
    values = {"CHECKPOINT": str(tiny_checkpoint), "ROWS": str(rows), "OUT": str(tmp_path / "out")}
    process = start(
        REPOSITORY / arguments[0], *(values.get(argument, argument) for argument in arguments[1:]), cwd=tmp_path
    )
    while process.poll() is None and cpu_seconds(process) < seconds:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    if process.returncode == 2:
        pytest.skip("the command ended with its own error before the signal")
    assert (process.returncode, err) == (130, "interrupted\n")


def test_command_line_is_the_first_import_of_every_command() -> None:
    late = []
    for path in COMMANDS:
        imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        first = imports[0].module if isinstance(imports[0], ast.ImportFrom) else imports[0].names[0].name
        late += [] if (first or "").split(".")[0] == "command_line" else [str(path.relative_to(REPOSITORY))]
    assert not late


@pytest.fixture(scope="module")
def stages_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one subfolder per stage that contains only a compiled copy of that stage."""
    folder = tmp_path_factory.mktemp("stages")
    for stage in STAGES:
        shutil.copytree(REPOSITORY / stage, folder / stage / stage, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(folder, quiet=1)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.stem)
def test_help_is_quick_and_needs_only_the_command_s_own_stage(stages_alone: Path, command: Path) -> None:
    stage = command.parent.name
    cwd = stages_alone / stage
    arguments = [sys.executable, f"{stage}/{command.name}", "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    out, err = cwd / f"{command.stem}.out", cwd / f"{command.stem}.err"
    to_files = [
        (os.POSIX_SPAWN_OPEN, number, str(file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number, file in ((1, out), (2, err))
    ]
    here = Path.cwd()
    os.chdir(cwd)
    try:
        pid = os.posix_spawn(
            sys.executable, [arguments[0], "-X", "importtime", *arguments[1:]], environment, file_actions=to_files
        )
    finally:
        os.chdir(here)
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, err.read_text()[-1500:]
    assert command.stem in out.read_text()
    assert not [line for line in err.read_text().splitlines() if not line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in err.read_text().splitlines()}
    allowed = {"transformers", "tokenizers"} if command.stem in TRAINERS else set()  # HfArgumentParser
    assert not imported & set(HEAVY) - allowed
    assert usage.ru_utime + usage.ru_stime < CPU_SECONDS.get(command.stem, 0.5) * SLACK
