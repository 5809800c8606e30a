"""The rules of the house that a program can hold: how the repository is built and how its code reads."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = ("pretrain", "finetune", "tools", "examples", "inference")
MODULES = sorted(path for stage in STAGES for path in (REPOSITORY / stage).glob("*.py"))
SCRIPTS = [path for path in MODULES if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")]
ALL_PYTHON = sorted([*MODULES, *(REPOSITORY / "tests").rglob("*.py"), *(REPOSITORY / "benchmarks").glob("*.py")])


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Top names of everything that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_there_is_something_to_hold() -> None:
    assert {path.parent.name for path in SCRIPTS} == set(STAGES)


def test_no_stage_imports_another() -> None:
    owner = {path.stem: path.parent.name for path in MODULES}
    crossings = [
        f"{named(path)} imports {name}"
        for path in MODULES
        for name in imported(path)
        if name in STAGES or owner.get(name, path.parent.name) != path.parent.name
    ]
    assert not crossings


def test_stages_are_flat_and_their_stems_unique() -> None:
    places = defaultdict(list)
    for path in MODULES:
        places[path.stem].append(named(path))
    assert not [paths for paths in places.values() if len(paths) > 1]
    assert not [named(path) for stage in STAGES for path in (REPOSITORY / stage).rglob("__init__.py")]
    nested = [path for stage in STAGES for path in (REPOSITORY / stage).rglob("*.py") if path not in MODULES]
    assert not nested


def test_no_module_shadows_an_installed_package() -> None:
    taken = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    assert not [named(path) for path in MODULES if path.stem in taken]


def test_every_script_answers_help_with_its_stage_alone(tmp_path: Path) -> None:
    for stage in STAGES:
        shutil.copytree(REPOSITORY / stage, tmp_path / stage / stage, ignore=shutil.ignore_patterns("__pycache__"))

    def answers(script: Path) -> str:
        """What is wrong with `script --help`, in the only stage of an otherwise empty folder; "" if nothing is."""
        folder = tmp_path / script.parent.name
        done = subprocess.run(
            [sys.executable, f"{script.parent.name}/{script.name}", "--help"],
            env=os.environ | {"PAGER": "cat", "OMP_NUM_THREADS": "1"},
            cwd=folder, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        helpful = done.returncode == 0 and script.stem in done.stdout + done.stderr
        return "" if helpful else f"{named(script)}: exit {done.returncode}\n{done.stdout[-500:]}{done.stderr[-1500:]}"

    with ThreadPoolExecutor(2) as pool:
        assert not [reason for reason in pool.map(answers, SCRIPTS) if reason]


def test_no_bare_string_is_used_as_a_comment() -> None:
    found = []
    for path in ALL_PYTHON:
        tree = parsed(path)
        docstrings = {
            id(node.body[0])
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body
        }
        found += [
            f"{named(path)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            and id(node) not in docstrings
        ]
    assert not found


def test_every_file_opens_with_what_it_does() -> None:
    assert not [named(path) for path in ALL_PYTHON if not ast.get_docstring(parsed(path))]
    without_run_line = [named(path) for path in SCRIPTS if named(path) not in (ast.get_docstring(parsed(path)) or "")]
    assert not without_run_line


def test_public_functions_have_types_and_public_names_of_stages_docstrings() -> None:
    bare = []
    for path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if node.returns is None or any(argument.annotation is None for argument in arguments):
                    bare.append(f"{named(path)}:{node.lineno} {node.name}")
    assert not bare


def test_files_and_functions_stay_readable() -> None:
    long = [named(path) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    for path in ALL_PYTHON:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{named(path)}:{node.lineno} {node.name} ({lines} lines)"] if lines > 80 else []
    assert not long


COPY = 8  # lines in a row; fewer may be the plain opening and ending that scripts share


def test_no_code_is_copied_between_files() -> None:
    """No run of 8 equal lines (blank lines, imports and lone brackets aside) stands in two files."""
    seen: dict[tuple[str, ...], str] = {}
    copies = []
    for path in MODULES:
        lines = [
            (number, line.strip())
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if len(line.strip()) > 2 and not line.strip().startswith(("import ", "from ", "#"))
        ]
        for start in range(len(lines) - COPY + 1):
            window = tuple(text for _, text in lines[start : start + COPY])
            here = f"{named(path)}:{lines[start][0]}"
            other = seen.setdefault(window, here)
            if other.rsplit(":", 1)[0] != named(path):
                copies.append(f"{here} repeats {other}")
    assert not copies


@pytest.mark.parametrize(
    "script", sorted(REPOSITORY.glob("*/*.sh")) + sorted(REPOSITORY.glob("*/scripts/*.sh")), ids=named
)
def test_shell_scripts_parse_and_stop_at_errors(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", sorted(REPOSITORY.glob("*/scripts/*.sh")), ids=named)
def test_recipes_say_which_setting_is_missing(recipe: Path) -> None:
    without = {name: value for name, value in os.environ.items() if name not in ("MODEL", "BASE_MODEL")}
    done = subprocess.run(["bash", str(recipe)], capture_output=True, text=True, env=without)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_nothing_evaluates_or_unpickles() -> None:
    """No eval or exec of text, and torch.load only with weights_only=True."""
    found = []
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if name in ("eval", "exec", "pickle.load", "pickle.loads") or (name == "torch.load" and not safe):
                found.append(f"{named(path)}:{node.lineno} {name}")
            if any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in node.keywords):
                found.append(f"{named(path)}:{node.lineno} trust_remote_code")
    assert not found
