"""Summarise the scores of edits: shares with bootstrap intervals, as a dictionary and as a text table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edit_scores.edit_questions import EDIT_KINDS, KINDS, LOCALITY_KINDS
from edit_scores.ratio_intervals import ratio_figure
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
    "forced": "teacher-forced", "probability": "probability", "correct": "free", "contains": "contains",
    "stopped": "stopped", "repeats": "repeats",
}  # fmt: skip
WIDTHS = {"forced": 22, "probability": 13, "correct": 22, "contains": 10, "stopped": 9, "repeats": 9}  # characters


def figure(scores: Sequence[EditScore], kinds: Sequence[str], measure: Measure) -> Figure | None:
    """Return the mean of a measure over the questions of some kinds, with a 95 % interval.

    The interval is a percentile bootstrap over edits. None if no question has the measure.
    """
    totals = []
    for score in scores:
        values = [measure(each) for each in score.questions if each.kind in kinds]
        known = [float(value) for value in values if value is not None]
        if known:
            totals.append((sum(known), float(len(known))))
    if not totals:
        return None
    return ratio_figure(totals) | {"questions": int(sum(count for _, count in totals))}


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
            name: ratio_figure([(pair[at], 1.0) for pair in pairs]) | {"questions": len(pairs)}
            for at, name in enumerate(("before", "after"))
        }
    return summary


def percent(found: Figure) -> str:
    """Return a share with its interval in per cent."""
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def summary_table(summary: Mapping[str, Any]) -> str:
    """Return the summary as text tables: shares in per cent with 95 % intervals, locality, fluency and perplexity."""
    kinds = [kind for kind in (*KINDS, "locality") if kind in summary]
    answered = [kind for kind in kinds if "correct" in summary[kind]]
    lines = [f"{summary['edits']} edits; shares in % with 95 % intervals; free: generated without the true answer", ""]
    if answered:
        headings = "".join(f"{heading:>{WIDTHS[name]}}" for name, heading in HEADINGS.items())
        lines.append(f"{'correct answers':21}{'questions':>9}{headings}")
        lines += [answer_row(kind, at, summary[kind]) for kind in answered for at in ("before", "after")]
    kept = [kind for kind in kinds if kind not in EDIT_KINDS]
    if kept:
        lines += ["", f"{'unchanged answers':21}{'questions':>9}{'teacher-forced':>22}{'free':>22}"]
    for kind in kept:
        found = summary[kind]["unchanged"]
        forced, free = percent(summary[kind]["forced_unchanged"]), percent(found)
        lines.append(f"{kind:21}{found['questions']:>9}{forced:>22}{free:>22}")
    for name, unit in (("fluency", "bits"), ("perplexity", "")):
        if name in summary:
            texts = [interval(summary[name][at]) for at in ("before", "after")]
            lines += ["", f"{name}: {texts[0]} before, {texts[1]} after {unit}".rstrip()]
    return "\n".join(lines)


def answer_row(kind: str, at: str, measures: Mapping[str, Any]) -> str:
    """Return a row of the table. at: "before" or "after"."""
    row = f"{kind if at == 'before' else '':14}{at:7}{measures['correct'][at]['questions']:>9}"
    for name, width in WIDTHS.items():
        found = measures[name][at]
        row += f"{percent(found):>{width}}" if width > 20 else f"{100 * found['value']:>{width}.1f}"
    return row


def interval(found: Figure) -> str:
    """Return a value with its interval."""
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
