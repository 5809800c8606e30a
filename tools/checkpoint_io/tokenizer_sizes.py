"""The number of embeddings that a tokenizer needs, compared with the number that a model has.

If a tokenizer has more tokens than its model has embeddings, generation ends with an index error, or the demos, the
server and GGUF export refuse the model.
"""

from pathlib import Path

from exact_tokenizers.tokenizer_folders import (
    SPECIAL_TOKEN_NAMES,
    is_rank_table,
    read_object,
    read_tokenizer,
    reports_damage,
    settings_with_special_tokens,
    stored_tokens,
    token_text,
)


def check_tokenizer_size(tokens: int, rows: int, tokenizer: Path, config: Path) -> None:
    """Raise ValueError if a tokenizer has more tokens than its model has embeddings (rows).

    tokenizer: the folder of the tokenizer; config: the file config.json; both for the message.
    """
    if rows < tokens:
        raise ValueError(
            f"the tokenizer in {tokenizer} has {tokens} tokens, but the model has {rows} embeddings ({config}); copy "
            "the model's own tokenizer files to the tokenizer's folder"
        )


@reports_damage
def tokenizer_size(folder: Path) -> int:
    """Return the highest token id of the tokenizer files in a folder, plus 1.

    Named special tokens without an id count as added, as in transformers. Raises ValueError if a file is damaged.
    """
    pieces = token_table(folder)
    named = settings_with_special_tokens(folder, read_object(folder / "tokenizer_config.json"))
    roles = [*(named.get(role) for role in SPECIAL_TOKEN_NAMES), *(named.get("additional_special_tokens") or [])]
    missing = {token_text(token) for token in roles} - {"", *pieces}
    return max([-1, *pieces.values()]) + 1 + len(missing)


@reports_damage
def token_table(folder: Path) -> dict[str, int]:
    """Return piece -> id of the tokenizer files in a folder, with added tokens; ValueError if a file is damaged."""
    added = stored_tokens(folder, read_object(folder / "tokenizer_config.json"))
    return stored_pieces(folder) | {token.content: index for index, token in added.items()}


def stored_pieces(folder: Path) -> dict[str, int]:
    """Return piece -> id of the first tokenizer file that a folder has; {} for the tables of tiktoken."""
    from exact_tokenizers.sentencepiece_bpe import load_sentencepiece

    stored, model, listed = (folder / name for name in ("tokenizer.json", "tokenizer.model", "vocab.txt"))
    if stored.is_file():
        return read_tokenizer(stored).get_vocab(with_added_tokens=True)
    if model.is_file() and not is_rank_table(model):
        processor = load_sentencepiece(model)
        return {processor.id_to_piece(index): index for index in range(processor.get_piece_size())}
    if listed.is_file():
        return {piece: index for index, piece in enumerate(listed.read_text(encoding="utf-8").splitlines())}
    return dict(read_object(folder / "vocab.json"))
