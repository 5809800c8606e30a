"""Run a tool in the test process, where its libraries are already imported."""

import contextlib
import io
import runpy
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest
from conftest import REPOSITORY

RunTool = Callable[..., "CompletedProcess[str]"]


def run_in_process(script: str, *arguments: object, status: int = 0) -> "CompletedProcess[str]":
    """Run a script as the main module: run_in_process("tools/x.py", "--option", value, …).

    The test fails with the script's output if the exit status is not `status`.
    """
    command, before = [script, *map(str, arguments)], sys.argv
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = command
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    if code != status:
        pytest.fail(f"{' '.join(command)}: exit {code}\n{out.getvalue()}\n{err.getvalue()}")
    return CompletedProcess(command, code, out.getvalue(), err.getvalue())
