"""Load with transformers' Auto classes from a folder whose own Python code is executed only on request.

The Python files of a model or tokenizer class that transformers does not have lie in the folder; auto_map in
config.json or tokenizer_config.json names them. If trust_remote_code is not given, transformers asks on standard input
whether to execute them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any


class OwnCodeError(ValueError):
    """A folder's own code is needed and not trusted, or failed."""


def from_folder(auto_class: Any, folder: str | Path, trust_remote_code: bool, **options: Any) -> Any:
    """Call from_pretrained of AutoConfig, AutoTokenizer or AutoModelForCausalLM on a local folder.

    options: further arguments of from_pretrained; with output_loading_info, the caller reports wrong weights, also
    those of another shape, and transformers does not print its table of them. Raises OwnCodeError with one line if the
    folder needs its own code and trust_remote_code is false, or if its code needs packages or a version of transformers
    that are not installed; ValueError with one line if its files have values that the library does not expect.
    """
    from safetensors import SafetensorError

    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code} | options
    if options.get("output_loading_info"):
        settings["ignore_mismatched_sizes"] = True
    try:
        with without_load_report() if options.get("output_loading_info") else nullcontext():
            loaded = auto_class.from_pretrained(folder, **settings)
        length = getattr(loaded, "model_max_length", 0)  # of a tokenizer, which compares it at its first call
        if isinstance(length, bool) or not isinstance(length, int | float):
            raise TypeError(f"model_max_length is {length!r:.80}, not a number")
        return loaded
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise own_code_error(folder) from None
    except (OSError, MemoryError, SafetensorError):
        raise
    except Exception as error:  # of many classes: damaged values are noticed where they are first used
        if isinstance(error, RuntimeError) and type(error) not in (RuntimeError, RecursionError, NotImplementedError):
            raise  # out of memory on a GPU, for example
        if trust_remote_code and code_files(folder):
            raise OwnCodeError(
                f"the Python code in {folder} failed ({type(error).__name__}: {error}); install the packages or the "
                "version of transformers that it needs"
            ) from error
        if isinstance(error, ImportError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{folder} cannot be loaded ({reason}); check its files") from error


@contextmanager
def without_load_report() -> Iterator[None]:
    """Context manager: transformers does not print its table of missing, unexpected and other weights."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return " LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def own_code_error(folder: str | Path) -> OwnCodeError:
    """Return the error for a folder that needs its own code."""
    return OwnCodeError(
        f"{folder} needs its own Python code ({', '.join(code_files(folder))}), which is not executed by default; read "
        "it, and if you trust it, give --trust_remote_code"
    )


def code_files(folder: str | Path) -> list[str]:
    """Return the names of the Python files in a folder."""
    return sorted(file.name for file in Path(folder).glob("*.py"))
