"""Map a checkpoint's tokenizer to GGUF: text and type of every token, scores or merges, special tokens.

llama.cpp tokenizes with these tables. A SentencePiece `tokenizer.model` gives pieces and scores; a byte-level BPE
`tokenizer.json` gives vocabulary, merges, and the name of one of llama.cpp's pre-tokenizers. A tokenizer for which
llama.cpp would return different ids than transformers is an error. Format: docs/gguf.md of the ggml project.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint_io.checkpoint_folders import read_json
from tokenizer_files.sentencepiece_tokenizer import (  # GGUF uses SentencePiece's token types
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_sentencepiece_model,
)

NO_SCORE = -10000.0  # score of tokens that are not in the SentencePiece model
SPACE = "▁"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Regular expression of a pre-tokenizer -> its name in llama.cpp, ignore_merges, accepted normalizers. llama.cpp never
# normalises, so with Qwen2's NFC the ids of text that is not in NFC differ.
CUTS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    WORDS + r"\p{N}{1,3}" + REST: ("llama-bpe", True, ()),  # LLaMA 3
    WORDS + r"\p{N}" + REST: ("qwen2", False, ("NFC",)),  # Qwen2, Qwen2.5, Qwen3
}


@dataclass
class GgufVocabulary:
    """The tokens in id order with their types, and the tokenizer's settings."""

    model: str  # "llama" (SentencePiece) or "gpt2" (byte-level BPE)
    pre: str  # name of the pre-tokenizer in llama.cpp
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)  # SentencePiece only
    merges: list[str] = field(default_factory=list)  # BPE only, "left right"
    special: dict[str, int] = field(default_factory=dict)  # bos, eos, eot, eom, unk, pad -> id
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool | None = None  # SentencePiece only
    notices: list[str] = field(default_factory=list)

    def pad(self, rows: int) -> None:
        """Append unused tokens until there are `rows` tokens."""
        missing = range(len(self.tokens), rows)
        self.tokens += [f"[PAD{index}]" for index in missing]
        self.types += [UNUSED for _ in missing]
        if self.model == "llama":
            self.scores += [NO_SCORE for _ in missing]


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if the file does not exist."""
    return read_json(path) if path.is_file() else {}


def read_vocabulary(folder: Path, rows: int) -> GgufVocabulary:
    """Return the tokenizer of a checkpoint folder, padded to the `rows` of its embedding.

    Raises FileNotFoundError without a tokenizer; ValueError if its kind is not supported, its files contradict each
    other, or it has more tokens than the embedding has rows.
    """
    if (folder / "tokenizer.model").is_file():
        vocabulary = from_sentencepiece(folder)
    elif (folder / "tokenizer.json").is_file():
        vocabulary = from_byte_level(folder / "tokenizer.json")
    else:
        raise FileNotFoundError(f"{folder} has no tokenizer.model and no tokenizer.json; copy its tokenizer there")
    added = read_added(folder)
    beyond = [*enumerate(vocabulary.tokens[rows:], rows), *((entry["id"], entry["content"]) for entry in added)]
    for index, token in beyond:
        if index >= rows:
            raise ValueError(
                f"{folder}: token {token!r} has id {index}, but the embedding has only {rows} rows; remove it from "
                "the tokenizer or resize the embedding"
            )
    vocabulary.pad(rows)
    for entry in added:
        add_added(vocabulary, entry, folder)
    set_special(vocabulary, folder)
    set_ends(vocabulary, folder)
    if vocabulary.model == "llama":  # llama.cpp finds these before it replaces spaces
        for index, kind in enumerate(vocabulary.types):
            if kind == USER_DEFINED:
                vocabulary.tokens[index] = vocabulary.tokens[index].replace(SPACE, " ")
    seen: dict[str, int] = {}
    for index, token in enumerate(vocabulary.tokens):
        if seen.setdefault(token, index) != index:
            raise ValueError(f"{folder}: tokens {seen[token]} and {index} are both {token!r}, which llama.cpp refuses")
    return vocabulary


def from_sentencepiece(folder: Path) -> GgufVocabulary:
    """Return the vocabulary of tokenizer.model; ValueError if the folder's tokenizer.json has other pieces."""
    proto = read_sentencepiece_model(folder / "tokenizer.model")
    pieces = [piece.piece for piece in proto.pieces]
    path = folder / "tokenizer.json"
    if path.is_file():
        table = pieces_of(path)
        added = {entry["id"]: entry["content"] for entry in read_added(folder)}
        for index in sorted({*range(len(pieces)), *(table.keys() - added.keys())}):
            piece = pieces[index] if index < len(pieces) else None
            if table.get(index, added.get(index)) != piece:
                raise ValueError(
                    f"{path} has {table.get(index)!r} for id {index}, tokenizer.model {piece!r}; rebuild "
                    "tokenizer.json: tools/build_tokenizer.py"
                )
    trainer = proto.trainer_spec
    ids = {"bos": trainer.bos_id, "eos": trainer.eos_id, "unk": trainer.unk_id, "pad": trainer.pad_id}
    return GgufVocabulary(
        "llama", "default", pieces, [piece.type for piece in proto.pieces], [piece.score for piece in proto.pieces],
        special={role: index for role, index in ids.items() if index >= 0},
        space_prefix=proto.normalizer_spec.add_dummy_prefix,
    )  # fmt: skip


