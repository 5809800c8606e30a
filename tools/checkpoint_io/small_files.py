"""The files beside the weights of a new checkpoint folder: configuration, tokenizer, chat template, the model's code.

Tokenizer and template are each taken as a set from one folder. Files of two folders would contradict each other: an
adapter's tokenizer.json beside its base's tokenizer.model, or a base's chat_template.jinja beside an adapter's template
in tokenizer_config.json, which transformers would then ignore.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from adapter_checks.base_fit import is_prefix
from chat_prompts.template_files import TEMPLATE, TEMPLATES, checked_templates, other_templates, read_templates
from exact_tokenizers.tokenizer_folders import (
    exact_tokenizer_files,
    has_same_pieces,
    is_rank_table,
    is_read_inexactly,
    write_exact_tokenizer,
)
from hub_download.model_registry import entry_of, registry, template_of

from checkpoint_io.checkpoint_folders import read_json, write_json
from checkpoint_io.published_models import has_config, published_repository
from checkpoint_io.tokenizer_sizes import check_tokenizer_size, token_table, tokenizer_size

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # each is enough to load a tokenizer
TOKENIZER_FILES = (
    *TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "*.tiktoken",
)  # fmt: skip
# *.py: a model's own code, which auto_map in its configuration names; it is never executed here.
OTHER_FILES = ("generation_config.json", "extraction.json", "*.py")


def copy_small_files(sources: Sequence[Path], target: Path, repository: str = "") -> str:
    """Copy the small files of checkpoint folders to the new folder `target`; return text about its template.

    sources: later folders take precedence. A tokenizer that transformers would read inexactly gets exact files, and a
    published model without a chat template gets the template that it was tuned on. repository: name of the published
    model in the last source, if it is known from its weights, else "". The returned text is for the command's summary;
    it is "" if a template was copied or none is needed (a published pretrained model). Raises ValueError if files
    contradict each other. Run `check_tokenizer` on the sources first.
    """
    for source in sources:
        copy_matching(source, target, OTHER_FILES)
    configured = next((folder for folder in reversed(sources) if not (folder / "adapter_config.json").is_file()), None)
    if configured:
        copy_matching(configured, target, ("config.json",))
    if chosen := tokenizer_source(sources):
        copy_matching(chosen, target, TOKENIZER_FILES)
    copy_sentencepiece_model(sources, target)
    templates, phrase = choose_templates(sources, repository)
    write_templates(templates, target)
    write_exact_tokenizer(target)
    return missing_template(target, sources) if phrase is None else phrase


def choose_templates(sources: Sequence[Path], repository: str) -> tuple[dict[str, str], str | None]:
    """Return the templates of the last source that has template files or a published template, and a phrase about them.

    A published adapter without a template file gets its own published template, not the base's. The phrase is None if
    no default template was found and the last source is not a published pretrained model.
    """
    names: list[str] = []
    for folder in reversed(sources):
        if templates := checked_templates(folder):
            return templates, "" if "default" in templates else None
        names.append((not names and repository) or published_repository(folder, "template"))
        if template := template_of(names[-1]):
            return {"default": template}, f"; {TEMPLATE} added, which {names[-1]} was tuned on"
    return {}, "" if entry_of(names[0]).get("template") == "" else None


def missing_template(target: Path, sources: Sequence[Path]) -> str:
    """Return a notice that `target` has no default template; it names similar published models and the remedy.

    sources: the folders that `target` was made from; the notice names their other templates.
    """
    config = read_json(target / "config.json") if (target / "config.json").is_file() else {}
    known = registry()["repositories"].items()
    tuned = [(name, entry) for name, entry in known if entry.get("template") and "config" in entry]
    similar = [name for name, entry in tuned if has_config(entry, config)]
    fits = f"its config.json fits {' and '.join(similar)}, but also other models"
    origin = fits if similar else "its origin is unknown"
    folder, alpaca = str(target).removesuffix(".partial"), "finetune/templates/alpaca.jinja"
    found = (other_templates(source) for source in reversed(sources))
    others, file = next((pair for pair in found if pair[0]), ("", None))
    return (
        f"\nnotice: {folder} has no {TEMPLATE}{others} ({origin}). A model that was tuned on a template needs it: "
        f"python tools/set_template.py --model_path {folder} --template_path {file or alpaca} --output_dir NEW"
    )


def copy_sentencepiece_model(sources: Sequence[Path], target: Path) -> None:
    """Copy the last tokenizer.model with the pieces of target's tokenizer.json (transformers 5 does not save it)."""
    stored, model = target / "tokenizer.json", target / "tokenizer.model"
    for source in reversed(sources):
        candidate = source / "tokenizer.model"
        if not model.is_file() and stored.is_file() and candidate.is_file() and not is_rank_table(candidate):
            with suppress(ValueError):  # a model that tokenizer.json cannot represent
                if has_same_pieces(stored, candidate):
                    shutil.copyfile(candidate, model)


