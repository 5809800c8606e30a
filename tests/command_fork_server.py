"""A process of one stage that has imported its libraries and forks a process for each run of a command.

    python tests/command_fork_server.py STAGE MODULE …

Prints {} once the modules are imported. Then it reads one run per line from stdin, as JSON: {"words": [SCRIPT, …],
"cwd", "seconds"}, and prints the run's result as a line of JSON: {"status", "out", "err"}. The status is null if the
run was killed because it took longer than its seconds.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
END = "the checks have passed"  # printed where a run is ended before it trains or serves


def end_run(*_: object, **__: object) -> None:
    print(END)
    sys.exit(0)


def make_engine_config(_: object, args: Any) -> None:
    """Do what `vllm serve` does before it starts the engine's process, and end the run."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    AsyncEngineArgs.from_cli_args(args).create_engine_config()
    end_run()


# {command: [(module, attribute, replacement)]}: the function in whose place a run ends, and `supervise`, which would
# run the command again in another process.
REPLACED: dict[str, list[tuple[str, str, Callable[..., None]]]] = {
    "launch_vllm.py": [
        ("server_guard.process_supervisor", "supervise", lambda: None),
        ("vllm.entrypoints.cli.serve", "ServeSubcommand.cmd", make_engine_config),
    ],
    "batch.py": [
        ("server_guard.process_supervisor", "supervise", lambda: None),
        ("batch_runs.batch_run", "run_batch", end_run),
    ],
    "finetune.py": [("training_loop.source_trainer", "SourceTrainer.train_until_stopped", end_run)],
    "train.py": [("training_loop.source_trainer", "SourceTrainer.train_until_stopped", end_run)],
    "generate_lora_web.py": [("demo_pages.web_page", "serve", end_run)],
    "generate_finetune_web.py": [("demo_pages.web_page", "serve", end_run)],
}


def run(words: list[str]) -> int:
    """Run a command as the main module, like the interpreter; return its exit status."""
    stage = str((REPOSITORY / words[0]).parent)
    sys.argv = [str(REPOSITORY / words[0]), *words[1:]]
    for module, attribute, replacement in REPLACED.get(Path(words[0]).name, ()):
        owner, _, name = attribute.rpartition(".")
        place = importlib.import_module(module)
        setattr(getattr(place, owner) if owner else place, name, replacement)
    sys.path.insert(0, stage)  # again, since an import of vLLM inserts another folder before it
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exc()
            return 1
        try:
            sys.excepthook(*sys.exc_info())
        except SystemExit as end:
            return int(end.code or 0)
        return 1
    return 0


def become(words: list[str], cwd: str, out: int, err: int) -> None:
    """Run a command in this forked process, with its output in the files `out` and `err`; does not return."""
    status = 1
    try:
        os.setsid()
        os.chdir(cwd)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        status = run(words)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def result(words: list[str], cwd: str, seconds: float) -> dict[str, Any]:
    """Run a command in a forked process, kill the processes that it leaves running, and return its result."""
    out, err = (os.memfd_create(name) for name in ("out", "err"))
    pid = os.fork()
    if pid == 0:
        become(words, cwd, out, err)
    deadline, done, code = time.monotonic() + seconds, 0, 0
    pause = 0.001
    while not done and time.monotonic() < deadline:
        done, code = os.waitpid(pid, os.WNOHANG)
        if not done:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if not done:
        os.waitpid(pid, 0)
    texts = [Path(f"/proc/self/fd/{file}").read_text(encoding="utf-8", errors="replace") for file in (out, err)]
    os.close(out)
    os.close(err)
    return {"status": os.waitstatus_to_exitcode(code) if done else None, "out": texts[0], "err": texts[1]}


def main() -> None:
    stage, *modules = sys.argv[1:]
    sys.path[0] = str(REPOSITORY / stage)
    # the stage's packages check whether the main module is a command of their folder
    sys.modules["__main__"].__file__ = str(REPOSITORY / stage / "command.py")
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in modules:
        importlib.import_module(module)
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(result(**json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
