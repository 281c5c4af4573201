"""Count what there is to read: lines, modules, records and functions, room by room.

    python benchmarks/size.py            rooms, functions, tests
    python benchmarks/size.py --start    also the CPU seconds that each `ijepa COMMAND --help` takes
    python benchmarks/size.py --check    lines alone; fails above the budget in pyproject.toml

A room is a folder under `ijepa/`; what lies at the top is `ijepa`. Lines are all lines of Python.
"""

import argparse
import ast
import os
import resource
import statistics
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS = {"NamedTuple", "TypedDict", "BaseModel"}  # bases; subclasses of these are records, too
RUNS = 5
Function = ast.FunctionDef | ast.AsyncFunctionDef


def rooms() -> dict[str, list[Path]]:
    """The modules of the product by room, in the order of their names."""
    found = defaultdict(list)
    for path in sorted([*ROOT.glob("ijepa/**/*.py"), *ROOT.glob("ijepa_cli/**/*.py")]):
        parts = path.relative_to(ROOT).parts
        found["/".join(parts[: min(2, len(parts) - 1)])].append(path)
    return found


def lines(paths: list[Path]) -> int:
    """All lines, blank ones and docstrings included."""
    return sum(len(path.read_text().splitlines()) for path in paths)


def check() -> int:
    """Print the lines of each room beside its budget; how many rooms are above theirs."""
    budget = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["size"]
    count = {room: lines(paths) for room, paths in rooms().items()}
    count["all"] = sum(count.values())
    for room, number in count.items():
        above = "" if number <= budget.get(room, 0) else "  above its budget: cut, or raise it"
        print(f"{room:18} {number:7,} lines of {budget.get(room, 0):7,}{above}")
    return sum(number > budget.get(room, 0) for room, number in count.items())


def bare_name(node: ast.expr) -> str:
    """The last part of what is called, or of a base: `pydantic.BaseModel` is `BaseModel`."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def records(trees: dict[Path, ast.Module]) -> set[ast.ClassDef]:
    """Dataclasses, and classes below one of `RECORDS`, however far."""
    classes = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    names, found = set(RECORDS), set[ast.ClassDef]()
    while True:
        more = {
            one
            for one in classes
            if any(bare_name(base) in names for base in one.bases)
            or any(bare_name(mark) == "dataclass" for mark in one.decorator_list)
        }
        if more == found:
            return found
        found, names = more, names | {one.name for one in more}


def called_once(trees: dict[Path, ast.Module]) -> int:
    """Private functions and methods whose name stands at one other place of their module."""
    count = 0
    for tree in trees.values():
        uses = Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name))
        uses += Counter(n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute))
        functions = [n.name for n in ast.walk(tree) if isinstance(n, Function)]
        count += sum(uses[f] == 1 for f in functions if f[0] == "_" and f[-2:] != "__")
    return count


def inner_imports(tree: ast.Module) -> int:
    """Imports inside functions."""
    functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
    found = {
        n for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)
    }
    return len(found)


def tests() -> tuple[int, int, int]:
    """Test functions, modules and lines under tests/."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    nodes = [n for path in paths for n in ast.walk(ast.parse(path.read_text()))]
    count = sum(isinstance(n, Function) and n.name.startswith("test_") for n in nodes)
    return count, len(paths), lines(paths)


def help_seconds(command: str) -> float | None:
    """CPU seconds, user and system, of `ijepa COMMAND --help`: the best of `RUNS`."""
    best, env = float("inf"), os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = [sys.executable, "-m", "ijepa_cli", *command.split(), "--help"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if subprocess.run(words, env=env, check=False, **quiet).returncode:
            return None  # a module of that name, but no command
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        best = min(best, spent)
    return best


def main() -> None:
    """Print the counts as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", action="store_true", help="also measure `--help`")
    parser.add_argument("--check", action="store_true", help="hold lines to their budget")
    asked = parser.parse_args()
    if asked.check:
        sys.exit(check() > 0)
    found = rooms()
    trees = {path: ast.parse(path.read_text()) for paths in found.values() for path in paths}
    all_records = records(trees)
    print("| room | modules | lines | records | inner imports |\n|---|---|---|---|---|")
    for room, paths in found.items():
        inside = all_records & {node for path in paths for node in ast.walk(trees[path])}
        imports = sum(inner_imports(trees[path]) for path in paths)
        print(f"| {room} | {len(paths)} | {lines(paths):,} | {len(inside)} | {imports} |")
    imports = sum(map(inner_imports, trees.values()))
    total = lines(list(trees))
    print(f"| **all** | {len(trees)} | {total:,} | {len(all_records)} | {imports} |\n")
    functions = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, Function)]
    lengths = {(n.end_lineno or 0) - n.lineno + 1: n.name for n in functions}
    longest = max(lengths)
    median = statistics.median((n.end_lineno or 0) - n.lineno + 1 for n in functions)
    print(f"- functions: {len(functions):,}, median {median:g} lines, docstring included, "
          f"longest {longest} (`{lengths[longest]}`)")  # fmt: skip
    print(f"- private functions called once: {called_once(trees)}")
    print("- tests: {:,} functions in {} modules of {:,} lines".format(*tests()))
    if asked.start:
        names = sorted(path.stem.replace("_", "-") for path in ROOT.glob("ijepa_cli/commands/*.py"))
        for command in ["", *(name for name in names if not name.startswith("-"))]:
            if seconds := help_seconds(command):
                print(f"- `ijepa {command} --help`: {seconds:.2f} CPU s")


if __name__ == "__main__":
    main()
