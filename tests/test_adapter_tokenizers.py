"""An adapter's tokenizer and template are used by demos, ie_run.py, server and merging; added tokens are merged."""

import json
import shutil
from pathlib import Path
from typing import Any

import ie_run
import pytest
import torch
from adapter_loading.adapter_attachment import attach_adapter
from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import folder_template
from demo_pages import model_loading
from in_process import run_in_process
from lora_adapters import make_adapter
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from server_launch.launch_adapters import adapter_prompt_encoder, load_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

ADAPTER_TEMPLATE = "{{ bos_token }}Q: {{ messages[0].content }}"
BASE_TEMPLATE = "{{ bos_token }}[{{ messages[0].content }}]"
IN_CONFIG = "template in tokenizer_config.json"
# Case: the adapter's tokenizer files and the place of its template, the base's tokenizer files and the place of its
# template. In every case, the ids must be those of the tiny tokenizer.
CASES: dict[str, tuple[str, str, str, str]] = {
    "in the adapter's configuration": ("tokenizer.json tokenizer_config.json", IN_CONFIG, "all", "file"),
    "adapter with tokenizer.json, base with tokenizer.model": (
        "tokenizer.json tokenizer_config.json", "file", "tokenizer.model", "",
    ),
    "adapter without tokenizer": ("", "file", "all", IN_CONFIG),
    "adapter without tokenizer, base with tokenizer.model": ("", "file", "tokenizer.model", ""),
    "adapter's configuration without tokenizer": ("tokenizer_config.json", IN_CONFIG, "all", "file"),
    "base's file": ("all", "", "all", "file"),
    "base's configuration": ("all", "", "all", IN_CONFIG),
    "adapter's file and configuration": ("all", "both", "all", "file"),
    "no template": ("all", "", "all", ""),
}  # fmt: skip


def write_tokenizer(folder: Path, source: Path, names: str, place: str, template: str) -> None:
    """Replace a folder's tokenizer files (names: file names, or all) and its template (place: as in CASES)."""
    for file in [*folder.glob("tokenizer*"), *folder.glob("chat_template.jinja")]:
        file.unlink()
    for file in source.glob("tokenizer*"):
        if names == "all" or file.name in names.split():
            shutil.copy(file, folder)
    if place in ("file", "both"):
        (folder / "chat_template.jinja").write_text(template)
    if place in (IN_CONFIG, "both"):
        path = folder / "tokenizer_config.json"
        text = template if place == IN_CONFIG else "not this one"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": text}))


@pytest.mark.parametrize("case", CASES)
def test_tokenizer_and_template_are_the_same_everywhere(
    tiny_checkpoint: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own_files, own_place, base_files, base_place = CASES[case]
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", target_modules=["q_proj"])
    write_tokenizer(base, tiny_tokenizer, base_files, base_place, BASE_TEMPLATE)
    write_tokenizer(adapter, tiny_tokenizer, own_files, own_place, ADAPTER_TEMPLATE)
    paths = ("--path_zhixi", base, "--path_lora", adapter, "--path_sfted", tmp_path / "merged")
    run_in_process("tools/weight_diff.py", "merge", *paths)
    text = "  two  spaces 山"  # gets other ids if transformers converts tokenizer.model
    messages = [{"role": "user", "content": text}]
    template = ADAPTER_TEMPLATE if own_place else BASE_TEMPLATE if base_place else None
    reference = AutoTokenizer.from_pretrained(tiny_tokenizer)
    rendered = reference.apply_chat_template(messages, chat_template=template, tokenize=False) if template else text
    expected = [1, *reference(str(rendered).removeprefix("<s>"), add_special_tokens=False).input_ids]
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    served = adapter_prompt_encoder(str(adapter), PromptEncoder(load_tokenizer(base, False)))
    prompts = {
        "demo": model_loading.load(str(base), str(adapter)).encoder.prompt_ids(messages),
        "ie_run": PromptEncoder(
            ie_run.load_merged(str(base), str(adapter), "float32")[1], folder_template(adapter, base)
        ).prompt_ids(messages),
        "server": served.prompt_ids(messages),
        "merged": PromptEncoder(merged).prompt_ids(messages),
    }
    assert prompts == dict.fromkeys(prompts, expected)
    assert merged.chat_template == template
    stored = json.loads((tmp_path / "merged/tokenizer_config.json").read_text())
    assert "chat_template" not in stored  # no second template beside chat_template.jinja


def test_adapter_with_grown_vocabulary_as_peft_stores_it_is_attached_and_merged(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """PEFT also stores the modules before training and a second copy of the trained ones; neither must be applied."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    rows = model.get_input_embeddings().weight.shape[0] + 4
    model.resize_token_embeddings(rows, mean_resizing=False)
    settings = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    trained = get_peft_model(model, settings).eval()
    for name, weight in trained.named_parameters():
        if "modules_to_save" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    trained.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    assert any("original_module" in name for name in load_file(tmp_path / "adapter/adapter_model.safetensors"))
    ids = torch.tensor([[1, 5, rows - 1, 7]])
    expected = trained(ids).logits
    options = ("--path_lora", tmp_path / "adapter", "--path_sfted", tmp_path / "merged")
    run_in_process("tools/weight_diff.py", "merge", "--path_zhixi", tiny_checkpoint, *options)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    attached = attach_adapter(base, tmp_path / "adapter", tiny_checkpoint).eval()
    for answering in (attached, AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()):
        torch.testing.assert_close(answering(ids).logits, expected, rtol=1e-5, atol=1e-5)
