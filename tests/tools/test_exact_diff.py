"""exact_diff.py and diff_writer.py: tensors of every type are restored bit for bit; small changes make small diffs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_io.tensors import Tensor, read_safetensors
from safetensors.torch import save_file
from weight_diffs import diff_writer, exact_diff, rank_search
from weight_diffs.exact_diff import ExactDiff, decode
from weight_diffs.rank_search import RankSearch

LIMIT = 5 * 10**9


def stored(folder: Path, name: str, state: Mapping[str, torch.Tensor]) -> dict[str, Tensor]:
    save_file({key: value.clone() for key, value in state.items()}, folder / f"{name}.safetensors")
    return read_safetensors(folder / f"{name}.safetensors")


def make(folder: Path, tuned: dict[str, Tensor], base: dict[str, Tensor], limit: int = LIMIT) -> ExactDiff:
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    diff_writer.write_diff(folder, tuned, base, RankSearch().find, limit)
    return exact_diff.read_diff(folder)


def is_restored(diff: ExactDiff, tuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> bool:
    return all(
        np.array_equal(np.concatenate([*decode(diff, name, base), t.read(0, 0)]), t.read()) for name, t in tuned.items()
    )


@pytest.mark.parametrize("limit", [LIMIT, 30_000], ids=["one file", "shards"])
def test_exact_diff_restores_every_tensor(tmp_path: Path, limit: int) -> None:
    """Tensors have the base's or another type, more or fewer rows, no base tensor, or 0 or 1 elements; one is tied."""
    torch.manual_seed(0)
    plain = torch.randn(50, 70)
    base = {
        "half": plain.half(), "bfloat": plain.bfloat16(), "single": plain, "double": plain.double(),
        "integer": plain.long(), "model.embed_tokens.weight": plain.half(),
        "to_bfloat": plain.half(), "to_single": plain.half(), "to_double": plain, "rows": plain, "fewer": plain,
        "scalar": torch.tensor(1.0), "empty": torch.zeros(0), "unused": plain,
    }  # fmt: skip
    tuned = {key: value * 1.01 if value.is_floating_point() else value + 1 for key, value in base.items()} | {
        "to_bfloat": (plain * 1.01).bfloat16(), "to_single": plain * 1.01, "to_double": plain.double() * 1.01,
        "rows": torch.randn(61, 70), "fewer": plain[:20] * 1.01, "new": torch.randn(9).half(),
        "lm_head.weight": plain.half() * 1.01,
    }  # fmt: skip
    tuned.pop("unused")
    tuned["half"][0, 0] = -0.0
    ours, parents = stored(tmp_path, "tuned", tuned), stored(tmp_path, "base", base)
    diff = make(tmp_path / "diff", ours, parents, limit)
    assert (len(list((tmp_path / "diff").glob("*.safetensors"))) > 1) == (limit < LIMIT)
    assert is_restored(diff, ours, parents)
    base_names = {key: entry.base_name for key, entry in diff.entries.items()}
    assert base_names["to_double"] is base_names["new"] is None
    assert base_names["lm_head.weight"] == "model.embed_tokens.weight"
    assert all(base_names[key] == key for key in base_names.keys() - {"to_double", "new", "lm_head.weight"})
    exact_diff.check_base(diff, parents, tmp_path)


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float16, 0.172), (torch.bfloat16, 0.0085), (torch.float32, 0.4925)], ids=str
)
def test_diff_of_small_change_is_small(tmp_path: Path, dtype: torch.dtype, share: float) -> None:
    """Weights have a relative change of 1e-3; its entropy is 0.166, 0.0068 and 0.489 of their size."""
    torch.manual_seed(0)
    base = (torch.randn(1000, 1000) * 0.02).to(dtype)
    tuned = (base.float() * (1 + 1e-3 * torch.randn(1000, 1000))).to(dtype)
    make(tmp_path / "diff", stored(tmp_path, "tuned", {"w": tuned}), stored(tmp_path, "base", {"w": base}))
    assert (tmp_path / "diff/diff.safetensors").stat().st_size < share * tuned.nbytes


@pytest.mark.integration
def test_diff_of_merged_adapter_is_small(tmp_path: Path) -> None:
    """The search finds the rank; a matrix without a low-rank change is stored without factors; both are restored."""
    torch.manual_seed(0)
    base = {"merged": (torch.randn(700, 900) * 0.02).half(), "moved": (torch.randn(700, 900) * 0.02).half()}
    change = torch.randn(700, 4) @ torch.randn(4, 900) * 5e-4
    tuned = {"merged": (base["merged"].float() + change).half(), "moved": (base["moved"].float() * 1.001).half()}
    ours, parents = stored(tmp_path, "tuned", tuned), stored(tmp_path, "base", base)
    diff = make(tmp_path / "diff", ours, parents)
    assert {name: entry.rank for name, entry in diff.entries.items()} == {"merged": 4, "moved": 0}
    assert diff.payloads["merged"].nbytes < 0.04 * tuned["merged"].nbytes
    assert is_restored(diff, ours, parents)


