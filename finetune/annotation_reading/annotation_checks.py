"""Check that annotations fit their sentence, and describe those that do not in one line each."""

from itertools import pairwise

from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Event, Mention, Relation

SHOWN = 60  # characters of a name or type in a message


def check_sentence(sentence: AnnotatedSentence) -> tuple[AnnotatedSentence, list[str]]:
    """Return the sentence without bad items, and a line "file:line entity 'X' …" for each bad item.

    An item is bad if it has no type, if a mention is not in the text, or if the spans of a mention are outside the text
    or do not spell it. A bad argument is removed from its event; an event with a bad trigger is removed. The lines
    begin with the problems that the reader found. A sentence with a blank text gets one line only.
    """
    if not sentence.text.strip():
        return sentence._replace(problems=()), [f"{sentence.location} has a blank text and is skipped"]
    problems = list(sentence.problems)

    def keep(item: str, *errors: str) -> bool:
        error = next(filter(None, errors), "")
        if error:
            problems.append(f"{sentence.location} {item} {error}")
        return not error

    def keep_entity(entity: Entity) -> bool:
        return keep(
            f"entity {shown(entity.mention.text)}", label_error(entity.type), mention_error(sentence, entity.mention)
        )

    def keep_relation(relation: Relation) -> bool:
        return keep(
            f"relation {shown(relation.label)}",
            label_error(relation.label),
            mention_error(sentence, relation.subject, "subject"),
            mention_error(sentence, relation.object, "object"),
        )

    def kept_events(events: tuple[Event, ...]) -> list[Event]:
        kept = []
        for event in events:
            item = f"event {shown(event.type)}"
            trigger_error = mention_error(sentence, event.trigger, "trigger") if event.trigger else ""
            if keep(item, label_error(event.type), trigger_error):
                arguments = tuple(
                    (role, mention)
                    for role, mention in event.arguments
                    if keep(
                        item, label_error(role, "role"), mention_error(sentence, mention, f"argument {shown(role)}")
                    )
                )
                kept.append(event._replace(arguments=arguments))
        return kept

    checked = sentence._replace(
        entities=None if sentence.entities is None else tuple(filter(keep_entity, sentence.entities)),
        relations=None if sentence.relations is None else tuple(filter(keep_relation, sentence.relations)),
        events=None if sentence.events is None else tuple(kept_events(sentence.events)),
        problems=(),
    )
    return checked, problems


def label_error(label: str, kind: str = "type") -> str:
    """Return why a type or role is bad, or ""."""
    return "" if label.strip() else f"has no {kind}"


def mention_error(sentence: AnnotatedSentence, mention: Mention, part: str = "") -> str:
    """Return why a mention does not fit its sentence, or "".

    part: role of the mention in its item, such as "subject"; "" for an entity.
    """
    text = sentence.text
    which = f"has the {part} {shown(mention.text)}, which " if part else ""
    for start, end in mention.spans:
        if start >= end:
            return f"{which}has the empty span {shown_span(start, end)}"
        if not 0 <= start < end <= len(text):
            return f"{which}has the span {shown_span(start, end)}, but the text has {len(text)} characters"
    if not mention.text.strip():
        return f"has no {part or 'name'}"
    if not mention.spans:
        return "" if mention.text in text else f"{which}is not in the text"
    if any(end > start for (_, end), (start, _) in pairwise(mention.spans)):
        return f"{which}has spans that overlap or are not in the order of the text"
    fragments = [text[start:end] for start, end in mention.spans]
    if mention.text not in (" ".join(fragments), "".join(fragments)):
        spans = ", ".join(shown_span(*span) for span in mention.spans[:5])
        return f"{which}has the span {spans}, where the text is {shown(' '.join(fragments))}"
    return ""


def shown(text: str) -> str:
    """Return a name or type for a message: quoted, on one line, shortened."""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")


def shown_span(start: int, end: int) -> str:
    """Return a span for a message; "huge" stands for a number of more than 15 digits."""
    return f"[{', '.join(str(n) if abs(n) < 10**15 else 'huge' for n in (start, end))}]"
