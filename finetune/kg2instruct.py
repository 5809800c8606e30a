"""Link a knowledge graph and text: annotated sentences, from which ie_build.py makes extraction examples.

    python finetune/kg2instruct.py --text corpus.jsonl --kg triples.tsv --aliases aliases.tsv --types types.tsv \\
        --schema schema.json --output annotations.jsonl
    python finetune/kg2instruct.py index --kg triples.tsv --aliases aliases.tsv --types types.tsv --out graph.index
    python finetune/kg2instruct.py link --index graph.index --text corpus/*.jsonl --output annotations.jsonl \\
        --num_workers 64 --executor slurm --slurm_partition cpu
    python finetune/kg2instruct.py export --format neo4j --input annotations.jsonl --out graph

The first command indexes the graph and links the text; the index is kept in --index (default: OUTPUT.index) and reused
while its files are unchanged. `index` and `link` are its two halves. `export` writes the triples of annotations as
N-Triples, as CSV for neo4j-admin, or the sentences for brat. graph_linking/graph_files.py describes the files,
graph_linking/entity_linking.py the rules for ambiguous names, and graph_linking/sentence_annotations.py the rows.
"""

from command_line.command_errors import run_command
from command_line.strict_parsers import StrictParser, at_least

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster_jobs.job_commands import add_executor_options, executor_options

TASK_MEGABYTES = 32  # MB of text per task, about half a minute of work
BASE = "http://example.org/"
FREE_OPTIONS = ("num_workers", "executor", "concurrency", "timeout")  # a run with other values of these resumes too


def add_graph_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the files of a graph."""
    parser.add_argument("--kg", required=True, metavar="TSV", help="triples: head id, relation, tail id or literal")
    parser.add_argument("--aliases", default="", metavar="TSV", help="names: id, name [, language]")
    parser.add_argument("--types", default="", metavar="TSV", help="types: id, type")


def add_link_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of linking, apart from the graph."""
    add = parser.add_argument
    add("--text", required=True, nargs="+", metavar="IN", help="text: files or folders, JSONL, .txt, .gz, .parquet")
    add("--text_key", default="text", metavar="KEY", help="field of the text in a row (default: text)")
    add("--output", required=True, metavar="JSONL", help="annotated sentences to write")
    add("--schema", default="", metavar="JSON", help="allowed triples: subject_type, predicate, object_type")
    add("--sentences", choices=("linked", "related", "all"), default="linked",
        help="sentences to write: with an entity, with a relation, or all (default: linked)")  # fmt: skip
    add("--sentences_per_row", type=at_least(1), default=1, metavar="N", help="sentences in a row (default: 1)")
    add("--evidence", choices=("none", "words"), default="none",
        help="words: a sentence must have a word of the relation's name (default: none)")  # fmt: skip
    add("--evidence_words", default="", metavar="TSV", help="further words for --evidence words: relation, word")
    add("--largest_gap", type=at_least(0), default=0, metavar="N",
        help="largest distance of subject and object in characters (default: 0, no limit)")  # fmt: skip
    add("--nli", default="", metavar="FOLDER", help="reject triples that this NLI model does not find entailed")
    add("--templates", default="", metavar="TSV", help="sentences for --nli: relation, text with {subject}, {object}")
    add("--url", "--llm", default="", metavar="URL", help="OpenAI-compatible server that rejects and adds triples")
    add("--model", default="", metavar="NAME", help="model of --url (default: the first one that the server lists)")
    add("--concurrency", type=at_least(1), metavar="N", help="concurrent requests in each task (default: 16)")
    add("--timeout", type=float, metavar="SECONDS", help="seconds for one attempt of a request (default: 600)")
    add("--num_workers", type=at_least(1), default=1, metavar="N", help="processes (default: 1)")
    add("--task_megabytes", type=at_least(1), default=TASK_MEGABYTES, metavar="N",
        help=f"MB of text per task; a resumed run skips finished tasks (default: {TASK_MEGABYTES})")  # fmt: skip
    add_executor_options(parser)


def run_parser() -> StrictParser:
    """Return the parser of the command without a subcommand."""
    parser = StrictParser(__doc__ or "")
    add_graph_options(parser)
    parser.add_argument("--index", default="", metavar="DIR", help="folder of the index (default: OUTPUT.index)")
    add_link_options(parser)
    return parser


