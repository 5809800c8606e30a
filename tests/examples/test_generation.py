"""text_generation.py and model_loading.py: decoding equal to transformers' own, and unfit folders."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from chat_prompts.prompt_encoding import PromptEncoder, one_turn
from demo_pages import model_loading, text_generation
from demo_pages.model_loading import Checkpoint
from demo_pages.text_generation import Decoding
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path) -> Checkpoint:
    return model_loading.load(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def instructed(instructed_checkpoint: Path) -> Checkpoint:
    return model_loading.load(str(instructed_checkpoint))


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_template_that_refuses_and_a_full_context_are_one_line(base: Checkpoint) -> None:
    strict = base._replace(encoder=PromptEncoder(base.tokenizer, "{{ raise_exception('no system role') }}"))
    with pytest.raises(ValueError, match="the chat template cannot render these messages: no system role"):
        strict.encoder.prompt(one_turn("x"))
    with pytest.raises(ValueError, match="the prompt has 512 tokens, the model reads 1 to 511"):
        text_generation.generate(base, [1] * 512, Decoding())


def test_generation_stops_at_the_templates_end_of_turn(base: Checkpoint) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base.tokenizer.name_or_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    template += "{{ 'assistant: ' if add_generation_prompt }}"
    checkpoint = base._replace(encoder=PromptEncoder(tokenizer, template))
    ends = text_generation.generation_config(checkpoint, [1], Decoding()).eos_token_id
    assert ends == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_an_adapters_template_goes_first_also_without_a_tokenizer(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "chat_template.jinja").write_text("{{ bos_token }}Q: {{ messages[0].content }}")
    assert model_loading.load(str(tiny_checkpoint), str(folder)).encoder.text(one_turn("why")) == "<s>Q: why"


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [Decoding(max_new_tokens=24), Decoding(max_new_tokens=16, num_beams=3, repetition_penalty=1.6)]
)
def test_answers_equal_a_direct_generate(instructed: Checkpoint, how: Decoding) -> None:
    ids = instructed.encoder.prompt(one_turn("Translate.", "山水"))
    answer = text_generation.generate(instructed, ids, how)
    direct = instructed.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        max_new_tokens=how.max_new_tokens, num_beams=how.num_beams, repetition_penalty=how.repetition_penalty,
    )[0]  # fmt: skip
    whole = instructed.tokenizer.decode(direct, skip_special_tokens=True)
    assert instructed.tokenizer.decode(ids, skip_special_tokens=True) + answer.text == whole
    assert answer.new_tokens == len(direct) - len(ids) - (direct[-1].item() == instructed.tokenizer.eos_token_id)


def test_the_stream_ends_with_the_finished_answer(base: Checkpoint) -> None:
    """Every state is one token longer, the last one is what generate returns."""
    ids, how = base.encoder.plain("def f(x):"), Decoding(max_new_tokens=30)
    *states, last = text_generation.stream(base, ids, how)
    assert [state.new_tokens for state in states] == list(range(1, 31))
    assert not any(state.ending for state in states)
    assert last == text_generation.generate(base, ids, how)
    assert last.ending == "length"


def test_a_growing_text_never_shrinks_nor_shows_half_a_character(base: Checkpoint) -> None:
    ids, text = base.encoder.plain("x"), " and 𠮷野家 🤖魑魅魍魎, naïve\n  end"
    new, shown, states = base.encoder.plain("x" + text)[len(ids) :], "", []
    for count in range(1, len(new) + 1):
        shown = text_generation.grown(base.tokenizer, ids, new[:count], shown)
        states.append(shown)
    assert states[-1] == text
    assert all(text.startswith(state) for state in states)
    assert states == sorted(states, key=len)
    assert len(set(states)) > 12  # it does grow inside a run of bytes


def test_text_keeps_the_spaces_that_a_decoder_drops_at_a_beginning(base: Checkpoint) -> None:
    tokenizer = base.tokenizer
    ids = PromptEncoder(tokenizer).plain("if x:\n    return y\n    z")
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    for cut in (index + 1 for index, token in enumerate(ids) if token == newline):
        assert text_generation.text_of(tokenizer, ids[:cut], ids[cut:]).startswith("    ")


def test_an_answer_ends_at_the_end_token(base: Checkpoint) -> None:
    """The end token of the checkpoint's generation_config, one or several, neither counted nor shown."""
    ids = base.encoder.plain("Ann was born in")
    whole = text_generation.generate(base, ids, Decoding(max_new_tokens=8))
    config = text_generation.generation_config(base, ids, Decoding(max_new_tokens=8))
    new = base.model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist()
    config.eos_token_id = [999999, new[5]]
    cut = text_generation.finished(base.tokenizer, ids, new, config)
    assert (cut.ending, cut.new_tokens) == ("complete", new.index(new[5]))
    assert whole.ending == "length"
    assert whole.text.startswith(cut.text)


def test_the_checkpoints_own_sampling_settings_do_not_come_through(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "hot")
    own = {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.5, "bos_token_id": 1, "eos_token_id": 2}
    (tmp_path / "hot/generation_config.json").write_text(json.dumps(own))
    hot, cold = model_loading.load(str(tmp_path / "hot")), model_loading.load(str(tiny_checkpoint))
    ids = hot.encoder.plain("Once")
    how = Decoding(max_new_tokens=20)
    assert text_generation.generate(hot, ids, how) == text_generation.generate(cold, ids, how)
    config = text_generation.generation_config(hot, ids, Decoding(do_sample=True, temperature=0.7, top_p=0.9, top_k=0))
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 0.7, 0.9, 0)


