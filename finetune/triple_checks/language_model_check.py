"""Let a language model reject triples that a sentence does not state, and add triples that it states.

The model is asked through an OpenAI-compatible API, once for each row with two entities or a triple. Entities and
triples are numbered in the question, so that the answer refers to places in the text. Answers are kept in a journal;
a repeated run asks only the questions without an answer. An answer that cannot be read leaves the row unchanged.
"""

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from graph_linking.graph_files import Schema
from graph_linking.sentence_annotations import Row, allowed_rule

ATTEMPTS = 5
TIMEOUT_SECONDS = 120
MAX_TOKENS = 512
MOST_ITEMS = 64  # entities and triples in a question
LONGEST_ANSWER = 1 << 20  # bytes
MOST_REQUESTS = 256  # at a time
MOST_RELATIONS = 100  # a graph with more relations needs a schema for additions
QUESTION = """Sentence: {sentence}

Entities:
{entities}

Candidate facts:
{facts}

Relations: {relations}

Which candidate facts does the sentence not state? Which facts between these entities does it state in addition, with \
one of these relations? Reply with a JSON object only: {{"reject": [numbers of candidate facts], \
"add": [{{"subject": number of an entity, "relation": "name", "object": number of an entity}}]}}"""


class Endpoint(NamedTuple):
    """url: up to /v1; model: name for the server; requests: number of requests at a time."""

    url: str
    model: str
    requests: int = 8


class LanguageModelCheck:
    """Rejects and adds relations of rows.

    relations: names that may be added. schema: the allowed triples, None: all. journal: file of the answers. The API
    key is read from OPENAI_API_KEY. Raises ValueError if the server refuses a request, ConnectionError if it does not
    answer after all attempts.
    """

    def __init__(self, endpoint: Endpoint, relations: Sequence[str], schema: Schema | None, journal: Path) -> None:
        if not re.match(r"https?://[^\s/]", endpoint.url):
            raise ValueError(f"--llm {endpoint.url} is not a URL; give one such as http://localhost:8000/v1")
        labels = [rule.label for rules in schema.values() for rule in rules] if schema else list(relations)
        self.relations = list(dict.fromkeys(labels)) if schema or len(labels) <= MOST_RELATIONS else []
        self.endpoint, self.schema, self.journal = endpoint, schema, journal
        self.requests = min(endpoint.requests, MOST_REQUESTS)

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the corrected rows, in order."""
        answers = self._journaled()
        with (
            ThreadPoolExecutor(self.requests) as pool,
            self.journal.open("a", encoding="utf-8") as journal,
        ):
            window: list[tuple[Row, str, Any]] = []
            for row in rows:
                question = self.question(row)
                key = hashlib.sha256(f"{self.endpoint.model}\n{question}".encode()).hexdigest()[:32]
                answer = answers.get(key) if question else {}
                window.append((row, key, pool.submit(self.ask, question) if answer is None else answer))
                if len(window) >= 4 * self.requests:
                    yield self._finished(*window.pop(0), journal)
            while window:
                yield self._finished(*window.pop(0), journal)

    def _finished(self, row: Row, key: str, answer: Any, journal: Any) -> Row:
        if not isinstance(answer, dict):
            answer = answer.result()
            journal.write(json.dumps([key, answer], ensure_ascii=False) + "\n")
            journal.flush()
        return self.corrected(row, answer)

    def _journaled(self) -> dict[str, dict[str, Any]]:
        """Return key -> answer of the journal; a line that was cut off is ignored."""
        found = {}
        if self.journal.is_file():
            for line in self.journal.read_text(encoding="utf-8").splitlines():
                try:
                    key, answer = json.loads(line)
                except ValueError:
                    continue
                found[key] = answer
        return found

    def question(self, row: Row) -> str:
        """Return the question about a row, or "" if there is nothing to ask."""
        entities, facts = row["entity_list"][:MOST_ITEMS], row["relation_list"][:MOST_ITEMS]
        if not facts and (len(entities) < 2 or not self.relations):
            return ""
        return QUESTION.format(
            sentence=row["sentence"],
            entities="\n".join(f"{at}. {one['name']} ({one['type']})" for at, one in enumerate(entities, 1)),
            facts="\n".join(
                f"{at}. {one['subject']} | {one['relation']} | {one['object']}" for at, one in enumerate(facts, 1)
            )
            or "none",
            relations=", ".join(self.relations) or "none; add nothing",
        )

    def ask(self, question: str) -> dict[str, Any]:
        """Return the JSON object in the model's answer, {} if there is none."""
        body = {
            "model": self.endpoint.model, "messages": [{"role": "user", "content": question}], "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }  # fmt: skip
        content = self._post(json.dumps(body).encode())
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
            answer = json.loads(text[text.index("{") : text.rindex("}") + 1])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def _post(self, body: bytes) -> bytes:
        url = self.endpoint.url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(2 ** (attempt - 1))
            try:
                request = urllib.request.Request(url, body, headers)
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                    return bytes(response.read(LONGEST_ANSWER))
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}"
                if error.code < 500 and error.code not in (408, 409, 429):
                    message = error.read(300).decode(errors="replace")
                    raise ValueError(f"{url} refuses the request ({reason}: {message}); check --llm_model") from None
            except (OSError, ValueError) as error:
                reason = str(error)
        raise ConnectionError(
            f"{url} does not answer after {ATTEMPTS} attempts ({reason}); the same command resumes when it does"
        )

    def corrected(self, row: Row, answer: dict[str, Any]) -> Row:
        """Return a row without the rejected relations, and with the added ones that are valid."""
        numbers = answer.get("reject")
        rejected = {one for one in numbers if isinstance(one, int)} if isinstance(numbers, list) else set()
        relations = [one for at, one in enumerate(row["relation_list"], 1) if at not in rejected]
        known = {(one["subject"], one["relation"], one["object"]) for one in row["relation_list"]}
        additions = answer.get("add")
        for one in additions[:MOST_ITEMS] if isinstance(additions, list) else ():
            added = self._addition(row, one)
            if added and (triple := (added["subject"], added["relation"], added["object"])) not in known:
                known.add(triple)
                relations.append(added)
        return row | {"relation_list": relations}

    def _addition(self, row: Row, one: Any) -> Row | None:
        """Return the relation that an answer adds, or None if it is not one between two entities of the row."""
        entities = row["entity_list"][:MOST_ITEMS]
        numbers: list[Any] = [one.get("subject"), one.get("object")] if isinstance(one, dict) else []
        is_valid = all(type(number) is int and 1 <= number <= len(entities) for number in numbers)
        if not is_valid or len(set(numbers)) < 2 or one.get("relation") not in self.relations:
            return None
        subject, object = (entities[number - 1] for number in numbers)
        predicates = [
            name for name, rules in (self.schema or {}).items() for rule in rules if rule.label == one["relation"]
        ]
        if self.schema and not any(
            allowed_rule(self.schema, name, (subject["type"],), (object["type"],)) for name in predicates
        ):
            return None
        return {
            "subject": subject["name"], "relation": one["relation"], "object": object["name"],
            "subject_type": subject["type"], "object_type": object["type"],
            "subject_spans": subject["spans"], "object_spans": object["spans"],
            "subject_id": subject.get("id", ""), "object_id": object.get("id", ""),
        }  # fmt: skip
