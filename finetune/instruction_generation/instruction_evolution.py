"""Evol-Instruct (WizardLM, Xu et al. 2023, https://arxiv.org/abs/2304.12244): harder and rarer instructions.

In each generation, every instruction is rewritten by one of five in-depth operations or replaced by a rarer one of the
same field (in breadth), and answered. An evolution that fails is eliminated, and its instruction is evolved again in
the next generation.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from endpoint_requests.request_journal import Completion

from instruction_generation.generation_prompts import BREADTH, IN_DEPTH, SAME_TASK, deeper_prompt, fill
from instruction_generation.generation_run import GeneratedRows, GenerationRun, PlannedRequest, without_heading
from instruction_generation.rouge_pool import similarity_tokens

IN_BREADTH = "breadth"
OPERATIONS = (*IN_DEPTH, IN_BREADTH)
APOLOGY = re.compile(r"\bsorry\b|抱歉|对不起|无法回答", re.I)
SHORT_ANSWER = {"en": 80, "zh": 120}  # tokens; a shorter answer with an apology is a refusal (80 words in the paper)
# Words of the prompts; an instruction that contains them repeats its prompt.
PROMPT_WORDS = re.compile(
    r"new instruction|the instruction below|given prompt|rewritten prompt|新指令|下面的指令", re.I
)
SAME = re.compile(r"\W*(same|相同)", re.I)
STOP_WORDS = frozenset(
    similarity_tokens(
        "a an the and or but of to in on at by for with from as is are was were be been it its this that these those i"
        " you he she we they not no yes do does did so if then than there here 的了是在和与也就都而及或有不吗呢吧啊"
    )
)


class Evolution(NamedTuple):
    """An instruction and its ancestry."""

    instruction: str
    seed: int  # number of the seed row that it was evolved from, from 0
    operations: tuple[str, ...] = ()


def evolve(run: GenerationRun, seeds: Sequence[str], generations: int) -> GeneratedRows:
    """Return the answered evolutions of all generations, at most `generations` for each seed.

    seeds: instructions, each with its input.
    """
    current = [Evolution(text, number) for number, text in enumerate(seeds)]
    result = GeneratedRows([], Counter())
    for generation in range(generations):
        evolved = evolved_instructions(run, generation, current)
        faults = [
            evolution_fault(answer, parent.instruction) for answer, parent in zip(evolved, current, strict=True)
        ]  # fmt: skip
        texts = [without_heading(answer.text) for answer in evolved]
        mark_unchanged(run, current, texts, faults)
        usable = [at for at, fault in enumerate(faults) if not fault]
        planned = [PlannedRequest(texts[at], ("answer", generation, at)) for at in usable]
        for at, answer in zip(usable, run.ask(planned, f"answers {generation + 1}"), strict=True):
            faults[at] = answer_fault(answer, run.language)
            if not faults[at]:
                operations = (*current[at].operations, operation_of(run, generation, at))
                result.rows.append(
                    {"instruction": texts[at], "input": "", "output": answer.text.strip(), "method": "evolve",
                     "seed": current[at].seed, "operations": list(operations)}
                )  # fmt: skip
                current[at] = Evolution(texts[at], current[at].seed, operations)
        result.rejected.update(fault for fault in faults if fault)
    return result


def operation_of(run: GenerationRun, generation: int, number: int) -> str:
    """Return the operation for an instruction in a generation: each of OPERATIONS with the same probability."""
    return run.random("operation", generation, number).choice(OPERATIONS)


def evolved_instructions(run: GenerationRun, generation: int, current: Sequence[Evolution]) -> list[Completion]:
    """Return the answer with the evolved instruction for each current one."""
    planned = []
    for number, parent in enumerate(current):
        operation = operation_of(run, generation, number)
        if operation == IN_BREADTH:
            prompt = fill(BREADTH[run.language], instruction=parent.instruction)
        else:
            prompt = deeper_prompt(operation, run.language, parent.instruction)
        planned.append(PlannedRequest(prompt, ("evolve", generation, number)))
    return run.ask(planned, f"evolution {generation + 1}")


def evolution_fault(answer: Completion, parent: str) -> str:
    """Return why an evolved instruction is eliminated, or ""."""
    instruction = without_heading(answer.text)
    if answer.error or not instruction:
        return "no evolved instruction"
    if answer.finish_reason == "length":
        return "evolved instruction cut at the token limit"
    if PROMPT_WORDS.search(instruction) and not PROMPT_WORDS.search(parent):
        return "evolved instruction repeats its prompt"
    return ""


def mark_unchanged(
    run: GenerationRun, current: Sequence[Evolution], texts: Sequence[str], faults: list[str]
) -> None:  # fmt: skip
    """Set the fault of evolved instructions that have the same requirements as before, by the model's judgement."""
    usable = [at for at, fault in enumerate(faults) if not fault]
    prompts = [
        fill(SAME_TASK[run.language], first=current[at].instruction, second=texts[at]) for at in usable
    ]  # fmt: skip
    for at, reply in zip(
        usable, run.ask([PlannedRequest(p, ("same",), 0.0) for p in prompts], "comparison"), strict=True
    ):
        if SAME.match(reply.text) or texts[at] == current[at].instruction:
            faults[at] = "evolved instruction with the same requirements"


def answer_fault(answer: Completion, language: str) -> str:
    """Return why the answer to an evolved instruction eliminates it, or ""."""
    tokens = similarity_tokens(answer.text)
    if answer.error or not answer.text.strip():
        return "no answer"
    if answer.finish_reason == "length":
        return "answer cut at the token limit"
    if len(tokens) < SHORT_ANSWER[language] and APOLOGY.search(answer.text):
        return "answer refuses"
    if all(token in STOP_WORDS for token in tokens):
        return "answer has only stop words"
    return ""
