"""Exact tokenizer files for checkpoint folders that transformers reads inexactly.

If the tokenizer class is LlamaTokenizer, transformers 5 ignores parts of tokenizer.json; if a folder has only a
tokenizer.model, transformers converts it inexactly. Texts that begin with a space or contain two spaces in a row then
get other ids than from SentencePiece, with which the model was trained. For its generic class PreTrainedTokenizerFast,
transformers reads tokenizer.json exactly. This module writes tokenizer files for that class: for an input folder into a
cache, for an output folder into the folder itself.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from partial_folders.cache_entries import ensure_cache_entry

from exact_tokenizers.special_ids import corrected_ids, has_old_ids, print_notice

if TYPE_CHECKING:  # imported where needed, since commands import this module before they parse their options
    from tokenizers import AddedToken, Tokenizer

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # names of the class in transformers 4 and 5
INEXACT = ("LlamaTokenizer", "LlamaTokenizerFast", "LLaMATokenizer", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
# Settings of the classes in INEXACT that the generic class does not have.
DROPPED = ("added_tokens_decoder", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "sp_model_kwargs",
           "special_tokens_map_file", "tokenizer_file", "use_fast", "use_default_system_prompt", "backend")  # fmt: skip
QWEN = "qwen"  # transformers reads any tokenizer.json of these model types and classes as byte-level BPE
TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")


Place = TypeVar("Place", Path, str | Path)
Options = ParamSpec("Options")
Result = TypeVar("Result")


def reports_damage(
    function: Callable[Concatenate[Place, Options], Result],
) -> Callable[Concatenate[Place, Options], Result]:
    """Decorate a function that reads the tokenizer files of the folder given as its first argument.

    Exceptions that an unexpected value in the files causes become a ValueError with a one-line message.
    """

    @wraps(function)
    def read(folder: Place, *args: Options.args, **options: Options.kwargs) -> Result:
        try:
            return function(folder, *args, **options)
        except (TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{folder}: its tokenizer files are damaged ({reason}); download them again") from error

    return read


@reports_damage
def exact_tokenizer_folder(folder: str | Path, trust_remote_code: bool = False) -> Path:
    """Return a folder from which AutoTokenizer loads the tokenizer of a checkpoint folder exactly.

    This is the folder itself, or a folder in the cache (XDG_CACHE_HOME/knowlm/tokenizers) with the tokenizer, the chat
    templates, and corrected copies of config.json and generation_config.json if they have the old BOS and EOS ids
    (special_ids.py). trust_remote_code: whether the tokenizer's own Python code will be executed; if not, and the
    tokenizer can be read without it, a notice is printed. Raises ValueError or FileNotFoundError if the files are
    damaged or contradict each other.
    """
    source = Path(folder)
    refuse_empty_model(source)
    files_found = sorted(found for pattern in TEMPLATES for found in source.glob(pattern))
    templates = {path.relative_to(source).as_posix(): read_text(path) for path in files_found}
    config = read_object(source / "tokenizer_config.json")
    if has_own_code(config):
        if trust_remote_code:
            return source
        if config.get("tokenizer_class") in (*INEXACT, *GENERIC):
            print_own_code_notice(source)
    is_inexact = is_read_inexactly(source)
    if not is_inexact and not old_configurations(source):
        return source
    files = exact_tokenizer_files(source, keep_own_code=False) if is_inexact else stored_texts(source)
    corrected = corrected_configurations(source, files)
    if not is_inexact and not corrected:
        return source
    files |= corrected | templates
    key = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]
    target = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "knowlm/tokenizers", key).expanduser()
    ensure_cache_entry(target, lambda folder: write_files(folder, files))
    return target


@reports_damage
def write_exact_tokenizer(folder: Path) -> bool:
    """Write an exact tokenizer into a folder that transformers would read inexactly; return whether one was written.

    Old BOS and EOS ids in the configurations (special_ids.py) are replaced in either case. Raises the errors of
    `exact_tokenizer_folder`.
    """
    refuse_empty_model(folder)
    is_inexact = is_read_inexactly(folder)
    files = exact_tokenizer_files(folder) if is_inexact else {}
    if old_configurations(folder):
        files |= corrected_configurations(folder, files or stored_texts(folder))
    write_files(folder, files)
    if is_inexact and not has_own_code(read_object(folder / "tokenizer_config.json")):
        for name in ("special_tokens_map.json", "added_tokens.json"):  # their content is in the written files
            (folder / name).unlink(missing_ok=True)
    return is_inexact


def refuse_empty_model(folder: Path) -> None:
    """Raise ValueError if tokenizer.model is empty, even beside a tokenizer.json, since tools read or copy both."""
    model = folder / "tokenizer.model"
    if model.is_file() and not model.stat().st_size:
        from exact_tokenizers import sentencepiece_bpe

        sentencepiece_bpe.read_sentencepiece_model(model)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@reports_damage
def is_read_inexactly(folder: Path) -> bool:
    """Return whether transformers, without executing code of the folder, would read the folder's tokenizer inexactly.

    The result is False for tokenizers that are not SentencePiece's. If there is no tokenizer.json, transformers reads
    tokenizer.model inexactly, whatever the class. Exception: if the class is neither LLaMA's nor the generic one and
    the folder has the class's code or another vocabulary (vocab.json), transformers does not read tokenizer.model.
    """
    config = read_object(folder / "tokenizer_config.json")
    model, stored = folder / "tokenizer.model", folder / "tokenizer.json"
    name = config.get("tokenizer_class") or default_class(folder)
    if stored.is_file():
        return name in INEXACT or (is_read_as_byte_level(folder, name) and has_byte_fallback(stored))
    if not model.is_file() or is_rank_table(model):
        return False
    has_other_source = has_own_code(config) or any((folder / file).is_file() for file in ("vocab.json", "vocab.txt"))
    return name in (*INEXACT, *GENERIC, None) or not has_other_source


def has_own_code(config: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer_config.json names Python code of the folder; before 2023, auto_map was a list."""
    auto_map = config.get("auto_map") or {}
    return isinstance(auto_map, list) or "AutoTokenizer" in auto_map


