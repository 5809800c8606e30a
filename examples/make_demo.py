"""Make the inputs of the quick start (data about a made-up world, a tokenizer, a random LLaMA), and its summary.

python examples/make_demo.py world --output_dir quickstart/world
python examples/make_demo.py tokenizer --input a.jsonl,b.txt --output_dir D --vocab_size 1000
python examples/make_demo.py model --tokenizer_path D --output_dir base --hidden_size 192 --num_hidden_layers 4
python examples/make_demo.py summary --folder quickstart
"""

from command_line.fire_commands import run

from demo_world.quickstart_summary import summarize
from demo_world.tiny_llama import make_model, train_tokenizer
from demo_world.world_builder import make_world

if __name__ == "__main__":
    run({"world": make_world, "tokenizer": train_tokenizer, "model": make_model, "summary": summarize})
