"""Tokenizers of several kinds, chat templates modelled on published ones, and questions, for the tests of prompts."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

QUESTIONS = [  # (instruction, input)
    ("Where was Dabe Kilo born?", ""),
    ("写出首都", "李白生于701年。"),
    ("  spaces,\n\nlines and {{ braces }} {% x %} %s", "input {0} 🤖"),
    ("▁ 🤖 ﷺ \u200b a tab\tand\n\nnew lines  ", "naïve ½"),
]
MARKERS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
           "<end_of_turn>"]  # fmt: skip
END = {"chatml": "<|im_end|>", "qwen": "<|im_end|>", "qwen3": "<|im_end|>", "llama-3": "<|eot_id|>",
       "gemma": "<end_of_turn>"}  # fmt: skip  # the end-of-turn token if it is not EOS
PUBLISHED = {
    # Raises for a system message and for roles that do not alternate; does not use the input.
    "mistral": """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ ' ' + message['content'] + eos_token }}
{% else %}{{ raise_exception('only users and assistants') }}{% endif %}{% endfor %}""",
    # A later version of Mistral's puts the system message into the last question: a new question changes earlier turns.
    "mistral-v3": """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}
{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}
{{ bos_token }}{% for message in turns %}
{% if message['role'] == 'user' %}
{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}
{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}
{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}""",
    # Adds a default system message if there is none.
    "qwen": """{% for message in messages %}
{% if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    # Writes the reasoning, also an empty one, only in answers after the last question.
    "qwen3": """{% set ns = namespace(last=0, searching=true) %}
{% for message in messages[::-1] %}
{% if message.role == 'user' and ns.searching %}
{% set ns.searching = false %}{% set ns.last = messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}
{% for message in messages %}
{% if message.role == 'assistant' %}
{% set content, thought = message.content, '' %}
{% if '</think>' in content %}
{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{% set content = content.split('</think>')[-1].lstrip('\n') %}
{% endif %}
{% if loop.index0 > ns.last %}
{{ '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + content + '<|im_end|>\n' }}
{% else %}{{ '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}{% endif %}
{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "llama-3": """{{ bos_token }}{% for message in messages %}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "gemma": """{{ bos_token -}}
{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    # The role markers are ordinary text, not special tokens.
    "zephyr": """{% for message in messages %}
{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}""",
    "needs-system": """{% if messages[0]['role'] != 'system' %}
{{- raise_exception('begin with a system message') }}{% endif %}
{{ bos_token }}{% for message in messages %}{{ message.role + ': ' + message.content }}
{% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}""",
    "no-end": """{{ bos_token }}{% for message in messages %}
{{ message.role + ': ' + message.content + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}""",
}


def byte_level(folder: Path, texts: list[str]) -> Any:
    """Train and save a byte-level BPE like those of GPT-2 and Qwen, without a dummy prefix; return the tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    words = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    words.save_pretrained(folder)
    return words


def with_markers(folder: Path) -> Any:
    """Load a folder's tokenizer and add the special tokens of all templates; EOS does not change."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    return tokenizer