def copy_matching(source: Path, target: Path, patterns: Sequence[str]) -> None:
    """Copy the files of source that match one of the patterns to target, replacing existing ones."""
    for file in [file for pattern in patterns for file in source.glob(pattern) if file.is_file()]:
        shutil.copyfile(file, target / file.name)


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZERS) or any(folder.glob("*.tiktoken"))


def tokenizer_source(folders: Sequence[Path]) -> Path | None:
    """Return the last folder that has a tokenizer, except adapters whose tokenizer lacks tokens of an earlier folder.

    Raises ValueError if two adapters have tokenizers that contradict each other. An adapter may contradict its base if
    it replaces the embedding matrix (adapter_checks.base_fit).
    """
    chosen, table = None, dict[str, int]()
    for folder in filter(has_tokenizer, folders):
        pieces, is_adapter = token_table(folder), (folder / "adapter_config.json").is_file()
        if chosen and is_adapter and pieces and not is_prefix(table, pieces):
            if is_prefix(pieces, table):
                continue
            if (chosen / "adapter_config.json").is_file():
                piece = min(table.items() ^ pieces.items(), key=lambda entry: (entry[1], entry[0]))[0]
                raise ValueError(
                    f"{folder} has another tokenizer than {chosen}: {piece!r} has id {pieces.get(piece, 'none')} in "
                    f"the former and {table.get(piece, 'none')} in the latter; merge adapters that were trained with "
                    "the same added tokens"
                )
        chosen, table = folder, pieces
    return chosen


def check_tokenizer(*folders: Path, rows: int | None = None) -> None:
    """Check the tokenizer and named templates of a new folder that is made from `folders`; later ones take precedence.

    rows: number of embeddings of the new model; by default vocab_size in the last config.json. Raises FileNotFoundError
    if no folder has a tokenizer, since libraries would load an arbitrary default. Raises ValueError if the tokenizer
    has more tokens than the model has embeddings or cannot be written exactly, or if a template cannot be read or
    written.
    """
    for folder in folders:
        read_templates(folder, named_only=True)
    chosen = tokenizer_source(folders)
    if chosen is None:
        verb = "has" if len(folders) == 1 else "have"
        raise FileNotFoundError(
            f"{' and '.join(map(str, folders))} {verb} no tokenizer ({', '.join(TOKENIZERS)}); copy the model's own "
            "tokenizer files there"
        )
    if is_read_inexactly(chosen):
        exact_tokenizer_files(chosen)  # raises if `write_exact_tokenizer` would
    configured = next((file for folder in reversed(folders) if (file := folder / "config.json").is_file()), None)
    if configured is None:  # an adapter
        return
    rows = read_json(configured).get("vocab_size") if rows is None else rows
    if isinstance(rows, int):
        check_tokenizer_size(tokenizer_size(chosen), rows, chosen, configured)


def write_templates(templates: dict[str, str], target: Path) -> None:
    """Write templates to chat_template.jinja and additional_chat_templates/; remove those in tokenizer_config.json."""
    config = target / "tokenizer_config.json"
    if config.is_file() and "chat_template" in (content := read_json(config)):
        write_json(config, {name: value for name, value in content.items() if name != "chat_template"})
    for name, text in templates.items():
        file = target / TEMPLATE if name == "default" else target / TEMPLATES / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
