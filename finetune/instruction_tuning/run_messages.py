"""The text printed before and after training: counts, decoded examples, a summary, and the next commands."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adapter_checks.base_fit import EMBEDDING, OUTPUT
from exact_tokenizers.tokenizer_folders import read_object
from instruction_data.tokenized_examples import CachedExamples
from model_folders.own_code import code_files

from instruction_tuning.tuning_arguments import TuningArguments
from instruction_tuning.tuning_data import TuningData

SHOWN = 400  # maximum characters of each part of a decoded example
REASONS = 5  # maximum number of reasons for dropped rows to print
SEPARATOR = "─" * 40


def preview(args: TuningArguments, tokenizer: Any, data: TuningData) -> str:
    """Return the lines to print before training: counts, proportions, and up to three decoded examples."""
    examples, order = data.examples, data.order
    sources = len(order.per_epoch)  # the other parts come from --eval_data_path
    training, held_out = examples.parts[:sources], examples.parts[sources:]
    lines = [counts_text([part], f"{part.name}: ") for part in (training if sources > 1 else []) + held_out]
    lines.append(counts_text(training) + (f"; held out: {len(data.held_out)}" if data.held_out else ""))
    if args.mix:
        sizes = zip(examples.names, order.per_epoch, strict=False)
        lines.append("examples of an epoch: " + ", ".join(f"{size} of {name}" for name, size in sizes))
    for index in order.epoch(0)[:3] if args.show_rows else ():
        lines += [SEPARATOR, decoded_example(tokenizer, *examples[int(index)])]
    return "\n".join([*lines, SEPARATOR])


def counts_text(parts: Sequence[CachedExamples], name: str = "") -> str:
    """Return two lines with the numbers of examples and tokens; each line begins with `name`."""
    dropped = sum((part.dropped for part in parts), Counter[str]())
    reasons = "; ".join(f"{count}: {reason}" for reason, count in dropped.most_common(REASONS))
    reasons += "; …" if len(dropped) > REASONS else ""
    lengths, supervised = np.concatenate([(part.lengths, part.supervised) for part in parts], axis=1)
    median, high, longest = np.quantile(lengths, [0.5, 0.9, 1], method="higher")
    return (
        f"{name}examples: {len(lengths)} kept, {sum(part.truncated for part in parts)} of them truncated, "
        f"{dropped.total()} dropped" + (f" ({reasons})" if reasons else "") + f"\n{name}tokens: {lengths.sum()}, "
        f"{supervised.sum() / lengths.sum():.1%} of them supervised; per example: median {median}, 90 % up to {high}, "
        f"longest {longest}"
    )


def decoded_example(tokenizer: Any, ids: np.ndarray, spans: np.ndarray) -> str:
    """Return an example as text with its supervised parts in ⟦ ⟧; the middle of long parts is omitted."""
    pieces, at = [], 0
    for start, end in [*spans.tolist(), (len(ids), len(ids))]:
        for part, marks in ((ids[at:start], ("", "")), (ids[start:end], ("⟦", "⟧"))):
            text = tokenizer.decode(part.tolist())
            middle = f" … {len(text) - SHOWN} characters … "
            if len(text) > SHOWN + len(middle):
                text = text[: SHOWN // 2] + middle + text[-SHOWN // 2 :]
            pieces.append(text.join(marks) if len(part) else "")
        at = end
    return "".join(pieces)


def run_summary(args: TuningArguments, trainer: Any) -> str:
    """Return a line with the numbers of weights, steps, examples and ranks."""
    sizes = [
        (getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in trainer.model.parameters()
    ]
    layout = trainer.layout
    micro = f"packed into sequences of at most {layout.capacity} tokens" if layout.packed else "one at a time"
    return (
        f"tuning {sum(size for size, tuned in sizes if tuned)} of {sum(size for size, _ in sizes)} weights on "
        f"{args.device}: {args.max_steps} step{'s' * (args.max_steps != 1)} of {args.batch_size} "
        f"example{'s' * (args.batch_size != 1)}, {micro}, on {args.world_size} rank{'s' * (args.world_size > 1)}"
        + ", without warm-up"
        * (args.max_steps == 1)
    )


def untied_notice(args: TuningArguments, model: Any) -> str:
    """Return a notice if an adapter changes the embedding or output matrix of a base that ties these two, else ""."""
    if args.method == "full" or not model.get_base_model().all_tied_weights_keys:
        return ""
    parts = {part for name, weight in model.named_parameters() if weight.requires_grad for part in name.split(".")}
    changed = " and ".join(sorted(parts & {EMBEDDING, OUTPUT}))
    if not changed:
        return ""
    return (
        f"{args.base_model} has one matrix for {EMBEDDING} and {OUTPUT} (tie_word_embeddings), and the adapter "
        f"changes {changed}; merging it writes two matrices and sets tie_word_embeddings to false"
    )


def next_commands(args: TuningArguments) -> str:
    """Return the commands that try, merge and serve the result.

    For a model with its own Python code, no serving command is given, because vLLM may not support that code. An
    adapter of a quantised base can be merged only into the base before quantisation.
    """
    folder = (args.output_dir or "").rstrip("/")
    output, merged, base = shlex.quote(folder), shlex.quote(f"{folder}-merged"), shlex.quote(args.base_model)
    demo, serve = "try it: python examples/generate_lora.py --base_model", "python inference/launch_vllm.py --port 8090"
    is_quantised = "quantization_config" in read_object(Path(args.base_model, "config.json"))
    whole = "ORIGINAL" if is_quantised else base
    merge = f"python tools/weight_diff.py merge --path_zhixi {whole} --path_lora {output} --path_sfted {merged}"
    own_code = args.trust_remote_code and bool(code_files(args.base_model))
    trust = " --trust_remote_code" * own_code
    if args.method == "full":
        return f"{demo} {output} --interactive{trust}" + f"\nserve it: {serve} --model {output}" * (not own_code)
    demo += f" {base} --lora_weights {output} --interactive{trust}"
    if is_quantised:
        return f"{demo}\nmerge it into ORIGINAL, the base before quantisation: {merge}"
    served = f"merge and serve it: {merge} && {serve} --model {merged}"
    return f"{demo}\n" + (f"merge it: {merge}" if own_code else served)
