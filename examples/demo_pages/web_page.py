"""The Gradio page that generate_finetune_web.py and generate_lora_web.py share: Chinese and English, streamed answers.

The page needs nothing from outside this machine, and sends nothing there.
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

from text_language.language_detection import language_of

from demo_pages import extraction_prompts, text_generation
from demo_pages.model_loading import Checkpoint
from demo_pages.text_generation import Decoding, plain_ids, prompt_ids

LANGUAGES = {"en": "English", "zh": "中文"}
LABELS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("web_labels.json").read_text(encoding="utf-8"))
SAMPLING = ("temperature", "top_p", "top_k")  # the settings that count only with do_sample
REFRESH = 0.05  # seconds between two states of a growing answer
BOUNDS = {  # of the sliders: least, most, step
    "max_new_tokens": (1, 2048, 1), "num_beams": (1, 8, 1), "repetition_penalty": (1.0, 2.0, 0.05),
    "temperature": (0.05, 2.0, 0.05), "top_p": (0.05, 1.0, 0.05), "top_k": (0, 200, 1),
}  # fmt: skip


# --- answering --------------------------------------------------------------------------------------------------------


def answer(
    checkpoint: Checkpoint, make_ids: Callable[[], list[int]], settings: Mapping[str, object], words: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (text, status line) while the answer grows; a failure becomes the last status line.

    make_ids is called inside, so that what it raises is shown as well. settings: Decoding's fields; words: LABELS' own.
    """
    began, shown, text = time.monotonic(), 0.0, ""
    yield "", words["running"].format(tokens=0)
    try:
        for part in text_generation.stream(checkpoint, make_ids(), text_generation.decoding({}, settings)):
            text, now = part.text, time.monotonic()
            if part.ending:
                yield text, words[part.ending].format(tokens=part.new_tokens, seconds=now - began)
            elif now - shown > REFRESH:
                shown = now
                yield text, words["running"].format(tokens=part.new_tokens)
    except ValueError as error:
        yield text, words["error"].format(message=error)
    except Exception as error:  # out of memory, say: the page stays, the reason is on it and in the log
        logging.exception("generation failed")
        yield text, words["error"].format(message=f"{type(error).__name__}: {str(error)[:300]}")


def instruction_ids(checkpoint: Checkpoint, words: dict[str, str], instruction: str, input: str) -> list[int]:
    return prompt_ids(checkpoint.tokenizer, some(instruction, words), input)


def continuation_ids(checkpoint: Checkpoint, words: dict[str, str], beginning: str) -> list[int]:
    return plain_ids(checkpoint.tokenizer, some(beginning, words))


def extraction_ids(checkpoint: Checkpoint, words: dict[str, str], task: str, schema: str, text: str) -> list[int]:
    language = language_of(some(text, words))
    asked = extraction_prompts.build(
        task, extraction_prompts.parse_schema(schema, task), text, language, checkpoint.extraction
    )
    return prompt_ids(checkpoint.tokenizer, *asked)


def some(text: str, words: dict[str, str]) -> str:
    """The text; raises ValueError, in the page's language, where there is none."""
    if not text.strip():
        raise ValueError(words["empty"])
    return text


def table(text: str) -> list[list[str]]:
    """The rows (type, what) of an extraction answer, none where it is no JSON."""
    return [list(row) for row in extraction_prompts.rows(extraction_prompts.read_answer(text) or {})]


# --- the page ---------------------------------------------------------------------------------------------------------


class Page:
    """Makes labelled components and changes their words when another language is chosen."""

    def __init__(self, gr: Any, language: str) -> None:
        self.gr, self.language = gr, language
        self.words: list[tuple[Any, Callable[[dict[str, str]], dict[str, Any]]]] = []

    def add(self, make: Any, words: Callable[[dict[str, str]], dict[str, Any]], **settings: Any) -> Any:
        """make(**settings) with the properties that words(labels) gives, kept up when the language changes."""
        component = make(**settings, **words(LABELS[self.language]))
        self.words.append((component, words))
        return component

    def box(self, name: str, lines: int, **settings: Any) -> Any:
        """A text box with the label `name`, with `<name>_hint` in it while it is empty and `<name>_info` under it."""

        def words(w: dict[str, str]) -> dict[str, Any]:
            return {"label": w[name], "placeholder": w.get(f"{name}_hint"), "info": w.get(f"{name}_info")}

        return self.add(self.gr.Textbox, words, lines=lines, elem_id=name, **settings)

    def button(self, name: str, **settings: Any) -> Any:
        return self.add(self.gr.Button, lambda w: {"value": w[name]}, elem_id=name, **settings)

    def relabel(self, language: str) -> list[Any]:
        """Updates for every component of self.words."""
        return [self.gr.update(**words(LABELS[language])) for _, words in self.words]


