"""Make the inputs and summaries of the recipes quickstart.sh (a made-up world, a random LLaMA) and real_model.sh.

python examples/make_demo.py world --output_dir quickstart/world
python examples/make_demo.py tokenizer --input a.jsonl,b.txt --output_dir D --vocab_size 1000
python examples/make_demo.py model --tokenizer_path D --output_dir base --hidden_size 192 --num_hidden_layers 4
python examples/make_demo.py summary --folder quickstart
python examples/make_demo.py facts --facts_path facts --output facts.jsonl
python examples/make_demo.py rehearsal --answers answers.jsonl --output rehearsal.jsonl
python examples/make_demo.py steps --train_log probe/train_log.jsonl --seconds 600
python examples/make_demo.py real_summary --folder real_model
"""

from command_line.fire_commands import run

from demo_world.tiny_llama import make_model, train_tokenizer
from demo_world.world_builder import make_world
from recipe_results.fact_questions import write_fact_questions
from recipe_results.quickstart_summary import summarize
from recipe_results.real_model_summary import steps_within, summarize_real_model
from recipe_results.rehearsal_rows import write_rehearsal_rows

if __name__ == "__main__":
    run(
        {
            "world": make_world, "tokenizer": train_tokenizer, "model": make_model, "summary": summarize,
            "facts": write_fact_questions, "rehearsal": write_rehearsal_rows, "steps": steps_within,
            "real_summary": summarize_real_model,
        }
    )  # fmt: skip
