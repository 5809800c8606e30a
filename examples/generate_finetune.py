"""Continue texts with a pretrained model that was not instruction-tuned. Nothing is trained here.

The texts are the published cases of KnowLM (examples/cases/pretraining.json) or lines that you type.

    python examples/generate_finetune.py --base_model quickstart/pretrained
    python examples/generate_finetune.py --base_model quickstart/pretrained --interactive --num_beams 1
    python examples/generate_finetune.py --base_model checkpoints/13b --multi_gpu --allocate [10,10,10]
    python examples/generate_finetune.py --base_model checkpoints/edited --cases examples/cases/editing.json

The default decoding is the published one: 3 beams, repetition penalty 1.6, 512 new tokens.
"""

from command_line.fire_commands import run

import logging

from chat_prompts.prompt_encoding import PromptEncoder
from demo_pages import case_files, console, model_loading, text_generation


def main(
    base_model: str,
    cases: str = "",
    output: str = "",
    interactive: bool = False,
    multi_gpu: bool = False,
    allocate: list[int] | None = None,
    trust_remote_code: bool = False,
    **options: object,
) -> None:
    """Print the model's continuation of the texts in examples/cases/pretraining.json, of a file, or of typed lines.

    Args:
        base_model: a checkpoint folder, or OWNER/NAME or OWNER/NAME@REVISION of a hub, downloaded once.
        cases: a file of your own cases, JSON or JSONL, such as one {"text": "…"} per line; see examples/README.md.
        output: a new file for the answers, one JSON line for each case.
        interactive: read prompts from the keyboard, one per line.
        multi_gpu: spread the model over this machine's GPUs.
        allocate: GiB that each GPU may use, in order; needs multi_gpu.
        trust_remote_code: execute the Python code in the folder of base_model.
        options: decoding: --max_new_tokens, --num_beams (1 streams the text as it grows), --repetition_penalty,
            --do_sample, --temperature, --top_p, --top_k, --seed (the same answer each time), and --preset precise or
            creative, which follows the published advice (examples/README.md); other options take precedence.
    """
    if interactive and (cases or output):
        raise ValueError("--interactive reads no --cases and writes no --output; remove it, or --cases and --output")
    suite = case_files.read_cases("pretraining")
    if cases:
        suite = case_files.read_suite(cases, suite.decoding)
    decoding = console.check_decoding(suite.decoding, options)
    case_files.check_output(output)
    checkpoint = model_loading.load(
        base_model, multi_gpu=multi_gpu, allocate=allocate, trust_remote_code=trust_remote_code
    )
    if interactive:
        console.answer_typed_lines(checkpoint, decoding, ("Text to continue",), PromptEncoder.plain_text_ids)
    else:
        console.run_cases(checkpoint, suite, options, output)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    run(main, extra_option_types=text_generation.OPTIONS)