def index_parser() -> StrictParser:
    """Return the parser of `index`."""
    parser = StrictParser("Build the index of a graph; an index of unchanged files is kept.")
    add_graph_options(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the index")
    return parser


def link_parser() -> StrictParser:
    """Return the parser of `link`."""
    parser = StrictParser("Link text with an index.")
    parser.add_argument("--index", required=True, metavar="DIR", help="folder of the index")
    add_link_options(parser)
    return parser


def export_parser() -> StrictParser:
    """Return the parser of `export`."""
    parser = StrictParser("Write annotated sentences in the format of another program.")
    parser.add_argument("--format", required=True, choices=("ntriples", "neo4j", "brat"), help="format to write")
    parser.add_argument("--input", required=True, metavar="JSONL", help="annotated sentences")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder to write")
    parser.add_argument("--base", default="", metavar="IRI", help=f"prefix of IRIs in N-Triples (default: {BASE})")
    return parser


def make_index(options: argparse.Namespace) -> None:
    """Build an index, and print its counts."""
    from graph_linking.index_build import build_index

    seal, was_there = build_index(options.kg, options.out, options.aliases, options.types)
    counts = ", ".join(f"{count:,} {name}" for name, count in seal["counts"].items())
    print(f"{options.out}: {counts}{' (unchanged, reused)' if was_there else ''}")


def link(options: argparse.Namespace) -> None:
    """Link text, and print the counts."""
    from graph_linking.linking_run import run_linking
    from partial_folders.output_paths import check_output

    execution = executor_options(options)
    check_output(options.output, [*options.text, options.schema, options.evidence_words, options.templates])
    step, identity = linking_step(options)
    counts = run_linking(step, identity, options.output, execution, options.num_workers)
    if not counts:
        print(f"submitted; {options.output} is complete when the last job, kg-join, has ended")
        return
    rows, entities, relations = (counts.get(name, 0) for name in ("rows", "entities", "relations"))
    print(f"{options.output}: {rows:,} rows, {entities:,} entities, {relations:,} relations")


def linking_step(options: argparse.Namespace) -> tuple[Callable[[Path], Any], str]:
    """Return the function that makes the step of the pipeline, and the line that identifies the run.

    Raises ValueError or FileNotFoundError if an option or a file is invalid.
    """
    from graph_linking.graph_files import read_schema
    from graph_linking.graph_index import SEAL, GraphIndex
    from graph_linking.linking_run import AnnotateShards
    from graph_linking.relation_evidence import RelationEvidence
    from graph_linking.sentence_annotations import AnnotationSettings
    from graph_linking.text_shards import plan_tasks, text_files
    from partial_folders.resume_journal import run_identity
    from triple_checks.check_plan import CheckPlan, read_evidence_words, read_templates

    check_option_pairs(options)
    relations = GraphIndex(options.index).relation_names
    schema = read_schema(options.schema) if options.schema else None
    if schema and not any(name in schema for name in relations):
        raise ValueError(f"{options.schema} names no relation of the graph; the graph has {', '.join(relations[:5])}")
    words = read_evidence_words(options.evidence_words) if options.evidence_words else {}
    evidence = RelationEvidence(words, options.evidence == "words", options.largest_gap)
    settings = AnnotationSettings(schema, evidence, options.sentences, options.sentences_per_row)
    server = model_server(options)
    templates = read_templates(options.templates) if options.templates else {}
    checks = CheckPlan(str(Path(options.nli).resolve()) if options.nli else "", templates, server, relations, schema)
    files = [path.resolve() for path in text_files(options.text)]
    tasks = plan_tasks(files, options.task_megabytes * 1_000_000)
    index = str(Path(options.index).resolve())
    given = {name: value for name, value in vars(options).items() if name not in FREE_OPTIONS}
    sources = [*files, Path(index) / SEAL, *(Path(path) for path in (options.schema, options.evidence_words) if path)]
    identity = run_identity("kg2instruct.py", given, sources)
    return partial(AnnotateShards, tasks=tasks, text_key=options.text_key, index=index, settings=settings,
                   checks=checks), identity  # fmt: skip


def check_option_pairs(options: argparse.Namespace) -> None:
    """Raise ValueError if an option has no effect without another one, or a folder does not exist."""
    pairs = (("templates", "nli"), ("model", "url"), ("concurrency", "url"), ("timeout", "url"))
    for option, other in pairs:
        if getattr(options, option) not in ("", None) and not getattr(options, other):
            raise ValueError(f"--{option} has no effect without --{other}; give --{other} or remove it")
    if options.evidence_words and options.evidence != "words":
        raise ValueError("--evidence_words has no effect without --evidence words; add that option")
    if options.nli and not (Path(options.nli) / "config.json").is_file():
        raise FileNotFoundError(f"{options.nli} has no config.json; --nli takes the folder of an NLI model")


def model_server(options: argparse.Namespace) -> Any:
    """Return the ModelServer of --url, None without it; raises ValueError if an option is invalid."""
    from endpoint_requests.endpoint_options import endpoint_options
    from triple_checks.language_model_check import ModelServer

    if not options.url:
        return None
    given = {name: value for name in ("concurrency", "timeout") if (value := getattr(options, name)) is not None}
    endpoint_options(options.url, options.model, given)
    return ModelServer(options.url, options.model, given)


def index_and_link(options: argparse.Namespace) -> None:
    """Build an index unless it exists, then link text with it."""
    from graph_linking.text_shards import text_files
    from partial_folders.output_paths import check_output

    options.index = options.index or f"{options.output}.index"
    options.out = options.index
    check_output(options.output, [*options.text, options.kg, options.aliases, options.types])
    check_option_pairs(options)  # before the graph is indexed, which can take hours
    text_files(options.text)
    make_index(options)
    link(options)


def export(options: argparse.Namespace) -> None:
    """Write annotated sentences in another format."""
    from graph_exports.export_formats import export_annotations

    if options.base and options.format != "ntriples":
        raise ValueError(f"--base has no effect on --format {options.format}, which has no IRIs; remove it")
    print(export_annotations(options.input, options.format, options.out, options.base or BASE))


COMMANDS: dict[str, tuple[Callable[[], StrictParser], Callable[[argparse.Namespace], None]]] = {
    "index": (index_parser, make_index),
    "link": (link_parser, link),
    "export": (export_parser, export),
}


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand that `arguments` begin with, or index and link."""
    is_named = bool(arguments) and arguments[0] in COMMANDS
    if arguments and not is_named and not arguments[0].startswith("-"):
        raise ValueError(f"unknown command {arguments[0]!r}; give one of {', '.join(COMMANDS)}, or options")
    parser, work = COMMANDS[arguments[0]] if is_named else (run_parser, index_and_link)
    work(parser().parse_args(arguments[is_named:]))


if __name__ == "__main__":
    run_command(partial(main, sys.argv[1:]))
