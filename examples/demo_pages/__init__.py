"""What the demos share: loading, decoding, console and web page. Read text_generation.py first."""
