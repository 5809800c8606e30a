"""Convert a checkpoint's tokenizer to GGUF: text and type of every token, scores or merges, and special tokens.

llama.cpp tokenizes with these tables. A SentencePiece `tokenizer.model` gives pieces and scores; a byte-level BPE
`tokenizer.json` gives vocabulary, merges, and the name of one of llama.cpp's pre-tokenizers. A tokenizer for which
llama.cpp would return different ids than transformers is an error. Format: docs/gguf.md of the ggml project.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chat_prompts.template_files import folder_template
from checkpoint_io.checkpoint_folders import read_json
from exact_tokenizers.sentencepiece_bpe import (  # GGUF uses SentencePiece's token types
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_sentencepiece_model,
)
from exact_tokenizers.special_ids import corrected_ids
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder, reports_damage, settings_with_special_tokens
from model_folders.own_code import OwnCodeError, from_folder
from tokenizer_files.llama_tokenizer import PATTERN

NO_SCORE = -10000.0  # score of tokens that are not in the SentencePiece model
SPACE = "▁"


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's pre-tokenizers for byte-level BPE, as tokenizer.json describes it."""

    steps: tuple[dict[str, Any], ...]  # steps of the pre-tokenizer in tokenizer.json, without trim_offsets
    ignore_merges: bool = False
    normalizers: tuple[str, ...] = ()  # accepted with a notice, since llama.cpp does not normalise text
    adds_bos: bool = False  # whether llama.cpp adds BOS if a file has no tokenizer.ggml.add_bos_token


def split_at(pattern: str) -> tuple[dict[str, Any], ...]:
    """Return the steps that split text with a regular expression, then map bytes to characters."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


GPT2_STEP = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}  # splits like GPT-2
PRE_TOKENIZERS = {
    "llama-bpe": PreTokenizer(split_at(PATTERN), ignore_merges=True, adds_bos=True),  # LLaMA 3
    # Qwen2, Qwen2.5, Qwen3. Their tokenizers apply NFC, so text that is not in NFC gets other ids in llama.cpp.
    "qwen2": PreTokenizer(split_at(PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")), normalizers=("NFC",)),
    "smollm": PreTokenizer(({"type": "Digits", "individual_digits": True}, GPT2_STEP)),  # SmolLM, SmolLM2
    "gpt-2": PreTokenizer((GPT2_STEP,)),
}


@dataclass
class GgufVocabulary:
    """The tokens in id order with their types, and the tokenizer's settings."""

    model: str  # "llama" (SentencePiece) or "gpt2" (byte-level BPE)
    pre: str  # name of the pre-tokenizer in llama.cpp
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)  # SentencePiece only
    space_prefix: bool | None = None  # SentencePiece only
    special_ids: dict[str, int] = field(default_factory=dict)  # bos, eos, eot, eom, unk, pad -> id
    special: Any = None  # gguf.SpecialVocab: the special ids, whether BOS and EOS are added, merges, chat template
    notices: list[str] = field(default_factory=list)

    def pad(self, size: int) -> None:
        """Append unused tokens until there are `size` tokens."""
        missing = range(len(self.tokens), size)
        self.tokens += [f"[PAD{index}]" for index in missing]
        self.types += [UNUSED for _ in missing]
        if self.model == "llama":
            self.scores += [NO_SCORE for _ in missing]


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if the file does not exist."""
    return read_json(path) if path.is_file() else {}


@reports_damage
def read_vocabulary(folder: Path, rows: int) -> GgufVocabulary:
    """Return the tokenizer of a checkpoint folder, padded to the `rows` of its embedding.

    Raises FileNotFoundError without a tokenizer. Raises ValueError if its kind is not supported, its files contradict
    each other, a token occurs twice, or there are more tokens than rows.
    """
    if (folder / "tokenizer.model").is_file():
        vocabulary = from_sentencepiece(folder)
    elif (folder / "tokenizer.json").is_file():
        vocabulary = from_byte_level(folder / "tokenizer.json")
    else:
        raise FileNotFoundError(
            f"{folder} has no tokenizer.model and no tokenizer.json; copy the model's own tokenizer files there"
        )
    added = read_added_tokens(folder)
    out_of_range = [*enumerate(vocabulary.tokens[rows:], rows), *((entry["id"], entry["content"]) for entry in added)]
    for index, token in out_of_range:
        if index >= rows:
            raise ValueError(
                f"{folder}: token {token!r} has id {index}, but the embedding has only {rows} rows; remove it from "
                "the tokenizer or resize the embedding"
            )
    vocabulary.pad(rows)
    for entry in added:
        add_token(vocabulary, entry, folder)
    set_special_ids(vocabulary, folder)
    vocabulary.special = read_special(vocabulary, folder)
    compare_with_transformers(vocabulary, folder)
    if vocabulary.model == "llama":  # llama.cpp matches user-defined tokens before it replaces spaces
        for index, kind in enumerate(vocabulary.types):
            if kind == USER_DEFINED:
                vocabulary.tokens[index] = vocabulary.tokens[index].replace(SPACE, " ")
    first_ids: dict[str, int] = {}
    for index, token in enumerate(vocabulary.tokens):
        if (first := first_ids.setdefault(token, index)) != index:
            raise ValueError(
                f"{folder}: tokens {first} and {index} are both {token!r}, which llama.cpp refuses; correct the "
                "tokenizer"
            )
    return vocabulary


def from_sentencepiece(folder: Path) -> GgufVocabulary:
    """Return the vocabulary of tokenizer.model; ValueError if the folder's tokenizer.json has other pieces."""
    proto = read_sentencepiece_model(folder / "tokenizer.model")
    pieces = [piece.piece for piece in proto.pieces]
    path = folder / "tokenizer.json"
    if path.is_file():
        table = pieces_by_id(path)
        added = {entry["id"]: entry["content"] for entry in read_added_tokens(folder)}
        for index in sorted({*range(len(pieces)), *(table.keys() - added.keys())}):
            piece = pieces[index] if index < len(pieces) else None
            if table.get(index, added.get(index)) != piece:
                raise ValueError(
                    f"{path} has {table.get(index)!r} for id {index}, but tokenizer.model has {piece!r}; "
                    "rebuild tokenizer.json: tools/build_tokenizer.py"
                )
    trainer = proto.trainer_spec
    ids = {"bos": trainer.bos_id, "eos": trainer.eos_id, "unk": trainer.unk_id, "pad": trainer.pad_id}
    return GgufVocabulary(
        "llama", "default", pieces, [piece.type for piece in proto.pieces], [piece.score for piece in proto.pieces],
        proto.normalizer_spec.add_dummy_prefix, {role: index for role, index in ids.items() if index >= 0},
    )  # fmt: skip


