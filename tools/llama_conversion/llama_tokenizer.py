"""LLaMA's tokenizer.model as an exact tokenizer.json: SentencePiece up to version 2, a table of ranks from 3 on.

The table has one line for each token: its bytes in base64, a space, its rank, which is its id. tiktoken cuts text into
words by a pattern and joins, over and over, the neighbours of a word whose joined token has the lowest rank. A merge
list says the same when it holds every split of every token into two, ordered by the joined token's rank; then
`tokenizers` gives tiktoken's ids. Behind the table's ids come 256 special tokens. Pattern and special tokens:
tokenizer.py of https://github.com/meta-llama/llama3 and of https://github.com/meta-llama/llama-models; the names of
3.1's as in its published tokenizer.json.

tools/convert_llama.py imports it.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_tokenizer
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
HARD_TEXTS = (
    "<|begin_of_text|>literal<|eot_id|>",
    "I'LL we'Ve it'ſ o'clock",
    " \r\n\r\n  x\r",
    "12345 1234567",
    "!!\n\n?",
)
SPECIALS = 256
# By place behind the table; every other one is <|reserved_special_token_N|>, N counting from 0.
NAMED = {
    "3": {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"},
    "3.1": {
        0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id",
        8: "eom_id", 9: "eot_id", 10: "python_tag",
    },
}  # fmt: skip
ENDS = {"3": (1, 9), "3.1": (1, 8, 9)}  # what ends an answer of a chat model: end_of_text, eom_id, eot_id


@dataclass(frozen=True)
class Words:
    """A tokenizer ready to be written, with what the model's configuration says of it."""

    tokenizer: Tokenizer
    config: Mapping[str, Any]  # tokenizer_config.json
    bos: int
    eos: int | list[int]
    oracle: Any  # encodes text as the original does; None where it is not installed
    original: str  # the oracle's name

    @property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)


def is_ranked(path: Path) -> bool:
    """Whether a tokenizer.model is a table of ranks, by its first line."""
    with path.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* 0\r?\n", file.readline(100)) is not None


def read_words(path: Path, version: str, instruct: bool) -> Words:
    """The tokenizer of a tokenizer.model of either kind; ValueError names the file where it is damaged.

    instruct: of a chat model, whose answers end in other tokens from version 3 on.
    """
    if is_ranked(path):
        return from_ranks(read_table(path), "3" if version == "3" else "3.1", instruct)
    proto = build_tokenizer.read_model(path)
    if proto.trainer_spec.bos_id < 0 or proto.trainer_spec.eos_id < 0:
        raise ValueError(f"{path} has no piece for the beginning or the end of a text; it is not LLaMA's")
    return Words(
        tokenizer=build_tokenizer.build(proto),
        config=build_tokenizer.tokenizer_config(proto),
        bos=proto.trainer_spec.bos_id,
        eos=proto.trainer_spec.eos_id,
        oracle=sentencepiece.SentencePieceProcessor(model_file=str(path)),
        original="SentencePiece",
    )


def read_table(path: Path) -> list[bytes]:
    """The tokens of a table of ranks, by rank; ValueError names the first line that is damaged."""
    tokens: list[bytes] = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        text, _, rank = line.partition(b" ")
        try:
            tokens.append(base64.b64decode(text, validate=True))
        except binascii.Error:
            rank = b""
        if rank != str(number).encode():
            raise ValueError(
                f"{path} is damaged in line {number + 1}: not a token in base64 and rank {number}; get it again"
            )
    if len(set(tokens)) != len(tokens) or not {bytes([value]) for value in range(256)} <= set(tokens):
        raise ValueError(f"{path} is damaged: a token stands there twice, or a single byte is missing; get it again")
    return tokens


def byte_letters() -> list[str]:
    """The letter for each byte in a byte-level tokenizer.json: itself where it prints, else the next from U+0100 on."""
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [value for value in range(256) if value not in printing]
    return [chr(value if value in printing else 256 + others.index(value)) for value in range(256)]


def special_tokens(release: str) -> list[str]:
    """The 256 special tokens of version 3, or of 3.1 and later, in the order of their ids."""
    named = NAMED[release]
    reserved = (f"reserved_special_token_{number}" for number in range(SPECIALS))
    return [f"<|{named[place] if place in named else next(reserved)}|>" for place in range(SPECIALS)]


def from_ranks(tokens: list[bytes], release: str, instruct: bool) -> Words:
    """The `tokenizers` object that gives tiktoken's ids, BOS in front; `release` is "3" or "3.1"."""
    letters = byte_letters()
    texts = ["".join(letters[value] for value in token) for token in tokens]
    pieces = [(text, -float(rank), build_tokenizer.NORMAL) for rank, text in enumerate(texts)]
    vocabulary = {text: rank for rank, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocabulary, build_tokenizer.ranked_merges(pieces), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = special_tokens(release)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    bos, first = specials[0], len(tokens)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, first)]
    )
    ends = [first + place for place in ENDS[release]]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "bos_token": bos,
        "eos_token": "<|eot_id|>" if instruct else "<|end_of_text|>",
    }  # fmt: skip
    return Words(tokenizer, config, first, ends if instruct else ends[0], tiktoken_oracle(tokens), "tiktoken")


def tiktoken_oracle(tokens: list[bytes]) -> Any:
    """tiktoken itself over the same table, special tokens' spellings taken as text; None where it is not installed."""
    try:
        import tiktoken
    except ImportError:
        return None
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding("llama3", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return SimpleNamespace(encode=encoding.encode_ordinary)


def check(words: Words, check_path: str) -> str:
    """Compare ids with the original's on hard and real text; a phrase that says what held.

    Raises ValueError that shows the first difference. check_path: see build_tokenizer.real_texts.
    """
    if words.oracle is None:
        return f"not compared, for want of {words.original}"
    texts = chain(build_tokenizer.HARD_TEXTS, HARD_TEXTS, build_tokenizer.real_texts(check_path))
    count = build_tokenizer.check(words.tokenizer, words.oracle, texts, words.original)
    return f"equal to {words.original} on {count} texts"
