"""Ask an instruction-tuned model: general cases, extraction cases, or your own instructions.

    python examples/generate_lora.py --base_model quickstart/merged --run_ie_cases
    python examples/generate_lora.py --base_model quickstart/recovered --lora_weights quickstart/adapter --interactive
    python examples/generate_lora.py --base_model checkpoints/13b --lora_weights checkpoints/lora --load_8bit \\
        --run_general_cases
    python examples/generate_lora.py --base_model quickstart/merged --cases mine.jsonl --output answers.jsonl

Prompts are rendered with the chat template of the adapter or checkpoint.
"""

from command_line.fire_commands import run

import logging

from chat_prompts.prompt_encoding import instruction_messages
from demo_pages import case_files, console, model_loading, text_generation


def main(
    base_model: str,
    lora_weights: str = "",
    template_path: str = "",
    load_8bit: bool = False,
    run_ie_cases: bool = False,
    run_general_cases: bool = False,
    interactive: bool = False,
    cases: str = "",
    output: str = "",
    multi_gpu: bool = False,
    allocate: list[int] | None = None,
    trust_remote_code: bool = False,
    **options: object,
) -> None:
    """Print the model's answers to one suite of examples/cases, to a file of cases, or to typed instructions.

    Args:
        base_model: a checkpoint folder, or OWNER/NAME or OWNER/NAME@REVISION of a hub, downloaded once.
        lora_weights: a LoRA adapter of base_model, given in the same way.
        template_path: chat template to use instead of the folder's: a Jinja file, or an alpaca prompt file (.json).
        load_8bit: load the weights in 8 bits; needs an NVIDIA GPU and bitsandbytes.
        run_ie_cases: run examples/cases/ie.json: four published extraction instructions, then cases with schemas.
        run_general_cases: run examples/cases/general.json: general instructions.
        interactive: read instructions from the keyboard: a line for the instruction, one for its input (may be empty).
        cases: a file of your own cases, JSON or JSONL, such as one {"instruction": "…", "input": "…"} per line; see
            examples/README.md.
        output: a new file for the answers, one JSON line for each case.
        multi_gpu: spread the model over this machine's GPUs.
        allocate: GiB that each GPU may use, in order; needs multi_gpu.
        trust_remote_code: execute the Python code in the folders of base_model and lora_weights.
        options: decoding: --max_new_tokens, --num_beams (1 streams the text as it grows), --repetition_penalty,
            --do_sample, --temperature, --top_p, --top_k, --seed (the same answer each time), and --preset precise or
            creative, which follows the published advice (examples/README.md); other options take precedence.
    """
    if [run_ie_cases, run_general_cases, bool(cases), interactive].count(True) != 1:
        raise ValueError("give exactly one of --run_ie_cases, --run_general_cases, --cases and --interactive")
    if interactive and output:
        raise ValueError("--interactive writes no --output; remove one of them")
    suite = case_files.Suite([], [], {}, "")
    if not interactive:
        name = "ie" if run_ie_cases else "general"
        suite = case_files.read_suite(cases) if cases else case_files.read_cases(name)
    decoding = console.check_decoding(suite.decoding, options)
    case_files.check_output(output)
    checkpoint = model_loading.load(
        base_model, lora_weights, load_8bit, multi_gpu, allocate, template_path, trust_remote_code
    )
    console.warn_of_missing_files(checkpoint, lora_weights or base_model, extracts=run_ie_cases or bool(cases))
    if interactive:
        labels = ("Instruction", "Input (may be empty)")
        console.answer_typed_lines(
            checkpoint, decoding, labels, lambda encoder, *texts: encoder.prompt_ids(instruction_messages(*texts))
        )
    else:
        console.run_cases(checkpoint, suite, options, output)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    run(main, extra_option_types=text_generation.OPTIONS)
