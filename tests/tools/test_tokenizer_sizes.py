"""A tokenizer with more tokens than its model has embeddings: counted as transformers does, refused by every tool."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_loading.checkpoint_loading import tokenizer_folder
from checkpoint_io.tokenizer_sizes import tokenizer_size
from in_process import RunTool
from merged_adapters import MakeAdapter
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from weight_diffs.recorded_files import record_files


def add_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


def list_added_token(folder: Path) -> None:
    """List an added token in a file beside tokenizer.model, as transformers 4 did."""
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text('{"<new>": 800}')


def name_pad_token(folder: Path) -> None:
    """Name a pad token without an id; transformers gives it the next id."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "[PAD]"}))


def decode_added_token(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text()) | {"added_tokens_decoder": {"800": {"content": "<new>", "special": True}}}
    file.write_text(json.dumps(content))


GROWN: dict[str, Callable[[Path], None]] = {
    "tokenizer.json": add_token,
    "added_tokens.json": list_added_token,
    "role": name_pad_token,
    "added_tokens_decoder": decode_added_token,
}


@pytest.mark.parametrize("case", ["none", *GROWN])
def test_tokenizer_size_equals_that_of_transformers(tiny_tokenizer: Path, tmp_path: Path, case: str) -> None:
    folder = shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
    GROWN.get(case, lambda folder: None)(folder)
    assert tokenizer_size(folder) == (800 if case == "none" else 801)
    if case != "added_tokens.json":  # transformers 5 reads this kind inexactly
        assert tokenizer_size(folder) == len(AutoTokenizer.from_pretrained(folder))


def test_size_of_other_tokenizer_files_is_highest_id_plus_one(tmp_path: Path) -> None:
    """The files are those of BERT and GPT-2. Unlisted ids below the highest id count, since an id is a row's index."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    assert tokenizer_size(tmp_path) == 3
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 7}')
    assert tokenizer_size(tmp_path) == 8


@pytest.mark.parametrize("case", GROWN)
def test_tools_refuse_tokenizer_with_more_tokens_than_embeddings(
    tiny_checkpoint: Path, tuned: Path, adapter: Path, tmp_path: Path, run_tool: RunTool, case: str
) -> None:
    """merge, recover and make_diff, set_template and quantize.py name the folder before they write anything."""
    diff, out, files = tmp_path / "diff", tmp_path / "out", ("tokenizer.json", "tokenizer_config.json")
    run_tool(
        "tools/weight_diff.py", "make_diff", "--path_raw", tiny_checkpoint, "--path_tuned", tuned, "--path_diff", diff
    )
    model, lora = shutil.copytree(tuned, tmp_path / "model"), shutil.copytree(adapter, tmp_path / "adapter")
    for folder in (model, diff, lora):
        for name in (*files, "tokenizer.model"):
            shutil.copyfile(tiny_checkpoint / name, folder / name)
        GROWN[case](folder)
    record_files(diff)
    template = ("--template_path", "finetune/templates/alpaca.jinja", "--output_dir", out)
    commands: dict[Path, tuple[tuple[object, ...], ...]] = {
        lora: (("weight_diff", "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", lora, "--path_sfted", out),),
        diff: (("weight_diff", "recover", "--path_raw", tiny_checkpoint, "--path_diff", diff, "--path_tuned", out),),
        model: (
            ("weight_diff", "make_diff", "--path_raw", tiny_checkpoint, "--path_tuned", model, "--path_diff", out),
            ("set_template", "--model_path", model, *template),
            ("quantize", "--model_path", model, "--output_dir", out, "--method", "nf4"),
        ),
    }
    for folder, calls in commands.items():
        for script, *arguments in calls:
            done = run_tool(f"tools/{script}.py", *arguments, status=2)
            assert f"the tokenizer in {folder} has 801 tokens, but the model has 800 embeddings (" in done.stderr
    assert not out.exists()
    assert not (tmp_path / "out.partial").exists()


@pytest.fixture(scope="module")
def grown_adapter(tiny_checkpoint: Path, make_adapter: MakeAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter that adds a row to embedding and output, and the token <new> to the tokenizer."""
    made = make_adapter(modules_to_save=["lm_head", "embed_tokens"])[0]
    adapter = shutil.copytree(made, tmp_path_factory.mktemp("grown") / "adapter")
    state = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in state if "lm_head" in name or "embed_tokens" in name]:
        state[name] = torch.cat([state[name], torch.ones(1, 64)])
    save_file(state, adapter / "adapter_model.safetensors")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(adapter)
    add_token(adapter)
    return adapter


def test_adapter_with_added_rows_may_have_their_tokens(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, grown_adapter: Path
) -> None:
    merge = ("merge", "--path_zhixi", tiny_checkpoint, "--path_lora", grown_adapter, "--path_sfted", tmp_path / "out")
    run_tool("tools/weight_diff.py", *merge)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 801
    assert load_file(tmp_path / "out/model.safetensors")["lm_head.weight"].shape[0] == 801


def test_added_tokens_are_kept_if_a_later_adapter_has_the_base_tokenizer(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, grown_adapter: Path, adapter: Path
) -> None:
    """Merging both adapters at once, by either command, equals merging one after the other."""
    one, both = tmp_path / "one", f"{grown_adapter},{adapter}"
    merge = ("tools/weight_diff.py", "merge", "--path_zhixi")
    run_tool(*merge, tiny_checkpoint, "--path_lora", grown_adapter, "--path_sfted", one)
    run_tool(*merge, one, "--path_lora", adapter, "--path_sfted", tmp_path / "steps")
    run_tool(*merge, tiny_checkpoint, "--path_lora", both, "--path_sfted", tmp_path / "merged")
    export = ("--base_model", tiny_checkpoint, "--lora_model", both, "--output_dir", tmp_path / "exported")
    run_tool("tools/export_hf_checkpoint.py", *export)
    for name in ("steps", "merged", "exported"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert (len(tokenizer), tokenizer.convert_tokens_to_ids("<new>")) == (801, 800)
        assert json.loads((tmp_path / name / "config.json").read_text())["vocab_size"] == 801
        for file in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "steps" / file).read_bytes()
    assert tokenizer_folder(str(one), str(adapter)) == str(one)


def test_adapters_whose_added_tokens_differ_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, grown_adapter: Path
) -> None:
    other = shutil.copytree(grown_adapter, tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace("<new>", "<old>"))
    merge = ("merge", "--path_zhixi", tiny_checkpoint, "--path_lora", f"{grown_adapter},{other}")
    done = run_tool("tools/weight_diff.py", *merge, "--path_sfted", tmp_path / "out", status=2)
    assert f"{other} has another tokenizer than {grown_adapter}: '<new>' has id none in the former and" in done.stderr
    assert "and 800 in the latter; merge adapters that were trained with the same added tokens\n" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
