"""Ask for the types of an instruction in several random orders, so that a model does not depend on one order.

The orders are drawn once for each task and language, and order k is the same for every sentence. So all examples of an
order have the same instruction, and this common prefix is computed once in packed sequences
(example_packing/shared_prefixes.py) and cached by servers. The examples of each order are a complete data set; these
sets differ only in the order of the types.
"""

import random
from collections.abc import Sequence
from math import factorial

from instruction_data.extraction_wording import ExtractionQuestion, write_instruction

MAX_ORDERS = 16  # the more orders, the fewer examples of a step share a prefix


def random_orders(types: Sequence[str], count: int, seed: str) -> list[list[str]]:
    """Return `count` random permutations of distinct types.

    The permutations are distinct if there are enough of them, and repeat otherwise. A larger `count` only appends more.
    """
    draw = random.Random(seed)  # text seeds give the same numbers in every version of Python
    wanted = min(count, factorial(min(len(types), count)))  # count! is at least count
    orders: dict[tuple[str, ...], None] = {}
    while len(orders) < wanted:
        orders[tuple(draw.sample(types, len(types)))] = None
    return [list(list(orders)[number % wanted]) for number in range(count)]


def reordered_questions(
    questions: dict[str, ExtractionQuestion], task: str, count: int, seed: int
) -> list[dict[str, ExtractionQuestion]]:
    """Return the questions (language -> question) in each of `count` orders of the types; count 1: unchanged.

    Raises ValueError if count is not 1 to MAX_ORDERS, or if a wording does not name the types.
    """
    if not 1 <= count <= MAX_ORDERS:
        raise ValueError(f"--order_augmentation {count} is out of range; give 1 to {MAX_ORDERS}")
    if count == 1:
        return [questions]
    for language, question in questions.items():
        if "{schema}" not in question.wording:
            raise ValueError(
                f"the wording for {task} in {language} does not name the types ({{schema}}), so they have no order; "
                "remove --order_augmentation or --wording"
            )
    orders = {
        language: random_orders(question.types, count, f"{seed} {task} {language}")
        for language, question in questions.items()
    }
    return [
        {
            language: question._replace(
                instruction=write_instruction(question.wording, orders[language][number], language),
                types=orders[language][number],
            )
            for language, question in questions.items()
        }
        for number in range(count)
    ]