def pieces_by_id(path: Path) -> dict[int, str]:
    """Return {id: piece} of a tokenizer.json, without added tokens; ValueError if it is not BPE."""
    table = (read_json(path).get("model") or {}).get("vocab")
    if not isinstance(table, dict):
        raise ValueError(f"{path} has no BPE vocabulary; other tokenizers are not supported")
    return {index: token for token, index in table.items()}


def from_byte_level(path: Path) -> GgufVocabulary:
    """Return the vocabulary of a tokenizer.json.

    Raises ValueError unless the tokenizer is a byte-level BPE that splits text like one of PRE_TOKENIZERS.
    """
    content = read_json(path)
    model = content.get("model") or {}
    if model.get("byte_fallback"):
        raise ValueError(f"{path} was made from a SentencePiece model; copy its tokenizer.model into the same folder")
    outer = content.get("pre_tokenizer") or {}
    steps = [
        {key: value for key, value in step.items() if key != "trim_offsets"}  # without effect on ids
        for step in outer.get("pretokenizers") or [outer]
    ]
    name = next((name for name, known in PRE_TOKENIZERS.items() if list(known.steps) == steps), "")
    if not name:
        raise ValueError(
            f"{path} does not split text like LLaMA 3, Qwen2, SmolLM or GPT-2 ({model.get('type')}, "
            f"{[step.get('type') for step in steps]}); other tokenizers are not supported"
        )
    ignore_merges, normalizers = PRE_TOKENIZERS[name].ignore_merges, PRE_TOKENIZERS[name].normalizers
    normalizer = (content.get("normalizer") or {}).get("type")
    if model.get("type") != "BPE" or bool(model.get("ignore_merges")) != ignore_merges:
        raise ValueError(
            f"{path} is not BPE with ignore_merges={ignore_merges}, which llama.cpp's {name} requires; such tokenizers "
            "are not supported"
        )
    if normalizer not in (None, *normalizers):
        raise ValueError(f"{path}: normalizer {normalizer} is not supported by llama.cpp's {name}")
    table = pieces_by_id(path)
    vocabulary = GgufVocabulary("gpt2", name, [], [])
    vocabulary.pad(max(table, default=-1) + 1)
    for index, token in table.items():
        vocabulary.tokens[index], vocabulary.types[index] = token, NORMAL
    if normalizer:
        vocabulary.notices.append(
            f"llama.cpp does not apply {normalizer}; text that is not in this form gets other ids"
        )
    return vocabulary


def read_added_tokens(folder: Path) -> list[dict[str, Any]]:
    """Return the added tokens [{"id", "content", "special", …}] in id order, from the first file that lists them."""
    config = read_optional_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        entries = read_json(folder / "tokenizer.json").get("added_tokens", [])
    elif "added_tokens_decoder" in config:
        entries = [{"id": int(index), **entry} for index, entry in config["added_tokens_decoder"].items()]
    else:
        entries = [{"id": i, "content": token} for token, i in read_optional_json(folder / "added_tokens.json").items()]
    return sorted(entries, key=lambda entry: entry["id"])