def test_recover_refuses_other_base_and_names_tensor(tmp_path: Path) -> None:
    base = {"a": torch.ones(10), "b": torch.ones(10)}
    ours, parents = stored(tmp_path, "tuned", base | {"a": torch.zeros(10)}), stored(tmp_path, "base", base)
    diff = make(tmp_path / "diff", ours, parents)
    wrong = base["b"].clone()
    wrong[7] = torch.nextafter(wrong[7], torch.tensor(2.0))
    for state in (base | {"b": wrong}, base | {"b": torch.ones(10).half()}, {"a": base["a"]}):
        with pytest.raises(ValueError, match="tensor b"):
            exact_diff.check_base(diff, stored(tmp_path, "other", state), tmp_path)


def test_diff_refuses_incompatible_shapes(tmp_path: Path) -> None:
    base = stored(tmp_path, "base", {"w": torch.ones(4, 6)})
    for shape in ((6, 4), (24,), (4, 7)):
        with pytest.raises(ValueError, match="tensor w is"):
            make(tmp_path / "diff", stored(tmp_path, "tuned", {"w": torch.ones(shape)}), base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_diff_refuses_non_finite_weights_and_names_tensor(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    tuned = torch.ones(5000, dtype=dtype)
    tuned[4321] = value
    ours = stored(tmp_path, "tuned", {"w": tuned})
    with pytest.raises(ValueError, match=r"tuned\.safetensors: tensor w holds NaN or infinity"):
        make(tmp_path / "diff", ours, stored(tmp_path, "base", {"w": torch.ones(5000, dtype=dtype)}))


def test_recover_refuses_damaged_payload(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = stored(tmp_path, "tuned", {"w": torch.randn(3000)})
    diff = make(tmp_path / "diff", ours, {})
    payload = diff.payloads["w"]
    bits = payload.read()
    size = bits.size
    for damaged in (np.append(bits[:-7], bits[:7]), np.zeros(size, np.uint8), np.append(bits[1:], bits[:1])):
        diff.payloads["w"] = Tensor("w", "U8", (damaged.size,), payload.file, damaged)
        with pytest.raises(ValueError, match="tensor w is damaged"):
            list(decode(diff, "w", {}))


CHANGES: dict[str, dict[str, object]] = {
    "rank above the shape": {"rank": 10**9}, "rank of a vector": {"rank": 1, "shape": [600]},
    "negative": {"shape": [-1]}, "no base": {"base_name": None}, "other type": {"dtype": "F4"},
    "huge": {"shape": [1 << 30, 1 << 30]}, "long row": {"shape": [1, 1 << 40]}, "other shape": {"shape": [30, 20]},
    "unknown key": {"program": "x"}, "longer chunk": {"chunks": [2]},
    "another chunk": {"chunks": [1, 1]}, "no list": {"chunks": None},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_read_diff_refuses_inconsistent_metadata(tmp_path: Path, change: str) -> None:
    state = {"w": torch.ones(20, 30)}
    ours = stored(tmp_path, "tuned", state)
    make(tmp_path / "diff", ours, ours)
    file = tmp_path / "diff/diff.json"
    record = json.loads(file.read_text())
    record["tensors"]["w"] |= CHANGES[change]
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"diff\.json is damaged"):
        exact_diff.read_diff(tmp_path / "diff")


def test_read_diff_refuses_unknown_format(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "diff.safetensors")
    (tmp_path / "diff.json").write_text('{"format": "exact-diff-2"}')
    with pytest.raises(ValueError, match="format 'exact-diff-2'"):
        exact_diff.read_diff(tmp_path)


def test_search_stops_after_low_rank_parts_that_do_not_make_the_diff_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value of every matrix changes, with a large low-rank part, as after a few training steps."""
    draw = torch.Generator().manual_seed(0)
    base, tuned = {}, {}
    for layer in range(6):
        name, shape = f"layers.{layer}.q_proj.weight", (400, 400)
        base[name] = torch.randn(shape, generator=draw).bfloat16() / 20
        part = torch.randn(400, 2, generator=draw) @ torch.randn(2, 400, generator=draw)
        noise = torch.randn(shape, generator=draw)
        tuned[name] = (base[name].float() + 1e-3 * part + 3e-3 * noise).bfloat16()
    searched: list[str] = []
    find = rank_search.low_rank_factors

    def recorded(tuned: Tensor, base: Tensor) -> Any:
        searched.append(tuned.name)
        return find(tuned, base)

    monkeypatch.setattr(rank_search, "low_rank_factors", recorded)
    diff = make(tmp_path / "diff", stored(tmp_path, "tuned", tuned), stored(tmp_path, "base", base))
    assert len(searched) == rank_search.FAILURES_LIMIT
    assert {entry.rank for entry in diff.entries.values()} == {0}
