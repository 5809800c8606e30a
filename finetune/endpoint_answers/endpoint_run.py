"""Ask an endpoint for the answers to many questions, with a bounded number of concurrent requests."""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from answer_generation.batched_generation import GeneratedAnswer
from json_rows.instruction_rows import Message
from tqdm import tqdm

from endpoint_answers.answer_journal import AnswerJournal
from endpoint_answers.chat_endpoint import ChatEndpoint, ChatMessages, RefusedRowError

MAX_CONCURRENCY = 1024


class Question(NamedTuple):
    """A request to the endpoint."""

    location: str  # of its row
    messages: ChatMessages
    schema: dict[str, Any] | None = None  # JSON schema of the answer


def chat_messages(messages: Sequence[Message]) -> ChatMessages:
    """Return messages for a chat endpoint: the input of a message follows its content after a blank line."""
    return [
        {"role": each["role"], "content": "\n\n".join(filter(None, (each["content"], each.get("input"))))}
        for each in messages
    ]


def answer_questions(
    endpoint: ChatEndpoint, questions: Sequence[Question], journal: AnswerJournal, concurrency: int, skip: bool
) -> dict[int, str]:
    """Ask all questions that the journal has no answer to, and record the answers.

    Return number of the question -> reason for the questions that the endpoint refuses. Without `skip`, the first one
    raises ValueError. Raises EndpointError if the endpoint does not answer.
    """
    refused: dict[int, str] = {}
    missing = [number for number in range(len(questions)) if number not in journal.answers]
    bar = tqdm(total=len(questions), initial=len(journal.answers), desc="answering", unit="answer", disable=None)
    try:
        for number, answer in asked(endpoint, questions, missing, concurrency):
            if isinstance(answer, GeneratedAnswer):
                journal.add(number, answer)
            elif isinstance(answer, RefusedRowError):
                refused[number] = str(answer)
                if not skip:
                    location = questions[number].location
                    raise ValueError(f"{location}: {answer}; correct it, or give --on_error skip; {journal.kept()}")
            else:
                raise answer
            bar.update()
    finally:
        endpoint.stopping.set()
        bar.close()
    return refused


def asked(
    endpoint: ChatEndpoint, questions: Sequence[Question], numbers: Sequence[int], concurrency: int
) -> Iterator[tuple[int, GeneratedAnswer | Exception]]:
    """Yield (number of the question, answer or error) as the answers arrive.

    The threads are daemons, so that an interrupted command does not wait for open requests.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, GeneratedAnswer | Exception]] = queue.SimpleQueue()
    for number in numbers:
        waiting.put(number)

    def work() -> None:
        while not endpoint.stopping.is_set():
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, endpoint.answer(questions[number].messages, questions[number].schema)))
            except RefusedRowError as error:
                done.put((number, error))
            except Exception as error:  # raised again in the main thread
                endpoint.stopping.set()
                done.put((number, error))

    for _ in range(min(concurrency, len(numbers))):
        threading.Thread(target=work, daemon=True).start()
    for _ in numbers:
        yield done.get()
