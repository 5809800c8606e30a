"""Ask for the types of an instruction in several random orders, so that a model does not depend on one order.

The orders are drawn once for each task and language, and order k is the same for every sentence. If an instruction asks
for all types, all examples of an order have the same instruction, and this common prefix is computed once in packed
sequences (example_packing/shared_prefixes.py) and cached by servers. The examples of each order are a complete data
set; these sets differ only in the order of the types.
"""

import random
from collections.abc import Sequence
from math import factorial
from typing import TypeVar

MAX_ORDERS = 16  # the more orders, the fewer examples of a step share a prefix
Type = TypeVar("Type")


def random_orders(types: Sequence[Type], count: int, seed: str) -> list[list[Type]]:
    """Return `count` random permutations of distinct types.

    The permutations are distinct if there are enough of them, and repeat otherwise. A larger `count` only appends more.
    """
    draw = random.Random(seed)  # text seeds give the same numbers in every version of Python
    wanted = min(count, factorial(min(len(types), count)))  # count! is at least count
    orders: dict[tuple[Type, ...], None] = {}
    while len(orders) < wanted:
        orders[tuple(draw.sample(types, len(types)))] = None
    return [list(list(orders)[number % wanted]) for number in range(count)]


def check_order_count(count: int) -> None:
    """Raise ValueError if the value of --order_augmentation is not 1 to MAX_ORDERS."""
    if not 1 <= count <= MAX_ORDERS:
        raise ValueError(f"--order_augmentation {count} is out of range; give 1 to {MAX_ORDERS}")
