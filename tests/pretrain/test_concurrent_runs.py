"""A second run of clean.py or preprocess.py on the same output is refused, also while Slurm jobs of the first wait."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, RunScript
from corpora import rows
from slurm_cluster import SlurmCluster, require_slurm, running_slurm

TEXTS = [f"Of all that was said in the year {year}, this is the part that I have kept." for year in range(40)]
ON_SLURM = ("--executor", "slurm", "--slurm_partition", "cpu", "--slurm_memory_gb", 1, "--slurm_option", "hold=")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.integration
def test_second_cleaning_of_one_folder_is_refused_and_the_first_one_finishes(
    tmp_path: Path, run_script: RunScript
) -> None:
    """SIGSTOP suspends the first run, so that the later runs, with other options, start before the first ends."""
    source, out = rows(tmp_path / "a.jsonl", TEXTS * 500), tmp_path / "out"
    command = ["pretrain/clean.py", "--file_path", source, "--skip", "minhash", "--output_dir", out]
    first = subprocess.Popen(
        [sys.executable, *map(str, command), "--task_megabytes", "1", "--num_workers", "2"], cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not any((tmp_path / "out.partial").glob("logs/filter/completions/*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    try:
        for more in ([], ["--language", "en"], ["--overwrite"]):
            refused = run_script(*command, *more, status=2)
            assert refused.stderr == (
                f"error: {out}.partial is being written by another process; wait for it or write elsewhere\n"
            )
    finally:
        first.send_signal(signal.SIGCONT)
    printed, errors = first.communicate(timeout=120)
    assert (first.returncode, errors) == (0, "")
    assert f"{out}: 40 of 20,000 documents kept" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_cleaning_into_a_sealed_folder_is_refused(tmp_path: Path, run_script: RunScript) -> None:
    source = rows(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed/checkpoint.json").write_text('{"blake3": {}}')
    refused = run_script("pretrain/clean.py", "--file_path", source, "--output_dir", tmp_path / "sealed/out", status=2)
    assert "is inside the sealed folder" in refused.stderr and refused.stderr.count("\n") == 1
    assert [path.name for path in (tmp_path / "sealed").iterdir()] == ["checkpoint.json"]


@pytest.mark.integration
def test_corpus_and_answers_in_a_sealed_folder_are_refused(
    tiny_tokenizer: Path, tmp_path: Path, run_script: RunScript
) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "Ann was born in Oslo."}\n')
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Extract."}\n')
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed/checkpoint.json").write_text('{"blake3": {}}')
    for command in (
        f"pretrain/preprocess.py --mode write --file_path text.jsonl --tokenizer_path {tiny_tokenizer} "
        "--save_prefix sealed/corpus",
        "inference/batch.py --url http://127.0.0.1:9 --input rows.jsonl --output sealed/answers.jsonl",
    ):
        refused = run_script(*command.split(), status=2, cwd=tmp_path)
        assert "is inside the sealed folder" in refused.stderr and refused.stderr.count("\n") == 1
        assert [path.name for path in (tmp_path / "sealed").iterdir()] == ["checkpoint.json"]


PROGRAMS = {  # stand-ins for Slurm's commands; jobs 11, 12, ... never start and stay in the file `queue`
    "sbatch": 'n=$(($(cat "$JOBS/n" 2>/dev/null || echo 10) + 1)); echo $n > "$JOBS/n"\n'
    '[ $n != "$REFUSED" ] || { echo "sbatch: error: invalid partition" >&2; exit 1; }\n'
    'echo $n >> "$JOBS/queue"; echo "Submitted batch job $n"',
    "squeue": 'cat "$JOBS/queue"',
    "scontrol": "echo node1",
}


@pytest.fixture
def waiting_jobs(tmp_path: Path) -> dict[str, object]:
    """Return environment variables for the stand-ins of Slurm's commands, with which jobs never start."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(stat.S_IRWXU)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "JOBS": tmp_path}


