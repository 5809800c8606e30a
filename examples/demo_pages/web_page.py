"""The Gradio page of generate_finetune_web.py and generate_lora_web.py: a tab in English and one in Chinese.

The page loads no data from other machines and sends none to them, except with --share_gradio (Gradio's tunnel).
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from chat_prompts.prompt_encoding import instruction_messages
from text_language.language_detection import language_of

from demo_pages import extraction_prompts, text_generation
from demo_pages.case_files import read_cases
from demo_pages.model_loading import Checkpoint
from demo_pages.text_generation import PRESETS, Decoding

Language = Literal["en", "zh"]
LABELS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("web_labels.json").read_text(encoding="utf-8"))
SAMPLING = ("temperature", "top_p", "top_k", "seed")  # settings without effect unless do_sample is set
SLIDERS = {  # setting -> minimum, maximum, step
    "max_new_tokens": (1, 2048, 1), "num_beams": (1, 8, 1), "repetition_penalty": (1.0, 2.0, 0.05),
    "temperature": (0.05, 2.0, 0.05), "top_p": (0.05, 1.0, 0.05), "top_k": (0, 200, 1),
}  # fmt: skip


def stream_answer(
    checkpoint: Checkpoint, make_ids: Callable[[], list[int]], settings: Mapping[str, Any], labels: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (text, status line) while the answer is generated; an exception becomes the last status line.

    make_ids: returns the prompt's ids; its exceptions are shown as well. settings: fields of Decoding; labels: texts in
    the page's language.
    """
    began, text = time.monotonic(), ""
    yield "", labels["running"].format(tokens=0)
    try:
        for part in text_generation.stream(checkpoint, make_ids(), text_generation.resolve_decoding({}, settings)):
            text, seconds = part.text, time.monotonic() - began
            yield text, labels[part.ending or "running"].format(tokens=part.new_tokens, seconds=seconds)
    except ValueError as error:
        yield text, labels["error"].format(message=error)
    except Exception as error:  # for example out of memory; the server keeps running
        logging.exception("generation failed")
        yield text, labels["error"].format(message=f"{type(error).__name__}: {str(error)[:300]}")


def instruction_ids(checkpoint: Checkpoint, labels: dict[str, str], instruction: str, input: str) -> list[int]:
    return checkpoint.encoder.prompt_ids(instruction_messages(require_text(instruction, labels), input))


def continuation_ids(checkpoint: Checkpoint, labels: dict[str, str], beginning: str) -> list[int]:
    return checkpoint.encoder.plain_text_ids(require_text(beginning, labels))


def extraction_ids(checkpoint: Checkpoint, labels: dict[str, str], task: str, schema: str, text: str) -> list[int]:
    types, language = extraction_prompts.parse_schema(schema, task), language_of(require_text(text, labels))
    question = extraction_prompts.extraction_question(task, types, text, language, checkpoint.extraction)
    return checkpoint.encoder.prompt_ids(instruction_messages(*question))


def require_text(text: str, labels: dict[str, str]) -> str:
    """Return the text; raises ValueError in the page's language if it is blank."""
    if not text.strip():
        raise ValueError(labels["empty"])
    return text


def result_table(text: str) -> list[list[str]]:
    """Return the rows [type, item] of an extraction answer; empty if the answer is not JSON."""
    return [list(row) for row in extraction_prompts.found_items(extraction_prompts.read_answer(text) or {})]


def build_page(checkpoint: Checkpoint, is_tuned: bool, start: Decoding, language: str) -> Any:
    """Return the page, a gradio.Blocks.

    is_tuned: whether the checkpoint is instruction-tuned; if so, the page is for instructions and extraction, else for
    continuation of text. start: initial decoding settings. language: the tab that is open at first.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import; without it, gradio checks for updates online
    import gradio as gr

    with gr.Blocks(title="KnowLM", analytics_enabled=False, fill_width=False) as blocks, gr.Tabs(selected=language):
        for code, labels in LABELS.items():
            with gr.Tab(labels["language"], id=code):
                add_demo(gr, checkpoint, is_tuned, start, labels)
    return blocks


def add_demo(gr: Any, checkpoint: Checkpoint, is_tuned: bool, start: Decoding, labels: dict[str, str]) -> None:
    """Add the page's content in one language. The server generates one answer at a time; other requests are queued."""
    gr.Markdown(labels["instructed_title" if is_tuned else "continued_title"])
    with gr.Row():
        with gr.Column():
            inputs = instruction_inputs(gr, labels) if is_tuned else continuation_inputs(gr, labels)
        with gr.Column():
            outputs = [text_box(gr, labels, "answer", 10, buttons=["copy"], interactive=False)]
            outputs.append(gr.Markdown(elem_id="status"))
            if is_tuned:
                headers = [labels["found_kind"], labels["found_what"]]
                table = {"label": labels["found"], "headers": headers, "elem_id": "found"}
                outputs.append(gr.Dataframe(**table, interactive=False, wrap=True))
            with gr.Row():
                stop = gr.Button(labels["stop"], variant="stop", elem_id="stop")
                typed = [box for _, boxes, _ in inputs for box in boxes if not isinstance(box, gr.Radio)]
                gr.ClearButton([*typed, *outputs], value=labels["clear"], elem_id="clear")
            settings = decoding_settings(gr, labels, start)

    def run(make_ids: Callable[..., list[int]], box_count: int, *values: Any) -> Iterator[tuple[Any, ...]]:
        texts, decoding = values[:box_count], dict(zip(settings, values[box_count:], strict=True))
        for text, line in stream_answer(checkpoint, partial(make_ids, checkpoint, labels, *texts), decoding, labels):
            yield (text, line, result_table(text)) if is_tuned else (text, line)

    runs = [
        button.click(
            partial(run, make_ids, len(boxes)), [*boxes, *settings.values()], outputs, concurrency_limit=1,
            concurrency_id="model", show_progress="hidden",
        )
        for button, boxes, make_ids in inputs
    ]  # fmt: skip
    stop.click(None, cancels=runs)
    for running in runs:  # Gradio's page reports a cancelled run as failed, once the server has ended it
        running.failure(lambda: labels["stopped"], None, outputs[1], queue=False)


