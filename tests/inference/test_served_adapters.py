"""Adapters and their base in one server: adapters answer like merged models, and the base is unchanged."""

import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from chat_prompts.prompt_encoding import PromptEncoder, instruction_messages
from guarded_server import gone_within
from in_process import run_in_process
from lora_adapters import NARROW, make_adapter, other_model
from server_guard.process_supervisor import ENGINE_ENDED
from transformers import AutoModelForCausalLM, AutoTokenizer

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


class ExpectedAnswer(NamedTuple):
    """An answer of transformers as token ids, since the bytes of a random model are not always valid text."""

    prompt_ids: list[int]
    ids: list[int]  # token ids of the answer, end token included


def answers(folder: Path) -> list[ExpectedAnswer]:
    """Return the greedy answers of a checkpoint to QUESTIONS, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for question in QUESTIONS:
        prompt_ids = PromptEncoder(tokenizer).prompt_ids(instruction_messages(*question))
        prompt = torch.tensor([prompt_ids])  # (1, tokens) int64
        with torch.inference_mode():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
            )[0].tolist()
        found.append(ExpectedAnswer(prompt_ids, out[len(prompt_ids) :]))
    return found


class World(NamedTuple):
    base: Path
    adapters: dict[str, Path]
    expected: dict[str | None, list[ExpectedAnswer]]  # by the name in a request


@pytest.fixture(scope="module")
def world(repository: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a base without a template, two adapters, and the answers of transformers with merged adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    expected: dict[str | None, list[ExpectedAnswer]] = {None: answers(tiny_checkpoint)}
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
    """Start a server with both adapters that can load others at run time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        modules = [f"{name}={folder}" for name, folder in world.adapters.items()]
        server = start_server(world.base, "--lora-modules", *modules)
    yield server
    server.stop()


def body(question: int, model: str | None, **more: Any) -> dict[str, Any]:
    instruction, input = QUESTIONS[question]
    fields = {"instruction": instruction, "input": input, "parameters": {"temperature": 0, "max_tokens": TOKENS}}
    return fields | ({"model": model} if model else {}) | more


@pytest.fixture(scope="module")
def envelopes(adapter_server: Any, world: World) -> dict[str | None, list[dict[str, Any]]]:
    """Return the expected answers of /generate, made with vLLM's /v1/completions and checked against transformers."""
    found: dict[str | None, list[dict[str, Any]]] = {}
    for name, expected in world.expected.items():
        for each in expected:
            fields = {"prompt": each.prompt_ids, "temperature": 0, "max_tokens": TOKENS, "return_token_ids": True}
            status, response = adapter_server.post("/v1/completions", fields | {"model": name or str(world.base)})
            assert status == 200
            assert response["choices"][0]["token_ids"] == each.ids
            envelope = {"generated_text": response["choices"][0]["text"], "num_output_tokens_cf": len(each.ids)}
            found.setdefault(name, []).append(envelope | {"error": None})
    return found


