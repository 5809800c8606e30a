"""Select instruction rows by duplicates, length, language, diversity, perplexity, IFD and a judge's scores.

    python finetune/instruct_select.py --data_path new.jsonl --output kept.jsonl --minhash 0.7 --rouge 0.7 --min_mtld 20
    python finetune/instruct_select.py --data_path pool.jsonl --output best.jsonl --base_model checkpoints/base \\
        --rank_by ifd --keep 0.2
    python finetune/instruct_select.py --data_path pool.jsonl --output good.jsonl --url U --model M --min_judge 7
    python finetune/instruct_select.py --data_path sharegpt.json --output rows.jsonl        # only converts the format

The filters are applied in the order of the options; a filter without its option is not applied, except for exact
duplicates. The kept rows are in OUTPUT and the others in OUTPUT's .rejected.jsonl, both in the order of the input, with
a score and a reason of each applied filter under "selection". OUTPUT.run.json has the options and counts.
"""

from command_line.fire_commands import run as run_main

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from endpoint_requests.endpoint_option_types import ENDPOINT_OPTION_TYPES
from instruction_generation.source_rows import RowFormat, read_source_rows
from instruction_selection.score_ranking import RankBy, RankOrder
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output

# Options that need --base_model, and their defaults.
CHECKPOINT_OPTIONS = {
    "lora_weights": "", "prompt_template_name": "", "min_perplexity": 0, "max_perplexity": 0, "min_ifd": 0,
    "max_ifd": 1,
}  # fmt: skip


def check_options(options: Mapping[str, Any], endpoint: Mapping[str, Any]) -> None:
    """Raise ValueError or FileNotFoundError for options that are invalid or contradict each other."""
    for name in ("minhash", "rouge"):
        if not 0 <= options[name] <= 1:
            raise ValueError(f"--{name} {options[name]:g} is not a similarity; give a number from 0 to 1")
    for name in ("min_length", "max_length", "min_mtld", "min_perplexity", "max_perplexity", "min_ifd", "max_ifd"):
        if options[name] < 0:
            raise ValueError(f"--{name} {options[name]:g} is negative; give 0 or more")
    for name in ("batch_size", "cutoff_len"):
        if options[name] < 1:
            raise ValueError(f"--{name} {options[name]} is too small; it must be at least 1")
    given = [name for name in ("min_judge", "model") if options[name]] + list(endpoint)
    if given and not options["url"]:
        raise ValueError(f"--{given[0]} is for a judge; add --url, or remove it")
    if not options["base_model"]:
        for name, unused in CHECKPOINT_OPTIONS.items():
            if options[name] != unused:
                raise ValueError(f"--{name} is for perplexity and IFD; add --base_model, or remove it")
    rank_by, keep = options["rank_by"], options["keep"]
    if bool(rank_by) != bool(keep) or keep < 0:
        raise ValueError("--rank_by needs --keep, a share (0.2) or a number of rows (500), and --keep needs --rank_by")
    if options["rank_order"] != "highest" and not options["rank_by"]:
        raise ValueError("--rank_order has no effect without --rank_by; add --rank_by and --keep, or remove it")
    for measure in ("length", "perplexity", "ifd"):
        least, most = options[f"min_{measure}"], options[f"max_{measure}"]
        if most and least > most:
            raise ValueError(f"--min_{measure} {least} is above --max_{measure} {most}; give a larger maximum")
    needed = {"rouge": "rouge", "perplexity": "base_model", "ifd": "base_model", "judge": "url"}.get(rank_by, "")
    if needed and not options[needed]:
        raise ValueError(f"--rank_by {rank_by} needs the scores of --{needed}; add this option")
    inputs, output = [options["data_path"]], options["output"]
    for path in (output, rejected_path(output), f"{output}.run.json", f"{output}.journal"):
        check_output(path, inputs)
    if options["base_model"]:
        from adapter_loading.checkpoint_loading import check_folders

        check_folders(options["base_model"], options["lora_weights"])


