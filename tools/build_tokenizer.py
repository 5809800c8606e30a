"""Build an exact tokenizer.json from a SentencePiece tokenizer.model, and check it against SentencePiece.

    python tools/build_tokenizer.py --tokenizer_model llama/tokenizer.model --output_dir checkpoints/llama-tokenizer
    python tools/build_tokenizer.py --tokenizer_model M --output_dir D --check_path texts.jsonl    # your own text too

SentencePiece's BPE joins, over and over, the pair of neighbours whose joined piece has the highest score. A ranked
merge list says the same when it holds every split of every piece into two pieces, in the order of the joined piece's
score (ties: left id, then right id). With that order `tokenizers` gives SentencePiece's ids to the token; conversions
that order merges otherwise do not. Format of the input: sentencepiece_model.proto of the SentencePiece project.
"""

from command_line.fire_commands import run

import hashlib
import json
import shutil
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ModelProto.SentencePiece.Type

# Where conversions go wrong: spaces, control tokens' spellings, byte fallback, Chinese, emoji, code, digits.
HARD_TEXTS = (
    "", " ", "  two  spaces  ", "\n\n", "\ttab", "▁", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "\u0000 nul", "{{ x }} %s",
    "<s>literal</s> <unk> tokens", "<0x0A> is text", "def f(x):\n    return x  # ▁ underline", "3.14159 2,000 1e-5",
    "李白乘舟将欲行，忽闻岸上踏歌声。", "𠮷野家 🤖👩‍👩‍👧 e\u0301 \u200b \ufeff", "ａｂｃ全角 １２３", "don't—“quote”…",
    "Ünïcödé ﷺ naïve café Ⅷ ½",
)  # fmt: skip


def read_model(path: str | Path) -> Any:
    """Parse a tokenizer.model; raises ValueError with the name of the first property that is not handled here."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --tokenizer_model takes a SentencePiece tokenizer.model")
    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise ValueError(f"{path} is no SentencePiece model ({error}); give the original tokenizer.model") from None
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    unhandled = {
        "model_type is not BPE": trainer.model_type != trainer.BPE,
        "byte_fallback is off": not trainer.byte_fallback,
        "treat_whitespace_as_suffix is on": trainer.treat_whitespace_as_suffix,
        "remove_extra_whitespaces is on": normalizer.remove_extra_whitespaces,
        "escape_whitespaces is off": not normalizer.escape_whitespaces,
        f"normalization rule {normalizer.name!r} is not identity": bool(normalizer.precompiled_charsmap),
        "a denormalizer is set": bool(proto.denormalizer_spec.precompiled_charsmap),
    }
    for fact, is_so in unhandled.items():
        if is_so:
            raise ValueError(f"{path}: {fact}, which has no exact tokenizer.json here; use SentencePiece itself for it")
    return proto


def ranked_merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """All splits of normal pieces into two normal pieces, best first: score descending, left id, right id.

    pieces: (piece, score, type) in id order.
    """
    ids = {piece: index for index, (piece, _, kind) in enumerate(pieces) if kind == NORMAL}
    ranked = []
    for piece in ids:
        score = pieces[ids[piece]][1]
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-score, left, right))
    return [(pieces[left][0], pieces[right][0]) for _, left, right in sorted(ranked)]


def build(proto: Any) -> Tokenizer:
    """The `tokenizers` object that gives SentencePiece's ids: BPE with byte fallback over the model's pieces."""
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    trainer = proto.trainer_spec
    unknown = pieces[trainer.unk_id][0]
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise ValueError("the model lists a piece twice; it is damaged: get tokenizer.model again")
    tokenizer = Tokenizer(
        models.BPE(vocabulary, ranked_merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    prefix = proto.normalizer_spec.add_dummy_prefix
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    for special, kind in ((True, (UNKNOWN, CONTROL)), (False, (USER_DEFINED,))):
        tokenizer.add_tokens([AddedToken(p, special=special, normalized=False) for p, _, k in pieces if k in kind])
    if trainer.bos_id >= 0:
        bos = pieces[trainer.bos_id][0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, trainer.bos_id)]
        )
    return tokenizer


def tokenizer_config(proto: Any) -> dict[str, Any]:
    """What transformers needs beside tokenizer.json; the plain fast class takes that file as it stands."""
    trainer = proto.trainer_spec
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, index in (("bos", trainer.bos_id), ("eos", trainer.eos_id), ("unk", trainer.unk_id)):
        if index >= 0:
            config[f"{name}_token"] = proto.pieces[index].piece
    if trainer.pad_id >= 0:
        config["pad_token"] = proto.pieces[trainer.pad_id].piece
    return config


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 of the id-ordered table of pieces, one `id<TAB>piece` line each (JSON-escaped)."""
    table = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    return hashlib.sha256("".join(f"{i}\t{json.dumps(p)}\n" for p, i in table).encode()).hexdigest()