def change_adapter(server: Any, action: str, **fields: Any) -> None:
    """Load or unload an adapter with vLLM's own routes."""
    data = json.dumps(fields).encode()
    request = urllib.request.Request(
        f"{server.url}/v1/{action}_lora_adapter", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.status == 200


@pytest.mark.integration
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slots", [[-1, 0, 2, -1, 0], [1, 1, 1, 1, 1], [-1, -1, -1, -1, -1]])
def test_add_product_adds_each_rows_adapter_and_nothing_for_the_base(slots: list[int], dtype: torch.dtype) -> None:
    from vllm_bridge.cpu_adapters import add_product, expand, rows_by_slot  # imports vLLM, which takes seconds

    torch.manual_seed(0)
    x, a, b, y = (torch.randn(shape).to(dtype) for shape in ((5, 6), (3, 1, 2, 6), (3, 1, 4, 2), (5, 9)))
    expected = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected[row, 5:9] += ((x[row].float() @ a[slot, 0].float().T) @ b[slot, 0].float().T).to(dtype)
    rows = rows_by_slot(torch.tensor(slots))
    add_product(rows, x, a, b, y, first=5)
    exact: dict[str, Any] = {"rtol": 0.05, "atol": 0.02} if dtype == torch.bfloat16 else {}  # bfloat16's rounding
    torch.testing.assert_close(y, expected, **exact)
    narrow = torch.zeros(5, 3, dtype=dtype)  # an output with fewer columns than the adapter's matrix
    for slot, own in rows:
        expand(narrow, own, x[own] @ a[slot, 0].T, b[slot, 0])
    assert not narrow[torch.tensor(slots) < 0].any()


def test_adapters_change_the_answers(world: World) -> None:
    for question in range(len(QUESTIONS)):
        assert len({tuple(world.expected[name][question].ids) for name in (None, "a", "b")}) == 3


def test_adapters_answer_like_merged_models_and_the_base_is_unchanged(adapter_server: Any, envelopes: Any) -> None:
    for name, expected in envelopes.items():
        for question, envelope in enumerate(expected):
            assert adapter_server.post("/generate", body(question, name)) == (200, envelope)


def test_thirty_concurrent_requests_get_the_answers_of_their_models(adapter_server: Any, envelopes: Any) -> None:
    jobs = [(question, name) for question in range(len(QUESTIONS)) for name in (None, "a", "b")] * 2
    with ThreadPoolExecutor(len(jobs)) as clients:
        response = list(clients.map(lambda job: adapter_server.post("/generate", body(*job))[1], jobs))
    for (question, name), answer in zip(jobs, response, strict=True):
        assert answer == envelopes[name][question]


def test_stream_of_an_adapter_equals_its_answer(adapter_server: Any, envelopes: Any) -> None:
    data = json.dumps(body(1, "a", stream=True)).encode()
    request = urllib.request.Request(f"{adapter_server.url}/generate", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as events:
        *pieces, done = [line.removeprefix("data: ") for line in events.read().decode().split("\n\n") if line]
    assert done == "[DONE]"
    response = [json.loads(piece) for piece in pieces]
    assert (
        response[-1] | {"generated_text": "".join(piece["generated_text"] for piece in response)} == envelopes["a"][1]
    )


def test_base_without_a_template_is_served_with_a_warning(adapter_server: Any, world: World) -> None:
    """/generate (tested above) and /extract send plain text to the base; the adapters have their own templates."""
    warning = (
        f"notice: {world.base} has no chat template, so instructions are sent as plain text. A tuned model needs the "
        "template that it was tuned with: --template_path finetune/templates/alpaca.jinja, or add it: python "
        f"tools/set_template.py --model_path {world.base} --template_path finetune/templates/alpaca.jinja "
        "--output_dir NEW\n"
    )
    log = adapter_server.log.read_text()
    assert log.count("has no chat template") == log.count(warning) == 1
    request = {"task": "ner", "text": "Ann is here.", "schema": ["person"], "max_tokens": 40}
    status, answer = adapter_server.post("/extract", request)
    assert (status, answer["error"]) == (200, None)


def test_models_route_lists_base_and_adapters(adapter_server: Any, world: World) -> None:
    with urllib.request.urlopen(f"{adapter_server.url}/v1/models", timeout=60) as listed:
        assert {"a", "b", str(world.base)} <= {model["id"] for model in json.load(listed)["data"]}


def test_unknown_model_is_answered_with_the_known_names(adapter_server: Any, world: World) -> None:
    for name in ("none", "../a", str(world.adapters["a"])):
        status, answer = adapter_server.post("/generate", body(0, name))
        assert status == 404
        served = "served: the base (leave out model, or see /v1/models), a, b"
        assert answer["error"].startswith(f"there is no model {name!r}; {served}")


def test_adapters_are_loaded_and_unloaded_at_run_time(adapter_server: Any, world: World, envelopes: Any) -> None:
    change_adapter(adapter_server, "load", lora_name="late", lora_path=str(world.adapters["a"]))
    assert adapter_server.post("/generate", body(1, "late"))[1] == envelopes["a"][1]
    change_adapter(adapter_server, "load", lora_name="late", lora_path=str(world.adapters["b"]), load_inplace=True)
    assert adapter_server.post("/generate", body(1, "late"))[1] == envelopes["b"][1]
    change_adapter(adapter_server, "unload", lora_name="late")
    assert adapter_server.post("/generate", body(1, "late"))[0] == 404
    for question, envelope in enumerate(envelopes[None]):  # all adapter slots are in use now
        assert adapter_server.post("/generate", body(question, None))[1] == envelope


def test_unfit_adapter_loaded_at_run_time_is_refused(adapter_server: Any, world: World, tmp_path: Path) -> None:
    """vLLM loads them, but would decode with the base's tokenizer and copy a small matrix into part of a larger one."""
    for name, (folder, response) in unfit(world, tmp_path).items():
        change_adapter(adapter_server, "load", lora_name=name, lora_path=str(folder))
        status, answer = adapter_server.post("/generate", body(0, name))
        assert status == 400
        assert response in answer["error"]


def unfit(world: World, folder: Path) -> dict[str, tuple[Path, str]]:
    """Return name -> (adapter of another base that vLLM loads, expected error message)."""
    longer = shutil.copytree(world.adapters["a"], folder / "longer")
    tokenizer = AutoTokenizer.from_pretrained(longer)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(longer)
    made = {"longer": (longer, "has another tokenizer than the base: 1 pieces differ, '<new>' has id ")}
    for name, changes, response in (
        ("narrow", NARROW, "has the shape 32 by 64 for model.layers.0.mlp.down_proj, but "),
        ("layers", {"num_hidden_layers": 3}, "changes model.layers.2.mlp.down_proj, which "),
    ):
        base = other_model(world.base, folder / f"base-{name}", **changes)
        made[name] = make_adapter(base, folder / name, r=4, target_modules=["down_proj"]), response
    return made


def test_end_token_of_an_adapter_ends_its_answers(
    adapter_server: Any, world: World, envelopes: Any, tmp_path: Path
) -> None:
    """The merged model has the adapter's tokenizer, and ends at the same token."""
    folder = shutil.copytree(world.adapters["a"], tmp_path / "ends")
    tokenizer, whole = AutoTokenizer.from_pretrained(folder), world.expected["a"][1]
    at = next(at for at, index in enumerate(whole.ids) if at > 2 and index not in whole.prompt_ids + whole.ids[:at])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(whole.ids[at])
    tokenizer.save_pretrained(folder)
    change_adapter(adapter_server, "load", lora_name="ends", lora_path=str(folder))
    _, answer = adapter_server.post("/generate", body(1, "ends"))
    assert answer["num_output_tokens_cf"] == at + 1
    assert envelopes["a"][1]["generated_text"].startswith(answer["generated_text"])
    parameters = {"num_beams": 2, "max_tokens": TOKENS, "length_penalty": -20}  # the shortest answer is the best
    status, answer = adapter_server.post("/generate", body(1, "ends") | {"parameters": parameters})
    assert status == 200
    assert 1 <= answer["num_output_tokens_cf"] < TOKENS


def test_killed_engine_ends_the_launcher_with_status_1(adapter_server: Any) -> None:
    """The last test of this file, since it ends the server."""
    [engine] = [
        pid
        for pid in adapter_server.process_ids()
        if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    ]
    os.kill(engine, signal.SIGKILL)
    assert adapter_server.process.wait(60) == 1
    assert adapter_server.log.read_text().splitlines()[-1] == ENGINE_ENDED
    gone_within(adapter_server, 5)
