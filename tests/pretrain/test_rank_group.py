"""rank_group/: a user error of one or of all ranks ends the run with one error line."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, free_port
from launches import Launch


def test_error_of_all_ranks_is_one_line_and_status_2(tmp_path: Path, extensions: Path) -> None:
    output = Launch(extensions).to_the_end("--output_dir", tmp_path, "--seeed", 1, status=2)
    assert output.count("error: unknown option --seeed") == 1


@pytest.mark.integration
def test_error_of_one_rank_ends_the_rank_that_waits_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()),
         str(REPOSITORY / "tests/one_rank_fails.py")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("error: rank 1 has no data") == 1
    assert "exitcode  : 2" in done.stderr
