"""Score edits of a model's knowledge: ask the model before and after them, with and without teacher forcing.

    python tools/edit_score.py --base model --edited model-edited --edits edits.jsonl --output scores.json
    python tools/edit_score.py --base model --edited model-edited --edits edits.jsonl --text held_out.jsonl \\
        --output scores.json --picture scores.png

Every edit is scored on its own question (efficacy), rephrased questions, questions that must keep their answer
(locality: other subjects of the relation, other facts of the subject, unrelated questions) and questions that follow
from it (portability). Teacher forcing, the published way, shows the model the true beginning of the answer; free
generation lets it answer and stop by itself. The models are loaded one after the other, on the first GPU, or on the CPU
in float32.
"""

from command_line.fire_commands import run

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chat_prompts.template_files import folder_template
from checkpoint_io.checkpoint_folders import existing_folder
from checkpoint_seals.seal_check import verify_seal
from edit_scores.score_picture import draw_summary
from edit_scores.score_summary import summarize, summary_table
from edit_scores.scored_edits import EditAnswers, answer_edits, score_edit
from edit_scores.text_perplexity import perplexity_figure, text_losses
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
from json_rows.row_files import iterate_texts
from knowledge_editing.edit_encoding import EditEncoder
from knowledge_editing.edit_files import Edit, read_edits
from model_folders.own_code import from_folder
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output
from quantization.quantization_methods import load_model, suppress_output


def measure(
    folder: Path, encoder: EditEncoder, edits: list[Edit], texts: list[str], before: list[EditAnswers] | None,
    options: dict[str, Any],
) -> tuple[list[EditAnswers], dict[str, float] | None]:  # fmt: skip
    """Load a model, and return its answers and its perplexity on the texts (None without texts)."""
    import torch

    trust, on_gpu = options["trust_remote_code"], torch.cuda.is_available()
    model = load_model(folder, "auto" if on_gpu else "float32", trust)
    answers = answer_edits(model, encoder, edits, before, options["fluency_tokens"], options["batch_size"])
    return answers, perplexity_figure(text_losses(model, encoder, texts)) if texts else None


def main(
    base: str,
    edited: str,
    edits: str,
    output: str,
    text: str = "",
    picture: str = "",
    prompt_format: str = "auto",
    samples: int = 0,
    fluency_tokens: int = 100,
    batch_size: int = 32,
    trust_remote_code: bool = False,
) -> None:
    """Print a table of the scores and write all answers to a JSON file.

    Args:
        base: the checkpoint folder before the edits; its tokenizer and chat template encode the questions.
        edited: the checkpoint folder after the edits.
        edits: a JSON or JSONL file of edits.
        output: a JSON file, which may exist already.
        text: held-out text for perplexity: a text file, or JSON or JSONL rows of {"text"}.
        picture: a PNG file for a picture of the scores.
        prompt_format: completion (a question is text to continue), chat (a user message), or auto: chat if the base has
            a chat template.
        samples: number of edits to score, from the beginning of the file; 0 for all.
        fluency_tokens: length of the sampled texts whose n-gram entropy is measured; 0 for none.
        batch_size: prompts that are answered at the same time.
        trust_remote_code: execute the Python code in the folders.
    """
    options = dict(locals())
    for name in ("samples", "fluency_tokens", "batch_size"):
        if options[name] < (name == "batch_size"):
            raise ValueError(f"--{name} {options[name]} is too small; give {int(name == 'batch_size')} or more")
    for name, path in (("output", output), ("picture", picture)):
        if path:
            check_output(path, [edits, text, output if name == "picture" else ""], name)
    folders = [
        existing_folder(path, option, "config.json") for path, option in ((base, "--base"), (edited, "--edited"))
    ]
    chosen = read_edits(edits)[: samples or None]
    texts = [each for each in iterate_texts(text) if each.strip()] if text else []
    for folder in folders:
        verify_seal(folder)
    with suppress_output():
        from transformers import AutoTokenizer

        tokenizer = from_folder(AutoTokenizer, exact_tokenizer_folder(folders[0], trust_remote_code), trust_remote_code)
        encoder = EditEncoder(tokenizer, folder_template(folders[0]), prompt_format)
        before, base_perplexity = measure(folders[0], encoder, chosen, texts, None, options)
        after, edited_perplexity = measure(folders[1], encoder, chosen, texts, before, options)
    scores = [score_edit(*each, encoder.is_chat) for each in zip(before, after, chosen, strict=True)]
    summary = summarize(scores)
    if base_perplexity and edited_perplexity:
        summary["perplexity"] = {"before": base_perplexity, "after": edited_perplexity}
    record = {
        "script": "tools/edit_score.py", "options": options,
        "prompt_format": "chat" if encoder.is_chat else "completion", "summary": summary,
        "edits": [asdict(score) for score in scores],
    }  # fmt: skip
    if picture:
        with new_file(picture, replace=True) as file:
            draw_summary(summary, file, f"{edited}: {len(scores)} edits")
    with new_file(output, replace=True) as file:
        file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(summary_table(summary))
    print(f"all answers: {output}" + (f"; picture: {picture}" if picture else ""))


if __name__ == "__main__":
    run(main)
