"""The last stage of cleaning: report the dropped documents, and move the result to the output folder."""

import hashlib
import heapq
import json
import shutil
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from corpus_files.corpus import counted
from datatrove.pipeline.base import PipelineStep
from partial_folders.resume_journal import JOURNAL
from resumable_checkpoints.complete_checkpoints import flush

from text_cleaning.cleaning_io import CleaningPlan
from text_cleaning.cleaning_rules import (
    CHINESE_SHARE,
    MINHASH,
    SHORT_TEXT_THRESHOLDS,
    SHORT_TEXT_WORDS,
    THRESHOLDS,
)

REPORT = "report"
RULES = sorted(Path(__file__).parent.glob("*.py"))  # the tables of the filters are in this package

# (filter, reason) -> (hash, "file:line", record) of the dropped documents that the report shows
ShownDocuments = dict[tuple[str, str], list[tuple[int, str, dict[str, Any]]]]


class WriteReport(PipelineStep):
    """Last step: writes report.json, report.md and dropped.jsonl, and moves the result to the output folder.

    target: the output folder. shown: number of dropped documents in report.md for each filter and reason.
    """

    type, name = "WRITER", "report"

    def __init__(self, plan: CleaningPlan, target: Path, shown: int) -> None:
        super().__init__()
        self.plan, self.target, self.shown = plan, target, shown

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Write and move the result; raises ValueError if read, kept and dropped documents do not add up."""
        folder = self.plan.folder
        result = folder / "result"
        report_folder = result / REPORT  # a subfolder, so that DIR/*.jsonl matches only documents
        report_folder.mkdir(parents=True, exist_ok=True)
        report, examples = collect_report(self.plan, report_folder / "dropped.jsonl", self.shown)
        totals = report["totals"]
        if totals["read"] != totals["kept"] + totals["dropped"]:
            raise ValueError(f"{folder}: {totals} do not add up; remove that folder and run the same command again")
        (report_folder / "report.json").write_text(
            json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        (report_folder / "report.md").write_text(to_markdown(report, examples), encoding="utf-8")
        flush(result)
        (folder / "run.json").unlink()  # a run interrupted after this line starts from the beginning
        if self.target.exists():
            shutil.rmtree(folder / "replaced", ignore_errors=True)
            self.target.rename(folder / "replaced")
        result.rename(self.target)
        for path in folder.iterdir():
            if path.is_dir() and path.name != "logs":  # logs are kept for later inspection
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file() and path.name != JOURNAL:  # the command that runs this task has locked the journal
                path.unlink()


def collect_report(plan: CleaningPlan, dropped_path: Path, shown: int) -> tuple[dict[str, Any], ShownDocuments]:
    """Return the report with the counts of all tasks, and up to `shown` dropped documents for each filter and reason.

    The shown documents are chosen by a hash of file name and line. Also writes the records of all dropped documents, in
    input order, to `dropped_path`.
    """
    read, kept = _read_counts(plan, "read"), _read_counts(plan, "kept")
    lines_before = _lines_before(plan, read)
    files: dict[str, Any] = {
        shard.path: {"read": 0, "kept": 0, "dropped": 0, "bytes_read": 0, "bytes_kept": 0, "reasons": {}}
        for shard in plan.shards
    }
    languages: dict[str, Counter[str]] = defaultdict(Counter)
    for number, shard in enumerate(plan.shards):
        read_counts, kept_counts, file = read[number], kept.get(number, {}), files[shard.path]
        file["read"] += read_counts["lines"]
        file["bytes_read"] += read_counts["bytes"]
        file["kept"] += kept_counts.get("documents", 0)
        file["bytes_kept"] += kept_counts.get("bytes", 0)
        for language in THRESHOLDS:
            if language in kept_counts:
                languages[language]["kept"] += kept_counts[language]
    examples: ShownDocuments = defaultdict(list)
    with dropped_path.open("w", encoding="utf-8") as out:
        for record in _dropped_records(plan, lines_before):
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            file, reason = files[record["file"]], f"{record['filter']}: {record['reason']}"
            file["dropped"] += 1
            counts = file["reasons"].setdefault(reason, {"documents": 0, "bytes": 0})
            counts["documents"] += 1
            counts["bytes"] += record["bytes"]
            languages[record["language"] or "none"][reason] += 1
            _keep_highest_hashes(examples[record["filter"], record["reason"]], record, shown)
    totals = {
        name: sum(f[name] for f in files.values()) for name in ("read", "kept", "dropped", "bytes_read", "bytes_kept")
    }
    report = {
        "totals": totals, "files": files, "languages": {name: dict(n) for name, n in sorted(languages.items())},
        "settings": cleaning_settings(plan), "versions": package_versions(),
    }  # fmt: skip
    return report, examples


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that affect which documents are kept."""
    return {name: version(name) for name in ("datatrove", "numpy", "opencc")}


