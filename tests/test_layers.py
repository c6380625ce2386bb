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
from tests.processes import python

PACKAGE = Path(pof.__file__).parent
# From the bottom up: a part imports from itself and from what stands above it in this list.  Nothing else.
ORDER = (
    *("_support", "weights", "head", "perturbation", "optim", "regularizers", "flatness", "models", "data", "combine"),
    *("methods", "training", "integrations"),
    *(
        "app.errors",
        "app.documents",
        "app.loggers",
        "app.method_options",
        "app.methods",
        "app.budget",
        "app.options",
        "app.places",
        "app.run_files",
        "app.run_folder",
        "app.cards",
        "app.splits",
        "app.inherit",
        "app.job",
        "app.assess",
        "app.predict",
        "app.export",
        "app.runs",
        "app.known",
        "app.engine",
        "app.comparison",
        "app.report",
        "app.experiment",
        "app.improve",
    ),
    *("app.demo", "app.cli", "__main__"),
)
MAX_LINES = 350

FILES = {".".join(("pof", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in PACKAGE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()} | {"pof": PACKAGE / "__init__.pyi"}


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


PARTS_OF_METHODS = {f"pof.methods.{name}" for name in ("base", "calibration", "loss")}


def breach(module: str, target: str) -> str | None:
    """What is wrong with an import, or None."""
    if target == "pof":
        return f"{module} goes through the door: import from the module itself"
    own, other = part(module), part(target)
    if own != other and ORDER.index(other) >= ORDER.index(own):
        return f"{module} imports {target}, and {other} stands at or above {own}"
    if own == other == "methods" and module != "pof.methods" and target not in PARTS_OF_METHODS:
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


def test_of_the_application_the_door_knows_improve_and_runs_alone() -> None:
    found = {target for target in imported("pof") if target.startswith("pof.app")}
    assert found == {"pof.app.improve.improve", "pof.app.improve.result", "pof.app.runs"}


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


def test_the_table_builds_every_method() -> None:
    """Every concrete method of the library is named by the command line."""
    concrete = {
        name
        for name in pof.methods.__all__
        if inspect.isclass(kind := getattr(pof.methods, name))
        and issubclass(kind, pof.methods.Method)
        and not inspect.isabstract(kind)
    }
    tree = ast.parse(MODULES["pof.app.methods"].read_text(encoding="utf-8"))
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {"Finetune", "PoF"} <= concrete <= named


def loaded_by(script: str) -> set[str]:
    """Top-level modules that a script has loaded."""
    done = python("-c", f"import json, sys\n{script}\nprint(json.dumps([*sys.modules.keys()]))")
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_the_door_opens_without_torch_and_everything_behind_it_needs_torch_and_safetensors_alone() -> None:
    assert "torch" not in loaded_by("import pof")
    # ``improve`` is the application's: it may need more.
    everything = loaded_by("import pof; [getattr(pof, n) for n in dir(pof) if n not in {'improve', 'ImproveResult'}]")
    of_torch = loaded_by("import torch")
    allowed = {"pof", "torch", "safetensors", "numpy", *sys.stdlib_module_names}
    assert everything - of_torch <= allowed, everything - of_torch - allowed


@pytest.mark.parametrize("arguments", [["--help"], ["post-train", "--help"], ["experiment", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    ask = f"parse({arguments})"
    script = f"""
import contextlib, io
from pof.app.cli import parse
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    {ask}"""
    assert "torch" not in loaded_by(script)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_stay_small(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines"
