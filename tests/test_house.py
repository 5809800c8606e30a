"""Rules of the repository that a program can check: its structure, its twins, and the form of its code."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = ("pretrain", "finetune", "tools", "examples", "inference")
COMMANDS = sorted(path for stage in STAGES for path in (REPOSITORY / stage).glob("*.py"))
PACKAGES = sorted(path.parent for stage in STAGES for path in (REPOSITORY / stage).glob("*/__init__.py"))
MODULES = sorted(path for stage in STAGES for path in (REPOSITORY / stage).rglob("*.py"))
ALL_PYTHON = sorted([*MODULES, *(REPOSITORY / "tests").rglob("*.py"), *(REPOSITORY / "benchmarks").glob("*.py")])
LISTED_TWINS: dict[str, list[str]] = {
    name: stages.split()
    for name, _, stages in (
        line.partition(":") for line in (REPOSITORY / "tests/twins.txt").read_text(encoding="utf-8").splitlines()
    )
    if name and not name.startswith("#")
}
TWIN_FILES = {name: stages for name, stages in LISTED_TWINS.items() if "." in name}
TWINS = {name: stages for name, stages in LISTED_TWINS.items() if name not in TWIN_FILES}  # packages


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def stage_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).parts[0]


def package_of(path: Path) -> str:
    """Return the package of a module, or "" for a command."""
    parts = path.relative_to(REPOSITORY).parts
    return parts[1] if len(parts) > 2 else ""


def imported_modules(path: Path) -> set[str]:
    """Return the dotted names of all imports in a file; `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)}


def test_repository_has_commands_and_packages_in_every_stage() -> None:
    assert {stage_of(path) for path in COMMANDS} == set(STAGES) == {stage_of(path) for path in PACKAGES}


def test_stage_top_level_has_only_commands() -> None:
    assert not [relative(path) for path in COMMANDS if '__name__ == "__main__"' not in path.read_text(encoding="utf-8")]
    inside = [path for path in MODULES if path not in COMMANDS]
    assert not [relative(path) for path in inside if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


def test_no_command_is_imported_by_another_module() -> None:
    commands = {stage: {path.stem for path in COMMANDS if stage_of(path) == stage} for stage in STAGES}
    found = [
        f"{relative(path)} imports the command {name}"
        for path in MODULES
        for name in sorted(imported_packages(path) & commands[stage_of(path)])
    ]
    assert not found


def test_no_stage_imports_another() -> None:
    owners = defaultdict(set)
    for path in MODULES:
        owners[package_of(path) or path.stem].add(stage_of(path))
    crossings = [
        f"{relative(path)} imports {name}"
        for path in MODULES
        for name in sorted(imported_packages(path))
        if name in STAGES or (name in owners and stage_of(path) not in owners[name])
    ]
    assert not crossings


def test_packages_have_two_to_twelve_modules_and_a_docstring() -> None:
    wrong = []
    for package in PACKAGES:
        initial = parsed(package / "__init__.py")
        if not ast.get_docstring(initial) or len(initial.body) != 1:
            wrong.append(f"{relative(package)}/__init__.py must hold one docstring and nothing else")
        modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
        # A twin may have a single module.
        if not (1 if package.name in TWINS else 2) <= len(modules) <= 12:
            wrong.append(f"{relative(package)} has {len(modules)} modules")
        wrong += [f"{relative(path)} is in a package inside a package" for path in package.glob("*/**/*.py")]
    folders = {path.parent for path in MODULES} - {REPOSITORY / stage for stage in STAGES}
    assert not wrong
    assert folders == set(PACKAGES)


def test_package_and_module_names_are_unique_except_twins() -> None:
    places = defaultdict(list)
    for path in [*PACKAGES, *MODULES]:
        if path.name != "__init__.py" and package_of(path / "x") not in TWINS and package_of(path) not in TWINS:
            places[path.stem].append(relative(path))
    assert not [paths for paths in places.values() if len(paths) > 1]


def test_class_names_are_unique_except_in_twins() -> None:
    places = defaultdict(list)
    for path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and package_of(path) not in TWINS:
                places[node.name].append(relative(path))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_no_name_shadows_an_installed_package() -> None:
    taken = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    assert not [relative(path) for path in [*PACKAGES, *COMMANDS] if path.stem in taken]


@pytest.mark.parametrize("stage", STAGES)
def test_packages_do_not_import_each_other_in_a_circle(stage: str) -> None:
    packages = {path.name for path in PACKAGES if stage_of(path) == stage}
    graph: dict[str, set[str]] = {name: set() for name in packages}
    for path in MODULES:
        if stage_of(path) == stage and package_of(path):
            graph[package_of(path)] |= (imported_packages(path) & packages) - {package_of(path)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"{stage}: {' -> '.join(error.args[1])}")


def test_twins_are_equal_and_import_only_twins() -> None:
    files = {
        (name, stage): {path.name: path.read_bytes() for path in (REPOSITORY / stage / name).glob("*.py")}
        for name, stages in TWINS.items()
        for stage in stages
    }
    files |= {
        (name, stage): {name: (REPOSITORY / stage / name).read_bytes()}
        for name, stages in TWIN_FILES.items()
        for stage in stages
    }
    assert not [key for key, content in files.items() if not content]
    assert not [key for key, content in files.items() if content != files[key[0], LISTED_TWINS[key[0]][0]]]
    copies = defaultdict(list)
    for path in PACKAGES:
        copies[path.name].append(stage_of(path))
    assert {name: sorted(stages) for name, stages in copies.items() if len(stages) > 1 or name in TWINS} == {
        name: sorted(stages) for name, stages in TWINS.items()
    }
    own = {path.name for path in PACKAGES} - set(TWINS)
    twins = [path for path in MODULES if package_of(path) in TWINS]
    assert not [relative(path) for path in twins if imported_packages(path) & own]


def test_twins_script_copies_the_newest_copy_over_the_others(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    script = tmp_path / "tests/twins.sh"
    script.write_bytes((REPOSITORY / "tests/twins.sh").read_bytes())
    (tmp_path / "tests/twins.txt").write_text("# comment\nwords: a b c\nlist.json: a b\n")
    for age, stage in ((200, "a"), (100, "b"), (300, "c")):
        (tmp_path / stage / "words").mkdir(parents=True)
        file = tmp_path / stage / "words/w.py"
        file.write_text(stage)
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    (tmp_path / "a/list.json").write_text("[]")
    listed = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["a/words", "c/words", "b/list.json"]
    for name in ("words", "list.json"):
        subprocess.run(["bash", str(script), name], capture_output=True, check=True)
    assert (tmp_path / "b/list.json").read_text() == "[]"
    assert [(tmp_path / stage / "words/w.py").read_text() for stage in "abc"] == ["b", "b", "b"]
    assert subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True).stdout == ""
    unknown = subprocess.run(["bash", str(script), "none"], capture_output=True, text=True)
    assert unknown.returncode == 2 and unknown.stderr.count("\n") == 1


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
            f"{relative(path)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            and id(node) not in docstrings
        ]
    assert not found


def test_every_file_has_a_docstring_and_every_command_a_run_line() -> None:
    assert not [relative(path) for path in ALL_PYTHON if not ast.get_docstring(parsed(path))]
    without_run_line = [
        relative(path) for path in COMMANDS if relative(path) not in (ast.get_docstring(parsed(path)) or "")
    ]
    assert not without_run_line


def test_help_shows_continued_lines_as_written() -> None:
    """In a docstring, a single backslash at the end of a line would join it with the next one."""
    for command in COMMANDS:
        written = ast.get_source_segment(command.read_text(encoding="utf-8"), parsed(command).body[0]) or ""
        assert not re.search(r"(?<!\\)\\\n", written), relative(command)


def test_public_functions_of_stages_have_types() -> None:
    bare = []
    for path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if node.returns is None or any(argument.annotation is None for argument in arguments):
                    bare.append(f"{relative(path)}:{node.lineno} {node.name}")
    assert not bare


def test_files_have_at_most_400_lines_and_functions_at_most_80() -> None:
    long = [relative(path) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    for path in ALL_PYTHON:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{relative(path)}:{node.lineno} {node.name} ({lines} lines)"] if lines > 80 else []
    assert not long


COPY = 8  # consecutive lines; fewer equal lines are common where scripts begin and end


def test_no_code_is_copied_between_files() -> None:
    """No 8 consecutive lines of code occur in two files, except twins; imports, brackets and comments are ignored."""
    seen: dict[tuple[str, ...], str] = {}
    copies = []
    for path in MODULES:
        if package_of(path) in TWINS and stage_of(path) != TWINS[package_of(path)][0]:
            continue
        lines = [
            (number, line.strip())
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if len(line.strip()) > 2 and not line.strip().startswith(("import ", "from ", "#"))
        ]
        for start in range(len(lines) - COPY + 1):
            window = tuple(text for _, text in lines[start : start + COPY])
            here = f"{relative(path)}:{lines[start][0]}"
            other = seen.setdefault(window, here)
            if other.rsplit(":", 1)[0] != relative(path):
                copies.append(f"{here} repeats {other}")
    assert not copies


@pytest.mark.parametrize(
    "script", sorted(REPOSITORY.glob("*/*.sh")) + sorted(REPOSITORY.glob("*/scripts/*.sh")), ids=relative
)
def test_shell_scripts_parse_and_stop_at_errors(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", sorted(REPOSITORY.glob("*/scripts/*.sh")), ids=relative)
def test_recipes_say_which_setting_is_missing(recipe: Path) -> None:
    without = {name: value for name, value in os.environ.items() if name not in ("MODEL", "BASE_MODEL")}
    done = subprocess.run(["bash", str(recipe)], capture_output=True, text=True, env=without)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_nothing_evaluates_or_unpickles() -> None:
    """Stages call no eval, exec or pickle.load, torch.load only with weights_only, and run only trusted model code."""
    found = []
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if name in ("eval", "exec", "pickle.load", "pickle.loads") or (name == "torch.load" and not safe):
                found.append(f"{relative(path)}:{node.lineno} {name}")
            given = {ast.unparse(k.value) for k in node.keywords if k.arg == "trust_remote_code"}
            if given - {"False", "trust_remote_code", "args.trust_remote_code"}:
                found.append(f"{relative(path)}:{node.lineno} trust_remote_code")
            # Without trust_remote_code, transformers asks on standard input whether to run a model's own code.
            if re.fullmatch(r"Auto\w+\.from_(pretrained|config)", name) and not given:
                found.append(f"{relative(path)}:{node.lineno} {name} without trust_remote_code")
    assert not found