def add_token(vocabulary: GgufVocabulary, entry: Mapping[str, Any], folder: Path) -> None:
    """Add a token with its type at its id; ValueError if the id belongs to another token."""
    index, content = entry["id"], entry["content"]
    kind = CONTROL if entry.get("special") else USER_DEFINED
    if vocabulary.types[index] == UNUSED:
        vocabulary.tokens[index], vocabulary.types[index] = content, kind
    elif vocabulary.tokens[index] != content:
        raise ValueError(
            f"{folder}: id {index} is {vocabulary.tokens[index]!r} and, as an added token, {content!r}; correct one of "
            "the two"
        )
    elif vocabulary.types[index] != UNKNOWN:
        vocabulary.types[index] = kind
    conditions = ("lstrip", "rstrip", "single_word", *(("normalized",) if vocabulary.model == "llama" else ()))
    if kind == USER_DEFINED and any(entry.get(name) for name in conditions):
        vocabulary.notices.append(f"llama.cpp matches the token {content!r} anywhere; ids around it may differ")


def set_special_ids(vocabulary: GgufVocabulary, folder: Path) -> None:
    """Set bos, eos, unk and pad to the tokens that the tokenizer's settings name.

    Without a name, an id from tokenizer.model is kept, or else the configuration's id is used. Two further end tokens
    become eot and eom; a notice names others. Raises ValueError if the tokenizer lacks a named token.
    """
    names = settings_with_special_tokens(folder, read_optional_json(folder / "tokenizer_config.json"))
    numbers = read_optional_json(folder / "config.json") | read_optional_json(folder / "generation_config.json")
    ids, special = {token: index for index, token in enumerate(vocabulary.tokens)}, vocabulary.special_ids
    numbers |= corrected_ids(numbers, special.get("bos"), special.get("eos"))
    for role in ("bos", "eos", "unk", "pad"):
        name = names.get(f"{role}_token")
        name = (name.get("content") if isinstance(name, Mapping) else name) or None  # "" in folders of 2023
        if name is not None and name not in ids:
            raise ValueError(f"{folder}: {role}_token is {name!r}, which the tokenizer does not have; correct the name")
        value: Any = numbers.get(f"{role}_token_id")  # a number, a list or None
        valid = [index for index in (value if isinstance(value, list) else [value]) if index in range(len(ids))]
        if name is not None:
            special[role] = ids[name]
        elif valid:
            special.setdefault(role, valid[0])
        if role == "eos":  # llama.cpp has two fields, eot and eom, for further end tokens
            ends = [index for index in valid if index != special.get("eos")]
            special |= dict(zip(("eot", "eom"), ends, strict=False))
            vocabulary.notices += [
                f"token {vocabulary.tokens[index]!r} ends a text in transformers, but in llama.cpp only if llama.cpp "
                "knows its name"
                for index in ends[2:]
            ]
    for index in special.values():
        if vocabulary.types[index] == USER_DEFINED:
            vocabulary.types[index] = CONTROL


def read_special(vocabulary: GgufVocabulary, folder: Path) -> Any:
    """Return the gguf package's SpecialVocab with merges, special ids and chat template."""
    from gguf import SpecialVocab

    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # hides a warning about templates for pairs of texts
    special = SpecialVocab(folder, load_merges=vocabulary.model == "gpt2", special_token_types=("bos", "eos"))
    special.special_token_ids = vocabulary.special_ids
    special.chat_template = folder_template(folder)  # if there are several, the package chooses another one
    return special


def compare_with_transformers(vocabulary: GgufVocabulary, folder: Path) -> None:
    """Set `special.add_special_token`: whether transformers adds BOS and EOS to a text.

    transformers may read other files of the folder. Raises ValueError if it has a token that the vocabulary lacks, has
    another BOS or EOS, or adds other tokens to a text.
    """
    from transformers import AutoTokenizer

    exact = exact_tokenizer_folder(folder)
    try:
        tokenizer: Any = from_folder(AutoTokenizer, exact, False)
    except OwnCodeError:
        raise
    except Exception as error:  # the tokenizer libraries raise exceptions of many classes
        raise ValueError(f"{folder}: the tokenizer cannot be read ({' '.join(str(error).split())})") from error
    files = f"{folder}: its tokenizer files contradict each other"
    remedy = "download them again, or rebuild them: tools/build_tokenizer.py"
    for token, index in tokenizer.get_vocab().items():
        own = vocabulary.tokens[index] if index < len(vocabulary.tokens) else None
        if own != token:
            raise ValueError(f"{files} (id {index} is {token!r} in transformers, {own!r} here); {remedy}")
    special = vocabulary.special_ids
    for role in ("bos", "eos"):
        index = getattr(tokenizer, f"{role}_token_id")
        if index is not None and index != special.get(role):
            raise ValueError(
                f"{files} ({role}_token has id {index} in transformers, {special.get(role)} here); {remedy}"
            )
    ids = tokenizer("").input_ids
    adds = {"bos": ids[:1] == [special.get("bos")], "eos": ids[-1:] == [special.get("eos")]}
    if ids != [special[role] for role in ("bos", "eos") if adds[role]]:
        raise ValueError(f"{files} (transformers adds {ids} to a text, which llama.cpp cannot do); {remedy}")
    vocabulary.special.add_special_token = adds
