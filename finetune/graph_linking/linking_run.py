"""Link text in tasks: each annotates its shards and writes a part, and the parts in order are the output.

Tasks run through datatrove's executors (cluster_jobs/). A finished task is not repeated by the next run with the same
options. The output does not depend on the executor or the number of workers.
"""

import gc
import json
import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster_jobs.job_commands import ExecutorOptions
from partial_folders import resume_journal
from partial_folders.atomic_outputs import fsync_path
from partial_folders.output_paths import check_output

from graph_linking.entity_linking import link_names
from graph_linking.graph_index import SEAL, GraphIndex
from graph_linking.name_matching import NameMatches
from graph_linking.sentence_annotations import AnnotationSettings, Row, SentenceAnnotator
from graph_linking.text_shards import TextShard, read_shard

GARBAGE_THRESHOLD = 100_000  # new objects between garbage collections
BATCH = 1 << 18  # characters of documents that are searched for names together
Check = Callable[[Iterator[Row]], Iterator[Row]]
PART, COUNTS = "{:05}.jsonl", "counts.json"


def annotate(index: GraphIndex, settings: AnnotationSettings, documents: Iterator[str]) -> Iterator[Row]:
    """Yield the rows of documents, in order."""
    annotator = SentenceAnnotator(index, settings)
    for batch in _batches(documents):
        joined = "\n".join(batch)  # no name includes a line end
        matches, at, begin = index.automaton.find(joined), 0, 0
        only = index.only_candidates(matches.names)
        for text in batch:
            end = begin + len(text)
            stop = bisect_left(matches.starts, end, at)
            own = NameMatches(
                [start - begin for start in matches.starts[at:stop]],
                [stop - begin for stop in matches.ends[at:stop]],
                matches.names[at:stop],
            )
            yield from annotator.annotate(text, link_names(index, own, only[at:stop]))
            at, begin = stop, end + 1


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch, size = list[str](), 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@lru_cache(1)
def _open_index(folder: str, modified: int) -> GraphIndex:
    """Open an index once for all tasks of a process. modified: time of its last change, in nanoseconds."""
    return GraphIndex(folder)


class AnnotateShards:
    """A step of a pipeline: task r annotates the shards tasks[r] and writes them to <folder>/parts/<r>.jsonl.

    checks: function of the folder and the task number that returns the checks of the rows, in order.
    """

    def __init__(
        self, folder: Path, tasks: Sequence[Sequence[TextShard]], text_key: str, index: str,
        settings: AnnotationSettings, checks: Callable[[Path, int], Sequence[Check]],
    ) -> None:  # fmt: skip
        self.folder, self.tasks, self.text_key, self.index = folder, tasks, text_key, index
        self.settings, self.checks = settings, checks

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Run task `rank`; datatrove passes the result of the previous step and the number of tasks."""
        documents = (document for shard in self.tasks[rank] for document in read_shard(shard, self.text_key))
        part = self.folder / "parts" / PART.format(rank)
        part.parent.mkdir(exist_ok=True)
        unfinished = part.with_suffix(".unfinished")
        rows = annotate(_open_index(self.index, (Path(self.index) / SEAL).stat().st_mtime_ns), self.settings, documents)
        for check in self.checks(self.folder, rank):
            rows = check(rows)
        if self.settings.sentences == "related":  # a check may have rejected all relations of a row
            rows = (row for row in rows if row["relation_list"])
        gc.set_threshold(GARBAGE_THRESHOLD)  # rows have no cycles, and collections would take a tenth of the time
        encode = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
        count = entities = relations = 0
        with unfinished.open("w", encoding="utf-8", buffering=1 << 20) as file:
            for row in rows:
                count += 1
                entities += len(row["entity_list"])
                relations += len(row["relation_list"])
                file.write(encode(row) + "\n")
        counts = {"rows": count, "entities": entities, "relations": relations}
        part.with_suffix(".json").write_text(json.dumps(counts))
        unfinished.replace(part)
        return data


class JoinParts:
    """A step of a pipeline with one task: join the parts to the output file."""

    def __init__(self, folder: Path, tasks: int, output: Path) -> None:
        self.folder, self.tasks, self.output = folder, tasks, output

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Write the output file, and its counts to <folder>/counts.json."""
        counts = Counter[str]()
        joined = self.folder / "joined.jsonl"
        with joined.open("wb") as target:
            for number in range(self.tasks):
                part = self.folder / "parts" / PART.format(number)
                counts.update(json.loads(part.with_suffix(".json").read_text()))
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
        fsync_path(joined)
        (self.folder / COUNTS).write_text(json.dumps(counts))
        joined.replace(self.output)
        shutil.rmtree(self.folder / "parts")
        return data


def run_linking(
    step: Callable[[Path], AnnotateShards], identity: str, output: str, execution: ExecutorOptions, workers: int
) -> dict[str, int]:
    """Run the tasks, join their parts to the file `output`, and return its counts; {} if Slurm jobs will write it.

    step: returns the step for the folder of intermediate files, `<output>.partial`. identity: a line that identifies
    options and inputs (`resume_journal.run_identity`); a run with the same line continues an interrupted one.
    """
    from cluster_jobs.executors import make_executor, run_tasks
    from cluster_jobs.slurm_queue import check_no_jobs

    target = Path(output).resolve()
    check_output(output, [])
    folder = target.with_name(f"{target.name}.partial")
    is_slurm = execution.executor == "slurm"
    with resume_journal.locked_folder(folder, identity):
        try:
            check_no_jobs(folder / "logs", target)
            if (folder / COUNTS).exists():  # Slurm jobs of an earlier run have written the output
                resume_journal.empty_folder(folder)
            work = step(folder)
            logs, tasks = folder / "logs", len(work.tasks)
            link = make_executor(execution, [work], tasks, workers, logs / "link", job_name="kg-link")
            if not is_slurm:
                run_tasks(link)
            join = make_executor(
                execution if is_slurm else ExecutorOptions(), [JoinParts(folder, tasks, target)], 1, 1, logs / "join",
                depends=link if is_slurm else None, job_name="kg-join",
            )  # fmt: skip
            run_tasks(join)
            if is_slurm:
                return {}
            counts: dict[str, int] = json.loads((folder / COUNTS).read_text())
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; finished tasks are kept, and the same command resumes") from None
        except ValueError:  # its remedy is usually another input
            resume_journal.remove_folder(folder)
            raise
        resume_journal.remove_folder(folder)
    return counts
