"""The questions that an edit is scored with."""

from dataclasses import dataclass

from knowledge_editing.edit_files import Edit

EDIT_KINDS = ("efficacy", "rephrase", "portability")  # kinds whose answer must be the given one after the edit
LOCALITY_KINDS = ("neighbour", "same_subject", "other")  # kinds whose answer must not change
KINDS = (*EDIT_KINDS, *LOCALITY_KINDS)


@dataclass(frozen=True)
class Question:
    """A question and the answer that is expected after the edit.

    kind: one of KINDS. expected: None if the model's own answer before the edit must stay.
    """

    kind: str
    prompt: str
    expected: str | None

    @property
    def is_locality(self) -> bool:
        return self.kind in LOCALITY_KINDS


def edit_questions(edit: Edit) -> list[Question]:
    """Return the questions of an edit: its own, rephrased ones, locality, portability; the latter need an answer."""
    questions = [Question("efficacy", edit.question, edit.target)]
    questions += [Question("rephrase", prompt, edit.target) for prompt in edit.rephrasings]
    for probe in edit.locality:
        kind = probe.kind if probe.kind in LOCALITY_KINDS else "other"
        questions.append(Question(kind, probe.prompt, probe.answer))
    questions += [Question("portability", probe.prompt, probe.answer) for probe in edit.portability if probe.answer]
    return questions
