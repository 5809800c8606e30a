"""Generate instruction rows with a model behind an OpenAI-compatible server, for example inference/launch_vllm.py.

    python finetune/instruct_generate.py --method self_instruct --url http://127.0.0.1:8090 --model M --output new.jsonl
    python finetune/instruct_generate.py --method evolve --seeds alpaca.json --limit 500 --url U --output O
    python finetune/instruct_generate.py --method kg --kg triples.tsv --language zh --url U --model M --output O
    python finetune/instruct_generate.py --method translate --translate question --language zh --seeds alpaca.json \\
        --url https://api.openai.com/v1 --model gpt-4o-mini --input_price 0.15 --output_price 0.6 --output O

Answers are kept in OUTPUT.journal by the hash of their request: the same command resumes an interrupted or killed run,
repeats no answered request, and writes the same file. OUTPUT.run.json records the options, the number of requests and
tokens, their cost, and the number of rejected candidates by reason. Exit status: 0; 2 if an option is wrong or the
server does not answer; 130 after Ctrl-C; 143 after SIGTERM.
"""

from command_line.fire_commands import run as run_main

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from endpoint_requests.endpoint_option_types import ENDPOINT_OPTION_TYPES
from instruction_generation.source_rows import RowFormat, read_source_rows
from json_rows.instruction_rows import InstructionRow
from json_rows.row_files import iterate_objects
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output
from text_language.language_detection import language_of

OWN_SEEDS = Path(__file__).resolve().parent / "instruction_generation/seed_tasks.jsonl"
TEMPERATURE = 0.7  # of methods other than translate


def seed_rows(path: str, row_format: RowFormat, language: str, limit: int) -> list[InstructionRow]:
    """Return the rows of --seeds, at most `limit` if it is not 0; by default, the package's seed tasks in a language.

    Raises ValueError if there are no rows.
    """
    if path:
        rows = [row for _, row in islice(read_source_rows(path, row_format), limit or None)]
        if not rows:
            raise ValueError(f"{path} has no row with a question and an answer; give other --seeds")
        return rows
    own = [row for _, row in iterate_objects(OWN_SEEDS) if row["language"] == language]
    rows = [{"instruction": row["instruction"], **row["instances"][0]} for row in own]
    return rows[: limit or None]