def continuation_inputs(gr: Any, labels: dict[str, str]) -> list[tuple[Any, list[Any], Callable[..., list[int]]]]:
    """Add the text box of continuation. Returns [(button, boxes, function that makes the prompt ids)]."""
    beginning = text_box(gr, labels, "beginning", 10)
    generate = gr.Button(labels["run"], variant="primary")
    add_examples(gr, labels, [beginning], [[case["text"]] for case in read_cases("pretraining").cases])
    return [(generate, [beginning], continuation_ids)]


def instruction_inputs(gr: Any, labels: dict[str, str]) -> list[tuple[Any, list[Any], Callable[..., list[int]]]]:
    """Add the tabs of instruction and extraction. Returns [(button, boxes, function that makes the prompt ids)]."""
    extractions = read_cases("ie").cases
    with gr.Tab(labels["instruction_tab"]):
        instruction, input = text_box(gr, labels, "instruction", 3), text_box(gr, labels, "input", 5)
        generate = gr.Button(labels["run"], variant="primary")
        cases = read_cases("general").cases + [case for case in extractions if "instruction" in case]
        rows = [[case["instruction"], case.get("input", "")] for case in cases]
        add_examples(gr, labels, [instruction, input], rows)
    with gr.Tab(labels["extraction_tab"]):
        choices = [(labels[task], task) for task in extraction_prompts.TASKS]
        task = gr.Radio(choices, value="ner", label=labels["task"], elem_id="task")
        schema, source = text_box(gr, labels, "schema", 1), text_box(gr, labels, "source", 5)
        extract = gr.Button(labels["extract"], variant="primary")
        rows = [
            [case["task"], extraction_prompts.schema_text(case["schema"]), case["text"]]
            for case in extractions
            if "task" in case
        ]
        add_examples(gr, labels, [task, schema, source], rows, label_from=1)
    return [(generate, [instruction, input], instruction_ids), (extract, [task, schema, source], extraction_ids)]


def text_box(gr: Any, labels: dict[str, str], name: str, lines: int, **settings: Any) -> Any:
    """Return a text box with the label `name`, the placeholder `<name>_hint` and the note `<name>_info`."""
    hints = {"placeholder": labels.get(f"{name}_hint"), "info": labels.get(f"{name}_info")}
    return gr.Textbox(label=labels[name], lines=lines, elem_id=name, **hints, **settings)


def add_examples(gr: Any, labels: dict[str, str], boxes: list[Any], rows: list[list[str]], label_from: int = 0) -> None:
    """Add buttons that each fill the boxes with one row; a button's label is the start of row[label_from]."""
    starts = [row[label_from] if len(row[label_from]) <= 36 else row[label_from][:34] + " …" for row in rows]
    gr.Examples(rows, boxes, label=labels["examples"], example_labels=starts, examples_per_page=9)


def decoding_settings(gr: Any, labels: dict[str, str], start: Decoding) -> dict[str, Any]:
    """Return one control for each field of Decoding; the controls of SAMPLING are disabled without do_sample.

    A button for each preset sets its settings.
    """
    controls: dict[str, Any] = {}
    with gr.Accordion(labels["decoding"], open=False):
        with gr.Row():
            presets = [(gr.Button(labels[name], size="sm", elem_id=name), name) for name in PRESETS]
        for name, value in asdict(start).items():
            if name == "do_sample":
                controls[name] = gr.Checkbox(value, label=labels[name], elem_id=name)
                continue
            if name == "seed":
                number = {"label": labels[name], "elem_id": name, "interactive": start.do_sample}
                controls[name] = gr.Number(value, precision=0, minimum=0, **number)
                continue
            minimum, maximum, step = SLIDERS[name]
            controls[name] = gr.Slider(
                min(minimum, value), max(maximum, value), value, step=step, label=labels[name], elem_id=name,
                interactive=name not in SAMPLING or start.do_sample,
            )  # fmt: skip
    for button, preset in presets:
        values = PRESETS[preset]
        button.click(partial(list, values.values()), None, [controls[name] for name in values], queue=False)
    sampling = [controls[name] for name in SAMPLING]
    controls["do_sample"].change(
        lambda on: [gr.update(interactive=on)] * len(sampling), controls["do_sample"], sampling, queue=False
    )
    return controls


def check_address(server_name: str, server_port: int) -> None:
    """Raise ValueError if the address is not available. Called before a model is loaded."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server_name, server_port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{server_name}:{server_port} is not available ({reason}); choose another --server_port, or correct "
            "--server_name"
        ) from None


def serve(blocks: Any, server_name: str, server_port: int, share_gradio: bool) -> None:
    """Serve the page until Ctrl-C or SIGTERM, which raise KeyboardInterrupt.

    share_gradio: give the page a public address through Gradio's servers.
    """
    blocks.queue(max_size=32).launch(
        server_name=server_name, server_port=server_port, share=share_gradio, prevent_thread_lock=True, quiet=True,
        footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False,
    )  # fmt: skip
    print(f"Open http://{server_name}:{server_port} in a browser; Ctrl-C stops the server.", flush=True)
    if share_gradio:
        print(f"Public address: {blocks.share_url}", flush=True)
    try:
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)
