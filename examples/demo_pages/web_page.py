"""The Gradio page of generate_finetune_web.py and generate_lora_web.py, in English and Chinese, with streamed answers.

The page does not load data from other machines or send data to them.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from chat_prompts.prompt_encoding import one_turn
from text_language.language_detection import language_of

from demo_pages import extraction_prompts, text_generation
from demo_pages.model_loading import Checkpoint
from demo_pages.text_generation import Decoding

LANGUAGES = {"en": "English", "zh": "中文"}
LABELS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("web_labels.json").read_text(encoding="utf-8"))
SAMPLING = ("temperature", "top_p", "top_k")  # settings without effect unless do_sample is set
REFRESH = 0.05  # seconds between two updates of an answer
SLIDERS = {  # setting -> minimum, maximum, step
    "max_new_tokens": (1, 2048, 1), "num_beams": (1, 8, 1), "repetition_penalty": (1.0, 2.0, 0.05),
    "temperature": (0.05, 2.0, 0.05), "top_p": (0.05, 1.0, 0.05), "top_k": (0, 200, 1),
}  # fmt: skip


# --- answering --------------------------------------------------------------------------------------------------------


def stream_answer(
    checkpoint: Checkpoint, make_ids: Callable[[], list[int]], settings: Mapping[str, object], words: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (text, status line) while the answer is generated; an exception becomes the last status line.

    make_ids: returns the prompt's ids; its exceptions are shown as well. settings: fields of Decoding; words: labels of
    the page's language.
    """
    began, updated, text = time.monotonic(), 0.0, ""
    yield "", words["running"].format(tokens=0)
    try:
        for part in text_generation.stream(checkpoint, make_ids(), text_generation.resolve_decoding({}, settings)):
            text, now = part.text, time.monotonic()
            if part.ending:
                yield text, words[part.ending].format(tokens=part.new_tokens, seconds=now - began)
            elif now - updated > REFRESH:
                updated = now
                yield text, words["running"].format(tokens=part.new_tokens)
    except ValueError as error:
        yield text, words["error"].format(message=error)
    except Exception as error:  # for example out of memory; the server keeps running
        logging.exception("generation failed")
        yield text, words["error"].format(message=f"{type(error).__name__}: {str(error)[:300]}")


def instruction_ids(checkpoint: Checkpoint, words: dict[str, str], instruction: str, input: str) -> list[int]:
    return checkpoint.encoder.prompt(one_turn(require_text(instruction, words), input))


def continuation_ids(checkpoint: Checkpoint, words: dict[str, str], beginning: str) -> list[int]:
    return checkpoint.encoder.plain(require_text(beginning, words))


def extraction_ids(checkpoint: Checkpoint, words: dict[str, str], task: str, schema: str, text: str) -> list[int]:
    language = language_of(require_text(text, words))
    asked = extraction_prompts.build(
        task, extraction_prompts.parse_schema(schema, task), text, language, checkpoint.extraction
    )
    return checkpoint.encoder.prompt(one_turn(*asked))


def require_text(text: str, words: dict[str, str]) -> str:
    """Return the text; raises ValueError in the page's language if it is blank."""
    if not text.strip():
        raise ValueError(words["empty"])
    return text


def result_table(text: str) -> list[list[str]]:
    """Return the rows [type, item] of an extraction answer; empty if the answer is not JSON."""
    return [list(row) for row in extraction_prompts.found_items(extraction_prompts.read_answer(text) or {})]


# --- the page ---------------------------------------------------------------------------------------------------------


class LabelledPage:
    """Creates components with labels, and replaces the labels when the user chooses another language."""

    def __init__(self, gr: Any, language: str) -> None:
        self.gr, self.language = gr, language
        self.words: list[tuple[Any, Callable[[dict[str, str]], dict[str, Any]]]] = []

    def add(self, make: Any, words: Callable[[dict[str, str]], dict[str, Any]], **settings: Any) -> Any:
        """Return make(**settings, **words(labels)), a component that `relabel` updates when the language changes."""
        component = make(**settings, **words(LABELS[self.language]))
        self.words.append((component, words))
        return component

    def box(self, name: str, lines: int, **settings: Any) -> Any:
        """Return a text box with the label `name`, the placeholder `<name>_hint` and the note `<name>_info`."""

        def words(w: dict[str, str]) -> dict[str, Any]:
            return {"label": w[name], "placeholder": w.get(f"{name}_hint"), "info": w.get(f"{name}_info")}

        return self.add(self.gr.Textbox, words, lines=lines, elem_id=name, **settings)

    def button(self, name: str, **settings: Any) -> Any:
        return self.add(self.gr.Button, lambda w: {"value": w[name]}, elem_id=name, **settings)

    def relabel(self, language: str) -> list[Any]:
        """Return the updates that set the labels of all components to a language."""
        return [self.gr.update(**words(LABELS[language])) for _, words in self.words]


