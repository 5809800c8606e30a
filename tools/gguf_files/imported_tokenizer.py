"""Rebuild a tokenizer from a GGUF file's tables: tokens with types, and scores or merges; inverts gguf_vocabulary.py.

A SentencePiece vocabulary becomes a tokenizer.model again, from which an exact tokenizer.json is built and compared
with SentencePiece. A byte-level BPE becomes a tokenizer.json. Format: docs/gguf.md of the ggml project.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_io.checkpoint_folders import write_json
from exact_tokenizers.sentencepiece_bpe import CONTROL, UNUSED, USER_DEFINED, special_token_template

from gguf_files.gguf_header import GgufFile
from gguf_files.gguf_vocabulary import PRE_TOKENIZERS, SPACE

KEY = "tokenizer.ggml"
TYPES = range(1, 7)  # SentencePiece's token types
ROLES = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id",
    "eot": "eot_token_id", "eom": "eom_token_id",
}  # fmt: skip
SENTENCEPIECE_ROLES = {"bos": 1, "eos": 2, "unk": 0}  # llama.cpp's defaults
BYTE_LEVEL_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@dataclass(frozen=True)
class ImportedTokenizer:
    """The tables of a GGUF file's tokenizer."""

    path: Path  # the GGUF file
    model: str  # "llama" (SentencePiece) or "gpt2" (byte-level BPE)
    tokens: list[str]  # without unused tokens at the end
    types: list[int]
    roles: dict[str, int]  # bos, eos, unk, pad, eot, eom -> id
    adds: tuple[bool, bool]  # whether BOS is added before a text, and EOS after it
    tables: dict[str, Any]  # the metadata whose keys begin with KEY, by the rest of the key

    @property
    def token_ids(self) -> dict[str, Any]:
        """Return bos_token_id, eos_token_id (a list if several tokens end an answer) and pad_token_id."""
        ends = list(dict.fromkeys(self.roles[role] for role in ("eos", "eot", "eom") if role in self.roles))
        ids = {"bos": self.roles.get("bos"), "eos": ends[0] if len(ends) == 1 else ends, "pad": self.roles.get("pad")}
        return {f"{role}_token_id": value for role, value in ids.items() if value not in (None, [])}


def damage_error(file: GgufFile, fact: str) -> ValueError:
    """Return a ValueError for a damaged file. fact: the damage."""
    return ValueError(f"{file.path} is damaged: {fact}; download it again")


def read_imported_tokenizer(file: GgufFile, rows: int) -> ImportedTokenizer:
    """Return the tokenizer of a GGUF file. rows: number of embeddings.

    Raises ValueError for a kind of tokenizer that is not supported, and for tables that contradict each other.
    """
    tables = {key.removeprefix(f"{KEY}."): value for key, value in file.metadata.items() if key.startswith(KEY)}
    model, pre = tables.get("model"), str(tables.get("pre"))
    if not isinstance(model, str) or model not in ("llama", "gpt2"):
        raise ValueError(
            f"{file.path}: the tokenizer {str(model)[:80]!r} is not supported; supported are llama (SentencePiece BPE) "
            "and gpt2 (byte-level BPE)"
        )
    if model == "gpt2" and pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"{file.path}: the pre-tokenizer {pre[:80]!r} is not supported; supported are {', '.join(PRE_TOKENIZERS)}"
        )
    tokens, types = tables.get("tokens"), tables.get("token_type")
    if not isinstance(tokens, list) or not isinstance(types, np.ndarray) or not len(tokens) == len(types) == rows:
        raise damage_error(file, f"tokens and token_type are not tables of {rows:,} tokens")
    kinds = types.tolist()  # the dtype is checked, too, because `True in TYPES` and `1.0 in TYPES` hold
    if types.dtype.kind not in "iu" or any(kind not in TYPES for kind in kinds):
        raise damage_error(file, "token_type has a value other than 1 to 6")
    used = max((index for index, kind in enumerate(kinds) if kind != UNUSED), default=-1) + 1
    roles = dict(SENTENCEPIECE_ROLES) if model == "llama" else {}
    for role, key in ROLES.items():
        if key in tables:
            roles[role] = tables[key]
    for role, index in roles.items():
        if type(index) is not int or index not in range(used):
            raise damage_error(file, f"{ROLES[role]} is {str(index)[:80]}, not the id of a token")
    if len(set(tokens[:used])) != used:
        raise damage_error(file, "a token is listed twice")
    defaults = {"bos": model == "llama" or PRE_TOKENIZERS[pre].adds_bos, "eos": False}
    adds = {role: tables.get(f"add_{role}_token", default) for role, default in defaults.items()}
    switches = {f"add_{role}_token": value for role, value in adds.items()}
    for name, value in {**switches, "add_space_prefix": tables.get("add_space_prefix", True)}.items():
        if not isinstance(value, bool):
            raise damage_error(file, f"{name} is {str(value)[:80]}, not true or false")
    added = adds["bos"] and "bos" in roles, adds["eos"] and "eos" in roles
    return ImportedTokenizer(file.path, model, tokens[:used], kinds[:used], roles, added, tables)


