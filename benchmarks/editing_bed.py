"""A small model whose knowledge is known exactly, to measure knowledge editing: it is trained in a minute on one core.

    python benchmarks/editing_bed.py --output_dir bed
    python benchmarks/editing_bed.py --output_dir bed --d_ff 1536

Writes the new folder bed: model/ (a checkpoint of a LLaMA that has memorised the facts of editing_world.py),
edits.jsonl (an edit of every fact, with rephrased questions and probes), facts.jsonl, and text.jsonl (text that no edit
concerns). The last line is JSON: the share of questions that the model answers in trained and in held-out wordings
(every token of the object is the most probable one), the seconds of training, and the last loss.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import fire
from editing_world import SPACE, Fact, held_out_texts, make_edits, make_world, tokenizer_texts, training_sentences
from measurements import REPOSITORY

sys.path[:0] = [str(REPOSITORY / "examples")]

IGNORED = -100  # label of padding
LARGEST_DOCUMENT = 3  # sentences
INITIAL = 0.06  # standard deviation of the weights; LLaMA's 0.02 is for widths that are many times larger


def make_tokenizer(texts: Sequence[str], folder: Path, vocab_size: int) -> Any:
    """Train a SentencePiece model on texts, write it with its tokenizer.json to a folder, and return the tokenizer."""
    from demo_world.tiny_llama import train_tokenizer
    from transformers import AutoTokenizer

    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    with redirect_stdout(StringIO()):
        train_tokenizer([str(folder / "texts.txt")], str(folder), vocab_size)
    (folder / "texts.txt").unlink()
    build = [sys.executable, str(REPOSITORY / "tools/build_tokenizer.py")]
    subprocess.run(
        [*build, "--tokenizer_model", str(folder / "tokenizer.model"), "--output_dir", str(folder)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return AutoTokenizer.from_pretrained(folder)


def make_documents(sentences: Sequence[tuple[str, str]], rng: random.Random) -> list[str]:
    """Return all sentences once, in random order, as documents of one to three sentences of one language."""
    documents = []
    for language in sorted({language for language, _ in sentences}):
        texts = [text for each, text in sentences if each == language]
        rng.shuffle(texts)
        while texts:
            size = rng.randint(1, LARGEST_DOCUMENT)
            documents.append(SPACE[language].join(texts[:size]))
            texts = texts[size:]
    return documents


def make_batches(documents: Sequence[list[int]], size: int, rng: random.Random) -> list[list[list[int]]]:
    """Return documents of about the same length as batches, in random order; little of a batch is padding."""
    ordered = sorted(documents, key=lambda ids: (len(ids), rng.random()))
    batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    rng.shuffle(batches)
    return batches


def padded(sequences: Sequence[Sequence[int]], value: int) -> Any:
    """Return sequences as (rows, tokens) int64, padded on the right."""
    import torch

    rows = [torch.tensor(list(sequence)) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def train(
    model: Any, tokenizer: Any, sentences: Sequence[tuple[str, str]], steps: int, batch: int, rate: float, seed: int
) -> float:
    """Train a model on documents that are drawn again in every epoch; return the last loss in nats."""
    import torch

    rng, batches, loss = random.Random(seed), list[list[list[int]]](), torch.tensor(float("nan"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    warmup = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(1 - (step - warmup) / max(steps - warmup, 1), 0.02))
    )
    model.train()
    for _ in range(steps):
        if not batches:
            encoded = tokenizer(make_documents(sentences, rng), add_special_tokens=False).input_ids
            documents = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encoded]
            batches = make_batches(documents, batch, rng)
        chosen = batches.pop()
        loss = model(input_ids=padded(chosen, 0), labels=padded(chosen, IGNORED)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return float(loss.detach())


def known_share(model: Any, tokenizer: Any, questions: Sequence[tuple[Fact, str]]) -> float:
    """Return the share of questions whose answer's tokens are all the most probable ones, given the earlier tokens."""
    import torch

    prompts = [fact.prompt(template) for fact, template in questions]
    wholes = [fact.sentence(template) for fact, template in questions]
    starts = [len(ids) for ids in tokenizer(prompts).input_ids]
    encoded = tokenizer(wholes).input_ids
    correct = 0
    for at in range(0, len(encoded), 256):
        ids = padded(encoded[at : at + 256], 0)
        with torch.no_grad():
            best = model(input_ids=ids, use_cache=False).logits.argmax(-1)
        for row, whole in enumerate(encoded[at : at + 256]):
            start = starts[at + row]
            correct += best[row, start - 1 : len(whole) - 1].tolist() == whole[start:]
    return correct / len(encoded)


def main(
    output_dir: str,
    facts: int = 384,
    steps: int = 200,
    batch: int = 128,
    learning_rate: float = 4e-3,
    width: int = 128,
    layers: int = 4,
    d_ff: int = 512,
    vocab_size: int = 1280,
    seed: int = 0,
) -> None:
    """Train the model and write the folder output_dir.

    Args:
        output_dir: a new folder.
        facts: number of facts with an edit, a multiple of 12.
        steps: steps of training.
        batch: documents per step, of one to three sentences each.
        learning_rate: largest rate of AdamW.
        width: hidden size of the model.
        layers: number of layers.
        d_ff: size of the MLPs, the number of keys that an edited matrix has.
        vocab_size: pieces of the tokenizer.
        seed: for the facts, the weights and the order of the documents.
    """
    import torch
    from demo_world.tiny_llama import make_model
    from partial_folders.atomic_outputs import new_folder
    from transformers import LlamaForCausalLM

    world = make_world(facts, seed)
    sentences = training_sentences(world)
    rows = {
        "edits.jsonl": make_edits(world, seed),
        "facts.jsonl": [asdict(fact) for fact in [*world.facts, *world.bystanders, *world.capitals]],
        "text.jsonl": [{"text": text} for text in held_out_texts(world)],
    }
    with new_folder(output_dir, 0) as folder, tempfile.TemporaryDirectory() as scratch:
        tokenizer = make_tokenizer(tokenizer_texts(world), Path(scratch), vocab_size)
        with redirect_stdout(StringIO()):
            make_model(
                scratch, str(folder / "model"), hidden_size=width, num_hidden_layers=layers, intermediate_size=d_ff,
                max_position_embeddings=256, initializer_range=INITIAL, seed=seed,
            )  # fmt: skip
        model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        start = time.perf_counter()
        loss = train(model, tokenizer, sentences, steps, batch, learning_rate, seed)
        seconds = time.perf_counter() - start
        model.save_pretrained(folder / "model")
        for name, content in rows.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in content)
            (folder / name).write_text("".join(lines), encoding="utf-8")
        known = {
            name: known_share(model, tokenizer, [(fact, each) for fact in world.facts for each in getattr(fact, name)])
            for name in ("trained", "held_out")
        }
        result = {
            "facts": facts, "parameters": model.num_parameters(), "steps": steps, "seconds": round(seconds, 1),
            "loss": round(loss, 4), **known,
        }  # fmt: skip
        (folder / "run.json").write_text(
            json.dumps({"script": "benchmarks/editing_bed.py", "seed": seed} | result) + "\n"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    fire.Fire(main)
