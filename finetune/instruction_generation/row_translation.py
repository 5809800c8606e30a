"""Translate instruction rows in one of two published ways.

`pair` translates questions and answers (as BELLE and Chinese-LLaMA-Alpaca did with Alpaca). `question` translates only
the questions and has them answered in the target language (as in the GPT-4 answers of Peng et al. 2023), so an answer
fits its language and is not limited by the translation.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from json_rows.instruction_rows import InstructionRow, messages_of
from text_language.language_detection import language_of

from instruction_generation.generation_prompts import TRANSLATION, fill
from instruction_generation.generation_run import GeneratedRows, GenerationRun, PlannedRequest

Translate = Literal["pair", "question"]
TAGS = ("<text>", "</text>")
TEXT_KEYS = ("content", "input")  # of a message


def translate_rows(run: GenerationRun, rows: Sequence[InstructionRow], what: Translate) -> GeneratedRows:
    """Return the rows in the language of the run; rows with a failed translation or answer are counted as rejected.

    what: "pair" or "question". A row keeps its form: {"instruction", "input", "output"}, or messages.
    """
    conversations = [messages_of(row) for row in rows]
    faults = translate_messages(run, conversations, answers=what == "pair")
    if what == "question":
        answer_questions(run, conversations, faults)
    rejected = Counter(fault for fault in faults if fault)
    translated = [
        {**row_of(messages, row), "method": f"translate_{what}", "source": number}
        for number, (row, messages, fault) in enumerate(zip(rows, conversations, faults, strict=True), 1)
        if not fault
    ]
    return GeneratedRows(translated, rejected)


def translate_messages(run: GenerationRun, conversations: list[list[Any]], answers: bool) -> list[str]:
    """Translate the texts of conversations in place; return for each conversation why it failed, or "".

    answers: translate the answers too, otherwise they are emptied. Chinese text is not translated into Chinese again.
    """
    places = []  # (conversation, message, key)
    for number, messages in enumerate(conversations):
        for at, message in enumerate(messages):
            if message["role"] == "assistant" and not answers:
                message["content"] = ""
            for key in TEXT_KEYS:
                text = message.get(key) or ""
                if has_letters(text) and not (run.language == "zh" and language_of(text) == "zh"):
                    places.append((number, at, key))
    prompts = [
        PlannedRequest(fill(TRANSLATION[run.language], text=conversations[number][at][key]), ("translate",))
        for number, at, key in places
    ]
    faults = [""] * len(conversations)
    for (number, at, key), reply in zip(places, run.ask(prompts, "translation"), strict=True):
        text = without_tags(reply.text)
        message = conversations[number][at]
        is_question = message["role"] == "user" and key == "content"
        if reply.error or not text:
            faults[number] = "no translation"
        elif reply.finish_reason == "length":
            faults[number] = "translation cut at the token limit"
        elif is_question and language_of(text) != run.language:  # inputs and answers may be code or names
            faults[number] = "question not translated"
        message[key] = text
    return faults


def has_letters(text: str) -> bool:
    """Return whether a text has letters; numbers and punctuation need no translation."""
    return any(character.isalpha() for character in text)


def without_tags(text: str) -> str:
    """Return a translation without the tags of its prompt, which some models repeat."""
    text = text.strip()
    return text.removeprefix(TAGS[0]).removesuffix(TAGS[1]).strip()


def answer_questions(run: GenerationRun, conversations: list[list[Any]], faults: list[str]) -> None:
    """Have the questions of conversations answered turn by turn, in place; failures are entered in `faults`."""
    turns = max((sum(m["role"] == "assistant" for m in messages) for messages in conversations), default=0)
    for turn in range(turns):
        places = []  # (conversation, position of its answer number `turn`)
        for number, messages in enumerate(conversations):
            answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
            if not faults[number] and turn < len(answers):
                places.append((number, answers[turn]))
        planned = [
            PlannedRequest(chat_messages(conversations[number][:at]), ("answer", number, turn)) for number, at in places
        ]
        for (number, at), reply in zip(places, run.ask(planned, f"answers {turn + 1}"), strict=True):
            conversations[number][at]["content"] = reply.text.strip()
            if reply.error or not reply.text.strip():
                faults[number] = "no answer"
            elif reply.finish_reason == "length":
                faults[number] = "answer cut at the token limit"


def chat_messages(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Return messages with inputs appended to the contents, since chat endpoints have no field for inputs."""
    return [
        {"role": m["role"], "content": "\n\n".join(text for text in (m["content"], m.get("input")) if text)}
        for m in messages
    ]  # fmt: skip


def row_of(messages: list[Any], row: InstructionRow) -> InstructionRow:
    """Return translated messages in the form of their source row; a row with system or history gets messages."""
    if row.get("messages") is not None or len(messages) != 2:
        return {"messages": [{key: m[key] for key in ("role", *TEXT_KEYS) if m.get(key)} for m in messages]}
    return {
        "instruction": messages[0]["content"],
        "input": messages[0].get("input") or "",
        "output": messages[1]["content"],
    }
