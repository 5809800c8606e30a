"""Build an exact fast tokenizer from a SentencePiece BPE model.

SentencePiece's BPE repeatedly merges the pair of neighbouring pieces whose merged piece has the highest score. A merge
list gives the same ids if it contains every split of every piece into two pieces, ordered by the score of the merged
piece (ties: left id, then right id). Converters that order merges differently produce other ids.
Input format: sentencepiece_model.proto of the SentencePiece project.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ModelProto.SentencePiece.Type


def read_sentencepiece_model(path: str | Path) -> Any:
    """Parse a tokenizer.model; return its ModelProto.

    Raises FileNotFoundError, or ValueError if the file is damaged or tokenizer.json cannot represent it exactly.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; --tokenizer_model takes a SentencePiece tokenizer.model")
    messages: Any = sentencepiece_model_pb2  # its classes are created at import
    proto = messages.ModelProto()
    content, reason = path.read_bytes(), "the file is empty"
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        content, reason = b"", str(error)
    if not content or not proto.pieces:  # the bytes of another file may parse as a message without pieces
        raise ValueError(
            f"{path} is not a SentencePiece model ({'it has no pieces' if content else reason}); use the original "
            "tokenizer.model"
        )
    if not all(isinstance(piece.piece, str) for piece in proto.pieces):  # protobuf returns bytes
        raise ValueError(f"{path} is damaged (a piece is not UTF-8); use the original tokenizer.model")
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    ids = (trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id)
    if trainer.unk_id < 0 or max(ids) >= len(proto.pieces):
        raise ValueError(f"{path} is damaged (a special id has no piece); use the original tokenizer.model")
    unsupported = {
        "model_type is not BPE": trainer.model_type != trainer.BPE,
        "byte_fallback is off": not trainer.byte_fallback,
        "treat_whitespace_as_suffix is on": trainer.treat_whitespace_as_suffix,
        "remove_extra_whitespaces is on": normalizer.remove_extra_whitespaces,
        "escape_whitespaces is off": not normalizer.escape_whitespaces,
        f"normalization rule {normalizer.name!r} is not identity": bool(normalizer.precompiled_charsmap),
        "a denormalizer is set": bool(proto.denormalizer_spec.precompiled_charsmap),
    }
    for fact, is_true in unsupported.items():
        if is_true:
            raise ValueError(f"{path}: {fact}, so no exact tokenizer.json can be built; use SentencePiece itself")
    return proto


def load_sentencepiece(path: str | Path) -> Any:
    """Return SentencePiece's own processor of a tokenizer.model; ValueError if SentencePiece refuses the file."""
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()) if Path(path).stat().st_size else "the file is empty"
        raise ValueError(f"{path} is not a SentencePiece model ({reason}); use the original tokenizer.model") from None


def ranked_merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Return all splits of normal pieces into two normal pieces, by descending score, left id, right id.

    pieces: (piece, score, type) in id order.
    """
    ids = {piece: index for index, (piece, _, kind) in enumerate(pieces) if kind == NORMAL}
    ranked = []
    for piece, index in ids.items():
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-pieces[index][1], left, right))
    return [(pieces[left][0], pieces[right][0]) for _, left, right in sorted(ranked)]


def special_token_template(before: Mapping[str, int], after: Mapping[str, int]) -> Any:
    """Return a post-processor that adds tokens (text -> id) before and after a text, or each text of a pair.

    It is built from JSON, since the class TemplateProcessing misreads tokens with a space, a colon or a dollar sign.
    """

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        tokens = [[{"SpecialToken": {"id": text, "type_id": type_id}} for text in side] for side in (before, after)]
        return [*tokens[0], {"Sequence": {"id": sequence, "type_id": type_id}}, *tokens[1]]

    template = {
        "type": "TemplateProcessing", "single": around("A", 0), "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            text: {"id": text, "ids": [index], "tokens": [text]} for text, index in {**before, **after}.items()
        },
    }  # fmt: skip
    content = json.loads(Tokenizer(models.BPE()).to_str()) | {"post_processor": template}
    return Tokenizer.from_str(json.dumps(content)).post_processor


def build_fast_tokenizer(proto: Any) -> Tokenizer:
    """Build a BPE tokenizer with byte fallback that returns SentencePiece's ids, after BOS if the model has one.

    Raises ValueError if the model lists a piece twice.
    """
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    trainer = proto.trainer_spec
    unknown = pieces[trainer.unk_id][0]
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise ValueError("the SentencePiece model lists a piece twice and is damaged; download tokenizer.model again")
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
        tokenizer.post_processor = special_token_template({pieces[trainer.bos_id][0]: trainer.bos_id}, {})
    return tokenizer


def tokenizer_config(proto: Any) -> dict[str, Any]:
    """Return a tokenizer_config.json that names transformers' generic class, which reads tokenizer.json exactly."""
    trainer = proto.trainer_spec
    special_ids = {"bos": trainer.bos_id, "eos": trainer.eos_id, "unk": trainer.unk_id, "pad": trainer.pad_id}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | {
        f"{name}_token": proto.pieces[index].piece for name, index in special_ids.items() if index >= 0
    }
