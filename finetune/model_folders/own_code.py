"""Load a folder with transformers' Auto classes, and execute the folder's own Python code only on request.

A model or tokenizer whose class transformers lacks has this class in Python files of its folder; auto_map in
config.json or tokenizer_config.json names the class. If trust_remote_code is not given, transformers asks on standard
input whether to execute the files.
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

    options: further arguments of from_pretrained. With output_loading_info, weights of another shape are not an error
    and transformers prints no table of wrong weights: the caller reports them. Raises OwnCodeError if the folder needs
    its own code and trust_remote_code is false, or if its code fails, for example without a package that it needs (a
    ValueError, OSError or MemoryError of the code is raised unchanged). Raises ValueError if the folder's files have
    values that the library does not expect.
    """
    from safetensors import SafetensorError

    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code} | options
    if options.get("output_loading_info"):
        settings["ignore_mismatched_sizes"] = True
    try:
        with without_load_report() if options.get("output_loading_info") else nullcontext():
            loaded = auto_class.from_pretrained(folder, **settings)
        length = getattr(loaded, "model_max_length", 0)  # a wrong value would fail only at the first call
        if isinstance(length, bool) or not isinstance(length, int | float):
            raise TypeError(f"model_max_length is {length!r:.80}, not a number")
        return loaded
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise own_code_error(folder) from None
    except (OSError, MemoryError, SafetensorError):
        raise
    except Exception as error:  # any class: damaged values fail wherever they are first used
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
    """Context manager in which transformers does not print its table of missing, unexpected and mismatched weights."""
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
    if not (files := code_files(folder)):
        return OwnCodeError(f"{folder} needs Python code that it does not contain; download its Python files, too")
    return OwnCodeError(
        f"{folder} needs its own Python code ({', '.join(files)}), which is not executed by default; read it, and if "
        "you trust it, give --trust_remote_code"
    )


def code_files(folder: str | Path) -> list[str]:
    """Return the names of the Python files in a folder."""
    return sorted(file.name for file in Path(folder).glob("*.py"))
