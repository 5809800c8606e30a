"""Build an exact tokenizer.json from LLaMA's tokenizer.model: SentencePiece up to version 2, then a rank table.

Each line of a rank table contains a token's bytes in base64, a space, and its rank, which is its id. tiktoken splits
text into words with a regular expression, and in each word repeatedly merges the neighbouring tokens whose merged token
has the lowest rank. The equivalent merge list of tokenizer.json contains, for each token in the order of ranks, every
pair of tokens that it can be split into. The 256 ids after the table are special tokens. Sources of the expression and
the special tokens: tokenizer.py of https://github.com/meta-llama/llama3 and https://github.com/meta-llama/llama-models;
for the names in 3.1, its published tokenizer.json.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from exact_tokenizers import sentencepiece_bpe
from exact_tokenizers.tokenizer_folders import is_rank_table
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tokenizer_files import tokenizer_check

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
HARD_LLAMA3_TEXTS = (
    "<|begin_of_text|>literal<|eot_id|>", "I'LL we'Ve it'ſ o'clock", " \r\n\r\n  x\r", "12345 1234567", "!!\n\n?",
)  # fmt: skip
SPECIAL_COUNT = 256
# Names by LLaMA version ("3.1" also for later ones) and position after the table. All other special tokens are
# <|reserved_special_token_N|>, numbered from 0.
NAMED_SPECIALS = {
    "3": {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"},
    "3.1": {
        0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id",
        8: "eom_id", 9: "eot_id", 10: "python_tag",
    },
}  # fmt: skip
CHAT_ENDS = {"3": (1, 9), "3.1": (1, 8, 9)}  # positions of end_of_text, eom_id, eot_id


@dataclass(frozen=True)
class ConvertedTokenizer:
    """A converted tokenizer, its BOS and EOS ids for the model's configuration, and the original as the reference."""

    tokenizer: Tokenizer
    config: Mapping[str, Any]  # tokenizer_config.json
    bos: int
    eos: int | list[int]
    reference: Any  # encoder of the original tokenizer; None if its library is not installed
    reference_name: str


def read_llama_tokenizer(path: Path, version: str, instruct: bool) -> ConvertedTokenizer:
    """Read a tokenizer.model of either kind; raise ValueError, which names the file, if it is damaged.

    version: version of LLaMA, such as 3.2. instruct: use the end tokens of a chat model (from version 3 on).
    """
    if is_rank_table(path):
        return from_rank_table(read_rank_table(path), "3" if version == "3" else "3.1", instruct)
    proto = sentencepiece_bpe.read_sentencepiece_model(path)
    if proto.trainer_spec.bos_id < 0 or proto.trainer_spec.eos_id < 0:
        raise ValueError(f"{path} has no BOS or no EOS piece; use LLaMA's original tokenizer.model")
    return ConvertedTokenizer(
        tokenizer=sentencepiece_bpe.build_fast_tokenizer(proto),
        config=sentencepiece_bpe.tokenizer_config(proto),
        bos=proto.trainer_spec.bos_id,
        eos=proto.trainer_spec.eos_id,
        reference=sentencepiece_bpe.load_sentencepiece(path),
        reference_name="SentencePiece",
    )


def read_rank_table(path: Path) -> list[bytes]:
    """Return the tokens of a rank table in order; raise ValueError, which names the first damaged line."""
    tokens: list[bytes] = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        text, _, rank = line.partition(b" ")
        try:
            tokens.append(base64.b64decode(text, validate=True))
        except binascii.Error:
            rank = b""
        if rank != str(number).encode():
            raise ValueError(
                f"{path} is damaged: line {number + 1} is not a base64 token and the rank {number}; download it again"
            )
    if len(set(tokens)) != len(tokens) or not {bytes([value]) for value in range(256)} <= set(tokens):
        raise ValueError(f"{path} is damaged: a token is repeated or a single byte is missing; download it again")
    return tokens


def special_tokens(version: str) -> list[str]:
    """Return the 256 special tokens in id order. version: "3", or "3.1" for all later ones."""
    named = NAMED_SPECIALS[version]
    reserved = (f"reserved_special_token_{number}" for number in range(SPECIAL_COUNT))
    return [f"<|{named[position] if position in named else next(reserved)}|>" for position in range(SPECIAL_COUNT)]


def from_rank_table(tokens: list[bytes], version: str, instruct: bool) -> ConvertedTokenizer:
    """Build a tokenizer that gives BOS and tiktoken's ids. version: "3", or "3.1" for all later ones."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()  # character of each byte in a byte-level tokenizer.json
    texts = ["".join(letters[value] for value in token) for token in tokens]
    pieces = [(text, -float(rank), sentencepiece_bpe.NORMAL) for rank, text in enumerate(texts)]
    vocabulary = {text: rank for rank, text in enumerate(texts)}
    merges = sentencepiece_bpe.ranked_merges(pieces)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = special_tokens(version)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    bos, first = specials[0], len(tokens)
    tokenizer.post_processor = sentencepiece_bpe.special_token_template({bos: first}, {})
    ends = [first + position for position in CHAT_ENDS[version]]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "bos_token": bos,
        "eos_token": "<|eot_id|>" if instruct else "<|end_of_text|>",
    }  # fmt: skip
    eos = ends if instruct else ends[0]
    return ConvertedTokenizer(tokenizer, config, first, eos, tiktoken_reference(tokens), "tiktoken")


def tiktoken_reference(tokens: list[bytes]) -> Any:
    """Return a tiktoken encoder of the rank table that treats special tokens as text; None without tiktoken."""
    try:
        import tiktoken
    except ImportError:
        return None
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding("llama3", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return SimpleNamespace(encode=encoding.encode_ordinary)


def check_llama_tokenizer(llama: ConvertedTokenizer, check_path: str) -> str:
    """Compare ids with the original tokenizer's on hard cases and real text; return the result as a phrase.

    check_path: see `comparison_texts`. Raises ValueError at the first difference.
    """
    if llama.reference is None:
        return f"not compared, because {llama.reference_name} is not installed"
    texts = chain(HARD_LLAMA3_TEXTS, tokenizer_check.comparison_texts(check_path))
    count = tokenizer_check.check_equal_ids(llama.tokenizer, llama.reference, texts, llama.reference_name)
    return f"equal to {llama.reference_name} on {count} texts"