@cache
def print_own_code_notice(folder: Path) -> None:
    """Print, only on the first rank and once for each folder, that the code of a tokenizer is not executed."""
    if os.environ.get("RANK", "0") == "0":
        file = next((name for name in ("tokenizer.model", "tokenizer.json") if (folder / name).is_file()), "")
        fact = "has Python code for its tokenizer, which is not executed without --trust_remote_code"
        read = f"; {file or 'its vocabulary'} is read instead"
        print(f"notice: {str(folder).removesuffix('.partial')} {fact}{read}", file=sys.stderr)


def is_read_as_byte_level(folder: Path, name: str | None) -> bool:
    """Return whether transformers may read a tokenizer.json as Qwen's, whatever it contains.

    name: the tokenizer class. For some of Qwen's model types, transformers ignores it
    (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS in tokenization_auto.py, 5.19).
    """
    kind = str(read_object(folder / "config.json").get("model_type"))
    return any(each.lower().startswith(QWEN) for each in (str(name), kind))


def has_byte_fallback(stored: Path) -> bool:
    """Return whether a tokenizer.json was made from a SentencePiece model; a byte-level BPE has no byte fallback."""
    model = read_object(stored).get("model")
    return isinstance(model, dict) and bool(model.get("byte_fallback"))


def default_class(folder: Path) -> str | None:
    """Return the class that transformers uses for the model type in config.json, if that is LLaMA's, else None."""
    return "LlamaTokenizer" if read_object(folder / "config.json").get("model_type") in ("llama", "mistral") else None


def is_rank_table(model: Path) -> bool:
    """Return whether a tokenizer.model begins like a rank table of tiktoken (LLaMA-3)."""
    with model.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* 0\r?\n", file.readline(100)) is not None