def rejected_path(output: str) -> str:
    """Return the file of the rejected rows beside the file of the kept ones."""
    return str(Path(output).with_suffix(".rejected.jsonl"))


def text_filters(options: Mapping[str, Any]) -> list[Any]:
    """Return the RowFilters that need no model."""
    from instruction_selection.duplicate_rows import exact_filter, minhash_filter
    from instruction_selection.text_filters import language_filter, length_filter, mtld_filter, rouge_filter

    filters = [exact_filter()] if options["exact"] else []
    if options["minhash"]:
        filters.append(minhash_filter(options["minhash"]))
    if options["language"]:
        filters.append(language_filter(options["language"]))
    if options["min_length"] or options["max_length"] or options["rank_by"] == "length":
        filters.append(length_filter(options["min_length"], options["max_length"]))
    if options["min_mtld"] or options["rank_by"] == "mtld":
        filters.append(mtld_filter(options["min_mtld"]))
    if options["rouge"]:
        filters.append(rouge_filter(options["rouge"]))
    return filters


def loss_filters(options: Mapping[str, Any]) -> list[Any]:
    """Load the checkpoint and return the RowFilters of perplexity and IFD."""
    import torch
    from adapter_loading.checkpoint_loading import load_checkpoint
    from chat_prompts.prompt_encoding import PromptEncoder
    from chat_prompts.template_files import folder_template, missing_template
    from instruction_data.named_templates import load_template
    from instruction_selection.loss_scores import LossScorer
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    base, adapter, name = options["base_model"], options["lora_weights"], options["prompt_template_name"]
    template = load_template(name) if name else folder_template(adapter, base)
    model, tokenizer = load_checkpoint(base, adapter, merge=True, dtype=getattr(torch, options["dtype"]))
    encoder = PromptEncoder(tokenizer, template)
    if not encoder.template:
        warning = missing_template(adapter or base, "--prompt_template_name alpaca")
        print(f"notice: {warning}", file=sys.stderr)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    scorer = LossScorer(model, encoder, min(options["cutoff_len"], context), options["batch_size"])
    return [
        scorer.perplexity_filter(options["min_perplexity"], options["max_perplexity"]),
        scorer.ifd_filter(options["min_ifd"], options["max_ifd"]),
    ]


def main(
    data_path: str,
    output: str,
    format: RowFormat = "auto",
    exact: bool = True,
    minhash: float = 0,
    language: Literal["", "en", "zh"] = "",
    min_length: int = 0,
    max_length: int = 0,
    min_mtld: float = 0,
    rouge: float = 0,
    base_model: str = "",
    lora_weights: str = "",
    prompt_template_name: str = "",
    min_perplexity: float = 0,
    max_perplexity: float = 0,
    min_ifd: float = 0,
    max_ifd: float = 1,
    cutoff_len: int = 1024,
    batch_size: int = 8,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    url: str = "",
    model: str = "",
    min_judge: float = 0,
    rank_by: RankBy = "",
    keep: float = 0,
    rank_order: RankOrder = "highest",
    seed: int = 0,
    **endpoint: Any,
) -> None:
    """Write the selected rows of data_path to output (JSONL), and the others to its .rejected.jsonl.

    Args:
        data_path: JSON, JSONL or parquet of rows in one of the formats of --format.
        output: the file to write.
        format: alpaca (also Mol-Instructions), messages, seed_tasks, cot, code or sharegpt; auto: by the keys.
        exact: reject rows that are equal to an earlier row (--noexact: keep them).
        minhash: reject rows with at least this Jaccard similarity of shingles to a kept row, such as 0.7.
        language: keep rows whose question is in this language.
        min_length: minimum tokens of an answer (words, or Chinese characters).
        max_length: maximum tokens of an answer; 0: no limit.
        min_mtld: lowest lexical diversity of an answer (MTLD).
        rouge: reject rows whose question has at least this ROUGE-L with a kept row's question, such as 0.7.
        base_model: folder of the checkpoint for perplexity and IFD.
        lora_weights: adapter of the checkpoint.
        prompt_template_name: a name in finetune/templates, or a path; default: the template of adapter or checkpoint.
        min_perplexity: lowest perplexity of the answer after its instruction.
        max_perplexity: highest perplexity; 0: no limit.
        min_ifd: lowest instruction-following difficulty.
        max_ifd: highest instruction-following difficulty; 0: no limit.
        cutoff_len: maximum tokens of prompt and answer; the rest of a longer answer is not scored.
        batch_size: sequences per forward pass.
        dtype: precision of the checkpoint: float32, bfloat16 or float16.
        url: OpenAI-compatible server of the judge.
        model: the judge's name in the requests; default: the first model that the server lists.
        min_judge: lowest score of the judge, 1 to 10.
        rank_by: keep the best rows by this score, or random rows: length, mtld, rouge, perplexity, ifd, judge, random.
        keep: share (up to 1) or number of rows that rank_by keeps.
        rank_order: keep the rows with the highest or the lowest scores.
        seed: seed of random rows.
        endpoint: api, extra_body, concurrency, attempts, timeout, retry_failed, api_key, input_price, output_price (see
            finetune/endpoint_requests/endpoint_option_types.py).
    """
    options = {name: value for name, value in locals().items() if name != "endpoint"}
    check_options(options, endpoint)
    select_rows(options, endpoint)