@pytest.mark.parametrize("beams", [1, 3])
def test_leaving_a_stream_ends_generation(base: Checkpoint, beams: int) -> None:
    """At any state, with beams too: the thread is gone, long before the 500 tokens are there."""
    before = threading.active_count()
    ids = base.encoder.plain("On")
    whole = text_generation.generate(base, ids, Decoding(8, num_beams=beams))
    states = list(text_generation.stream(base, ids, Decoding(8, num_beams=beams)))
    assert states[-1] == whole
    assert [state.new_tokens for state in states[:3]] == [1, 2, 3]
    began = time.monotonic()
    assert text_generation.generate(base, ids, Decoding(500, num_beams=beams)).new_tokens > 400
    full = time.monotonic() - began
    answers = text_generation.stream(base, ids, Decoding(500, num_beams=beams))
    next(answers)
    began = time.monotonic()
    answers.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert time.monotonic() - began < full / 4


def test_an_error_in_generation_reaches_the_caller(base: Checkpoint) -> None:
    with pytest.raises(IndexError):
        text_generation.generate(base, [10**6], Decoding(max_new_tokens=2))


def test_options_go_over_the_suite_and_are_checked() -> None:
    suite = {"num_beams": 3, "repetition_penalty": 1.6}
    assert text_generation.decoding(suite, {"num_beams": 1, "max_new_tokens": 1e2}) == Decoding(100, 1, 1.6)
    bad: list[tuple[dict[str, object], str]] = [
        ({"num_beam": 2}, "unknown option --num_beam"),
        ({"num_beams": "three"}, "--num_beams takes int, not 'three'"),
        ({"num_beams": 1.5}, "--num_beams takes int"),
        ({"do_sample": "yes"}, "--do_sample takes bool"),
        ({"temperature": 0}, "temperature=0.0 is out of range"),
        ({"top_p": 1.5}, "top_p=1.5 is out of range"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is out of range"),
    ]
    for given_options, said in bad:
        with pytest.raises(ValueError, match=said):
            text_generation.decoding(suite, given_options)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_where_the_weights_go() -> None:
    assert model_loading.placement(False, [], 0) == {}
    assert model_loading.placement(False, [], 2) == {"device_map": {"": 0}}
    assert model_loading.placement(True, [], 2) == {"device_map": "auto"}
    assert model_loading.placement(True, [10, 8], 3) == {"device_map": "auto", "max_memory": {0: "10GiB", 1: "8GiB"}}
    with pytest.raises(ValueError, match="--allocate names 3 GPUs, this machine has 2"):
        model_loading.placement(True, [10, 10, 10], 2)
    with pytest.raises(ValueError, match="give --multi_gpu with it"):
        model_loading.placement(False, [10], 2)
    assert model_loading.gpu_shares((10, 20)) == [10, 20]
    for wrong in ("10,x", [1.5], [0], True, {"a": 1}):
        with pytest.raises(ValueError, match="--allocate takes GiB for each GPU"):
            model_loading.gpu_shares(wrong)


def test_8_bit_names_what_is_missing() -> None:
    assert model_loading.quantisation(False, 0) == {}
    with pytest.raises(ValueError, match="--load_8bit needs an NVIDIA GPU"):
        model_loading.quantisation(True, 0)


def test_an_adapter_is_put_on_its_base(tiny_checkpoint: Path, adapter: Path) -> None:
    """Base without template, adapter with one: the adapter's tokenizer and weights count."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tuned = model_loading.load(str(tiny_checkpoint), str(adapter))
    ids = torch.tensor([tuned.encoder.prompt(one_turn("Translate."))])
    direct = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), adapter)
    assert tuned.tokenizer.chat_template
    with torch.no_grad():
        logits = tuned.model(ids).logits
        assert torch.equal(logits, direct(ids).logits)
        assert not torch.equal(logits, model_loading.load(str(tiny_checkpoint)).model(ids).logits)


def test_an_adapter_that_does_not_fit_is_refused(tiny_checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    """One tensor less, one more, or of another width: never silently half an adapter."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    more = {first.replace("layers.0", "layers.7"): tensors[first].clone(), **tensors}
    less = {name: tensor for name, tensor in tensors.items() if name != first}
    wide = {name: torch.cat([tensor, tensor], dim=1) for name, tensor in tensors.items()}
    for name, changed in (("more", more), ("less", less), ("wide", wide)):
        shutil.copytree(adapter, tmp_path / name)
        save_file(changed, tmp_path / name / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=f"{name} does not fit {tiny_checkpoint}"):
            model_loading.load(str(tiny_checkpoint), str(tmp_path / name))


def test_folders_that_are_no_checkpoints_are_named(
    tiny_checkpoint: Path, tiny_tokenizer: Path, adapter: Path, tmp_path: Path
) -> None:
    copies = {name: shutil.copytree(tiny_checkpoint, tmp_path / name) for name in ("bare", "mute", "torn", "short")}
    (copies["bare"] / "model.safetensors").unlink()
    (copies["mute"] / "tokenizer_config.json").unlink()
    weights = (copies["torn"] / "model.safetensors").read_bytes()
    (copies["torn"] / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    config = json.loads((copies["short"] / "config.json").read_text())
    (copies["short"] / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    cases = [
        ((tmp_path / "none",), "none does not exist; --base_model takes a checkpoint folder"),
        ((tiny_tokenizer,), "is no checkpoint"),
        ((adapter,), "is an adapter; give it as --lora_weights"),
        ((copies["bare"],), "bare has no weights"),
        ((copies["mute"],), "mute has no tokenizer"),
        ((copies["torn"],), "torn cannot be loaded"),
        ((copies["short"],), "short lacks 9 of its tensors"),
        ((tiny_checkpoint, tiny_tokenizer), "is no adapter"),
    ]
    for (base, *lora), said in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=said) as raised:
            model_loading.load(str(base), str(lora[0]) if lora else "")
        assert len(str(raised.value).splitlines()) == 1
