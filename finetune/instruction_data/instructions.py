"""Conversations to token ids and supervised spans: templates, the prompt's ids, truncation.

finetune.py and ie_run.py are made of it. The tokenizer's chat template turns a conversation into text.
Three properties hold by construction, for every tokenizer:

- the prompt's ids are the ids a server sends for the same instruction, and the answer's ids are appended to them (a
  joint encoding may merge across the border and train on a prompt that is never asked);
- user text never becomes a control token: a guard character splits such spellings before the template is rendered and
  is taken out again before the text is encoded;
- every row ends in a supervised end-of-turn, also after truncation.
"""

import hashlib
import json
import re
import string
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.instruction_rows import Message

TEMPLATES = Path(__file__).parent.parent / "templates"
MARKER = re.compile(r"<\|[a-z_]+\|>")  # what templates write a control token of their own as
# The published alpaca formats as a template: a layout with input, one without, and what comes after.
LAYOUTS = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
{{ message.content + eos_token }}
{%- elif message.role != "user" -%}
{{ raise_exception("this template knows the roles user and assistant, not " + message.role) }}
{%- elif message.input -%}
{{ WITH_INPUT }}
{%- else -%}
{{ WITHOUT_INPUT }}
{%- endif -%}
{%- endfor -%}
"""


class Turn(NamedTuple):
    """What is asked and what is answered: token ids, the answer without its end-of-turn."""

    prompt: list[int]
    answer: list[int]


class Example(NamedTuple):
    """A row as trained on: its ids and the [start, end) spans that are supervised."""

    ids: list[int]
    spans: list[tuple[int, int]]


def _answers(messages: list[Message]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def load_template(name: str) -> str:
    """The text of a chat template: a name in finetune/templates, or the path of a .jinja or an alpaca .json file.

    Raises ValueError that names those that exist.
    """
    known = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    path = TEMPLATES / f"{name}.jinja" if name in known else Path(name)
    if not path.is_file():
        raise ValueError(
            f"there is no template {name!r}; take one of {', '.join(known)}, or the path of a .jinja or alpaca .json"
        )
    text = path.read_text(encoding="utf-8")
    return from_alpaca(text, path) if path.suffix == ".json" else text


def from_alpaca(text: str, path: Path) -> str:
    """A chat template of an alpaca-lora prompt file: {"prompt_input", "prompt_no_input"}, read with str.format's rules.

    Everything in it is data: it becomes string literals of the template, whatever it spells.
    """
    fields = {"instruction": "message.content", "input": "message.input"}

    def expression(key: str) -> str:
        parts = []
        for literal, field, _, _ in string.Formatter().parse(prompts[key]):
            escaped = literal.encode("unicode_escape").decode().replace('"', '\\"')
            parts += [f'"{escaped}"'] if literal else []
            parts += [fields[field]] if field is not None else []
        return " + ".join(parts)

    try:
        prompts = json.loads(text)
        return LAYOUTS.replace("WITHOUT_INPUT", expression("prompt_no_input")).replace(
            "WITH_INPUT", expression("prompt_input"), 1
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no alpaca prompt file ({error!r}); it has prompt_input and prompt_no_input, with "
            "{instruction} and {input} in them"
        ) from None


class Encoder:
    """Conversations to ids with one tokenizer; see the head of this file for what it guarantees."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        special = tokenizer.added_tokens_decoder.items()
        self.controls = {str(token): index for index, token in special if token.special and str(token)}
        spellings = sorted(self.controls, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no EOS token, so a tuned model could not stop; set eos_token in its config"
            )
        self.lead = ""  # what stands between a prompt and its answer
        self.end: list[int] = [tokenizer.eos_token_id]  # what every answer ends in
        self.end_text = ""  # the same in the template's rendering
        if tokenizer.chat_template:
            spelled = set(MARKER.findall(tokenizer.chat_template)) - set(self.controls)
            if spelled:
                raise ValueError(
                    f"the template writes {min(spelled)}, which is no control token of this tokenizer, so that anybody "
                    "could write it; take another one with --prompt_template_name, such as alpaca"
                )
            self.lead, self.end, self.end_text = self._around_an_answer()

    @cached_property
    def fingerprint(self) -> str:
        """What ids depend on besides the text: the tokenizer with its control tokens, and the template."""
        tokenizer = self.tokenizer
        spelled = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.bos_token,
                   tokenizer.eos_token, self.end, sorted(self.controls.items())]  # fmt: skip
        return hashlib.blake2b(json.dumps(spelled).encode(), digest_size=16).hexdigest()

    def _around_an_answer(self) -> tuple[str, list[int], str]:
        """White space before an answer, and ids and text after it: the control token, and EOS if that is another."""
        eos = self.tokenizer.eos_token_id
        asked = [{"role": "user", "content": "a", "input": ""}]
        answered = self._render([[*asked, {"role": "assistant", "content": "b"}]], generate=False)[0]
        prompt = self._render([asked])[0]
        body = answered.removeprefix(prompt)
        lead = body[: len(body) - len(body.lstrip())]
        if not answered.startswith(prompt + lead + "b"):
            raise ValueError(
                "the template renders a question differently once it is answered, so answers cannot be told from "
                "prompts; take one that only appends (finetune/templates/alpaca.jinja does)"
            )
        rest = body[len(lead) + 1 :]
        control = self.pattern.search(rest)
        if control is None:
            return lead, [eos], ""
        text = rest[: control.end()]
        ids = self._ids([text[: control.start()]], leading=False)[0] if control.start() else []
        ids.append(self.controls[control[0]])
        return lead, (ids if ids[-1] == eos else [*ids, eos]), text

    def prompts(self, conversations: list[list[Message]]) -> list[list[int]]:
        """Ids that ask for the next answer of each conversation, as every consumer of the checkpoint renders them.

        Without a template (a base model): BOS where there is one, then the messages' own text.
        """
        if not conversations:
            return []
        if not self.tokenizer.chat_template:
            bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            texts = ["\n".join(plain_text(message) for message in talk) for talk in conversations]
            return [bos + ids for ids in self._ids(texts)]
        rendered, guard = self._guarded(conversations)
        return self._with_controls([self._split(text, guard) for text in rendered])

    def turns(self, conversations: list[list[Message]]) -> list[list[Turn]]:
        """Every conversation as its turns, the prompt of a later turn being only what follows the earlier answer."""
        if not self.tokenizer.chat_template:
            raise ValueError("tuning needs a chat template; name one with --prompt_template_name")
        cuts = [(talk, at) for talk in conversations for at in _answers(talk)]
        rendered, guard = self._guarded([talk[:at] for talk, at in cuts])
        split, seen = [], ""
        for (talk, at), text in zip(cuts, rendered, strict=True):
            first = at == _answers(talk)[0]
            if not first and not text.startswith(seen):
                raise ValueError("the template rewrites earlier turns, so only rows of one turn can be trained with it")
            split.append(self._split(text if first else text[len(seen) :], guard))
            seen = text + self.lead + self._guard(talk[at]["content"], guard) + self.end_text
        answers = self._ids([self.lead + talk[at]["content"] for talk, at in cuts], leading=False)
        together = iter(zip(self._with_controls(split), answers, strict=True))
        return [[Turn(*next(together)) for _ in _answers(talk)] for talk in conversations]

    def _guard(self, text: Any, guard: str) -> Any:
        if not isinstance(text, str):
            return text
        return self.pattern.sub(lambda found: found[0][0] + guard + found[0][1:], text)

    def _guarded(self, conversations: list[list[Message]]) -> tuple[list[str], str]:
        """Rendered text in which no user text spells a control token, and the guard character that sees to it."""
        values = (value for talk in conversations for message in talk for value in message.values())
        used = set("".join(value for value in values if isinstance(value, str)))
        guard = next(chr(code) for code in range(0xFDD0, 0x110000) if chr(code) not in used)  # U+FDD0 is never text
        safe = [
            [
                {key: text if key == "role" else self._guard(text, guard) for key, text in message.items()}
                for message in talk
            ]
            for talk in conversations
        ]
        return self._render(safe), guard

    def _render(self, conversations: list[list[Message]], generate: bool = True) -> list[str]:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            raise ValueError(f"the chat template cannot render a row: {error}") from None

    def _split(self, rendered: str, guard: str) -> list[str | int]:
        """The rendering as ids of control tokens and texts between them, guards taken out."""
        parts: list[str | int] = []
        start = 0
        for found in self.pattern.finditer(rendered):
            parts += [rendered[start : found.start()].replace(guard, ""), self.controls[found[0]]]
            start = found.end()
        return [part for part in [*parts, rendered[start:].replace(guard, "")] if part != ""]

    def _with_controls(self, split: list[list[str | int]]) -> list[list[int]]:
        encoded = iter(self._ids([part for parts in split for part in parts if isinstance(part, str)]))
        return [
            [index for part in parts for index in ([part] if isinstance(part, int) else next(encoded))]
            for parts in split
        ]

    def _ids(self, texts: list[str], leading: bool = True) -> list[list[int]]:
        """Ids of texts in which nothing is a control token.

        leading=False: of texts that go on after others, without the space that SentencePiece puts before a text. The
        guard character stands in for what came before: no piece joins it to anything.
        """
        if not texts:
            return []
        lead = "" if leading else chr(0xFDD0)
        settings = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        encoded = self.tokenizer([lead + text for text in texts], **settings).input_ids
        if leading:
            return encoded
        before = self.tokenizer(lead, **settings).input_ids
        return [
            ids[len(before) :] if ids[: len(before)] == before else self.tokenizer(text, **settings).input_ids
            for text, ids in zip(texts, encoded, strict=True)
        ]


def plain_text(message: Message) -> str:
    """A message for a base model without a template: the instruction and, on a line of its own, its input."""
    return message["content"] + ("\n" + message["input"] if message.get("input") else "")


def fit(turns: list[Turn], end: list[int], cutoff: int, train_on_inputs: bool = False) -> tuple[Example | None, bool]:
    """One row within `cutoff` tokens, and whether something was cut; None where no token of an answer would be left.

    The slots of `end` are reserved: a row that is cut still ends in it.
    """
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    cut = False
    for turn in turns:
        room = cutoff - len(ids) - len(turn.prompt) - len(end)
        cut = len(turn.answer) > room
        if cut and room < 1:
            break
        ids += turn.prompt
        spans.append((len(ids), len(ids) + min(len(turn.answer), room) + len(end)))
        ids += turn.answer[:room] + end
        if cut:
            break
    if not spans:
        return None, cut
    return Example(ids, [(0, len(ids))] if train_on_inputs else spans), cut