def build(checkpoint: Checkpoint, instructed: bool, start: Decoding, suites: dict[str, Any], language: str) -> Any:
    """The page: instructions and extraction for a tuned model, or continuation for a pretrained one.

    start: what the decoding settings begin with; suites: cases to click on, "general" and "ie", or "pretraining".
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported, or it asks for its newest version
    import gradio as gr

    page = Page(gr, language)
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
                asking = ask_instructed(page, suites) if instructed else ask_continued(page, suites)
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
        wire(page, checkpoint, asking, (output, status, found), settings, chosen, stop, clear)
    return blocks


def ask_continued(page: Page, suites: dict[str, Any]) -> list[tuple[Any, list[Any], Any]]:
    """The text box of continuation: [(button, boxes, ids from language and texts)]."""
    beginning = page.box("beginning", 10)
    go = page.button("run", variant="primary")
    samples(page, [beginning], [[case["text"]] for case in suites["pretraining"]["cases"]])
    return [(go, [beginning], continuation_ids)]


def ask_instructed(page: Page, suites: dict[str, Any]) -> list[tuple[Any, list[Any], Any]]:
    """The tabs of instruction and extraction: [(button, boxes, ids from language and texts)]."""
    gr = page.gr
    with page.add(gr.Tab, lambda w: {"label": w["instruction_tab"]}, id="instruction_tab"):
        instruction, input = page.box("instruction", 3), page.box("input", 5)
        go = page.button("run", variant="primary")
        cases = suites["general"]["cases"]
        samples(page, [instruction, input], [[case["instruction"], case.get("input", "")] for case in cases])
    with page.add(gr.Tab, lambda w: {"label": w["extraction_tab"]}, id="extraction_tab"):
        task = page.add(
            gr.Radio, lambda w: {"label": w["task"], "choices": [(w[task], task) for task in extraction_prompts.TASKS]},
            value="ner", elem_id="task",
        )  # fmt: skip
        schema = page.box("schema", 1)
        source = page.box("source", 5)
        extract = page.button("extract", variant="primary")
        cases = suites["ie"]["cases"]
        rows = [[case["task"], extraction_prompts.typed(case["schema"]), case["text"]] for case in cases]
        samples(page, [task, schema, source], rows, label_from=1)
    return [(go, [instruction, input], instruction_ids), (extract, [task, schema, source], extraction_ids)]


def samples(page: Page, boxes: list[Any], rows: list[list[str]], label_from: int = 0) -> None:
    """Buttons that fill the boxes with a row each, labelled with the beginning of its text number label_from."""
    labels = [row[label_from] if len(row[label_from]) <= 36 else row[label_from][:34] + " …" for row in rows]
    shown = page.add(
        page.gr.Dataset, lambda w: {"label": w["examples"]}, components=boxes, samples=rows, sample_labels=labels,
        samples_per_page=9,
    )  # fmt: skip
    shown.click(lambda row: row if len(boxes) > 1 else row[0], shown, boxes, queue=False)


def decoding_settings(page: Page, start: Decoding) -> list[Any]:
    """A control for every field of Decoding, in its order; what counts only with sampling is off without it."""
    gr, controls = page.gr, []
    with page.add(gr.Accordion, lambda w: {"label": w["decoding"]}, open=False, elem_id="decoding"):
        for field in fields(Decoding):
            value = getattr(start, field.name)

            def label(words: dict[str, str], name: str = field.name) -> dict[str, str]:
                return {"label": words[name]}

            if field.name == "do_sample":
                controls.append(page.add(gr.Checkbox, label, value=value, elem_id=field.name))
                continue
            least, most, step = BOUNDS[field.name]
            slider = page.add(
                gr.Slider, label, minimum=min(least, value), maximum=max(most, value), step=step, value=value,
                elem_id=field.name, interactive=field.name not in SAMPLING or start.do_sample,
            )  # fmt: skip
            controls.append(slider)
    do_sample, *sampling = controls[-1 - len(SAMPLING) :]
    do_sample.change(lambda on: [gr.update(interactive=on)] * len(sampling), do_sample, sampling, queue=False)
    return controls


def wire(
    page: Page, checkpoint: Checkpoint, asking: list[tuple[Any, list[Any], Any]], shown: tuple[Any, Any, Any],
    settings: list[Any], chosen: Any, stop: Any, clear: Any,
) -> None:  # fmt: skip
    """Connect the buttons: one answer at a time for the whole server, others wait in the queue."""
    gr, (output, status, found) = page.gr, shown
    runs = []
    for button, boxes, make_ids in asking:

        def run(language: str, *values: Any, make_ids: Any = make_ids, boxes: list[Any] = boxes) -> Iterator[list[Any]]:
            typed, numbers = values[: len(boxes)], values[len(boxes) :]
            named = dict(zip((field.name for field in fields(Decoding)), numbers, strict=True))
            words, is_extraction = LABELS[language], make_ids is extraction_ids
            for text, said in answer(checkpoint, lambda: make_ids(checkpoint, words, *typed), named, words):
                yield [text, said, gr.update(visible=is_extraction, value=table(text) if is_extraction else None)]

        click = button.click(
            run, [chosen, *boxes, *settings], [output, status, found], concurrency_limit=1, concurrency_id="model",
            show_progress="hidden",
        )  # fmt: skip
        runs.append(click)
    halted = stop.click(None, cancels=runs)
    halted.then(lambda language: LABELS[language]["stopped"], chosen, status, queue=False)
    typed_in = [box for _, boxes, _ in asking for box in boxes if not isinstance(box, gr.Radio)]
    blank = [""] * (len(typed_in) + 2)
    clear.click(lambda: [*blank, gr.update(visible=False)], None, [*typed_in, output, status, found], queue=False)
    chosen.change(page.relabel, chosen, [component for component, _ in page.words], queue=False)


# --- serving ----------------------------------------------------------------------------------------------------------


def check(server_name: str, server_port: int, language: str) -> None:
    """Raise ValueError on options that cannot work; to be asked before a model is loaded for minutes."""
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
            f"{server_name}:{server_port} cannot be listened on ({reason}); choose another --server_port"
        ) from None


def serve(blocks: Any, server_name: str, server_port: int, share_gradio: bool) -> None:
    """Serve the page until Ctrl-C. share_gradio asks Gradio's makers for a public address, which sends it there."""
    blocks.queue(max_size=32).launch(
        server_name=server_name, server_port=server_port, share=share_gradio, prevent_thread_lock=True, quiet=True,
        footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
    )  # fmt: skip
    print(f"Open http://{server_name}:{server_port} in a browser; Ctrl-C ends it.", flush=True)
    if share_gradio:
        print(f"Public address: {blocks.share_url}", flush=True)
    blocks.block_thread()
