"""Keep the answers of an unfinished run on disk, so that a killed run does not ask again.

The answers are in `OUTPUT.partial/answers.jsonl`, a line each, in the order in which they arrived. The journal of the
folder (partial_folders/resume_journal.py) identifies the run: a run with other options or rows starts over.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from answer_generation.batched_generation import GeneratedAnswer
from partial_folders import resume_journal
from partial_folders.atomic_outputs import fsync_path
from partial_folders.output_paths import file_path

ANSWERS = "answers.jsonl"


class AnswerJournal:
    """The answers of a run: number of the question -> answer."""

    def __init__(self, folder: Path, target: Path) -> None:
        """Read the answers of an earlier run; a truncated last line is removed."""
        self.folder, self.target = folder, target
        self.answers: dict[int, GeneratedAnswer] = {}
        self.file: BinaryIO = (folder / ANSWERS).open("a+b")
        self.file.seek(0)
        end = 0
        for line in self.file:
            try:
                number, text, reason = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self.answers[number] = GeneratedAnswer(text, reason)
            end += len(line)
        self.file.truncate(end)
        self.earlier = len(self.answers)

    def add(self, number: int, answer: GeneratedAnswer) -> None:
        """Record an answer; raises ValueError if it cannot be written."""
        self.answers[number] = answer
        try:
            self.file.write(json.dumps([number, *answer]).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            reason = f"{self.folder / ANSWERS} cannot be written ({error.strerror})"
            raise ValueError(f"{reason}; make room, and run the same command again to resume") from None

    def kept(self) -> str:
        """Return a phrase for messages: how many answers the next run need not ask for."""
        number = len(self.answers)
        if not number:
            return "nothing was answered"
        answers = "1 answer is" if number == 1 else f"{number} answers are"
        return f"{answers} in {self.folder}; the same command resumes"

    def finish(self, text: str) -> None:
        """Write the output and remove the folder."""
        path = self.folder / f"{self.target.name}.new"
        path.write_text(text, encoding="utf-8")
        fsync_path(path)
        path.replace(self.target)
        self.file.close()
        resume_journal.remove_folder(self.folder)


@contextmanager
def answer_journal(output: str, run: str) -> Iterator[AnswerJournal]:
    """Yield the journal of a run; run: the line of `resume_journal.run_identity`.

    After an error or an interrupt, the folder is kept if it has answers; the message says so.
    """
    target = file_path(output, replace=True)
    folder = target.with_name(f"{target.name}.partial")
    with resume_journal.locked_folder(folder, run):
        journal = AnswerJournal(folder, target)
        try:
            yield journal
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {journal.kept()}") from None
        except ConnectionError as error:
            raise ConnectionError(f"{error}; {journal.kept()}") from None
        finally:
            journal.file.close()
            if folder.exists() and not journal.answers:
                resume_journal.remove_folder(folder)
