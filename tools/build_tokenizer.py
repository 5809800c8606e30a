"""Build an exact tokenizer.json from a SentencePiece tokenizer.model, and check it against SentencePiece.

    python tools/build_tokenizer.py --tokenizer_model llama/tokenizer.model --output_dir checkpoints/llama-tokenizer
    python tools/build_tokenizer.py --tokenizer_model M --output_dir D --check_path texts.jsonl    # your own text too

The converter of current transformers gives different ids for half of all English text with LLaMA-2's model. This
tokenizer is compared with SentencePiece on hard cases and on real text before anything is written.
"""

from command_line.fire_commands import run

from pathlib import Path


def main(tokenizer_model: str, output_dir: str, check_path: str = "") -> None:
    """Write tokenizer.json, tokenizer_config.json and a copy of tokenizer.model into output_dir.

    Args:
        tokenizer_model: the SentencePiece model.
        output_dir: a new folder, or a checkpoint folder whose tokenizer files are to be replaced.
        check_path: additional text to compare on: .jsonl with a `text` key, or one text per line.
    """
    import sentencepiece
    from tokenizer_files import sentencepiece_tokenizer

    proto = sentencepiece_tokenizer.read_sentencepiece_model(tokenizer_model)
    tokenizer = sentencepiece_tokenizer.build_fast_tokenizer(proto)
    reference = sentencepiece.SentencePieceProcessor(model_file=tokenizer_model)
    texts = sentencepiece_tokenizer.comparison_texts(check_path)
    compared = sentencepiece_tokenizer.check_equal_ids(tokenizer, reference, texts)
    config = sentencepiece_tokenizer.tokenizer_config(proto)
    sentencepiece_tokenizer.write_tokenizer_files(Path(output_dir), tokenizer, config, Path(tokenizer_model))
    print(
        f"{output_dir}: {tokenizer.get_vocab_size()} pieces, equal to SentencePiece on {compared} texts, "
        f"fingerprint {sentencepiece_tokenizer.fingerprint(tokenizer)[:16]}"
    )


if __name__ == "__main__":
    run(main)