def build_page(checkpoint: Checkpoint, instructed: bool, start: Decoding, suites: dict[str, Any], language: str) -> Any:
    """Return the page (gradio.Blocks): instructions and extraction if `instructed`, else continuation of text.

    start: initial decoding settings. suites: cases to click on: "general" and "ie" if `instructed`, else "pretraining".
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import; without it, gradio checks for updates online
    import gradio as gr

    page = LabelledPage(gr, language)
    with gr.Blocks(title="KnowLM", analytics_enabled=False, fill_width=False) as blocks:
        with gr.Row():
            title = "instructed_title" if instructed else "continued_title"
            page.add(gr.Markdown, lambda w: {"value": w[title]})
            codes = [(name, code) for code, name in LANGUAGES.items()]
            chosen = page.add(
                gr.Radio, lambda w: {"label": w["language"]}, choices=codes, value=language, elem_id="language",
                scale=0, min_width=220,
            )  # fmt: skip
        with gr.Row():
            with gr.Column():
                inputs = instruction_inputs(page, suites) if instructed else continuation_inputs(page, suites)
            with gr.Column():
                output = page.box("answer", 10, buttons=["copy"], interactive=False)
                status = gr.Markdown(elem_id="status")
                found = page.add(
                    gr.Dataframe, lambda w: {"label": w["found"], "headers": [w["found_kind"], w["found_what"]]},
                    visible=False, interactive=False, wrap=True, elem_id="found",
                )  # fmt: skip
                with gr.Row():
                    stop, clear = page.button("stop", variant="stop"), page.button("clear")
                settings = decoding_settings(page, start)
        connect(page, checkpoint, inputs, (output, status, found), settings, chosen, stop, clear)
    return blocks


def continuation_inputs(page: LabelledPage, suites: dict[str, Any]) -> list[tuple[Any, list[Any], Any]]:
    """Add the text box of continuation. Returns [(button, boxes, function that makes the prompt ids)]."""
    beginning = page.box("beginning", 10)
    generate = page.button("run", variant="primary")
    add_examples(page, [beginning], [[case["text"]] for case in suites["pretraining"]["cases"]])
    return [(generate, [beginning], continuation_ids)]


def instruction_inputs(page: LabelledPage, suites: dict[str, Any]) -> list[tuple[Any, list[Any], Any]]:
    """Add the tabs of instruction and extraction. Returns [(button, boxes, function that makes the prompt ids)]."""
    gr = page.gr
    with page.add(gr.Tab, lambda w: {"label": w["instruction_tab"]}, id="instruction_tab"):
        instruction, input = page.box("instruction", 3), page.box("input", 5)
        generate = page.button("run", variant="primary")
        cases = suites["general"]["cases"]
        add_examples(page, [instruction, input], [[case["instruction"], case.get("input", "")] for case in cases])
    with page.add(gr.Tab, lambda w: {"label": w["extraction_tab"]}, id="extraction_tab"):
        task = page.add(
            gr.Radio, lambda w: {"label": w["task"], "choices": [(w[task], task) for task in extraction_prompts.TASKS]},
            value="ner", elem_id="task",
        )  # fmt: skip
        schema = page.box("schema", 1)
        source = page.box("source", 5)
        extract = page.button("extract", variant="primary")
        cases = suites["ie"]["cases"]
        rows = [[case["task"], extraction_prompts.schema_text(case["schema"]), case["text"]] for case in cases]
        add_examples(page, [task, schema, source], rows, label_from=1)
    return [(generate, [instruction, input], instruction_ids), (extract, [task, schema, source], extraction_ids)]


def add_examples(page: LabelledPage, boxes: list[Any], rows: list[list[str]], label_from: int = 0) -> None:
    """Add buttons that each fill the boxes with one row; a button's label is the start of row[label_from]."""
    labels = [row[label_from] if len(row[label_from]) <= 36 else row[label_from][:34] + " …" for row in rows]
    shown = page.add(
        page.gr.Dataset, lambda w: {"label": w["examples"]}, components=boxes, samples=rows, sample_labels=labels,
        samples_per_page=9,
    )  # fmt: skip
    shown.click(lambda row: row if len(boxes) > 1 else row[0], shown, boxes, queue=False)


