"""Run a script, and send its process a signal directly after it prints a line, however slow or fast the machine is.

    python tests/signal_after_line.py LINE_START NUMBER script.py OPTION…

The signal NUMBER is sent after the first printed text that begins with LINE_START. If NUMBER is negative, the signal
-NUMBER is sent to the process group.
"""

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    start, number, script = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    write, sent = sys.stdout.write, False

    def write_and_signal(text: str) -> int:
        nonlocal sent
        written = write(text)
        if text.startswith(start) and not sent:
            sent = True
            sys.stdout.flush()
            os.kill(os.getpid(), number) if number > 0 else os.killpg(0, -number)
        return written

    sys.stdout.write = write_and_signal  # type: ignore[method-assign]
    sys.argv = sys.argv[3:]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
