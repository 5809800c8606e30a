"""Compare a trainer's overridden methods with transformers' Trainer, for the tests of both trainers."""

import inspect
from collections import Counter
from functools import wraps
from typing import Any

from transformers import Trainer


def overridden_methods(kind: type) -> list[str]:
    """Return the methods of Trainer that `kind` and its bases below Trainer override."""
    own = [name for base in kind.__mro__[: kind.__mro__.index(Trainer)] for name in vars(base)]
    return sorted({name for name in own if callable(getattr(Trainer, name, None)) and not name.startswith("__")})


def check_signatures(kind: type) -> None:
    """Assert that every overridden method is public and has the parameters of Trainer's."""
    for name in overridden_methods(kind):
        assert not name.startswith("_"), name
        theirs, ours = (list(inspect.signature(getattr(owner, name)).parameters) for owner in (Trainer, kind))
        assert ours == theirs, name


def calls_while_training(trainer: Any) -> Counter[str]:
    """Train; return how often each overridden method was called."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> Any:
        method = getattr(trainer, name)

        @wraps(method)
        def call(*arguments: Any, **more: Any) -> Any:
            calls[name] += 1
            return method(*arguments, **more)

        return call

    for name in overridden_methods(type(trainer)):
        setattr(trainer, name, counted(name))
    trainer.train_until_stopped(None)
    return calls
