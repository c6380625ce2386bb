"""The shape of the house: imports run one way, the door is light, the command line knows every method."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pof.methods
from pof.cli._methods import METHODS
from tests.processes import python

PACKAGE = Path(pof.__file__).parent
LAYERS = (
    {"_modules", "_random", "_batches", "_distributed"},
    {
        "head",
        "perturbation",
        "_head_search",
        "general_head",
        "ascent",
        "optim",
        "regularizers",
        "flatness",
        "models",
        "data",
        "weights",
        "schedules",
        "evaluate",
    },
    {"methods"},
    {
        "fit",
        "_loop",
        "_step",
        "_stream",
        "reference",
        "_board",
        "_selection",
        "_interrupt",
        "checkpoint",
        "rates",
        "run",
        "job",
        "options",
        "demo",
        "experiment",
        "report",
        "integrations",
    },
    {"cli", "__main__"},
)
MAX_LINES = 350

FILES = {".".join(("pof", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in PACKAGE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def layer(module: str) -> int:
    part = module.split(".")[1]
    found = [number for number, names in enumerate(LAYERS) if part in names]
    assert found, f"{module} belongs to no layer: add it to LAYERS"
    return found[0]


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports, inside of functions too."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return set(_imports(tree, module)) - {module}


def _imports(tree: ast.AST, module: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "pof")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            source = node.module or ""
            if source.split(".")[0] == "pof":
                full = (f"{source}.{alias.name}" for alias in node.names)
                yield from (name if name in MODULES else source for name in full)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"pof"}))
def test_imports_run_downwards(module: str) -> None:
    for target in imported(module):
        assert target != "pof", f"{module} goes through the door: import from the module itself"
        assert layer(target) <= layer(module), f"{module} imports upwards: {target}"


def test_the_door_knows_no_command_line() -> None:
    assert all(layer(target) < layer("pof.cli") for target in imported("pof"))


def test_methods_do_not_know_each_other() -> None:
    for module in MODULES:
        if module.startswith("pof.methods."):
            others = {t for t in imported(module) if t.startswith("pof.methods")}
            assert all(t.startswith("pof.methods._") for t in others), f"{module} imports {others}"


def test_flatness_knows_neither_methods_nor_fit() -> None:
    reached, ahead = set(), {module for module in MODULES if module.startswith("pof.flatness")}
    while ahead:
        reached |= ahead
        ahead = {target for module in ahead for target in imported(module)} - reached
    assert not {module for module in reached if module.startswith(("pof.methods", "pof.fit"))}


def test_no_cycles() -> None:
    """A package's ``__init__`` stands for nothing but what it imports itself."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for target in imported(module):
                visit(target, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def reachable_names(tree: ast.Module, start: ast.AST) -> set[str]:
    """Names in an expression, and in the functions of the module that it leads to."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    names: set[str] = set()
    ahead: list[ast.AST] = [start]
    while ahead:
        new = {node.id for node in ast.walk(ahead.pop()) if isinstance(node, ast.Name)} - names
        names |= new
        ahead += [functions[name] for name in new if name in functions]
    return names


def test_the_command_line_lists_every_method_in_a_literal_dict() -> None:
    tree = ast.parse(MODULES["pof.cli._methods"].read_text(encoding="utf-8"))
    targets = [node for node in tree.body if isinstance(node, ast.AnnAssign | ast.Assign)]
    table = next(node.value for node in targets if "METHODS" in ast.unparse(node).split("=")[0])
    assert isinstance(table, ast.Dict)
    assert [ast.literal_eval(key) for key in table.keys if key] == list(METHODS)
    exported = {name: getattr(pof.methods, name) for name in pof.methods.__all__}
    concrete = {
        name
        for name, kind in exported.items()
        if isinstance(kind, type) and issubclass(kind, pof.methods.Method) and not inspect.isabstract(kind)
    }
    assert {"Finetune", "PoF"} <= concrete <= reachable_names(tree, table)


def test_the_door_loads_torch_and_safetensors_alone() -> None:
    script = "import json, sys, torch; before = set(sys.modules); import pof"
    done = python("-c", f"{script}; print(json.dumps([*sys.modules.keys() - before]))")
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert loaded <= {"pof", "torch", "safetensors", "numpy", *sys.stdlib_module_names}, loaded


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_stay_small(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines"
