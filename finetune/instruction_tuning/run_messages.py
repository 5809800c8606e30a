"""Text to print before and after training: counts, decoded examples, a summary of the run, the next commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from instruction_data.tokenized_examples import CachedExamples, EncodingReport

from instruction_tuning.tuning_data import TuningData

if TYPE_CHECKING:
    from instruction_tuning.tuning_arguments import TuningArguments

GREY, BRIGHT, PLAIN = "\033[90m", "\033[1m", "\033[0m"
SHOWN = 400  # characters of each part of a decoded example
RULE = "─" * 40


def preview(args: "TuningArguments", tokenizer: Any, data: TuningData, skipped: list[str], colour: bool) -> str:
    """Return the lines to print before training: counts, skipped files, proportions, and three decoded examples."""
    examples, order = data.examples, data.order
    trained = len(order.per_epoch)
    lines = [f"skipped {path}: not a file of rows" for path in skipped]
    lines.append(data_summary(examples.parts[:trained], len(data.held_out), examples.parts[trained:]))
    counts = zip(examples.names, order.per_epoch, strict=False)
    if args.mix:
        lines.append("an epoch: " + ", ".join(f"{count} examples of {name}" for name, count in counts))
    for index in order.epoch(0)[:3] if args.show_rows else ():
        lines += [RULE, decoded_example(tokenizer, *examples[int(index)], colour)]
    return "\n".join([*lines, RULE])


def data_summary(
    parts: Sequence[CachedExamples], held_out: int = 0, held_out_parts: Sequence[CachedExamples] = ()
) -> str:
    """Return counts of kept, truncated and dropped examples and supervised tokens, by source if there are several.

    held_out: the number of held-out examples. held_out_parts: the examples of --eval_data_path.
    """
    several = parts if len(parts) > 1 else []
    lines = [_counts(part.report, f"{part.name}: ") for part in [*several, *held_out_parts]]
    total = _counts(sum((part.report for part in parts), EncodingReport()))
    return "\n".join([*lines, total + (f"; {held_out} examples held out" if held_out else "")])


def _counts(report: EncodingReport, name: str = "") -> str:
    reasons = "; ".join(f"{count}: {reason}" for reason, count in report.dropped.most_common())
    return (
        f"{name}examples: {report.kept} kept, {report.truncated} of them truncated, {report.dropped.total()} dropped"
        + (f" ({reasons})" if reasons else "")
        + f"\n{name}tokens: {report.tokens}, {report.supervised / max(report.tokens, 1):.1%} of them supervised; "
        f"longest example {report.longest}"
    )


def decoded_example(tokenizer: Any, ids: np.ndarray, spans: np.ndarray, colour: bool) -> str:
    """Return an example as text: supervised parts are bright, others grey; without colour, ⟦ ⟧ mark the former."""
    marks = (GREY, PLAIN, BRIGHT, PLAIN) if colour else ("", "", "⟦", "⟧")
    pieces, at = [], 0
    for start, end in spans.tolist():
        pieces += [(ids[at:start], marks[:2]), (ids[start:end], marks[2:])]
        at = end
    pieces.append((ids[at:], marks[:2]))
    shown = []
    for part, (before, after) in pieces:
        if len(part):
            text = tokenizer.decode(part.tolist())
            middle = f" … {len(text) - SHOWN} characters … "
            text = text if len(text) <= SHOWN + len(middle) else text[: SHOWN // 2] + middle + text[-SHOWN // 2 :]
            shown.append(before + text.replace("\n", f"{after}\n{before}") + after)
    return "".join(shown)


def draw_lengths(parts: Sequence[CachedExamples], path: Path) -> None:
    """Write a histogram of the lengths of the examples in tokens, by source."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    axes.hist([part.lengths for part in parts], bins=50, stacked=True, label=[part.name for part in parts])
    axes.set(xlabel="tokens of an example", ylabel="examples")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def run_summary(args: "TuningArguments", trainer: Any) -> str:
    """Return one line with the numbers of weights, steps, examples and ranks."""
    sizes = [
        (getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in trainer.model.parameters()
    ]
    layout = trainer.layout
    micro = (
        f"packed into sequences of at most {layout.capacity} tokens"
        if layout.packed
        else f"{layout.micro_batch_size} at a time"
    )
    return (
        f"tuning {sum(size for size, tuned in sizes if tuned)} of {sum(size for size, _ in sizes)} weights on "
        f"{args.device}: {args.max_steps} steps of {args.batch_size} examples, {micro}, on {args.world_size} "
        f"rank{'s' * (args.world_size > 1)}"
    )


def next_commands(args: "TuningArguments") -> str:
    """Return the commands to try and to serve the result."""
    output = (args.output_dir or "").rstrip("/")
    if args.method == "full":
        return (
            f"try it: python examples/generate_finetune.py --base_model {output} --interactive\n"
            f"serve it: python inference/launch_vllm.py --model {output} --port 8090"
        )
    return (
        f"try it: python examples/generate_lora.py --base_model {args.base_model} --lora_weights {output} "
        "--interactive\n"
        f"merge and serve it: python tools/weight_diff.py merge --path_zhixi {args.base_model} --path_lora {output} "
        f"--path_sfted {output}-merged && python inference/launch_vllm.py --model {output}-merged --port 8090"
    )
