"""Instruction rows to token ids and supervised spans: reading JSON and JSONL, the prompt's ids, truncation.

Not a script: finetune.py and ie_run.py are made of it. A row is {"instruction", "input", "output"} or {"messages"}; the
tokenizer's chat template turns it into text. Three properties hold by construction, for every tokenizer:

- the prompt's ids are the ids a server sends for the same instruction, and the answer's ids are appended to them (a
  joint encoding may merge across the border and train on a prompt that is never asked);
- user text never becomes a control token: a guard character splits such spellings before the template is rendered and
  is taken out again before the text is encoded;
- every row ends in a supervised end-of-turn, also after truncation.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

CHUNK = 1000  # rows encoded per call of the tokenizer, which spreads a call over the cores
TEMPLATES = Path(__file__).parent / "templates"

Message = dict[str, str]
Row = dict[str, Any]


class Turn(NamedTuple):
    """What is asked and what is answered: token ids, the answer without its end-of-turn."""

    prompt: list[int]
    answer: list[int]


class Example(NamedTuple):
    """A row as trained on: its ids and the [start, end) spans that are supervised."""

    ids: list[int]
    spans: list[tuple[int, int]]


@dataclass
class Report:
    """What became of the rows, for the lines printed before training."""

    kept: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    supervised: int = 0
    longest: int = 0


def read_rows(path: str | Path, answers: bool = True) -> list[Row]:
    """The rows of a JSON list or a JSONL file, checked; `answers`: every row must have one, too.

    Raises FileNotFoundError or ValueError that names the file and the line (for a JSON list: the row).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a .json or .jsonl file of instruction rows")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None
    rows = []
    for place, row in _parse(path, text):
        complaint = complain(row, answers)
        if complaint:
            raise ValueError(f"{place}: {complaint}; a row is " + '{"instruction", "input", "output"} or {"messages"}')
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no rows; it must be a JSON list or one JSON object a line")
    return rows


def _parse(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip()[:1] == "[":
        try:
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(json.loads(text), 1))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno} is not JSON ({error.msg}); repair the list there") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number} is not JSON ({error.msg}); one object a line is expected") from None


def complain(row: Any, answers: bool) -> str:
    """What is wrong with a row, or nothing."""
    if not isinstance(row, dict):
        return "not a JSON object"
    if "messages" in row:
        turns = row["messages"]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            return "messages is not a list of objects"
        if not all(isinstance(turn.get(key), str) for turn in turns for key in ("role", "content")):
            return "a message lacks a textual role or content"
        if not turns or turns[0]["role"] == "assistant":
            return "messages does not begin with a question"
        return "no message has the role assistant" if answers and not _answers(turns) else ""
    for key in ("instruction", "output") if answers else ("instruction",):
        if not isinstance(row.get(key), str):
            return f"no text under {key!r} (keys: {', '.join(map(str, row)) or 'none'})"
    return "" if isinstance(row.get("input") or "", str) else "input is not text"


def messages_of(row: Row) -> list[Message]:
    """The conversation that a row stands for; the template chooses its layout with or without input."""
    if "messages" in row:
        return row["messages"]
    question = {"role": "user", "content": row["instruction"], "input": row.get("input") or ""}
    return [question, {"role": "assistant", "content": row.get("output") or ""}]


def _answers(messages: list[Message]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def load_template(name: str) -> str:
    """The text of a chat template: a name in finetune/templates, or a path; ValueError names those that exist."""
    known = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    path = TEMPLATES / f"{name}.jinja" if name in known else Path(name)
    if not path.is_file():
        raise ValueError(f"there is no template {name!r}; take one of {', '.join(known)}, or the path of a .jinja file")
    return path.read_text(encoding="utf-8")


class Encoder:
    """Conversations to ids with one tokenizer; see the head of this file for what it guarantees."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        special = tokenizer.added_tokens_decoder.items()
        self.controls = {str(token): index for index, token in special if token.special and str(token)}
        spellings = sorted(self.controls, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        self.end: list[int] = [
            tokenizer.eos_token_id
        ]  # what every answer ends in, as ids and (of the template) as text
        self.end_text = ""
        if tokenizer.chat_template:
            self.end, self.end_text = self._end_of_turn()
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no EOS token, so a tuned model could not stop; set eos_token in its config"
            )

    def _end_of_turn(self) -> tuple[list[int], str]:
        """Ids and text that end an answer: the template's control token, and EOS where that is another one."""
        eos = self.tokenizer.eos_token_id
        asked = [{"role": "user", "content": "a", "input": ""}]
        answered = self._render([[*asked, {"role": "assistant", "content": "b"}]], generate=False)[0]
        prompt = self._render([asked])[0]
        if not answered.startswith(prompt + "b"):
            raise ValueError(
                "the template renders a question differently once it is answered, so answers cannot be told from "
                "prompts; take one that only appends (finetune/templates/alpaca.jinja does)"
            )
        rest = answered[len(prompt) + 1 :]
        control = self.pattern.search(rest)
        if control is None:
            return [eos], ""
        text = rest[: control.end()]
        ids = self._ids([text[: control.start()]], leading=False)[0] if control.start() else []
        ids.append(self.controls[control[0]])
        return (ids if ids[-1] == eos else [*ids, eos]), text

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
            seen = text + self._guard(talk[at]["content"], guard) + self.end_text
        answers = self._ids([talk[at]["content"] for talk, at in cuts], leading=False)
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


def encode_rows(
    tokenizer: Any, rows: list[Row], cutoff: int, train_on_inputs: bool = False
) -> tuple[list[Example], Report]:
    """Rows to examples, and the count of what was kept, cut and dropped."""
    from tqdm import tqdm

    encoder, report, examples = Encoder(tokenizer), Report(), []
    bar = tqdm(total=len(rows), desc="tokenising", unit="row", disable=None)
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        for turns in encoder.turns([messages_of(row) for row in chunk]):
            example, cut = fit(turns, encoder.end, cutoff, train_on_inputs)
            if not any(turn.answer for turn in turns):
                report.dropped["the answer is empty"] += 1
            elif example is None:
                report.dropped[f"the prompt leaves no room for the answer in {cutoff} tokens"] += 1
            else:
                examples.append(example)
                report.truncated += cut
                report.tokens += len(example.ids)
                report.supervised += sum(end - start for start, end in example.spans)
                report.longest = max(report.longest, len(example.ids))
        bar.update(len(chunk))
    bar.close()
    report.kept = len(examples)
    return examples, report