@reports_damage
def exact_tokenizer_files(folder: Path, keep_own_code: bool = True) -> dict[str, str]:
    """Return the contents of tokenizer.json and tokenizer_config.json for a folder that transformers reads inexactly.

    The ids are those of tokenizer.model or, without it, of tokenizer.json. Added and special tokens are kept. The
    settings in tokenizer_config.json are kept except DROPPED and auto_map, which are kept only if the tokenizer has its
    own code and keep_own_code is true. Raises ValueError, which names the files, if they are damaged or contradict each
    other.
    """
    from exact_tokenizers import sentencepiece_bpe

    config = read_object(folder / "tokenizer_config.json")
    tokens = stored_tokens(folder, config)
    model, stored = folder / "tokenizer.model", folder / "tokenizer.json"
    special_tokens: dict[str, str] = {}  # name such as "bos_token" -> text
    if model.is_file() and not is_rank_table(model):
        proto = sentencepiece_bpe.read_sentencepiece_model(model)
        tokenizer = sentencepiece_bpe.build_fast_tokenizer(proto)
        special_tokens = {
            name: text
            for name, text in sentencepiece_bpe.tokenizer_config(proto).items()
            if name in SPECIAL_TOKEN_NAMES
        }
        if stored.is_file() and not has_same_pieces(stored, model):
            raise ValueError(
                f"{stored} and {model} are different tokenizers; remove the file that does not belong to this model"
            )
    else:
        tokenizer = read_tokenizer(stored)
    settings = settings_with_special_tokens(folder, config)
    special_tokens |= {name: text for name in SPECIAL_TOKEN_NAMES if (text := token_text(settings.get(name)))}
    add_tokens(tokenizer, tokens, folder)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    missing = sorted({text for text in special_tokens.values() if text not in vocabulary})
    if missing:
        raise ValueError(f"{folder}: the special token {missing[0]!r} has no id; download its tokenizer files again")
    if model.is_file() or (config.get("tokenizer_class") or default_class(folder)) in INEXACT:
        set_bos_and_eos(tokenizer, special_tokens, config)  # other classes follow tokenizer.json
    additional = settings.get("additional_special_tokens") or []
    dropped = () if keep_own_code and has_own_code(config) else (*DROPPED, "auto_map")
    kept = {name: value for name, value in config.items() if name not in (*dropped, *SPECIAL_TOKEN_NAMES)}
    kept |= {"tokenizer_class": GENERIC[0], "clean_up_tokenization_spaces": False} | special_tokens
    if additional:
        kept["additional_special_tokens"] = [token_text(token) for token in additional]
    text = json.dumps(kept, indent=2, ensure_ascii=False)
    return {"tokenizer.json": tokenizer.to_str(pretty=True), "tokenizer_config.json": text + "\n"}


def settings_with_special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a folder's tokenizer_config.json (`config`) and special_tokens_map.json.

    special_tokens_map.json takes precedence, but is not read if tokenizer_config.json lists the added tokens
    (_from_pretrained in tokenization_utils_base.py of transformers 5.19).
    """
    mapped = {} if "added_tokens_decoder" in config else read_object(folder / "special_tokens_map.json")
    return {**config, **{name: token for name, token in mapped.items() if token}}


def stored_texts(folder: Path) -> dict[str, str]:
    """Return name -> content of the tokenizer files of the generic class in a folder."""
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    return {name: read_text(folder / name) for name in names if (folder / name).is_file()}


def old_configurations(folder: Path) -> dict[str, dict[str, Any]]:
    """Return name -> content of the folder's configurations that have old BOS and EOS ids (special_ids.py)."""
    found = {name: read_object(folder / name) for name in ("config.json", "generation_config.json")}
    return {name: content for name, content in found.items() if has_old_ids(content)}


def corrected_configurations(folder: Path, tokenizer_files: Mapping[str, str]) -> dict[str, str]:
    """Return name -> content of the old configurations, with their ids replaced by the tokenizer's; prints a notice.

    tokenizer_files: the contents of tokenizer.json and tokenizer_config.json; without these, nothing is corrected.
    """
    old, names = old_configurations(folder), ("tokenizer.json", "tokenizer_config.json")
    if not old or not all(name in tokenizer_files for name in names):
        return {}
    from tokenizers import Tokenizer

    tokenizer, config = Tokenizer.from_str(tokenizer_files[names[0]]), json.loads(tokenizer_files[names[1]])
    bos, eos = (tokenizer.token_to_id(token_text(config.get(name))) for name in ("bos_token", "eos_token"))
    replaced = {name: corrected_ids(content, bos, eos) for name, content in old.items()}
    if any(replaced.values()):
        print_notice(str(folder).removesuffix(".partial"), bos, eos)
    return {name: json.dumps(old[name] | ids, indent=2) + "\n" for name, ids in replaced.items() if ids}


