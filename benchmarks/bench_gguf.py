"""tools/import_gguf.py against transformers' own loader of GGUF files.

    python benchmarks/bench_gguf.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf

In each of the --rounds, each of the two reads the file once in its own process: import_gguf.py writes a sealed
checkpoint folder, and transformers loads model and tokenizer with gguf_file=, without writing anything (it refuses to
save them). The last line is JSON: seconds and cpu_s of each ([median, minimum, maximum]), peak_mib (peak of resident
memory) and ratio (median over the rounds of transformers' seconds divided by those of import_gguf.py).
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import fire
from measurements import REPOSITORY, ProcessUsage, rotated, run_measured, spread

LOADER = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, name = Path(sys.argv[1]).parent, Path(sys.argv[1]).name
AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
AutoTokenizer.from_pretrained(folder, gguf_file=name)
"""


def main(gguf: str, rounds: int = 3) -> None:
    """Run the rounds and print a JSON line.

    Args:
        gguf: the GGUF file.
        rounds: number of rounds.
    """
    file, found = Path(gguf).resolve(), dict[str, list[ProcessUsage]]()
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        output = Path(folder, "imported")
        commands: dict[str, list[object]] = {
            "import_gguf": [REPOSITORY / "tools/import_gguf.py", "--gguf", file, "--output", output],
            "transformers": ["-c", LOADER, file],
        }
        for number in range(rounds):
            for name in rotated(list(commands), number):
                usage = run_measured(
                    [sys.executable, *commands[name]], Path(folder), 0.05, lambda p: [p.memory_info().rss]
                )
                found.setdefault(name, []).append(usage)
                shutil.rmtree(output, ignore_errors=True)
    pairs = zip(found["transformers"], found["import_gguf"], strict=True)
    result = {
        name: {
            "seconds": spread([usage.seconds for usage in usages], 2),
            "cpu_s": spread([usage.cpu_seconds for usage in usages], 2),
            "peak_mib": max(usage.peaks[0] for usage in usages) >> 20,
        }
        for name, usages in found.items()
    }
    print(json.dumps(result | {"ratio": round(median(other.seconds / own.seconds for other, own in pairs), 1)}))


if __name__ == "__main__":
    fire.Fire(main)