def decoding_settings(page: LabelledPage, start: Decoding) -> list[Any]:
    """Return one control for each field of Decoding, in order; those of SAMPLING are disabled without do_sample."""
    gr, controls = page.gr, []
    with page.add(gr.Accordion, lambda w: {"label": w["decoding"]}, open=False, elem_id="decoding"):
        for field in fields(Decoding):
            value = getattr(start, field.name)

            def label(words: dict[str, str], name: str = field.name) -> dict[str, str]:
                return {"label": words[name]}

            if field.name == "do_sample":
                controls.append(page.add(gr.Checkbox, label, value=value, elem_id=field.name))
                continue
            minimum, maximum, step = SLIDERS[field.name]
            slider = page.add(
                gr.Slider, label, minimum=min(minimum, value), maximum=max(maximum, value), step=step, value=value,
                elem_id=field.name, interactive=field.name not in SAMPLING or start.do_sample,
            )  # fmt: skip
            controls.append(slider)
    do_sample, *sampling = controls[-1 - len(SAMPLING) :]
    do_sample.change(lambda on: [gr.update(interactive=on)] * len(sampling), do_sample, sampling, queue=False)
    return controls


def connect(
    page: LabelledPage, checkpoint: Checkpoint, inputs: list[tuple[Any, list[Any], Any]], shown: tuple[Any, Any, Any],
    settings: list[Any], chosen: Any, stop: Any, clear: Any,
) -> None:  # fmt: skip
    """Connect the buttons. The server generates one answer at a time; other requests wait in the queue."""
    gr, (output, status, found) = page.gr, shown
    runs = []
    for button, boxes, make_ids in inputs:

        def run(language: str, *values: Any, make_ids: Any = make_ids, boxes: list[Any] = boxes) -> Iterator[list[Any]]:
            typed, numbers = values[: len(boxes)], values[len(boxes) :]
            named = dict(zip((field.name for field in fields(Decoding)), numbers, strict=True))
            words, is_extraction = LABELS[language], make_ids is extraction_ids
            for text, line in stream_answer(checkpoint, lambda: make_ids(checkpoint, words, *typed), named, words):
                yield [
                    text,
                    line,
                    gr.update(visible=is_extraction, value=result_table(text) if is_extraction else None),
                ]

        click = button.click(
            run, [chosen, *boxes, *settings], [output, status, found], concurrency_limit=1, concurrency_id="model",
            show_progress="hidden",
        )  # fmt: skip
        runs.append(click)
    cancelled = stop.click(None, cancels=runs)
    cancelled.then(lambda language: LABELS[language]["stopped"], chosen, status, queue=False)
    typed_in = [box for _, boxes, _ in inputs for box in boxes if not isinstance(box, gr.Radio)]
    cleared = [""] * (len(typed_in) + 2)
    clear.click(lambda: [*cleared, gr.update(visible=False)], None, [*typed_in, output, status, found], queue=False)
    chosen.change(page.relabel, chosen, [component for component, _ in page.words], queue=False)


# --- serving ----------------------------------------------------------------------------------------------------------


def check_options(server_name: str, server_port: int, language: str) -> None:
    """Raise ValueError if the language is unknown or the address is not available. Called before a model is loaded."""
    if language not in LANGUAGES:
        raise ValueError(f"--language takes {' or '.join(LANGUAGES)}, not {language!r}")
    if not 0 < server_port < 65536:
        raise ValueError(f"--server_port takes 1 to 65535, not {server_port}")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server_name, server_port))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"{server_name}:{server_port} is not available ({reason}); choose another --server_port"
        ) from None


def serve(blocks: Any, server_name: str, server_port: int, share_gradio: bool) -> None:
    """Serve the page until Ctrl-C. share_gradio: give it a public address through Gradio's servers."""
    blocks.queue(max_size=32).launch(
        server_name=server_name, server_port=server_port, share=share_gradio, prevent_thread_lock=True, quiet=True,
        footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
    )  # fmt: skip
    print(f"Open http://{server_name}:{server_port} in a browser; Ctrl-C stops the server.", flush=True)
    if share_gradio:
        print(f"Public address: {blocks.share_url}", flush=True)
    blocks.block_thread()