def write_imported_tokenizer(tokenizer: ImportedTokenizer, folder: Path, context: int) -> str:
    """Write the tokenizer's files into a folder; return the result of its check as a phrase.

    context: the model's context in tokens. Raises ValueError if no tokenizer can be built from the tables, or if it
    would give other ids.
    """
    if tokenizer.model == "llama":
        model, compared = sentencepiece_tokenizer(tokenizer, folder)
        phrase = f"equal to SentencePiece on {compared} texts"
    else:
        model, phrase = byte_level_tokenizer(tokenizer), f"byte-level BPE like {tokenizer.tables['pre']}"
    for index, token in enumerate(tokenizer.tokens):
        if tokenizer.types[index] != UNUSED and model.token_to_id(token) != index:
            fact = f"token {token[:80]!r} would not get its id {index}"
            raise ValueError(f"{tokenizer.path}: {fact}, so the tokenizer is not supported")
    model.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    roles = {
        f"{role}_token": tokenizer.tokens[tokenizer.roles[role]]
        for role in ("bos", "eos", "unk", "pad")
        if role in tokenizer.roles
    }
    write_json(folder / "tokenizer_config.json", settings | {"model_max_length": context} | roles)
    return phrase


def added_tokens(tokenizer: ImportedTokenizer) -> list[dict[str, Any]]:
    """Return the control and user-defined tokens as tokenizer.json lists them."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, **plain, "special": kind == CONTROL}
        for index, (token, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]


def post_processor(tokenizer: ImportedTokenizer) -> Any:
    """Return the post-processor that adds BOS and EOS; None if neither is added."""
    before, after = (
        {tokenizer.tokens[tokenizer.roles[role]]: tokenizer.roles[role]} if added else {}
        for role, added in zip(("bos", "eos"), tokenizer.adds, strict=True)
    )
    return special_token_template(before, after) if before or after else None


def byte_level_tokenizer(tokenizer: ImportedTokenizer) -> Any:
    """Return a `tokenizers` object; ValueError if merges and tokens contradict each other."""
    from tokenizers import Tokenizer

    kind, added = PRE_TOKENIZERS[tokenizer.tables["pre"]], added_tokens(tokenizer)
    merges = tokenizer.tables.get("merges")
    if not isinstance(merges, list) or not all(" " in merge for merge in merges):
        raise ValueError(f"{tokenizer.path} has no merges of two tokens each; download it again")
    # As in files of transformers, the model's vocabulary does not contain the added tokens at the end of the table.
    last_plain = max((i for i, kind in enumerate(tokenizer.types) if kind not in (CONTROL, USER_DEFINED)), default=-1)
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": kind.ignore_merges,
        "vocab": {token: index for index, token in enumerate(tokenizer.tokens[: last_plain + 1])},
        "merges": [merge.split(" ", 1) for merge in dict.fromkeys(merges)],  # llama.cpp uses the first of equal merges
    }  # fmt: skip
    steps = [{"trim_offsets": True} | step if step["type"] == "ByteLevel" else step for step in kind.steps]
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": kind.normalizers[0]} if kind.normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": None,
        "decoder": BYTE_LEVEL_DECODER, "model": model,
    }  # fmt: skip
    try:
        result = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # tokenizers raises Exception
        raise ValueError(
            f"{tokenizer.path}: tokens and merges contradict each other ({str(error)[:200]}); download it again"
        ) from None
    result.post_processor = post_processor(tokenizer)
    return result


def sentencepiece_tokenizer(tokenizer: ImportedTokenizer, folder: Path) -> tuple[Any, int]:
    """Write tokenizer.model; return the exact `tokenizers` object and the number of texts compared with SentencePiece.

    Raises ValueError if SentencePiece cannot read the tables, or the ids of a text differ.
    """
    from exact_tokenizers import sentencepiece_bpe
    from sentencepiece import sentencepiece_model_pb2
    from tokenizer_files import tokenizer_check

    scores: Any = tokenizer.tables.get("scores")
    is_float32 = isinstance(scores, np.ndarray) and scores.dtype == np.float32
    if not is_float32 or len(scores) < len(tokenizer.tokens) or not np.isfinite(scores).all():
        raise ValueError(f"{tokenizer.path} has no scores for its tokens; download it again")
    messages: Any = sentencepiece_model_pb2  # its classes are created at import
    proto = messages.ModelProto()
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, len(tokenizer.tokens), True
    trainer.unk_id, trainer.bos_id, trainer.eos_id = (tokenizer.roles[role] for role in ("unk", "bos", "eos"))
    trainer.pad_id = tokenizer.roles.get("pad", -1)
    normalizer.name, normalizer.remove_extra_whitespaces = "identity", False
    normalizer.add_dummy_prefix = tokenizer.tables.get("add_space_prefix", True)
    for token, kind, score in zip(tokenizer.tokens, tokenizer.types, scores, strict=False):
        piece = token.replace(" ", SPACE) if kind == USER_DEFINED else token
        proto.pieces.add(piece=piece, score=float(score), type=kind)
    path = folder / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    try:
        reference = sentencepiece_bpe.load_sentencepiece(path)
        result = sentencepiece_bpe.build_fast_tokenizer(sentencepiece_bpe.read_sentencepiece_model(path))
        compared = tokenizer_check.check_equal_ids(result, reference, tokenizer_check.comparison_texts())
    except ValueError as error:
        raise ValueError(f"{tokenizer.path}: {error}") from None
    result.post_processor = post_processor(tokenizer)
    return result, compared