def pieces_of(path: Path) -> dict[int, str]:
    """Return {id: piece} of a tokenizer.json, without added tokens; ValueError if it is not BPE."""
    table = (read_json(path).get("model") or {}).get("vocab")
    if not isinstance(table, dict):
        raise ValueError(f"{path} has no BPE vocabulary; only BPE is supported")
    return {index: token for token, index in table.items()}


def from_byte_level(path: Path) -> GgufVocabulary:
    """Return vocabulary and merges of a tokenizer.json.

    Raises ValueError unless it is a byte-level BPE that splits text like LLaMA 3 or Qwen2.
    """
    content = read_json(path)
    model = content.get("model") or {}
    if model.get("byte_fallback"):
        raise ValueError(f"{path} was made from a SentencePiece model; copy its tokenizer.model beside it")
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers") or [steps]
    pattern = (steps[0].get("pattern") or {}).get("Regex", "")
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    plain = len(steps) == 2 and steps[0] == cut and not steps[1].get("add_prefix_space")
    if not plain or steps[1].get("type") != "ByteLevel" or steps[1].get("use_regex") or pattern not in CUTS:
        raise ValueError(
            f"{path} splits text in another way than LLaMA 3 and Qwen2 ({model.get('type')}, "
            f"{[step.get('type') for step in steps]}); other tokenizers are not supported"
        )
    name, ignore_merges, normalizers = CUTS[pattern]
    normalizer = (content.get("normalizer") or {}).get("type")
    if model.get("type") != "BPE" or bool(model.get("ignore_merges")) != ignore_merges:
        raise ValueError(f"{path}: llama.cpp's {name} is BPE with ignore_merges={ignore_merges}; this one is different")
    if normalizer not in (None, *normalizers):
        raise ValueError(f"{path}: normalizer {normalizer} is not supported by llama.cpp's {name}")
    table = pieces_of(path)
    vocabulary = GgufVocabulary("gpt2", name, [], [])
    vocabulary.pad(max(table, default=-1) + 1)
    for index, token in table.items():
        vocabulary.tokens[index], vocabulary.types[index] = token, NORMAL
    merges = (pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", []))
    vocabulary.merges = [f"{left} {right}" for left, right in merges]
    if normalizer:
        vocabulary.notices.append(f"llama.cpp does not apply {normalizer}; text not in that form gets different ids")
    return vocabulary


def read_added(folder: Path) -> list[dict[str, Any]]:
    """Return the added tokens [{"id", "content", "special", …}] in id order, from the first file that lists them."""
    config = read_optional_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        entries = read_json(folder / "tokenizer.json").get("added_tokens", [])
    elif "added_tokens_decoder" in config:
        entries = [{"id": int(index), **entry} for index, entry in config["added_tokens_decoder"].items()]
    else:
        entries = [{"id": i, "content": token} for token, i in read_optional_json(folder / "added_tokens.json").items()]
    return sorted(entries, key=lambda entry: entry["id"])


def add_added(vocabulary: GgufVocabulary, entry: Mapping[str, Any], folder: Path) -> None:
    """Add a token with its type at its id; ValueError if the id belongs to another token."""
    index, content = entry["id"], entry["content"]
    kind = CONTROL if entry.get("special") else USER_DEFINED
    if vocabulary.types[index] == UNUSED:
        vocabulary.tokens[index], vocabulary.types[index] = content, kind
    elif vocabulary.tokens[index] != content:
        raise ValueError(
            f"{folder}: id {index} is {vocabulary.tokens[index]!r} and, as an added token, {content!r}; correct it"
        )
    elif vocabulary.types[index] != UNKNOWN:
        vocabulary.types[index] = kind
    looks = ("lstrip", "rstrip", "single_word", *(("normalized",) if vocabulary.model == "llama" else ()))
    if kind == USER_DEFINED and any(entry.get(name) for name in looks):
        vocabulary.notices.append(f"llama.cpp matches {content!r} anywhere; ids around it may differ")


def set_special(vocabulary: GgufVocabulary, folder: Path) -> None:
    """Set bos, eos, unk and pad from the tokenizer's token names, else from the configuration's ids.

    Further end tokens become eot and eom. Raises ValueError if the tokenizer lacks a named token.
    """
    names = read_optional_json(folder / "special_tokens_map.json") | read_optional_json(
        folder / "tokenizer_config.json"
    )
    numbers = read_optional_json(folder / "config.json") | read_optional_json(folder / "generation_config.json")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    for role in ("bos", "eos", "unk", "pad"):
        name = names.get(f"{role}_token")
        name = name.get("content") if isinstance(name, Mapping) else name
        if name is not None and name not in ids:
            raise ValueError(f"{folder}: {role}_token is {name!r}, which the tokenizer does not have; correct it")
        listed = as_list(numbers.get(f"{role}_token_id"))
        if name is not None:
            vocabulary.special[role] = ids[name]
        elif listed and role not in vocabulary.special and 0 <= listed[0] < len(ids):
            vocabulary.special[role] = listed[0]
    # llama.cpp has two more fields for further end tokens.
    ends = [i for i in as_list(numbers.get("eos_token_id")) if i != vocabulary.special.get("eos") and 0 <= i < len(ids)]
    vocabulary.special |= dict(zip(("eot", "eom"), ends, strict=False))
    vocabulary.notices += [
        f"token {vocabulary.tokens[index]!r} ends a text in transformers, but in llama.cpp only if it knows its name"
        for index in ends[2:]
    ]
    for index in vocabulary.special.values():
        if vocabulary.types[index] == USER_DEFINED:
            vocabulary.types[index] = CONTROL


def as_list(value: object) -> list[int]:
    """Return a configuration's token ids as a list; value: a number, a list or None."""
    return [value] if isinstance(value, int) else list(value) if isinstance(value, list) else []


def set_ends(vocabulary: GgufVocabulary, folder: Path) -> None:
    """Set add_bos and add_eos from tokenizer_config.json, else from the ids that tokenizer.json gives a text."""
    from tokenizers import Tokenizer

    config, path = read_optional_json(folder / "tokenizer_config.json"), folder / "tokenizer.json"
    said = {role: config.get(f"add_{role}_token") for role in ("bos", "eos")}
    if any(isinstance(value, bool) for value in said.values()):
        adds = {role: bool(value) for role, value in said.items()}
    elif path.is_file():
        try:
            ids = Tokenizer.from_file(str(path)).encode("a").ids
        except Exception as error:  # tokenizers raises no narrower type
            raise ValueError(f"{path} is damaged ({error}); download it again") from None
        around = {"bos": ids[:1], "eos": ids[-1:]}
        adds = {role: around[role] == [vocabulary.special.get(role)] for role in around}
    else:
        adds = {"bos": True, "eos": False}  # LLaMA's defaults
    vocabulary.add_bos = adds["bos"] and "bos" in vocabulary.special
    vocabulary.add_eos = adds["eos"] and "eos" in vocabulary.special


def read_template(folder: Path) -> str:
    """Return the folder's chat template, or ""."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    older = read_optional_json(folder / "tokenizer_config.json").get("chat_template") or ""
    if isinstance(older, list):  # several named templates
        older = next((entry["template"] for entry in older if entry.get("name") == "default"), "")
    return str(older)


def add_vocabulary(writer: Any, vocabulary: GgufVocabulary, template: str) -> None:
    """Add the tokenizer's keys and the chat template to a gguf.GGUFWriter."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    keys = {"unk": "unknown", "pad": "padding"}
    for role, index in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{keys.get(role, role)}_token_id", index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.space_prefix)
    if template:
        writer.add_chat_template(template)
