"""Checks of a checkpoint folder and a port before a model is loaded; each error is one line."""

from command_line.command_errors import one_line

import errno
import re
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapter_checks.adapter_config import read_config
from extraction.extraction_form import read_extraction
from model_folders.diff_recognition import refuse_diff
from model_folders.own_code import own_code_error
from model_folders.weight_files import weight_files
from vllm_bridge.vllm_imports import from_vllm

LAST_PORT = 65535
# Files of vLLM that check options.
OPTIONS_CHECKED_IN = (
    "vllm/engine/arg_utils.py", "vllm/entrypoints/launchers/cli_args.py", "vllm/logger.py",
    "vllm/renderers/chat_utils.py",
)  # fmt: skip
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_served_model(model: str, weights: bool = True, tokenizer: bool = True) -> bool:
    """Check a checkpoint folder; return whether `model` is a local folder or file, False for a name on the hub.

    weights, tokenizer: whether the folder must have them. Raises FileNotFoundError or ValueError.
    """
    folder = Path(model)
    if not folder.exists():
        if HUB_NAME.fullmatch(model) and not Path(model.split("/")[0]).exists():
            return False
        raise FileNotFoundError(f"{model} does not exist; --model takes a checkpoint folder or a hub name (org/name)")
    if not folder.is_dir():
        return True
    if weights:
        weight_files(folder)  # raises for missing shards and for two sets of weights
    if (folder / "adapter_config.json").is_file():
        beside = f"serve it with its base (--model BASE --lora-modules NAME={model})"
        raise ValueError(f"{model} is a LoRA adapter; {beside}, or {merge_remedy(model)}")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{model} is not a checkpoint (no config.json); give the folder of a checkpoint")
    read_config(folder / "config.json")
    if weights:
        refuse_diff(folder)
    if weights and not any(any(folder.glob(kind)) for kind in ("*.safetensors", "*.bin", "*.pt", "*.gguf")):
        raise FileNotFoundError(f"{model} has no weights (*.safetensors); copy or download the checkpoint again")
    read_extraction(model)
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
    if tokenizer and not any((folder / name).is_file() for name in tokenizers):
        raise FileNotFoundError(f"{model} has no tokenizer.json; copy the base's tokenizer files into it")
    return True


def check_own_code(folder: Path) -> None:
    """Raise ValueError if the model's configuration needs Python code of the folder.

    vLLM would log three errors and raise a fourth of several lines. The folder's code is not needed for a model type
    that transformers or vLLM supports.
    """
    config = read_config(folder / "config.json")
    if "AutoConfig" not in config.get("auto_map", {}):
        return
    from transformers import CONFIG_MAPPING

    if not any(config.get("model_type") in known for known in (CONFIG_MAPPING, from_vllm("_CONFIG_REGISTRY"))):
        raise own_code_error(folder)


def merge_remedy(adapter: str) -> str:
    """Return the remedy for an adapter that cannot be served with its base."""
    return f"merge it: python tools/weight_diff.py merge --path_zhixi BASE --path_lora {adapter} --path_sfted NEW"


def check_port(host: str, port: int) -> None:
    """Raise ValueError if no server can listen at host:port."""
    if not 0 <= port <= LAST_PORT:
        raise ValueError(f"port {port} does not exist; give --port a number up to {LAST_PORT}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                remedy = "end the process that listens there, or choose another port with --port"
                raise ValueError(f"port {port} on {host or 'this machine'} is in use; {remedy}") from None
            raise ValueError(f"cannot listen on {host}:{port} ({error.strerror}); change --host or --port") from None


@contextmanager
def option_errors() -> Iterator[None]:
    """Turn an error of vLLM about its options into a ValueError. A context manager.

    vLLM checks options with assertions and with exceptions of many classes; some of their messages are not formatted.
    """
    try:
        yield
    except Exception as error:
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not any(file.endswith(OPTIONS_CHECKED_IN) for file in files):
            raise
        given = error.args[0] if len(error.args) == 1 and isinstance(error.args[0], tuple) else error.args
        is_unformatted = len(given) > 1 and str(given[0]).count("%s") == len(given) - 1
        raise ValueError(given[0] % given[1:] if is_unformatted else one_line(error)) from None
