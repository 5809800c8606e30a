"""Templates in published.json: text and token ids are those of the published prompt formats and tuning code."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chat_prompts.prompt_encoding import PromptEncoder, instruction_messages
from hub_download.model_registry import template_of
from in_process import RunTool
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

# OneKE's is the example in examples/prompter.py of github.com/zjunlp/KnowLM. The others are the formats in
# src/datamodule/template.py of github.com/zjunlp/IEPile, whose README.md names the template of each model.
QUESTION = (
    '{"instruction": "You are an expert in named entity recognition. Please extract entities that match the schema '
    "definition from the input. Return an empty list if the entity type does not exist. Please respond in the format "
    'of a JSON string.", "schema": ["person", "organization", "else", "location"], "input": "284 Robert Allenby ( '
    'Australia ) 69 71 71 73 , Miguel Angel Martin ( Spain ) 75 70 71 68 ( Allenby won at first play-off hole )"}'
)
META = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
FORMATS = {
    "OneKE": f"[INST] <<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\n{QUESTION} [/INST]",
    "llama2-13b-iepile-lora": f"[INST] <<SYS>>\n{META}\n<</SYS>>\n\n{QUESTION} [/INST]",
    "baichuan2-13b-iepile-lora": f"<reserved_106>{QUESTION}<reserved_107>",
}
ANSWER = '{"person": ["Robert Allenby"], "location": []}'


SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": ANSWER}
TALK = [*instruction_messages(QUESTION), REPLY, *instruction_messages("And?", "Ann.")]
Encoder = Callable[[str], tuple[PromptEncoder, SentencePieceProcessor]]


@pytest.fixture
def encoder(tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool) -> Encoder:
    """Return encoder(name): PromptEncoder and SentencePiece of the tiny checkpoint with the template of a model."""

    def make(name: str) -> tuple[PromptEncoder, SentencePieceProcessor]:
        (tmp_path / "published.jinja").write_text(template_of(f"zjunlp/{name}"), encoding="utf-8")
        command = ("tools/set_template.py", "--model_path", tiny_checkpoint, "--template_path")
        run_tool(*command, tmp_path / "published.jinja", "--output_dir", tmp_path / "new")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
        if "baichuan2" in name:
            tokenizer.add_special_tokens({"additional_special_tokens": ["<reserved_106>", "<reserved_107>"]})
        return PromptEncoder(tokenizer), SentencePieceProcessor(str(tmp_path / "new/tokenizer.model"))

    return make


def trained_ids(encoder: PromptEncoder) -> list[int]:
    [turns] = encoder.turns([[*TALK, REPLY]])
    return [index for turn in turns for part in turn for index in part]


@pytest.mark.parametrize("name", ["OneKE", "llama2-13b-iepile-lora"])
def test_llama_2_extraction_models_have_the_published_format(encoder: Encoder, name: str) -> None:
    """The tuning code encodes prompt and answer of each turn separately, between BOS and EOS. Only the first turn has
    the system message; instruction and input are joined by a line break.
    """
    prompts, pieces = encoder(name)
    assert prompts.rendered_prompt(instruction_messages(QUESTION)) == "<s>" + FORMATS[name]
    brief = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho? [/INST]"
    assert prompts.rendered_prompt([SYSTEM, *instruction_messages("Who?")]) == brief
    answer = pieces.encode(ANSWER)
    expected = [1, *pieces.encode(FORMATS[name]), *answer, 2, 1, *pieces.encode("[INST] And?\nAnn. [/INST]")]
    assert prompts.prompt_ids(TALK) == expected
    assert trained_ids(prompts) == [*expected, *answer, 2]
    with pytest.raises(ValueError, match=r"knows the roles system \(first\), user and assistant, not tool"):
        prompts.prompt_ids([*TALK, {"role": "tool", "content": "x"}])


def test_baichuan_2_extraction_model_has_the_published_format(encoder: Encoder) -> None:
    """The tuning code writes no BOS, and EOS only after the last answer."""
    name = "baichuan2-13b-iepile-lora"
    prompts, pieces = encoder(name)
    assert prompts.rendered_prompt(instruction_messages(QUESTION)) == FORMATS[name]
    assert (
        prompts.rendered_prompt([SYSTEM, *instruction_messages("Who?")]) == "Be brief.<reserved_106>Who?<reserved_107>"
    )
    asked, answers = prompts.tokenizer.convert_tokens_to_ids(["<reserved_106>", "<reserved_107>"])
    answer = pieces.encode(ANSWER)
    first = [asked, *pieces.encode(QUESTION), answers, *answer]
    expected = [*first, asked, *pieces.encode("And?\nAnn."), answers]
    assert prompts.prompt_ids(TALK) == expected
    assert trained_ids(prompts) == [*expected, *answer, 2]
    assert prompts.stop_ids == [2]