def check(tokenizer: Tokenizer, oracle: Any, texts: Iterable[str], original: str = "SentencePiece") -> int:
    """Compare ids on every text (without BOS, control spellings taken as text); returns how many texts were compared.

    oracle: what encodes a text as the original does, which is named `original`. Raises ValueError that shows the first
    difference.
    """
    tokenizer.encode_special_tokens = True
    count = 0
    for text in texts:
        ours, truth = tokenizer.encode(text, add_special_tokens=False).ids, oracle.encode(text)
        if ours != truth:
            pairs = enumerate(zip(ours, truth, strict=False))
            at = next((i for i, (our, true) in pairs if our != true), min(len(ours), len(truth)))
            raise ValueError(
                f"the built tokenizer differs from {original} at token {at} of {text[:60]!r}: "
                f"{ours[at : at + 4]} instead of {truth[at : at + 4]}; this model needs {original} itself"
            )
        count += 1
    tokenizer.encode_special_tokens = False
    return count


def real_texts(check_path: str = "", megabytes: float = 2) -> Iterator[str]:
    """The user's own lines (JSONL with `text`, or plain), else the Python library's sources, found on every machine."""
    budget = int(megabytes * 1e6)
    if check_path:
        with Path(check_path).open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"] if check_path.endswith(".jsonl") else line.rstrip("\n")
        return
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = source.read_text(encoding="utf-8", errors="ignore")
        yield text
        budget -= len(text)
        if budget < 0:
            return


def main(tokenizer_model: str, output_dir: str, check_path: str = "") -> None:
    """Write tokenizer.json, tokenizer_config.json and a copy of tokenizer.model into output_dir.

    Args:
        tokenizer_model: the SentencePiece model.
        output_dir: a new folder, or a checkpoint folder whose tokenizer files are to be replaced.
        check_path: text to compare on besides the built-in cases: .jsonl with a `text` key, or one text a line.
    """
    proto = read_model(tokenizer_model)
    tokenizer = build(proto)
    oracle = sentencepiece.SentencePieceProcessor(model_file=tokenizer_model)
    compared = check(tokenizer, oracle, HARD_TEXTS) + check(tokenizer, oracle, real_texts(check_path))

    target = Path(output_dir)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".tokenizer-") as scratch:
        tokenizer.save(f"{scratch}/tokenizer.json")
        Path(scratch, "tokenizer_config.json").write_text(json.dumps(tokenizer_config(proto), indent=2) + "\n")
        shutil.copyfile(tokenizer_model, f"{scratch}/tokenizer.model")
        for file in sorted(Path(scratch).iterdir()):
            file.replace(target / file.name)
    print(
        f"{target}: {tokenizer.get_vocab_size()} pieces, equal to SentencePiece on {compared} texts, "
        f"fingerprint {fingerprint(tokenizer)[:16]}"
    )


if __name__ == "__main__":
    run(main)