def select_rows(options: Mapping[str, Any], endpoint: Mapping[str, Any]) -> None:
    """Select rows, write the outputs and print a summary. options, endpoint: the options of `main` by name."""
    from endpoint_requests.endpoint_options import recorded_options
    from instruction_selection.candidate_rows import Candidate, apply_filters
    from instruction_selection.score_ranking import rank_filter

    began, data_path, output = time.monotonic(), options["data_path"], options["output"]
    rows = read_source_rows(data_path, options["format"])
    pool = [Candidate(number, row) for number, (_, row) in enumerate(rows, 1)]
    if not pool:
        raise ValueError(f"{data_path} has no row with a question and an answer; give another --data_path")
    apply_filters(pool, text_filters(options))
    if options["base_model"]:
        apply_filters(pool, loss_filters(options))
    spent = apply_judge(pool, options, endpoint) if options["url"] else {}
    if by := options["rank_by"]:
        apply_filters(pool, [rank_filter(by, options["keep"], options["rank_order"], options["seed"])])
    kept = [candidate for candidate in pool if not candidate.rejected_by]
    rejected = [candidate for candidate in pool if candidate.rejected_by]
    write_rows(rejected, rejected_path(output))
    write_rows(kept, output)
    counts = Counter(candidate.rejected_by for candidate in rejected)
    seconds = time.monotonic() - began
    results = {"rows": len(pool), "kept": len(kept), "rejected": dict(counts), "seconds": round(seconds, 1), **spent}
    with new_file(f"{output}.run.json", replace=True) as file:
        recorded = recorded_options({**options, **endpoint})
        record = {"script": "instruct_select.py", "options": recorded, **results}
        file.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    by_filter = ", ".join(f"{number} by {name}" for name, number in counts.items())
    print(
        f"{output}: {len(kept)} of {len(pool)} rows, {seconds:.1f} s" + (f"; rejected: {by_filter}" if counts else "")
    )


def apply_judge(pool: list[Any], options: Mapping[str, Any], endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Apply the judge's filter and print its totals; return them for the run record."""
    from endpoint_requests.endpoint_options import opened_client
    from instruction_selection.answer_judge import judge_filter
    from instruction_selection.candidate_rows import apply_filters

    with opened_client(options["output"], options["url"], options["model"], endpoint) as client:
        apply_filters(pool, [judge_filter(client, options["min_judge"])])
    print(f"judge: {client.totals.summary()}")
    return {"judge": client.totals.record()}


def write_rows(candidates: list[Any], path: str) -> None:
    """Write the rows of candidates with their scores and reasons."""
    with new_file(path, replace=True) as file, file.open("w", encoding="utf-8") as lines:
        for candidate in candidates:
            lines.write(json.dumps(candidate.output_row(), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run_main(main, extra_option_types=ENDPOINT_OPTION_TYPES)
