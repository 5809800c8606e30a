"""The end of a process that has vLLM in it: what was registered for its exit is done, and it is gone.

Python would first take apart all that was imported. For vLLM's millions of objects that is half a second of CPU time in
each of the server's processes, one waiting for the other, and compiled libraries then list what they still hold, in
thousands of lines. The memory goes with the process anyway. Children that multiprocessing forks end in this very way;
those that it spawns, as vLLM's are, do not.
"""

import atexit
import os
import sys
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn


def end(status: int) -> NoReturn:
    """End this process. Its threads, whatever they do, end with it."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end_when_done() -> None:
    """Called in a spawned child before it knows its work: it ends so once the work is done."""
    bootstrap = BaseProcess._bootstrap  # type: ignore[attr-defined]

    def bootstrap_and_end(process: BaseProcess, *given: Any, **named: Any) -> NoReturn:
        end(bootstrap(process, *given, **named))

    BaseProcess._bootstrap = bootstrap_and_end  # type: ignore[attr-defined]
