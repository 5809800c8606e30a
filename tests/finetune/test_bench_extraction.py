"""benchmarks/bench_extraction.py: the baselines, the length of a tuning run, means, and the whole command once."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import bench_extraction
import extraction_data
import extraction_systems
import pytest
from conftest import RunScript
from measurements import read_jsonl


def example(text: str, **answer: list[Any]) -> dict[str, str]:
    return {"instruction": "Which entities?", "input": text, "output": json.dumps(answer, ensure_ascii=False)}


def predicted(training: list[dict[str, str]], text: str, language: str = "en") -> Any:
    rows = extraction_data.dictionary_rows(training, [example(text)], "ner", language)
    return json.loads(rows[0]["prediction"])


def test_dictionary_takes_the_most_frequent_type_and_the_longest_name() -> None:
    training = [
        example("New York", place=["New York"], team=[]),
        example("The New York Times", paper=["New York Times"]),
        example("Washington won.", person=["Washington"]),
        example("Washington, D.C.", place=["Washington", "D.C."]),
        example("In Washington", place=["Washington"]),
    ]
    assert predicted(training, "The New York Times left New York for Washington , D.C. .") == {
        "paper": ["New York Times"],
        "place": ["New York", "Washington", "D.C."],
    }
    assert predicted(training, "Washington and Washington") == {"place": ["Washington"]}
    assert predicted(training, "Washingtonian, New Yorkers, washington") == {}
    assert predicted([example("Nothing.", place=[])], "New York") == {}


def test_dictionary_matches_chinese_names_between_any_characters() -> None:
    training = [example("我在北京", place=["北京"]), example("北京大学", school=["北京大学"])]
    assert predicted(training, "她从北京大学回北京了", "zh") == {"school": ["北京大学"], "place": ["北京"]}
    assert predicted(training, "她从北京大学回北京了", "en") == {}


def test_dictionary_finds_no_relations() -> None:
    triple = {"subject": "Ann Lee", "object": "Oslo"}
    rows = [example("Ann Lee was born in Oslo.", born_in=[triple])]
    assert extraction_data.dictionary_rows(rows, rows, "re", "en") == [rows[0] | {"prediction": "{}"}]


def test_shots_are_training_examples_with_items_and_depend_on_the_seed() -> None:
    training = [example(f"text {number}", person=["Ann"] if number % 2 else []) for number in range(40)]
    test = [example("question one"), example("question two")]
    rows = extraction_data.rows_with_shots(training, test, seed=0)
    assert [row["messages"][-1]["input"] for row in rows] == ["question one", "question two"]
    turns = rows[0]["messages"][:-1]
    assert turns == rows[1]["messages"][:-1]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3
    assert {turn["content"] for turn in turns[1::2]} == {'{"person": ["Ann"]}'}
    assert extraction_data.rows_with_shots(training, test, seed=1) != rows


def test_sample_keeps_whole_sentences_in_their_order(tmp_path: Path) -> None:
    rows = [{"sentence": number, "order": order} for number in range(10) for order in range(2)]
    source, target = extraction_data.write_jsonl(tmp_path / "all.jsonl", rows), tmp_path / "some.jsonl"
    extraction_data.sample_rows(source, target, limit=4, rows_each=2)
    found = read_jsonl(target)
    numbers = [row["sentence"] for row in found[::2]]
    assert numbers == sorted(set(numbers))
    assert found == [{"sentence": number, "order": order} for number in numbers for order in range(2)]
    assert len(numbers) == 4
    extraction_data.sample_rows(source, target, limit=0, rows_each=2)
    assert read_jsonl(target) == rows


def test_test_sentences_are_removed_from_training_files(tmp_path: Path) -> None:
    rows = [example("one"), example("two"), example("one")]
    source, target = extraction_data.write_jsonl(tmp_path / "all.jsonl", rows), tmp_path / "kept.jsonl"
    assert extraction_data.remove_sentences(source, target, {"one"}) == 2
    assert read_jsonl(target) == [rows[1]]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["conll04", "weibo", "crossner-music"])
def test_prepared_data_and_the_score_of_the_dictionary(name: str, shared_data: Path, tmp_path: Path) -> None:
    del shared_data  # only for its skip
    data, tasks = tmp_path / "data", extraction_data.DATA_SETS[name].tasks
    training = extraction_data.prepare(name, data, limit=30, orders=2)
    assert len(training) == (3 if name.startswith("crossner") else len(tasks))
    for task in tasks:
        test, train = (read_jsonl(data / f"{task}-{part}.jsonl") for part in ("test", "train"))
        requests, orders = (read_jsonl(data / f"{task}-{part}.jsonl") for part in ("requests", "orders"))
        assert len(test) == len(requests) == len(orders) / 2 == 30
        assert [row["input"] for row in test] == [row["text"] for row in requests]
        assert [row["output"] for row in test] == [row["output"] for row in requests]
        assert {row["order"] for row in orders} == {0, 1}
        assert {row["instruction"] for row in test} == {row["instruction"] for row in train}
        asked = {row["input"] for file in training for row in read_jsonl(file)}
        assert not asked & {row["input"] for row in read_jsonl(data / f"{task}-all-test.jsonl")}
    bench = benchmark(tmp_path)._replace(data_set=name)
    found = extraction_systems.run_system(bench, "dictionary", 0)
    assert 0.1 < found["ner"]["f1"] < 0.7
    assert found["ner"]["not_in_text"] == 0
    assert found.get("re", {"predicted": 0})["predicted"] == 0


def benchmark(folder: Path, *tuning: str) -> extraction_systems.Benchmark:
    return extraction_systems.Benchmark(
        base=folder / "base", data_set="conll04", folder=folder, training=[folder / "a.jsonl", folder / "b.jsonl"],
        minutes=2, max_new_tokens=8, bf16=False, orders=0, grammar=False, tuning=tuning,
    )  # fmt: skip


def test_steps_follow_from_the_speed_after_the_first_step(tmp_path: Path) -> None:
    result = tmp_path / "lora-timing/result"
    result.mkdir(parents=True)
    (tmp_path / "lora-timing/tuning.log").touch()  # finished
    etas = [100, 12, 6, 0]  # seconds to the end after each of four steps: 6 s a step
    entries = [{"eta_seconds": eta, "step": step} for step, eta in enumerate(etas, 1)]
    extraction_data.write_jsonl(result / "train_log.jsonl", [*entries, {"train_runtime": 118, "step": 4}])
    assert extraction_systems.steps_within(benchmark(tmp_path), "lora") == 20  # of 6 s, in 120 s


def test_options_after_the_separator_replace_those_of_the_benchmark(tmp_path: Path) -> None:
    bench = benchmark(tmp_path, "--lora_r", "32", "--batch_size=8")
    words = extraction_systems.tuning_options(bench, "lora", tmp_path / "adapter", max_steps=5)
    assert words[-3:] == ["--lora_r", "32", "--batch_size=8"]
    assert sum(word.startswith("--batch_size") for word in words) == 1
    assert {"--max_steps=5", "--method=lora", "--learning_rate=0.0003"} <= set(words)
    assert f"--data_path={tmp_path}/a.jsonl,{tmp_path}/b.jsonl" in words
    assert not any(word.startswith("--bf16") for word in words)


def test_means_and_deviation_over_seeds() -> None:
    runs = [
        {"f1": f1, "f1_interval": [f1 - 0.1, f1 + 0.1], "stopped": None, "orders": {"f1_mean": f1}} for f1 in (0.4, 0.6)
    ]
    found = bench_extraction.mean_figures(runs)
    assert found["f1"] == pytest.approx(0.5)
    assert found["f1_std"] == pytest.approx(0.1 * 2**0.5)
    assert found["f1_interval"] == pytest.approx([0.4, 0.6])
    assert found["stopped"] is None
    assert found["orders"] == {"f1_mean": pytest.approx(0.5)}


def test_invalid_options_are_errors_of_one_line(run_script: RunScript, tiny_checkpoint: Path, tmp_path: Path) -> None:
    given = {"--base": tiny_checkpoint, "--data": "conll04", "--scratch": tmp_path / "scratch"}
    for option, value, message in (
        ("--data", "conll03", "--data conll03 is unknown; choose from conll04, wnut17, weibo, crossner-ai"),
        ("--systems", "lora,dreams", "--systems dreams is unknown; choose from dictionary, zero_shot"),
        ("--orders", "1", "--orders 1 is out of range; give 2 to 16, or 0 for none"),
        ("--minutes", "0", "--minutes 0.0 is too small"),
        ("--base", tmp_path, f"{tmp_path} has no config.json; --base takes a checkpoint folder"),
        ("--stepz", "1", "unknown option --stepz"),
    ):
        words = [word for pair in (given | {option: value}).items() for word in pair]
        done = run_script("benchmarks/bench_extraction.py", *words, status=2)
        assert done.stderr.startswith(f"error: {message}")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "scratch").exists()


@pytest.fixture
def small_base(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    """A random LLaMA whose context holds three examples and a question."""
    from demo_world.tiny_llama import make_model

    with redirect_stdout(StringIO()):
        make_model(
            str(tiny_tokenizer), str(tmp_path / "base"), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=128, max_position_embeddings=4096,
        )  # fmt: skip
    return tmp_path / "base"


def test_unfinished_tuning_resumes_from_its_newest_checkpoint_or_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[object]] = []
    monkeypatch.setattr(extraction_systems, "run_once", lambda log, script, options: given.append(options))
    log, output = tmp_path / "tuning.log", tmp_path / "adapter"
    for step in (21, 105):
        (output / f"checkpoint-{step}").mkdir(parents=True)
    extraction_systems.run_into(log, output, "x.py", ["--a"])
    assert not output.exists()
    for step in (21, 105):
        (output / f"checkpoint-{step}").mkdir(parents=True)
        (output / f"checkpoint-{step}/complete.json").touch()
    extraction_systems.run_into(log, output, "x.py", ["--a"])
    assert given == [["--a"], ["--a", f"--resume_from_checkpoint={output}/checkpoint-105"]]


@pytest.mark.parametrize(
    ("resumed", "minutes"), [("None", 2.0), ("runs/adapter/checkpoint-15", 8.0), ("checkpoint-20", None)]
)
def test_minutes_of_a_resumed_run_are_those_of_all_steps(tmp_path: Path, resumed: str, minutes: float | None) -> None:
    arguments = {"method": "lora", "lora_r": 4, "batch_size": 2, "resume_from_checkpoint": resumed}
    (tmp_path / "run.json").write_text(json.dumps({"arguments": arguments}))
    (tmp_path / "train_log.jsonl").write_text('{"step": 20, "train_runtime": 120.0, "epoch": 1.0}\n')
    assert extraction_systems.training_figures(tmp_path)["minutes"] == minutes


@pytest.mark.slow
def test_systems_have_figures_and_a_second_run_computes_nothing(
    small_base: Path, shared_data: Path, tmp_path: Path, run_script: RunScript
) -> None:
    del shared_data  # only for its skip
    output, systems = tmp_path / "result.json", "dictionary,three_shot,lora"
    command = [
        "--base", small_base, "--data", "conll04", "--scratch", tmp_path / "scratch", "--systems", systems,
        "--limit", 2, "--orders", 2, "--max_new_tokens", 8, "--output", output,
    ]  # fmt: skip
    tuning = ["--", "--max_steps", 2, "--batch_size", 2, "--micro_batch_size", 2, "--cutoff_len", 2048]
    first = run_script("benchmarks/bench_extraction.py", *command, *tuning, timeout=550)
    result = json.loads(output.read_text())
    assert list(result["systems"]) == systems.split(",")
    for name, system in result["systems"].items():
        for task in ("ner", "re"):
            assert 0 <= system[task]["f1"] <= 1
            assert len(system[task]["f1_interval"]) == 2
            assert (system[task]["seconds_a_row"] is None) == (name == "dictionary")
            assert ("orders" in system[task]) == (name == "lora")
            assert ("grammar" in system[task]) == (name == "lora")
        assert ("training" in system["runs"][0]) == (name == "lora")
    training = result["systems"]["lora"]["runs"][0]["training"]
    assert {key: training[key] for key in ("rank", "steps", "examples")} == {"rank": 16, "steps": 2, "examples": 4}
    assert result["systems"]["lora"]["ner"]["grammar"]["parsed"] == 1

    output.unlink()
    second = run_script("benchmarks/bench_extraction.py", *command, *tuning)
    assert ".py" not in second.stdout
    assert second.stdout.splitlines()[-6:] == first.stdout.splitlines()[-6:]
    assert json.loads(output.read_text()) == result
    other = run_script("benchmarks/bench_extraction.py", *command, "--seeds", 2, "--minutes", 7, *tuning, status=2)
    assert "has results with other settings (minutes); name another --scratch" in other.stderr
