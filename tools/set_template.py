"""Add a chat template to a copy of a checkpoint folder: folder in, new folder out.

    python tools/set_template.py --model_path tuned --template_path finetune/templates/alpaca.jinja --output_dir new

The weights are hard-linked if the file system allows it, which takes no time and no space. The template must render
with the folder's own tokenizer and reproduce the user's text unchanged.
"""

from command_line.fire_commands import run

import shutil
from pathlib import Path

from chat_prompts.template_files import TEMPLATE, read_template, read_templates
from checkpoint_io import checkpoint_folders
from checkpoint_io.checkpoint_folders import existing_folder
from checkpoint_io.small_files import check_tokenizer, write_templates
from checkpoint_seals.seal_check import is_seal, verify_seal
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder, write_exact_tokenizer
from model_folders.diff_recognition import DIFF_RECORD
from model_folders.own_code import OwnCodeError, from_folder
from partial_folders.atomic_outputs import new_folder
from partial_folders.output_paths import folder_path
from weight_diffs.recorded_files import record_files

LINKED = (".safetensors", ".bin")  # large, and never edited in place
# A test message: Jinja syntax, Python format syntax, Chinese and Latin text, two lines.
INSTRUCTION, INPUT = "Say {{ what }} {is} 100%s {% new %}.", "第一行\nline two"


def check_template(folder: Path, template: Path, trust_remote_code: bool) -> None:
    """Render a test message with the template and the tokenizer of a folder.

    template: the file of the template, for messages. An input that the template does not use is appended to the
    content, as in every prompt of this repository. Raises ValueError if rendering fails or changes the text,
    FileNotFoundError if the folder has no tokenizer_config.json.
    """
    from chat_prompts.prompt_encoding import PromptEncoder, instruction_messages
    from transformers import AutoTokenizer
    from transformers.utils import logging

    if not (folder / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer_config.json; copy the model's own file there")
    logging.set_verbosity_error()  # transformers warns of unknown model types, which do not affect the template
    exact = exact_tokenizer_folder(folder, trust_remote_code)
    encoder = PromptEncoder(from_folder(AutoTokenizer, exact, trust_remote_code))
    for given in ("", INPUT):
        try:
            text = encoder.rendered_prompt(instruction_messages(INSTRUCTION, given))
        except ValueError as error:
            raise ValueError(f"{template}: {error}; correct the template") from None
        for key, part in (("content", INSTRUCTION), ("input", given)):
            if part not in text:
                raise ValueError(f"{template} does not render the {key!r} of a message unchanged; correct the template")


def main(model_path: str, template_path: str, output_dir: str, trust_remote_code: bool = False) -> None:
    """Copy model_path to the new folder output_dir with template_path as its chat template.

    Args:
        model_path: a checkpoint or adapter folder with its tokenizer.
        template_path: a .jinja file, such as one of finetune/templates/, a chat_template.json, or an alpaca prompt file
            (.json).
        output_dir: a new folder.
        trust_remote_code: execute the Python code of the tokenizer in model_path.
    """
    options = dict(locals())
    model, template = existing_folder(model_path, "--model_path"), Path(template_path)
    if template.suffix not in (".jinja", ".json") or not template.is_file():
        raise FileNotFoundError(
            f"--template_path {template} is not an existing .jinja or .json file; finetune/templates/ has templates"
        )
    templates = read_templates(model, named_only=True) | {"default": read_template(template, "--template_path")}
    folder_path(output_dir, [model])
    verify_seal(model)
    visible = (file for file in sorted(model.iterdir()) if file.is_file() and not file.name.startswith("."))
    files = [file for file in visible if file.name != TEMPLATE and not is_seal(file.name)]
    if not any(file.name in ("config.json", "adapter_config.json") for file in files):
        raise FileNotFoundError(f"{model} has no config.json or adapter_config.json; it is not a checkpoint folder")
    check_tokenizer(model)
    small = [file for file in files if file.suffix not in LINKED]
    needed = sum(file.stat().st_size for file in small)
    with new_folder(output_dir, needed, inputs=[model]) as folder:
        for file in files:
            (checkpoint_folders.link_or_copy if file.suffix in LINKED else shutil.copyfile)(file, folder / file.name)
        write_templates(templates, folder)  # also removes the templates in tokenizer_config.json
        write_exact_tokenizer(folder)
        try:
            check_template(folder, template, trust_remote_code)
        except (OwnCodeError, FileNotFoundError) as error:
            raise type(error)(str(error).replace(str(folder), str(model))) from None
        checkpoint_folders.write_run_record(folder, "tools/set_template.py", options, {"model": model})
        if (folder / DIFF_RECORD).is_file():
            record_files(folder)
    print(f"{output_dir}: {model} with {template} as {TEMPLATE}")


if __name__ == "__main__":
    run(main)
