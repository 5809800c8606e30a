"""Check the free disk space before a folder or file is written."""

import shutil
from pathlib import Path


def check_space(target: Path, needed: int) -> None:
    """Raise ValueError unless the target's disk has `needed` bytes free: the bytes that are still to be written."""
    above = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(
            f"{target} needs {needed / 1e9:.2f} GB more and its disk has {free / 1e9:.2f} GB free; "
            "make room or write elsewhere"
        )
