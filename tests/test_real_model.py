"""A real LLaMA, SmolLM2-135M-Instruct, imported from GGUF: it answers, is exported again and tuned."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunScript
from llama_cpp_server import ids_of, started

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
QUESTION = [{"role": "user", "content": "In which city is the Eiffel Tower?"}]
ANSWER = "Paris"
ROWS = [
    {"instruction": "Find the persons. Answer with a JSON object.", "input": text, "output": output}
    for text, output in (("Ann Lee was born in Oslo.", '{"person": ["Ann Lee"]}'), ("It rained.", '{"person": []}'))
]


@pytest.fixture(scope="session")
def model(real_model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()


def test_imported_model_answers_from_its_chat_template(real_model: Path, model: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_model)
    text = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert ANSWER in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id, tokenizer.decode(answer)  # EOS ends the answer


def test_ids_equal_llama_cpp_and_its_greedy_tokens_have_nearly_the_largest_logit(
    real_gguf: Path, real_model: Path, model: Any
) -> None:
    import torch
    from tokenizer_files.tokenizer_check import comparison_texts
    from transformers import AutoTokenizer

    server, ask = started(pytest.importorskip("xllamacpp"), real_gguf)
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    tokenizer.backend_tokenizer.encode_special_tokens = True
    for text in ("½ Ⅷ ٣ 12345 １２", "a  b\n\n\nc \u00a0\u3000d", *(text[:4000] for text in comparison_texts())):
        assert tokenizer(text, add_special_tokens=False).input_ids == ids_of(ask, text), text[:80]
    prompt = tokenizer("The capital of France is", add_special_tokens=False).input_ids
    body = {"prompt": prompt, "n_predict": 8, "temperature": 0, "return_tokens": True}
    tokens = ask("/completion", body)["tokens"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert (logits.max(1).values - chosen).max() < 0.5  # llama.cpp rounds activations to 8 bits
    del server


def test_q8_0_export_and_import_change_weights_by_at_most_half_a_step(real_model: Path, tmp_path: Path) -> None:
    import export_gguf
    import import_gguf
    import torch
    from safetensors.torch import load_file

    export_gguf.main(str(real_model), str(tmp_path / "q8.gguf"), "q8_0")
    import_gguf.main(str(tmp_path / "q8.gguf"), str(tmp_path / "again"), "float32")
    before, after = load_file(real_model / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        largest = weight.float().reshape(-1, 32).abs().amax(1, keepdim=True)
        difference = (weight.float() - after[name]).reshape(-1, 32).abs()
        assert (difference <= largest * (0.5 / 127 + 2**-11)).all(), name
        assert weight.ndim == 2 or torch.equal(weight.float(), after[name])
    config = json.loads((real_model / "config.json").read_text())
    assert json.loads((tmp_path / "again/config.json").read_text()) == config | {"torch_dtype": "float32"}
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (real_model / "tokenizer.json").read_bytes()


def test_three_steps_of_tuning_keep_the_template_and_lower_the_loss(
    real_model: Path, tmp_path: Path, run_script: RunScript
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = run_script(
        "finetune/finetune.py", "--base_model", real_model, "--data_path", tmp_path / "rows.jsonl", "--output_dir",
        tmp_path / "adapter", "--batch_size", 2, "--micro_batch_size", 2, "--max_steps", 3, "--learning_rate", "2e-3",
        "--logging_steps", 1, "--warmup_steps", 0, "--report_to", "none", "--bf16", "False",
    )  # fmt: skip
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "adapter/train_log.jsonl").read_text().splitlines()
        if '"loss"' in line
    ]
    assert losses[-1] < losses[0], done.stdout
    template = (tmp_path / "adapter/chat_template.jinja").read_text()
    assert template == (real_model / "chat_template.jinja").read_text()
