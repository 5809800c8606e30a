"""Terminal demos: run a file of cases, or answer lines typed by the user."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from chat_prompts.prompt_encoding import instruction_messages
from chat_prompts.template_files import missing_template

from demo_pages.case_files import Suite, answers_file, case_text, case_title
from demo_pages.extraction_prompts import read_answer
from demo_pages.model_loading import Checkpoint
from demo_pages.text_generation import Decoding, GeneratedText, resolve_decoding, stream


def check_decoding(suite: Mapping[str, Any], given: Mapping[str, Any]) -> Decoding:
    """Return the suite's decoding settings, overridden by the user's; logs a warning about options without effect."""
    decoding = resolve_decoding(suite, given)
    unused = [name for name in ("temperature", "top_p", "top_k", "seed") if name in given]
    if unused and not decoding.do_sample and given.get("temperature") != 0:  # 0 requests greedy decoding
        logging.warning("--%s has no effect without --do_sample", ", --".join(unused))
    return decoding


def warn_of_missing_files(checkpoint: Checkpoint, folder: str, extracts: bool) -> None:
    """Log a warning if a checkpoint has no chat template, or no extraction.json although it is used for extraction.

    extracts: whether the checkpoint is used for extraction. Without a template, instructions are sent as plain text;
    without extraction.json, extraction has a default wording.
    """
    if not checkpoint.encoder.template:
        option = "--template_path finetune/templates/alpaca.jinja"
        advice = "for a pretrained model, use examples/generate_finetune.py"
        logging.warning("%s; %s", missing_template(folder, option), advice)
    elif extracts and not checkpoint.extraction:
        logging.warning(
            "%s has no extraction.json, so the default wording of extraction instructions is used; if the model was "
            "tuned on another wording, copy the extraction.json of that tuning into the folder",
            folder,
        )


def run_cases(checkpoint: Checkpoint, suite: Suite, given: Mapping[str, Any], output: str = "") -> None:
    """Print every case of a suite with the model's answer, which is streamed if num_beams is 1.

    given: the user's decoding options, which take precedence over those of the case and of the suite. output: a file
    for the answers, one JSON line for each case. Raises ValueError before the first answer if a case has no prompt.
    """
    encoder, texts = checkpoint.encoder, []
    for place, case in zip(suite.places, suite.cases, strict=True):
        try:
            texts.append(case_text(case, checkpoint.extraction))
        except ValueError as error:
            raise ValueError(f"{place} cannot be asked: {error}") from None
    if suite.source:
        print(f"Published answers: {suite.source}")
    with answers_file(output) as write:
        for number, (case, (text, input, is_instruction)) in enumerate(zip(suite.cases, texts, strict=True), 1):
            print(f"\n[{number}/{len(texts)}] {case_title(case)}")
            print("\n".join(f"> {line}" for line in [*text.splitlines(), *input.splitlines()]))
            decoding = resolve_decoding(suite.decoding | case.get("decoding", {}), given)
            row = {**case, "prompt": "", "decoding": asdict(decoding)}
            try:
                ids = (
                    encoder.prompt_ids(instruction_messages(text, input))
                    if is_instruction
                    else encoder.plain_text_ids(text)
                )
                row["prompt"] = encoder.tokenizer.decode(ids)
                answer = print_answer(stream(checkpoint, ids, decoding))
            except ValueError as error:  # for example, the prompt is longer than the model's context
                print(f"  (not answered: {error})")
                write(row | {"answer": None, "error": str(error)})
                continue
            write(
                row | {"answer": answer.text, "ending": answer.ending, "new_tokens": answer.new_tokens, "error": None}
            )
            if "task" in case:
                print("  does not parse as JSON" if read_answer(answer.text) is None else "  parses as JSON")
    if output:
        print(f"\n{output}: {len(texts)} row{'s' * (len(texts) != 1)}")


def print_answer(states: Iterator[GeneratedText]) -> GeneratedText:
    """Print an answer while it is generated, then its length and time; return the finished answer."""
    began, written, answer = time.perf_counter(), "", GeneratedText("", 0, "")
    for answer in states:
        if answer.text.startswith(written):
            print(answer.text[len(written) :], end="", flush=True)
            written = answer.text
    if written != answer.text:  # the finished text differs from the streamed one
        print(f"\n{answer.text}", end="")
    tokens = f"{answer.new_tokens} token{'s' * (answer.new_tokens != 1)}"
    print(f"\n  ({answer.ending}: {tokens} in {time.perf_counter() - began:.1f} s)", flush=True)
    return answer


def answer_typed_lines(
    checkpoint: Checkpoint, decoding: Decoding, labels: tuple[str, ...], make_ids: Callable[..., list[int]]
) -> None:
    """Read one line for each label from the keyboard, print the model's answer, and repeat until the input ends.

    make_ids: function of the prompt encoder and the lines that returns the prompt's ids. A ValueError is printed.
    """
    print("Enter one line for each prompt; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            texts = [input(f"{label}: ") for label in labels]
        except EOFError:
            print()
            return
        if not texts[0].strip():
            continue
        try:
            print_answer(stream(checkpoint, make_ids(checkpoint.encoder, *texts), decoding))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