def cleaning_settings(plan: CleaningPlan) -> dict[str, Any]:
    """Return all settings that affect which documents are kept."""
    return {
        "text_key": plan.source.text_key, "text_template": plan.source.text_template, "language": plan.language,
        "on_error": plan.source.on_error, "skip": sorted(plan.skip), "chinese_share": CHINESE_SHARE,
        "thresholds": THRESHOLDS, "short": SHORT_TEXT_WORDS, "thresholds_of_short": SHORT_TEXT_THRESHOLDS,
        "minhash": str(MINHASH), "rules_sha256": hashlib.sha256(b"".join(map(Path.read_bytes, RULES))).hexdigest(),
        "word_lists": {
            language: {"entries": len(entries), "sha256": hashlib.sha256("\n".join(entries).encode()).hexdigest()}
            for language, entries in plan.word_lists.items()
        },
    }  # fmt: skip


def _read_counts(plan: CleaningPlan, name: str) -> dict[int, dict[str, int]]:
    """Return the counts in the files `<name>/<task>.json` of all tasks: shard -> counts."""
    tasks = [json.loads(path.read_text()) for path in sorted((plan.folder / name).glob("*.json"))]
    return {int(shard): counts for task in tasks for shard, counts in task.items()}


def _lines_before(plan: CleaningPlan, read: dict[int, dict[str, int]]) -> list[int]:
    """Return the number of lines before each shard in its file. read: the counts by shard, with "lines"."""
    lines_before, lines, path = [], 0, ""
    for number, shard in enumerate(plan.shards):
        lines = lines if shard.path == path else 0
        lines_before.append(lines)
        lines, path = lines + read[number]["lines"], shard.path
    return lines_before


def _dropped_records(plan: CleaningPlan, lines_before: list[int]) -> Iterator[dict[str, Any]]:
    """Yield a record of each dropped document, in input order.

    The record of a near-duplicate also names the document that was kept instead. lines_before: see `_lines_before`.
    """
    pairs_file = plan.folder / "pairs.npy"
    pairs = np.load(pairs_file) if pairs_file.is_file() else np.empty((0, 4), dtype=np.int64)

    def file_and_line(shard: int, line: int) -> dict[str, Any]:
        return {"file": plan.shards[shard].path, "line": line + lines_before[shard]}

    @cache
    def locations(task: int) -> np.ndarray:
        """Return shard and line of each document of a task, as DocumentLocationsWriter wrote them."""
        return np.load(plan.folder / f"locations/{task:05d}.npy", mmap_mode="r")

    for task in range(len(plan.tasks)):
        records = []
        for path in sorted((plan.folder / "dropped").glob(f"*/{task:05d}.jsonl")):
            records += [json.loads(line) for line in path.open(encoding="utf-8")]
        similar_to = {}
        for _, index, kept_task, kept_index in pairs[pairs[:, 0] == task].tolist():
            similar_to[tuple(locations(task)[index])] = file_and_line(*locations(kept_task)[kept_index].tolist())
        for record in sorted(records, key=lambda r: (r["shard"], r["line"])):
            shard, line = record.pop("shard"), record.pop("line")
            kept = {"similar_to": similar_to[shard, line]} if record["filter"] == "minhash" else {}
            yield file_and_line(shard, line) | record | kept


def _keep_highest_hashes(heap: list[tuple[int, str, dict[str, Any]]], record: dict[str, Any], count: int) -> None:
    """Add a record to a heap; keep only the `count` records with the highest hashes of file name and line."""
    name_and_line = f"{Path(record['file']).name}:{record['line']}"
    heapq.heappush(heap, (zlib.crc32(name_and_line.encode()), f"{record['file']}:{record['line']}", record))
    if len(heap) > count:
        heapq.heappop(heap)


def to_markdown(report: dict[str, Any], examples: ShownDocuments) -> str:
    """Return the report in Markdown: a table of files, a table of reasons, and dropped documents for each reason."""
    totals = report["totals"]
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    lines = [
        "# Dropped documents\n",
        f"{counted(totals['read'], 'document')} read ({totals['bytes_read'] / 1e6:,.1f} MB), {totals['kept']:,} kept "
        f"({totals['bytes_kept'] / 1e6:,.1f} MB), {totals['dropped']:,} dropped. dropped.jsonl lists all dropped "
        "documents; report.json has the settings and thresholds.\n",
        "| file | read | kept | dropped | MB read | MB kept |\n| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for path, file in report["files"].items():
        name = path.replace("|", "\\|")
        lines.append(
            f"| {name} | {file['read']:,} | {file['kept']:,} | {file['dropped']:,} "
            f"| {file['bytes_read'] / 1e6:,.2f} | {file['bytes_kept'] / 1e6:,.2f} |"
        )
        for reason, counts in file["reasons"].items():
            reasons[reason].update(counts)
    lines.append("\n| filter: reason | documents | MB |\n| --- | ---: | ---: |")
    ordered = sorted(reasons.items(), key=lambda item: (-item[1]["documents"], item[0]))
    lines += [f"| {reason} | {counts['documents']:,} | {counts['bytes'] / 1e6:,.2f} |" for reason, counts in ordered]
    for filter_and_reason, _ in ordered:
        filter_name, _, reason = filter_and_reason.partition(": ")
        lines.append(f"\n## {filter_and_reason}\n")
        for _, location, record in sorted(examples.get((filter_name, reason), []), key=lambda shown: shown[1]):
            similar = ", like {file}:{line}".format(**record["similar_to"]) if "similar_to" in record else ""
            lines.append(f"- {location}{similar}\n\n      {json.dumps(record['text'], ensure_ascii=False)}\n")
    return "\n".join(lines).rstrip() + "\n"
