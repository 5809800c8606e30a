"""Correct facts in a checkpoint: new folder in, new folder out; every edit is a patch that can be taken out again.

    python tools/edit_knowledge.py apply --base model --edits edits.jsonl --method rome --text corpus.jsonl --out edited
    python tools/edit_knowledge.py apply --base model --edits edits.jsonl --text corpus.jsonl --patch_only P
    python tools/edit_knowledge.py apply --base model --patch P --out edited
    python tools/edit_knowledge.py list edited
    python tools/edit_knowledge.py remove --base edited --patch edits --out restored

An edit is one line of JSON: {"prompt": "The mother tongue of {} is", "subject": "Danielle Darrieux", "target_new":
"English"}. CounterFact, zsRE, KnowEdit and QAEdit files are read as they are.
"""

from command_line.fire_commands import run

import tempfile
from collections.abc import Callable
from pathlib import Path

from checkpoint_io.checkpoint_folders import existing_folder
from edit_patches.edited_folders import EditedModel, apply_patch, open_model, remove_patch
from edit_patches.patch_files import RECORD, is_name, read_patch, read_patch_edits, write_patch_files
from knowledge_editing.edit_files import consistent_edits, read_edits
from partial_folders.atomic_outputs import new_folder
from partial_folders.output_paths import folder_path

SCRIPT = "tools/edit_knowledge.py"


def apply(
    base: str,
    edits: str = "",
    method: str = "rome",
    out: str = "",
    patch_only: str = "",
    patch: str = "",
    name: str = "",
    text: str = "",
    stats_tokens: int = 20000,
    layers: tuple[int, ...] = (),
    batch_size: int = 1,
    keep: tuple[str, ...] = (),
    prompt_format: str = "auto",
    module: str = "model.layers.{}.mlp.down_proj",
    max_perplexity: float = 1.2,
    learning_rate: float = 0.0,
    steps: int = 25,
) -> None:
    """Compute edits, or take a patch, and write the edited model to the new folder out.

    Args:
        base: checkpoint folder, plain or edited before.
        edits: JSON or JSONL of edits.
        method: rome, memit or alphaedit, which need a subject and text; ft-m, ft-l or lora.
        out: a new folder for the edited model.
        patch_only: a new folder for the patch alone, instead of `out`.
        patch: a patch folder to apply instead of `edits`.
        name: name of the patch; by default that of the file of edits.
        text: JSONL of {"text"} whose meaning must not change: key statistics, and the perplexity of the health check.
        stats_tokens: tokens of the text for the statistics; 0 turns the statistics off.
        layers: numbers of the layers to edit; by default the method's.
        batch_size: edits that are computed together (all methods but rome).
        keep: prompts with {} for the subject whose next token must stay, such as "{} was born in".
        prompt_format: completion, chat, or auto: chat if the model has a chat template.
        module: the edited matrix's name, {} for the layer; the default fits LLaMA, Mistral, Qwen2 and Qwen3.
        max_perplexity: stop if the perplexity of the text grows to more than this multiple.
        learning_rate: of the method's optimiser; 0: the method's own.
        steps: largest number of optimisation steps.
    """
    options = dict(locals())
    from edit_patches.edit_making import make_edits
    from knowledge_editing.editors import EDITORS

    if bool(out) == bool(patch_only) or bool(edits) == bool(patch) or (patch and patch_only):
        raise ValueError("give --edits or --patch, and --out or (with --edits) --patch_only")
    if method not in EDITORS:
        raise ValueError(f"--method {method} is unknown; use one of {', '.join(EDITORS)}")
    model = open_model(base, "--base")
    folder_path(out or patch_only, [model.folder])
    if patch:
        print(apply_patch(model, *read_patch(patch, "--patch"), out, f"{SCRIPT} apply", options))
        return
    chosen = consistent_edits(read_edits(edits))
    chosen_name = patch_name(name, edits, model)
    record: dict[str, object] = {"name": chosen_name, "method": method, "base": model.base, "below": model.below()}
    made = make_edits(model, chosen, options)
    if patch_only:
        with new_folder(patch_only, 0, "", [model.folder]) as folder:
            write_patch_files(folder, record | made.fields, made.updates, made.rows, model.folder)
        size = sum(file.stat().st_size for file in Path(patch_only).iterdir())
        print(f"{patch_only}: {len(chosen)} edits by {method} as a patch of {size / 1e6:.2f} MB")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / chosen_name
            folder.mkdir()
            written = write_patch_files(folder, record | made.fields, made.updates, made.rows, model.folder)
            print(apply_patch(model, folder, written, out, f"{SCRIPT} apply", options))
    print(made.summary)


def patch_name(name: str, edits: str, model: EditedModel) -> str:
    """Return the name of a new patch: the given one, or the stem of the edits' file."""
    chosen = name or Path(edits).name.partition(".")[0]
    if not is_name(chosen):
        raise ValueError(f"--name {chosen!r} is not a name of letters, digits, dots, _ and -; give one with --name")
    if chosen in [record.name for _, record in model.patches]:
        raise ValueError(f"{model.folder} has a patch named {chosen}; give another name with --name")
    return chosen


def remove(base: str, patch: str, out: str) -> None:
    """Write an edited model without one of its patches to the new folder out.

    Without patches left, the weights equal those of the base to the bit.

    Args:
        base: an edited checkpoint folder.
        patch: the name of a patch, as `list` prints it.
        out: a new folder.
    """
    print(remove_patch(open_model(base, "--base"), patch, out, f"{SCRIPT} remove", dict(locals())))


def show(path: str) -> None:
    """Print the patches of an edited checkpoint, or one patch: method, layers, edits, answers before and after.

    Args:
        path: an edited checkpoint folder, or a patch folder.
    """
    folder = existing_folder(path, "list")
    if (folder / RECORD).is_file():
        patches = [read_patch(path, "list")]
    else:
        model = open_model(path, "list")
        patches = model.patches
        print(f"{path}: {len(patches)} patches on the base {model.base[:16]}")
    for patch, record in patches:
        rows = read_patch_edits(patch)
        layers = ", ".join(map(str, record.layers))
        print(f"{record.name}: {len(rows)} edits by {record.method} in the layers {layers}; base {record.base[:16]}")
        for row in rows:
            question = row["prompt"].replace("{}", row.get("subject") or "{}", 1)
            print(f"  {question!r} -> {row['target_new']!r}; before: {row['before']!r}; after: {row['after']!r}")


def stats(
    base: str, text: str, tokens: tuple[int, ...] = (2000, 5000, 10000, 20000), layers: tuple[int, ...] = ()
) -> None:
    """Print how much text the key statistics need: their difference from those of the largest number of tokens.

    The statistics are cached for `apply`.

    Args:
        base: a checkpoint folder.
        text: JSONL of {"text"}.
        tokens: numbers of tokens.
        layers: numbers of the layers; by default ROME's.
    """
    from edit_patches.edit_making import print_statistics

    print_statistics(open_model(base, "--base"), Path(text), sorted(tokens), tuple(layers))


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"apply": apply, "remove": remove, "list": show, "stats": stats}
    run(commands)
