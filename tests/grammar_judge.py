"""A judge of grammars: xgrammar's matcher for a real tokenizer, used by several test files."""

from pathlib import Path

import xgrammar
from extraction.extraction_form import AnswerForm
from extraction.extraction_grammar import answer_rules, name_rules
from extraction.extraction_schema import SchemaType
from transformers import AutoTokenizer


def answer_grammar(form: AnswerForm, types: tuple[SchemaType, ...], prefix: str = "", text: str = "") -> str:
    """Return the grammar of answers of this form for these types, with names from the text if it is not empty."""
    return answer_rules(form, types, prefix) + name_rules(form, text)


class Judge:
    """xgrammar's matcher for a real tokenizer, with a bit mask of allowed tokens as in the engine."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.info = xgrammar.TokenizerInfo.from_huggingface(self.tokenizer)
        self.compiler = xgrammar.GrammarCompiler(self.info, cache_enabled=False)
        self.mask = xgrammar.allocate_token_bitmask(1, self.info.vocab_size)

    def matcher(self, text: str) -> xgrammar.GrammarMatcher:
        return xgrammar.GrammarMatcher(self.compiler.compile_grammar(text))

    def allowed(self, matcher: xgrammar.GrammarMatcher) -> list[int]:
        matcher.fill_next_token_bitmask(self.mask)
        words = [word & 0xFFFFFFFF for word in self.mask[0].tolist()]
        return [32 * i + bit for i, word in enumerate(words) for bit in range(32) if word >> bit & 1]

    def accepts(self, text: str, answer: str) -> bool:
        """Return whether the grammar `text` admits the answer, character by character, followed by EOS."""
        matcher = self.matcher(text)
        admitted = all(matcher.accept_string(character) for character in answer)
        return admitted and self.tokenizer.eos_token_id in self.allowed(matcher)

    def accepts_tokens(self, text: str, answer: str) -> bool:
        """Return whether the grammar `text` admits the token ids of an answer that follows a prompt, and EOS."""
        lead, settings = "\ufdd0", {"add_special_tokens": False}
        before = self.tokenizer.encode(lead, **settings)
        ids = self.tokenizer.encode(lead + answer, **settings)[len(before) :]
        matcher = self.matcher(text)
        for token in [*ids, self.tokenizer.eos_token_id]:
            if token not in self.allowed(matcher) or not matcher.accept_token(token):
                return False
        return True
