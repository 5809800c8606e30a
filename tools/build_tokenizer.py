"""Build an exact tokenizer.json from a SentencePiece tokenizer.model, and check it against SentencePiece.

    python tools/build_tokenizer.py --tokenizer_model llama/tokenizer.model --output_dir checkpoints/llama-tokenizer
    python tools/build_tokenizer.py --tokenizer_model M --output_dir D --check_path texts.jsonl    # your own text

With LLaMA-2's tokenizer.model, the converter of current transformers gives wrong ids for half of all English documents.
The tokenizer built here is compared with SentencePiece on hard cases and on real text before anything is written.
"""

from command_line.fire_commands import run

from pathlib import Path


def main(tokenizer_model: str, output_dir: str, check_path: str = "") -> None:
    """Write tokenizer.json, tokenizer_config.json and a copy of tokenizer.model into output_dir.

    Args:
        tokenizer_model: the SentencePiece model file, or a folder that contains tokenizer.model.
        output_dir: a new folder, or a checkpoint folder without a seal; the added tokens, the special tokens and the
            other settings of its tokenizer are kept.
        check_path: additional text to compare on: .jsonl with a `text` key, or one text per line.
    """
    from exact_tokenizers import sentencepiece_bpe
    from tokenizer_files import tokenizer_check

    tokenizer_check.check_tokenizer_folder(Path(output_dir))
    if Path(tokenizer_model).is_dir():
        tokenizer_model = str(Path(tokenizer_model, "tokenizer.model"))
    proto = sentencepiece_bpe.read_sentencepiece_model(tokenizer_model)
    tokenizer = sentencepiece_bpe.build_fast_tokenizer(proto)
    reference = sentencepiece_bpe.load_sentencepiece(tokenizer_model)
    texts = tokenizer_check.comparison_texts(check_path)
    compared = tokenizer_check.check_equal_ids(tokenizer, reference, texts)
    written = tokenizer_check.write_tokenizer_files(Path(output_dir), Path(tokenizer_model))
    print(
        f"{output_dir}: {written.get_vocab_size()} pieces, equal to SentencePiece on {compared} "
        f"text{'s' * (compared != 1)}, "
        f"fingerprint {tokenizer_check.fingerprint(written)[:16]}"
    )


if __name__ == "__main__":
    run(main)
