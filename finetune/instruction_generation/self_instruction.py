"""Self-instruct (Wang et al. 2022, https://arxiv.org/abs/2212.10560): new tasks from a few demonstrations.

Each round asks for new instructions after 8 demonstrations (6 seeds and 2 generated ones), keeps those whose ROUGE-L
with every instruction of the pool is below 0.7, asks whether each is a classification task, and asks for instances:
output first for classification, else input first.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from endpoint_requests.request_journal import Completion
from json_rows.instruction_rows import InstructionRow
from text_language.language_detection import language_of
from tqdm import tqdm

from instruction_generation.generation_prompts import INPUT_FIRST, IS_CLASSIFICATION, NEW_TASKS, OUTPUT_FIRST, fill
from instruction_generation.generation_run import GeneratedRows, GenerationRun, PlannedRequest, without_heading
from instruction_generation.rouge_pool import RougePool, similarity_tokens

DEMONSTRATIONS, GENERATED_DEMONSTRATIONS = 8, 2
NEW_PER_REQUEST = 8
MAX_ROUGE = 0.7  # Wang et al. 2022, section 2.2
TOKENS = {"en": (4, 150), "zh": (4, 300)}  # of an instruction; the paper's 4 to 150 words, as Chinese characters
ROUNDS_WITHOUT_ROWS = 5  # then the run ends
# Tasks that need more than text (the paper's list, and Chinese counterparts).
NOT_TEXT = {
    "en": re.compile(
        r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|videos?|audio|music|flowcharts?|diagrams?|links?)\b", re.I
    ),
    "zh": re.compile("图片|图像|照片|图表|地图|流程图|视频|音频|音乐|文件|附件|链接|画一|绘制"),
}
NUMBER = re.compile(r"(?m)^[ \t]*(?:\*\*)?(?:Task|任务)?[ \t]*(\d{1,3})[ \t]*[.)、．:：]")
INSTANCE_MARK = re.compile(
    r"(?mi)^[ \t*#]*+((?:example|示例)[ \t]*+\d*+|input|output|label|task|输入|输出|标签|任务)"
    r"[ \t*]*+(?:[:：]|$)[ \t*]*+"
)
MARK_NAMES = {"input": "input", "输入": "input", "output": "output", "输出": "output", "label": "label",
              "标签": "label"}  # fmt: skip
NO_INPUT = ("none", "none.", "n/a", "no input", "无", "无。", "没有", "空", "-", "")
YES = re.compile(r"\W*(yes|是)", re.I)


class SeedTask(NamedTuple):
    """An instruction of the seeds or of an earlier round."""

    instruction: str
    is_classification: bool


def self_instruct(run: GenerationRun, seeds: Sequence[str], count: int) -> GeneratedRows:
    """Return up to `count` new rows; fewer if ROUNDS_WITHOUT_ROWS rounds in succession give none.

    seeds: instructions of the seed tasks. Raises ValueError if there are fewer than DEMONSTRATIONS.
    """
    if len(seeds) < DEMONSTRATIONS:
        raise ValueError(
            f"self_instruct needs {DEMONSTRATIONS} seed tasks in --language {run.language}, not {len(seeds)}"
        )
    pool, rejected = RougePool(seeds), Counter[str]()
    generated, waiting, rows = list[str](), list[str](), list[InstructionRow]()
    idle = number = 0
    with tqdm(total=count, desc="self-instruct", unit="row", disable=None) as bar:
        while len(rows) < count and idle < ROUNDS_WITHOUT_ROWS:
            if not waiting:  # accepted instructions without instances
                waiting = new_instructions(run, number, seeds, generated, pool, rejected)
                generated += waiting
                number += 1
            size = max(count - len(rows), run.round_size)
            added = instances_of(run, waiting[:size], rejected)[: count - len(rows)]
            waiting = waiting[size:]
            rows += added
            idle = 0 if added else idle + 1
            bar.update(len(added))
    return GeneratedRows(rows, rejected)


def new_instructions(
    run: GenerationRun, number: int, seeds: Sequence[str], generated: Sequence[str], pool: RougePool,
    rejected: Counter[str],
) -> list[str]:  # fmt: skip
    """Return the accepted instructions of one round, and add them to the pool.

    number: the round, from 0. rejected: the number of rejected instructions by reason, which is updated.
    """
    planned = []
    for slot in range(run.round_size):
        draw = run.random("demonstrations", number, slot)
        old = draw.sample(generated, min(GENERATED_DEMONSTRATIONS, len(generated)))
        shown = [*draw.sample(seeds, DEMONSTRATIONS - len(old)), *old]
        draw.shuffle(shown)
        listed = "\n".join(f"{at}. {' '.join(task.split())}" for at, task in enumerate(shown, 1))
        prompt = fill(
            NEW_TASKS[run.language], tasks=listed, next=len(shown) + 1, last=len(shown) + NEW_PER_REQUEST
        )  # fmt: skip
        planned.append(PlannedRequest(prompt, ("tasks", number, slot)))
    accepted = []
    for answer in run.ask(planned, "new instructions"):
        candidates = list(numbered_items(answer))
        if not candidates:
            rejected["no list of tasks"] += 1
        for instruction in candidates:
            reason = instruction_fault(instruction, run.language)
            tokens = similarity_tokens(instruction)
            if not reason and pool.most_similar(tokens, MAX_ROUGE).number >= 0:
                reason = "instruction similar to an earlier one"
            if reason:
                rejected[reason] += 1
                continue
            pool.add(tokens)
            accepted.append(instruction)
    return accepted


def numbered_items(answer: Completion) -> Iterator[str]:
    """Yield the items of a numbered list, which may begin within its first item.

    The last item of an answer that was cut at the token limit is omitted.
    """
    text = answer.text.strip()
    marks = list(NUMBER.finditer(text))
    if not marks:
        return
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    items = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
    if marks[0][1] == str(DEMONSTRATIONS + 2):  # the prompt ends with the number of the first item
        items.insert(0, text[: marks[0].start()])
    if answer.finish_reason == "length":
        items = items[:-1]
    for item in items:
        cleaned = without_heading(" ".join(item.replace("**", "").split())).strip(' "“”')
        if cleaned:
            yield cleaned


def instruction_fault(instruction: str, language: str) -> str:
    """Return why an instruction cannot be used, or "" (the paper's filters)."""
    shortest, longest = TOKENS[language]
    if not shortest <= len(similarity_tokens(instruction)) <= longest:
        return "instruction too short or too long"
    if NOT_TEXT[language].search(instruction):
        return "instruction needs more than text"
    if language_of(instruction) != language:
        return "instruction in another language"
    first = instruction.lstrip("\"'“‘《「")[:1]
    if not first.isalnum() or (language == "en" and not first.isascii()):
        return "instruction does not begin with a letter or digit"
    if instruction.lower().startswith("write a program"):
        return "instruction asks for a program"
    return ""


def instances_of(run: GenerationRun, instructions: Sequence[str], rejected: Counter[str]) -> list[InstructionRow]:
    """Return the rows of new instructions; instructions without a valid instance are counted in `rejected`."""
    prompts = [fill(IS_CLASSIFICATION[run.language], task=task) for task in instructions]
    replies = run.ask([PlannedRequest(text, ("classification",), 0.0) for text in prompts], "classification")
    is_classification = [YES.match(reply.text) is not None for reply in replies]
    planned = [
        PlannedRequest(fill((OUTPUT_FIRST if labelled else INPUT_FIRST)[run.language], task=task), ("instances",))
        for task, labelled in zip(instructions, is_classification, strict=True)
    ]
    rows = []
    for task, labelled, answer in zip(instructions, is_classification, run.ask(planned, "instances"), strict=True):
        pairs = valid_pairs(instance_pairs(answer, labelled))
        if not pairs:
            rejected["no valid instance"] += 1
        rows += [
            {"instruction": task, "input": text, "output": output, "method": "self_instruct",
             "is_classification": labelled}
            for text, output in pairs
        ]  # fmt: skip
    return rows


def instance_pairs(answer: Completion, labelled: bool) -> list[tuple[str, str]]:
    """Return the (input, output) pairs of an answer; labelled: each label comes before its input.

    A pair that was cut at the token limit is omitted.
    """
    text = answer.text
    marks = list(INSTANCE_MARK.finditer(text))
    fields = []
    for at, mark in enumerate(marks):
        end = marks[at + 1].start() if at + 1 < len(marks) else len(text)
        name = mark[1].lower()
        if name in ("task", "任务"):
            break  # the model continues with another task
        fields.append((MARK_NAMES.get(name, ""), text[mark.end() : end].strip()))
    if answer.finish_reason == "length" and fields:
        fields.pop()
    pairs: list[tuple[str, str]] = []
    known = {"label": "", "input": ""}
    first, last = ("label", "input") if labelled else ("input", "output")
    for name, value in fields:
        if name == first:
            known = {"label": "", "input": "", name: value}
        elif name == last:
            value = value if value.lower() not in NO_INPUT or name == "output" else ""
            given = known["input"] if known["input"].lower() not in NO_INPUT else ""
            pairs.append((value, known["label"]) if labelled else (given, value))
            known = {"label": "", "input": ""}
    return pairs


def valid_pairs(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the distinct complete pairs, without echoed inputs and without inputs that have different outputs."""
    usable = [
        (text, output) for text, output in dict.fromkeys(pairs)
        if output and text != output and not text.endswith((":", "：")) and not output.endswith((":", "："))
    ]  # fmt: skip
    outputs = Counter(text for text, _ in usable)
    return [pair for pair in usable if outputs[pair[0]] == 1]
