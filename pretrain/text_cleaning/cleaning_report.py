"""The last stage of cleaning: report dropped documents, and move the result to the output folder."""

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
from datatrove.pipeline.base import PipelineStep

from text_cleaning.cleaning_io import CleaningPlan
from text_cleaning.cleaning_rules import CHINESE_SHARE, HARM, MINHASH, OF_SHORT, SHORT, THRESHOLDS

REPORT = "report"

ReasonSamples = dict[tuple[str, str], list[tuple[int, str, dict[str, Any]]]]


class WriteReport(PipelineStep):
    """Last step: writes report.json, report.md and dropped.jsonl, and moves the result to the output folder."""

    type, name = "WRITER", "report"

    def __init__(self, plan: CleaningPlan, target: Path, samples: int) -> None:
        super().__init__()
        self.plan, self.target, self.samples = plan, target, samples

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Write and move the result; raises ValueError if read, kept and dropped documents do not add up."""
        folder = self.plan.folder
        result = folder / "result"
        report_folder = result / REPORT  # a subfolder, so that DIR/*.jsonl matches only documents
        report_folder.mkdir(parents=True, exist_ok=True)
        report, samples = collect_report(self.plan, report_folder / "dropped.jsonl", self.samples)
        totals = report["totals"]
        if totals["read"] != totals["kept"] + totals["dropped"]:
            raise ValueError(f"{folder}: {totals} do not add up; remove that folder and run the same command again")
        (report_folder / "report.json").write_text(
            json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        (report_folder / "report.md").write_text(to_markdown(report, samples), encoding="utf-8")
        (folder / "run.json").unlink()  # a run interrupted after this line starts from the beginning
        if self.target.exists():
            shutil.rmtree(folder / "replaced", ignore_errors=True)
            self.target.rename(folder / "replaced")
        result.rename(self.target)
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
            elif path.name != "logs":  # logs are kept for later inspection
                shutil.rmtree(path, ignore_errors=True)


def collect_report(plan: CleaningPlan, dropped_to: Path, samples: int) -> tuple[dict[str, Any], ReasonSamples]:
    """Return the report with the counts of all tasks, and `samples` dropped documents of each filter and reason.

    Samples are chosen by a hash of file and line. Also writes one line per dropped document to `dropped_to`, in input
    order.
    """
    read, kept = _counts(plan, "read"), _counts(plan, "kept")
    before = _lines_before(plan, read)
    files: dict[str, Any] = {
        shard.path: {"read": 0, "kept": 0, "dropped": 0, "bytes_read": 0, "bytes_kept": 0, "reasons": {}}
        for shard in plan.shards
    }
    languages: dict[str, Counter[str]] = defaultdict(Counter)
    for number, shard in enumerate(plan.shards):
        counts, stays, file = read[number], kept.get(number, {}), files[shard.path]
        file["read"] += counts["lines"]
        file["bytes_read"] += counts["bytes"]
        file["kept"] += stays.get("documents", 0)
        file["bytes_kept"] += stays.get("bytes", 0)
        for language in THRESHOLDS:
            if language in stays:
                languages[language]["kept"] += stays[language]
    chosen: ReasonSamples = defaultdict(list)
    with dropped_to.open("w", encoding="utf-8") as out:
        for record in _dropped(plan, before):
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            file, why = files[record["file"]], f"{record['filter']}: {record['reason']}"
            file["dropped"] += 1
            reason = file["reasons"].setdefault(why, {"documents": 0, "bytes": 0})
            reason["documents"] += 1
            reason["bytes"] += record["bytes"]
            languages[record["language"] or "none"][why] += 1
            _choose(chosen[record["filter"], record["reason"]], record, samples)
    totals = {
        name: sum(f[name] for f in files.values()) for name in ("read", "kept", "dropped", "bytes_read", "bytes_kept")
    }
    report = {
        "totals": totals, "files": files, "languages": {name: dict(of) for name, of in sorted(languages.items())},
        "settings": settings(plan), "versions": {name: version(name) for name in ("datatrove", "numpy")},
    }  # fmt: skip
    return report, chosen


def settings(plan: CleaningPlan) -> dict[str, Any]:
    """Return all settings that affect which documents are kept."""
    return {
        "text_key": plan.source.text_key, "text_template": plan.source.text_template, "language": plan.language,
        "on_error": plan.source.on_error, "skip": sorted(plan.skip), "chinese_share": CHINESE_SHARE,
        "thresholds": THRESHOLDS, "short": SHORT, "thresholds_of_short": OF_SHORT, "harm": HARM,
        "minhash": str(MINHASH),
        "word_lists": {
            language: {"entries": len(entries), "sha256": hashlib.sha256("\n".join(entries).encode()).hexdigest()}
            for language, entries in plan.lists.items()
        },
    }  # fmt: skip


def _counts(plan: CleaningPlan, name: str) -> dict[int, dict[str, int]]:
    """Return the counts in the files `<name>/<task>.json` of all tasks, by shard."""
    tasks = [json.loads(path.read_text()) for path in sorted((plan.folder / name).glob("*.json"))]
    return {int(shard): counts for task in tasks for shard, counts in task.items()}


def _lines_before(plan: CleaningPlan, read: dict[int, dict[str, int]]) -> list[int]:
    """Return for each shard the number of lines before it in its file."""
    before, lines, last = [], 0, ""
    for number, shard in enumerate(plan.shards):
        lines = lines if shard.path == last else 0
        before.append(lines)
        lines, last = lines + read[number]["lines"], shard.path
    return before


def _dropped(plan: CleaningPlan, before: list[int]) -> Iterator[dict[str, Any]]:
    """Yield a record of each dropped document, in input order; for a near-duplicate, with the document kept for it.

    before: from `_lines_before`.
    """
    pairs_file = plan.folder / "pairs.npy"
    pairs = np.load(pairs_file) if pairs_file.is_file() else np.empty((0, 4), dtype=np.int64)

    def place(shard: int, line: int) -> dict[str, Any]:
        return {"file": plan.shards[shard].path, "line": line + before[shard]}

    @cache
    def places(task: int) -> np.ndarray:
        return np.load(plan.folder / f"places/{task:05d}.npy", mmap_mode="r")

    for task in range(len(plan.tasks)):
        records = []
        for path in sorted((plan.folder / "dropped").glob(f"*/{task:05d}.jsonl")):
            records += [json.loads(line) for line in path.open(encoding="utf-8")]
        similar = {}
        for _, index, kept_task, kept_index in pairs[pairs[:, 0] == task].tolist():
            similar[tuple(places(task)[index].tolist())] = place(*places(kept_task)[kept_index].tolist())
        for record in sorted(records, key=lambda r: (r["shard"], r["line"])):
            shard, line = record.pop("shard"), record.pop("line")
            kept = {"similar_to": similar[shard, line]} if record["filter"] == "minhash" else {}
            yield place(shard, line) | record | kept


def _choose(chosen: list[tuple[int, str, dict[str, Any]]], record: dict[str, Any], samples: int) -> None:
    """Add a record to a heap, and keep the `samples` records with the highest hashes of file name and line."""
    place = f"{Path(record['file']).name}:{record['line']}"
    heapq.heappush(chosen, (zlib.crc32(place.encode()), f"{record['file']}:{record['line']}", record))
    if len(chosen) > samples:
        heapq.heappop(chosen)


def to_markdown(report: dict[str, Any], samples: ReasonSamples) -> str:
    """Return the report in Markdown: a table of files, a table of reasons, and samples of each reason."""
    totals = report["totals"]
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    lines = [
        "# Dropped documents\n",
        f"{totals['read']:,} documents read ({totals['bytes_read'] / 1e6:,.1f} MB), {totals['kept']:,} kept "
        f"({totals['bytes_kept'] / 1e6:,.1f} MB), {totals['dropped']:,} dropped. dropped.jsonl has a line for each "
        "of these; report.json has settings and thresholds.\n",
        "| file | read | kept | dropped | MB read | MB kept |\n| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for path, file in report["files"].items():
        name = path.replace("|", "\\|")
        lines.append(
            f"| {name} | {file['read']:,} | {file['kept']:,} | {file['dropped']:,} "
            f"| {file['bytes_read'] / 1e6:,.2f} | {file['bytes_kept'] / 1e6:,.2f} |"
        )
        for why, counts in file["reasons"].items():
            reasons[why].update(counts)
    lines.append("\n| filter: reason | documents | MB |\n| --- | ---: | ---: |")
    ordered = sorted(reasons.items(), key=lambda item: (-item[1]["documents"], item[0]))
    lines += [f"| {why} | {counts['documents']:,} | {counts['bytes'] / 1e6:,.2f} |" for why, counts in ordered]
    for why, _ in ordered:
        filter_name, _, reason = why.partition(": ")
        lines.append(f"\n## {why}\n")
        for _, place, record in sorted(samples.get((filter_name, reason), []), key=lambda s: s[1]):
            similar = ", like {file}:{line}".format(**record["similar_to"]) if "similar_to" in record else ""
            lines.append(f"- {place}{similar}\n\n      {json.dumps(record['text'], ensure_ascii=False)}\n")
    return "\n".join(lines).rstrip() + "\n"