def stored_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, "AddedToken"]:
    """Return id -> token for the added tokens that the tokenizer files of a folder list."""
    from tokenizers import AddedToken

    special: set[str] = set()
    for value in read_object(folder / "special_tokens_map.json").values():
        special |= {token_text(token) for token in (value if isinstance(value, list) else [value])}
    tokens: dict[int, AddedToken] = {}
    for text, index in read_object(folder / "added_tokens.json").items():
        tokens[int(index)] = AddedToken(text, special=text in special, normalized=False)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ValueError(
            f"{folder}/tokenizer_config.json: added_tokens_decoder is not an object; download its tokenizer files again"
        )
    listed = [(int(index), entry) for index, entry in decoder.items()]
    listed += [(entry["id"], entry) for entry in read_object(folder / "tokenizer.json").get("added_tokens", [])]
    for index, entry in listed:
        flags = {name: bool(entry.get(name)) for name in ("special", "lstrip", "rstrip", "single_word")}
        if index in tokens and tokens[index].content != entry["content"]:
            raise ValueError(
                f"{folder} gives id {index} to {tokens[index].content!r} in one tokenizer file and to "
                f"{entry['content']!r} in another; download its tokenizer files again"
            )
        tokens[index] = AddedToken(entry["content"], normalized=False, **flags)
    return tokens


def add_tokens(tokenizer: "Tokenizer", tokens: "Mapping[int, AddedToken]", folder: Path) -> None:
    """Add tokens in the order of their ids; raises ValueError if a token would get another id."""
    for index, token in sorted(tokens.items()):
        known = tokenizer.token_to_id(token.content)
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        if (size if known is None else known) != index:
            fact = f"which does not follow its {size} pieces" if known is None else f"but it is its piece {known}"
            raise ValueError(
                f"{folder} adds {token.content!r} with id {index}, {fact}; download its tokenizer files again"
            )
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])


def has_same_pieces(stored: Path, model: Path) -> bool:
    """Return whether a tokenizer.json has the pieces of a SentencePiece tokenizer.model with the same ids."""
    from exact_tokenizers import sentencepiece_bpe

    pieces = sentencepiece_bpe.read_sentencepiece_model(model).pieces
    own = read_tokenizer(stored).get_vocab(with_added_tokens=False)
    return own == {piece.piece: index for index, piece in enumerate(pieces)}


def read_tokenizer(file: Path) -> "Tokenizer":
    """Return the tokenizer in a tokenizer.json; raises ValueError if it is damaged."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises the base class Exception
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())}); download it again") from None


def set_bos_and_eos(tokenizer: "Tokenizer", special_tokens: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Make the tokenizer add BOS before a text and EOS after it.

    BOS is not added if add_bos_token is false; EOS is added only if add_eos_token is true.
    """
    from exact_tokenizers.sentencepiece_bpe import special_token_template

    bos, eos = special_tokens.get("bos_token"), special_tokens.get("eos_token")
    before = [bos] if bos is not None and config.get("add_bos_token") is not False else []
    after = [eos] if eos is not None and config.get("add_eos_token") else []
    if bos is None and not after:
        return
    sides: list[dict[str, Any]] = [{text: tokenizer.token_to_id(text) for text in side} for side in (before, after)]
    tokenizer.post_processor = special_token_template(*sides)


def token_text(token: Any) -> str:
    """Return the text of a token, which files store as a string or as an object with `content`; "" if it is not set.

    Raises ValueError for anything else.
    """
    text = (token.get("content") if isinstance(token, dict) else token) or ""
    if not isinstance(text, str):
        raise ValueError(f"the special token {text!r} is not text; download the tokenizer files again")
    return text


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without its byte order mark; raises ValueError if the file is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} if there is no file; raises ValueError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (not a JSON object); download it again")
    return content