def generated_rows(run: Any, method: str, options: Mapping[str, Any]) -> Any:
    """Return the GeneratedRows of a method. options: the options of `main` by name."""
    from instruction_generation.generation_run import question_text

    if method == "kg":
        from instruction_generation.graph_questions import graph_questions, read_graph

        return graph_questions(run, read_graph(options["kg"]), options["count"], options["hops"])
    seeds = seed_rows(options["seeds"], options["format"], run.language, options["limit"])
    if method == "translate":
        from instruction_generation.row_translation import translate_rows

        return translate_rows(run, seeds, options["translate"])
    if method == "evolve":
        from instruction_generation.instruction_evolution import evolve

        return evolve(run, [question_text(row) for row in seeds], options["generations"])
    from instruction_generation.self_instruction import self_instruct

    tasks = dict.fromkeys(row["instruction"] for row in seeds if isinstance(row.get("instruction"), str))
    return self_instruct(run, [task for task in tasks if language_of(task) == run.language], options["count"])


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError or FileNotFoundError for options that are invalid or contradict each other."""
    method = options["method"]
    if (method == "kg") != bool(options["kg"]):
        raise ValueError("--method kg needs --kg, a TSV file of triples; other methods take no --kg")
    if method == "kg" and options["seeds"]:
        raise ValueError("--method kg takes no --seeds; remove it")
    if method == "translate" and not options["seeds"]:
        raise ValueError("--method translate needs --seeds, the rows to translate")
    for name in ("count", "generations", "hops", "max_tokens", "round_size"):
        if options[name] < 1:
            raise ValueError(f"--{name} {options[name]} is too small; it must be at least 1")
    if options["limit"] < 0:
        raise ValueError(f"--limit {options['limit']} is negative; 0 means all rows")
    if (temperature := options["temperature"]) is not None and not 0 <= temperature <= 2:
        raise ValueError(f"--temperature {temperature:g} is out of range; give a number from 0 to 2")
    for end in ("", ".run.json", ".journal"):
        check_output(f"{options['output']}{end}", [options["seeds"], options["kg"]])


def main(
    method: Literal["self_instruct", "evolve", "kg", "translate"],
    url: str,
    output: str,
    model: str = "",
    seeds: str = "",
    format: RowFormat = "auto",
    limit: int = 0,
    kg: str = "",
    translate: Literal["pair", "question"] = "pair",
    language: Literal["en", "zh"] = "en",
    count: int = 100,
    generations: int = 4,
    hops: int = 2,
    seed: int = 0,
    temperature: float | None = None,
    max_tokens: int = 1024,
    round_size: int = 16,
    **endpoint: Any,
) -> None:
    """Write generated instruction rows to output (JSONL).

    Args:
        method: new tasks (self_instruct), harder tasks (evolve), questions about a graph (kg), or translation.
        url: address of the server, with or without /v1.
        output: the file to write; OUTPUT.journal keeps the answers, OUTPUT.run.json the totals.
        model: name of the model in the requests; default: the first one that the server lists.
        seeds: rows to start from or to translate; default: the seed tasks of this repository in the language.
        format: format of seeds: alpaca (also Mol-Instructions), messages, seed_tasks, cot, code or sharegpt.
        limit: use only the first `limit` rows of seeds; 0: all.
        kg: TSV file with the columns head id, head, relation, tail id, tail, or head, relation, tail.
        translate: translate question and answer (pair), or translate the question and have it answered (question).
        language: language of the generated rows; with translate, the target language.
        count: rows to generate with self_instruct, paths to draw with kg.
        generations: evolutions of each seed.
        hops: longest path in relations.
        seed: seed of all choices and of the sampling seeds in the requests.
        temperature: sampling temperature, 0 to 2; default: 0.7, with translate 0; yes-or-no questions always use 0.
        max_tokens: maximum tokens per answer.
        round_size: requests for new instructions in a round of self_instruct.
        endpoint: api, extra_body, concurrency, attempts, timeout, retry_failed, api_key, input_price, output_price (see
            finetune/endpoint_requests/endpoint_option_types.py).
    """
    options = {name: value for name, value in locals().items() if name != "endpoint"}
    check_options(options)
    from endpoint_requests.endpoint_options import opened_client, recorded_options
    from instruction_generation.generation_run import GenerationRun

    if temperature is None:
        temperature = 0.0 if method == "translate" else TEMPERATURE
    began = time.monotonic()
    with opened_client(output, url, model, endpoint) as client:
        run = GenerationRun(client, language, seed, temperature, max_tokens, round_size)
        rows, rejected = generated_rows(run, method, options)
        write_rows(output, rows, rejected, client.totals.summary())
    results = client.totals.record() | {"rows": len(rows), "rejected": dict(rejected.most_common())}
    write_record(recorded_options(options | endpoint), results)
    if method == "self_instruct" and len(rows) < count:
        print(f"notice: {len(rows)} rows instead of {count}; several rounds gave no new row", file=sys.stderr)
    seconds = time.monotonic() - began
    print(f"{output}: {len(rows)} row{'s' * (len(rows) != 1)}, {seconds:.1f} s, {client.totals.summary()}")
    if rejected:
        print("rejected: " + ", ".join(f"{number} {reason}" for reason, number in rejected.most_common()))


def write_rows(output: str, rows: Sequence[InstructionRow], rejected: Counter[str], totals: str) -> None:
    """Write the generated rows; raises ValueError if there are none."""
    if not rows:
        reasons = ", ".join(f"{number} {reason}" for reason, number in rejected.most_common(3)) or "no candidates"
        remedy = "give another model or other seeds; --retry_failed asks failed requests again"
        raise ValueError(f"no row was generated ({reasons}); {totals}; {remedy}")
    with new_file(output, replace=True) as file, file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_record(options: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Write OUTPUT.run.json: the options, package versions and the results."""
    record = {
        "script": "instruct_generate.py",
        "options": options,
        "versions": {"aiohttp": version("aiohttp")},
        **results,
    }
    with new_file(f"{options['output']}.run.json", replace=True) as file:
        file.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main, extra_option_types=ENDPOINT_OPTION_TYPES)
