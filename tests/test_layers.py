"""The shape of the house: imports run one way, the door is light, the command line knows every method."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import pof.methods
from pof.app.methods import METHODS
from tests.processes import python

PACKAGE = Path(pof.__file__).parent
# From the bottom up: a part imports from itself and from what stands above it in this list.  Nothing else.
ORDER = (
    *("_support", "weights", "head", "perturbation", "optim", "regularizers", "flatness", "models", "data", "combine"),
    *("methods", "training", "integrations"),
    *("app.methods", "app.options", "app.run_folder", "app.job", "app.report", "app.experiment", "app.improve"),
    *("app.demo", "app.cli", "__main__"),
)
MAX_LINES = 350

FILES = {".".join(("pof", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in PACKAGE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def part(module: str) -> str:
    """The part of the house that a module stands in: the first folder below the root, below ``app`` the second."""
    names = module.removeprefix("pof.").split(".")
    found = ".".join(names[: 2 if names[0] == "app" else 1])
    assert found in {*ORDER, "app"}, f"{module} has no place: add it to ORDER"
    return found


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


def breach(module: str, target: str) -> str | None:
    """What is wrong with an import, or None."""
    if target == "pof":
        return f"{module} goes through the door: import from the module itself"
    own, other = part(module), part(target)
    if own != other and ORDER.index(other) >= ORDER.index(own):
        return f"{module} imports {target}, and {other} stands at or above {own}"
    if own == other == "methods" and module != "pof.methods" and target not in {"pof.methods.base", "pof.methods.loss"}:
        return f"{module} imports {target}: methods do not know each other"
    return None


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"pof", "pof.app"}))
def test_imports_run_one_way(module: str) -> None:
    assert [found for target in imported(module) if (found := breach(module, target))] == []


def test_a_sideways_import_is_a_breach() -> None:
    assert breach("pof.optim.sam", "pof.data.registry")
    assert breach("pof.methods.pof", "pof.methods.finetune")
    assert breach("pof.flatness.radius", "pof.training.fit")
    assert breach("pof.flatness.radius", "pof.methods.base")
    assert breach("pof.app.job", "pof.app.experiment.plan")
    assert breach("pof.app.job", "pof.training.fit") is None


def test_the_root_holds_the_door_and_the_weights() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "weights.py"}


def test_the_door_knows_no_application() -> None:
    assert not {target for target in imported("pof") if target.startswith("pof.app")}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"pof"}))
def test_no_function_hides_a_module(module: str) -> None:
    package, _, name = module.rpartition(".")
    import_module(module)
    found = getattr(import_module(package), name)
    assert isinstance(found, ModuleType), f"{package}.{name} is a {type(found).__name__}, and the module is hidden"


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
    tree = ast.parse(MODULES["pof.app.methods"].read_text(encoding="utf-8"))
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
