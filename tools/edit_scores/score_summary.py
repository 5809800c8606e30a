"""Summarise the scores of edits: shares with bootstrap intervals, as a dictionary and as a text table."""

from collections.abc import Callable, Sequence
from typing import Any

from extraction_metrics.confidence_intervals import percentile_bounds, resampled_totals

from edit_scores.edit_questions import EDIT_KINDS, KINDS, LOCALITY_KINDS
from edit_scores.scored_edits import AnswerScore, EditScore, QuestionScore

Figure = dict[str, float]  # {"value", "low", "high", "questions"}
Measure = Callable[[QuestionScore], float | bool | None]
# Measures of one answer, in the order of the table: name -> value.
ANSWER_MEASURES: dict[str, Callable[[AnswerScore], float | bool | None]] = {
    "forced": lambda answer: answer.forced,
    "probability": lambda answer: answer.probability,
    "correct": lambda answer: answer.correct,
    "contains": lambda answer: answer.contains,
    "stopped": lambda answer: answer.stopped,
    "repeats": lambda answer: answer.repeats,
}
HEADINGS = {
    "forced": "teacher-forced", "probability": "probability", "correct": "free, correct", "contains": "contains",
    "stopped": "stopped", "repeats": "repeats",
}  # fmt: skip


def figure(scores: Sequence[EditScore], kinds: Sequence[str], measure: Measure) -> Figure | None:
    """Return the mean of a measure over the questions of some kinds, with a 95 % interval.

    The interval is a percentile bootstrap over edits. None if no question has the measure.
    """
    totals = []
    for score in scores:
        values = [measure(each) for each in score.questions if each.kind in kinds]
        known = [float(value) for value in values if value is not None]
        if known:
            totals.append([sum(known), float(len(known))])
    if not totals:
        return None
    drawn = resampled_totals(totals)  # (resamples, 2)
    low, high = percentile_bounds(drawn[:, 0] / drawn[:, 1])
    count = sum(total[1] for total in totals)
    return {"value": sum(total[0] for total in totals) / count, "low": low, "high": high, "questions": int(count)}


def answer_figures(scores: Sequence[EditScore], kinds: Sequence[str]) -> dict[str, Any]:
    """Return measure -> {"before", "after"} for the kinds of questions; measures without values are absent."""

    def measured(value: Callable[[AnswerScore], float | bool | None]) -> dict[str, Figure | None]:
        before = figure(scores, kinds, lambda each: value(each.before))
        return {"before": before, "after": figure(scores, kinds, lambda each: value(each.after))}

    found = {name: measured(value) for name, value in ANSWER_MEASURES.items()}
    return {name: figures for name, figures in found.items() if figures["before"]}


def summarize(scores: Sequence[EditScore]) -> dict[str, Any]:
    """Return the summary of edits: {"edits", kind -> measures, "locality" -> measures, "fluency"}.

    A figure has the keys value, low, high (95 % interval) and questions. Kinds of locality have the measures
    forced_unchanged and unchanged in addition. Kinds without questions are absent.
    """
    summary: dict[str, Any] = {"edits": len(scores)}
    for name, kinds in [*((kind, (kind,)) for kind in KINDS), ("locality", LOCALITY_KINDS)]:
        measures = answer_figures(scores, kinds)
        if not measures:
            continue
        if name not in EDIT_KINDS:
            measures["forced_unchanged"] = figure(scores, kinds, lambda each: each.forced_unchanged)
            measures["unchanged"] = figure(scores, kinds, lambda each: each.unchanged)
        summary[name] = measures
    pairs = [score.fluency for score in scores if score.fluency]
    if pairs:
        summary["fluency"] = {
            name: mean_figure([pair[at] for pair in pairs]) for at, name in enumerate(("before", "after"))
        }
    return summary


def mean_figure(values: Sequence[float]) -> Figure:
    """Return the mean of one value per edit with a 95 % interval."""
    drawn = resampled_totals([[value, 1.0] for value in values])
    low, high = percentile_bounds(drawn[:, 0] / drawn[:, 1])
    return {"value": sum(values) / len(values), "low": low, "high": high, "questions": len(values)}


def percent(found: Figure | None) -> str:
    """Return a share with its interval in per cent, or "" for None."""
    if not found:
        return ""
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def summary_table(summary: dict[str, Any]) -> str:
    """Return the summary as a text table: shares in per cent with 95 % intervals."""
    lines = [f"{summary['edits']} edits; shares in % with 95 % intervals"]
    columns = [f"{HEADINGS['forced']:>20}", f"{HEADINGS['correct']:>20}", f"{'contains':>9}", f"{'stopped':>9}",
               f"{'repeats':>9}"]  # fmt: skip
    lines.append(f"{'':14}{'':8}{'questions':>9}" + "".join(columns) + f"{'unchanged':>20}{'forced unchanged':>20}")
    for kind in (*KINDS, "locality"):
        if kind not in summary:
            continue
        measures = summary[kind]
        for at in ("before", "after"):
            values = {name: figures[at] for name, figures in measures.items() if at in figures}
            short = [f"{100 * values[name]['value']:.1f}" if name in values else "" for name in ANSWER_MEASURES]
            plain = dict(zip(ANSWER_MEASURES, short, strict=True))
            row = f"{kind if at == 'before' else '':14}{at:8}{values['stopped']['questions']:>9}"
            row += f"{percent(values.get('forced')):>20}{percent(values.get('correct')):>20}"
            row += "".join(f"{plain[name]:>9}" for name in ("contains", "stopped", "repeats"))
            if at == "after":
                row += "".join(f"{percent(measures.get(name)):>20}" for name in ("unchanged", "forced_unchanged"))
            lines.append(row.rstrip())
    for name, unit in (("fluency", "bits"), ("perplexity", "")):
        if name in summary:
            before, after = summary[name]["before"], summary[name]["after"]
            texts = [f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in (before, after)]
            lines.append(f"{name}: {texts[0]} before, {texts[1]} after {unit}".rstrip())
    return "\n".join(lines)