def commands(folder: Path, tokenizer: Path) -> dict[str, list[object]]:
    """Return {name of the folder of a command's logs: the command}; with ON_SLURM, the commands submit jobs."""
    source = rows(folder / "a.jsonl", TEXTS)
    write = ["pretrain/preprocess.py", "--mode", "write", "--file_path", source, "--tokenizer_path", tokenizer]
    return {
        "out.partial": ["pretrain/clean.py", "--file_path", source, "--skip", "minhash", "--output_dir", "out"],
        "out.logs": [*write, "--seq_length", 64, "--save_prefix", "out"],
    }


@pytest.mark.integration
def test_run_is_refused_while_slurm_jobs_of_another_run_wait(
    tmp_path: Path, run_script: RunScript, waiting_jobs: dict[str, object], tiny_tokenizer: Path
) -> None:
    for number, (logs, command) in enumerate(commands(tmp_path, tiny_tokenizer).items()):
        (tmp_path / "queue").write_text("")
        (tmp_path / "n").write_text("10")
        folder = tmp_path / str(number)
        folder.mkdir()
        run_script(*command, *ON_SLURM, cwd=folder, env=waiting_jobs)
        ids = (tmp_path / "queue").read_text().split()
        assert len(ids) == (4, 2)[number]
        before = contents(folder)
        for more in (ON_SLURM, ()):
            refused = run_script(*command, *more, cwd=folder, env=waiting_jobs, status=2)
            assert refused.stderr.endswith(
                f"out is in use by the Slurm jobs {' '.join(ids)} of another run; wait for them, cancel them "
                f"(scancel {' '.join(ids)}), or write elsewhere\n"
            )
            assert refused.stderr.count("\n") == 1
            assert contents(folder) == before
        elsewhere = run_script(*command, cwd=folder, status=2)  # a machine without Slurm
        assert f"the Slurm jobs {' '.join(ids)} of another run, and squeue does not answer" in elsewhere.stderr
        assert logs in elsewhere.stderr.partition("or remove ")[2] and elsewhere.stderr.count("\n") == 1
        (tmp_path / "queue").write_text("7\n")  # the jobs were cancelled
        run_script(*command, cwd=folder, env=waiting_jobs)


@pytest.mark.integration
def test_error_of_sbatch_names_submitted_jobs_and_keeps_the_folder_if_jobs_were_submitted(
    tmp_path: Path, run_script: RunScript, waiting_jobs: dict[str, object], tiny_tokenizer: Path
) -> None:
    command = commands(tmp_path, tiny_tokenizer)["out.partial"]
    for refused, name, submitted in (
        (11, "filter", ""),
        (14, "write", ", and cancel the submitted jobs: scancel 12 13"),
    ):
        done = run_script(*command, *ON_SLURM, cwd=tmp_path, env=waiting_jobs | {"REFUSED": refused}, status=2)
        assert done.stderr == (
            f"sbatch: error: invalid partition\nerror: sbatch refused the job clean-{name} (exit status 1; its "
            f"message is above); correct the Slurm options{submitted}\n"
        )
        assert (tmp_path / "out.partial").exists() == bool(submitted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_is_refused_while_real_slurm_jobs_of_another_run_wait(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path
) -> None:
    require_slurm()
    (tmp_path / "slurm").mkdir()

    def submit(command: list[object], slurm: SlurmCluster) -> list[str]:
        before = set(slurm.jobs())
        run_script(*command, *ON_SLURM, cwd=tmp_path, env=slurm.env)
        return sorted(set(slurm.jobs()) - before, key=int)

    with running_slurm(tmp_path / "slurm") as slurm:
        for command in commands(tmp_path, tiny_tokenizer).values():
            cancelled = submit(command, slurm)
            slurm.command("scancel", *cancelled)
            jobs = submit(command, slurm)
            for more in (ON_SLURM, ()):
                refused = run_script(*command, *more, cwd=tmp_path, env=slurm.env, status=2)
                assert f"by the Slurm jobs {' '.join(jobs)} of another run; wait for them" in refused.stderr
            slurm.command("scontrol", "release", *jobs)
            slurm.wait_for(jobs[-1], "COMPLETED")
    assert (tmp_path / "out/00000.jsonl").is_file() and (tmp_path / "out.json").is_file()
