"""Adapters beside their base, in one server: each answers as the model it merges into, and the base as without them."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from chat_prompts.prompt_encoding import PromptEncoder, one_turn
from in_process import run_in_process
from lora_adapters import NARROW, make_adapter, other_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_bridge.cpu_adapters import expand, product, rows_by_slot, shrunk

QUESTIONS = [
    ("Where was Dabe Kilo born?", ""),
    ("写出首都", "李白生于701年。"),
    ("Name a city.", "a </s> b"),
    ("x", ""),
    ("", "y"),
]
TOKENS = 16
EXTRACTION = {"tasks": {"re": {"en": {"instruction": "Name them."}}}}
SETTINGS: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "b": {
        "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj", "lm_head", "embed_tokens"],
        "rank_pattern": {"q_proj": 7}, "alpha_pattern": {"down_proj": 9}, "use_rslora": True,
    },
}  # fmt: skip


class Told(NamedTuple):
    """An answer of transformers, as ids: the bytes of a random model are not always text."""

    asked: list[int]  # the prompt's ids
    ids: list[int]  # the answer's, the end token included


def answers(folder: Path) -> list[Told]:
    """Greedy answers of a checkpoint to QUESTIONS, in float32."""
    words = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for question in QUESTIONS:
        asked = PromptEncoder(words).prompt(one_turn(*question))
        prompt = torch.tensor([asked])  # (1, tokens) int64
        with torch.inference_mode():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
            )[0].tolist()
        found.append(Told(asked, out[len(asked) :]))
    return found


class World(NamedTuple):
    base: Path
    adapters: dict[str, Path]
    expected: dict[str | None, list[Told]]  # by the name in a request


@pytest.fixture(scope="module")
def world(repository: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base without a template, two adapters of it, and what transformers answers with them merged by the tool."""
    folder = tmp_path_factory.mktemp("adapters")
    expected: dict[str | None, list[Told]] = {None: answers(tiny_checkpoint)}
    adapters = {}
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        adapters[name] = make_adapter(tiny_checkpoint, folder / name, seed, **settings)
        template = {"a": "alpaca", "b": "llama-2"}[name]
        shutil.copyfile(repository / f"finetune/templates/{template}.jinja", adapters[name] / "chat_template.jinja")
        (adapters[name] / "extraction.json").write_text(json.dumps(EXTRACTION))
        run_in_process(
            "tools/weight_diff.py", "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapters[name],
            "--path_sfted", folder / f"merged-{name}",
        )  # fmt: skip
        expected[name] = answers(folder / f"merged-{name}")
    return World(tiny_checkpoint, adapters, expected)


@pytest.fixture(scope="module")
def adapter_server(start_server: Any, world: World) -> Iterator[Any]:
    """Both adapters from the start; others may come at run time, by name out of the folder that holds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        patch.setenv("VLLM_LORA_RESOLVER_CACHE_DIR", str(world.adapters["a"].parent))
        modules = [f"{name}={folder}" for name, folder in world.adapters.items()]
        server = start_server(world.base, "--lora-modules", *modules)
    yield server
    server.stop()


def body(question: int, model: str | None, **more: Any) -> dict[str, Any]:
    instruction, input = QUESTIONS[question]
    asked = {"instruction": instruction, "input": input, "parameters": {"temperature": 0, "max_tokens": TOKENS}}
    return asked | ({"model": model} if model else {}) | more


@pytest.fixture(scope="module")
def envelopes(adapter_server: Any, world: World) -> dict[str | None, list[dict[str, Any]]]:
    """What /generate must answer: the text of vLLM's own route for the ids of transformers, one by one."""
    found: dict[str | None, list[dict[str, Any]]] = {}
    for name, expected in world.expected.items():
        for each in expected:
            fields = {"prompt": each.asked, "temperature": 0, "max_tokens": TOKENS, "return_token_ids": True}
            status, said = adapter_server.post("/v1/completions", fields | {"model": name or str(world.base)})
            assert status == 200
            assert said["choices"][0]["token_ids"] == each.ids
            envelope = {"generated_text": said["choices"][0]["text"], "num_output_tokens_cf": len(each.ids)}
            found.setdefault(name, []).append(envelope | {"error": None})
    return found


