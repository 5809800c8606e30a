"""Make the parts of the quick start: a small made-up world, a tokenizer, a random LLaMA, and the summary of a run.

python examples/make_demo.py world --output_dir quickstart/world
python examples/make_demo.py tokenizer --input a.jsonl,b.txt --output_dir D --vocab_size 1000
python examples/make_demo.py model --tokenizer_path D --output_dir base --hidden_size 192 --num_hidden_layers 4
python examples/make_demo.py summary --folder quickstart
"""

import inspect
import sys

import fire
from demo_world.quickstart_summary import summarize
from demo_world.tiny_llama import make_model, train_tokenizer
from demo_world.world_builder import make_world

COMMANDS = {"world": make_world, "tokenizer": train_tokenizer, "model": make_model, "summary": summarize}

if __name__ == "__main__":
    command = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    try:
        for argument in sys.argv[2:] if command else []:
            name = argument.removeprefix("--").split("=")[0].replace("-", "_")
            if argument.startswith("--") and name not in ("", "help", *inspect.signature(command).parameters):  # type: ignore[arg-type]
                raise ValueError(f"unknown option --{name}; see --help")
        fire.Fire(COMMANDS, [*sys.argv[1:2], "--", "--help"] if "--help" in sys.argv[1:] else None)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
