"""Convert LLaMA's original weights (consolidated.NN.pth, params.json, tokenizer.model) to a Hugging Face folder.

    python tools/convert_llama.py --input_dir llama-3.2-1b --model_size 1B --output_dir checkpoints/llama-3.2-1b
    python tools/convert_llama.py --input_dir LLaMA --model_size 13B --output_dir checkpoints/llama-13b
    python tools/convert_llama.py --input_dir llama-2-70b-chat --model_size 70Bf --output_dir checkpoints/70b-chat

Supports LLaMA 1, 2, 3, 3.1, 3.2 (1B, 3B), 3.3 and Code LLaMA, in any number of files. params.json is in --input_dir or
in a subfolder named after --model_size (LLaMA/13B beside LLaMA/tokenizer.model, as LLaMA-1 is distributed). The files
are compared with checklist.chk and tokenizer_checklist.chk if these exist. The weights keep their type and every bit.
Files are memory-mapped, and only a few MB are held in memory (files from before PyTorch 1.6 cannot be mapped and are
read entirely). No code in the files is executed.
"""

from command_line.fire_commands import run

from checkpoint_io.checkpoint_folders import existing_folder, write_run_record
from checkpoint_io.tensor_files import parse_size
from checkpoint_seals.seal_check import verify_seal
from partial_folders import resume_journal
from partial_folders.atomic_outputs import new_folder
from partial_folders.output_paths import folder_path

SCRIPT = "tools/convert_llama.py"


def main(
    input_dir: str,
    model_size: str,
    output_dir: str,
    llama_version: str = "",
    instruct: bool = False,
    max_shard_size: str = "5GB",
    check_path: str = "",
) -> None:
    """Convert the model in input_dir and write it to the new folder output_dir.

    Args:
        input_dir: the folder that contains params.json, or its parent.
        model_size: 1B, 3B, 7B, 8B, 13B, 30B, 34B, 65B or 70B, compared with params.json; a final f, as in 7Bf, means a
            chat model of LLaMA-2. auto relies on params.json alone.
        output_dir: a new folder.
        llama_version: 1, 2, 3, 3.1, 3.2 or 3.3; inferred from the files by default. It determines the context length
            and, from version 3 on, rotary scaling and special tokens.
        instruct: the model is a chat model; from version 3 on, its end tokens differ from the pretrained model's.
        max_shard_size: 5GB, 400MB or a number of bytes; a larger tensor gets its own shard.
        check_path: additional text to compare the tokenizer on: .jsonl with a `text` key, or one text per line.
    """
    from llama_conversion.converted_folder import write_converted
    from llama_conversion.original_checkpoint import notice, read_original

    shard_limit, chat = parse_size(max_shard_size), instruct or model_size.endswith("f")
    original = read_original(existing_folder(input_dir, "--input_dir"), model_size, llama_version)
    options = {
        "input_dir": input_dir, "model_size": model_size, "output_dir": output_dir, "llama_version": original.version,
        "instruct": chat, "max_shard_size": max_shard_size,
    }  # fmt: skip
    folder_path(output_dir, [original.folder])
    verify_seal(original.folder)
    run_line = resume_journal.run_identity(SCRIPT, options, {original.folder, original.tokenizer.parent})
    needed = sum(weight.spec.nbytes for weight in original.weights)
    with new_folder(output_dir, needed, run_line, [original.folder]) as folder:
        summary = write_converted(original, folder, shard_limit, chat, check_path)
        write_run_record(folder, SCRIPT, options, {"original": original.folder})
    if chat:
        notice(f"{output_dir} has no prompt format; add one: python tools/set_template.py --model_path {output_dir} …")
    print(f"{output_dir}: {summary}")


if __name__ == "__main__":
    run(main)