def load(server: Any, how: str, **fields: Any) -> None:
    """vLLM's own routes that load and unload an adapter; they answer in plain text."""
    data = json.dumps(fields).encode()
    request = urllib.request.Request(f"{server.url}/v1/{how}_lora_adapter", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slots", [[-1, 0, 2, -1, 0], [1, 1, 1, 1, 1], [-1, -1, -1, -1, -1]])
def test_rows_get_their_own_adapters_product_and_the_bases_none(slots: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, a, b, y = (torch.randn(shape).to(dtype) for shape in ((5, 6), (3, 1, 2, 6), (3, 1, 4, 2), (5, 9)))
    expected = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[row, 5:9] += ((x[row].float() @ a[slot, 0].float().T) @ b[slot, 0].float().T).to(dtype)
    rows = rows_by_slot(torch.tensor(slots))
    product(rows, x, a, b, y, first=5)
    exact: dict[str, Any] = {"rtol": 0.05, "atol": 0.02} if dtype == torch.bfloat16 else {}  # what bfloat16 rounds
    torch.testing.assert_close(y, expected, **exact)
    narrow = torch.zeros(5, 3, dtype=dtype)  # an output with fewer columns than the adapter's matrix
    for slot, own in rows:
        expand(narrow, own, shrunk(x, own, a[slot, 0]), b[slot, 0])
    assert not narrow[torch.tensor(slots) < 0].any()


def test_the_adapters_have_an_effect(world: World) -> None:
    for question in range(len(QUESTIONS)):
        assert len({tuple(world.expected[name][question].ids) for name in (None, "a", "b")}) == 3


def test_each_answers_as_merged_and_the_base_as_ever(adapter_server: Any, envelopes: Any) -> None:
    for name, expected in envelopes.items():
        for question, envelope in enumerate(expected):
            assert adapter_server.post("/generate", body(question, name)) == (200, envelope)


def test_thirty_requests_at_once_get_each_its_own_answer(adapter_server: Any, envelopes: Any) -> None:
    jobs = [(question, name) for question in range(len(QUESTIONS)) for name in (None, "a", "b")] * 2
    with ThreadPoolExecutor(len(jobs)) as clients:
        said = list(clients.map(lambda job: adapter_server.post("/generate", body(*job))[1], jobs))
    for (question, name), answer in zip(jobs, said, strict=True):
        assert answer == envelopes[name][question]


def test_a_stream_is_the_same_answer(adapter_server: Any, envelopes: Any) -> None:
    data = json.dumps(body(1, "a", stream=True)).encode()
    request = urllib.request.Request(f"{adapter_server.url}/generate", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as events:
        *pieces, done = [line.removeprefix("data: ") for line in events.read().decode().split("\n\n") if line]
    assert done == "[DONE]"
    said = [json.loads(piece) for piece in pieces]
    assert said[-1] | {"generated_text": "".join(piece["generated_text"] for piece in said)} == envelopes["a"][1]


def test_they_are_listed(adapter_server: Any, world: World) -> None:
    with urllib.request.urlopen(f"{adapter_server.url}/v1/models", timeout=60) as listed:
        assert {"a", "b", str(world.base)} <= {model["id"] for model in json.load(listed)["data"]}


def test_an_unknown_name_is_answered_with_those_there_are(adapter_server: Any, world: World) -> None:
    for name in ("none", "../a", str(world.adapters["a"])):  # the resolver would join a folder and the name
        status, answer = adapter_server.post("/generate", body(0, name))
        assert status == 404
        assert answer["error"].startswith(f"there is no model {name!r}; served: {world.base}, a, b")


def test_adapters_come_and_go_at_run_time(adapter_server: Any, world: World, envelopes: Any) -> None:
    load(adapter_server, "load", lora_name="late", lora_path=str(world.adapters["a"]))
    assert adapter_server.post("/generate", body(1, "late"))[1] == envelopes["a"][1]
    load(adapter_server, "load", lora_name="late", lora_path=str(world.adapters["b"]), load_inplace=True)
    assert adapter_server.post("/generate", body(1, "late"))[1] == envelopes["b"][1]
    load(adapter_server, "unload", lora_name="late")
    assert adapter_server.post("/generate", body(1, "late"))[0] == 404
    for question, envelope in enumerate(envelopes[None]):  # as many are loaded now as there is room for
        assert adapter_server.post("/generate", body(question, None))[1] == envelope


def test_a_resolver_finds_an_adapter_by_its_name(adapter_server: Any, world: World, envelopes: Any) -> None:
    shutil.copytree(world.adapters["b"], world.adapters["b"].parent / "found")
    assert adapter_server.post("/generate", body(2, "found"))[1] == envelopes["b"][2]


def test_what_cannot_be_asked_at_run_time_says_why(adapter_server: Any, world: World, tmp_path: Path) -> None:
    """vLLM loads both, and would answer: with the base's words, and with an adapter in a corner of its matrices."""
    for name, (folder, said) in unfit(world, tmp_path).items():
        load(adapter_server, "load", lora_name=name, lora_path=str(folder))
        status, answer = adapter_server.post("/generate", body(0, name))
        assert status == 400
        assert said in answer["error"]


def unfit(world: World, folder: Path) -> dict[str, tuple[Path, str]]:
    """Adapters that vLLM loads on the base and that are not the base's, with what is said of each."""
    words = shutil.copytree(world.adapters["a"], folder / "words")
    tokenizer = AutoTokenizer.from_pretrained(words)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(words)
    made = {"words": (words, "has another tokenizer than the base: 1 pieces differ; '<new>', for one, has id ")}
    for name, changes, said in (
        ("narrow", NARROW, "changes model.layers.0.mlp.down_proj as a matrix of 32 by 64, which in "),
        ("layers", {"num_hidden_layers": 3}, "changes model.layers.2.mlp.down_proj, which "),
    ):
        base = other_model(world.base, folder / f"base-{name}", **changes)
        made[name] = make_adapter(base, folder / name, r=4, target_modules=["down_proj"]), said
    return made


def test_an_adapters_own_end_token_ends_its_answers(
    adapter_server: Any, world: World, envelopes: Any, tmp_path: Path
) -> None:
    """As in the merged model, whose tokenizer is the adapter's; the base's would not end there."""
    folder = shutil.copytree(world.adapters["a"], tmp_path / "ends")
    words, whole = AutoTokenizer.from_pretrained(folder), world.expected["a"][1]
    at = next(at for at, index in enumerate(whole.ids) if at > 2 and index not in whole.asked + whole.ids[:at])
    words.eos_token = words.convert_ids_to_tokens(whole.ids[at])
    words.save_pretrained(folder)
    load(adapter_server, "load", lora_name="ends", lora_path=str(folder))
    _, answer = adapter_server.post("/generate", body(1, "ends"))
    assert answer["num_output_tokens_cf"] == at + 1
    assert envelopes["a"][1]["generated_text"].startswith(answer["generated_text"])
    parameters = {"num_beams": 2, "max_tokens": TOKENS}
    status, answer = adapter_server.post("/generate", body(1, "ends") | {"parameters": parameters})
    assert status == 400
    assert answer["error"].startswith("beam search knows the base's end token alone")
