"""The wheel holds the package and nothing else, and works from a folder of its own, without the checkout.

A whole environment with the oldest torch is too much for CI: `make wheel-oldest`.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pof
from pof.flatness import top_eigenvalues
from tests.cases import batches, mlp

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "pof"


def python(*arguments: str, folder: Path, path: Path | None = None) -> str:
    """Run Python in ``folder``; ``path`` is then where the package is found, and the checkout is not."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Not isolated: the build backend is installed already, and nothing is fetched.
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), folder=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-compile")
    python("-m", "pip", "install", *options, "--target", str(folder), str(wheel), folder=folder)
    return folder


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    about = f"pof-{pof.__version__}.dist-info"
    files = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == ours | files
    assert {"pof/py.typed", "pof/__init__.pyi", "pof/app/report/template.html", "pof/app/report/style.css"} <= ours
    assert wheel.name == f"pof-{pof.__version__}-py3-none-any.whl"


def test_metadata_names_the_dependencies(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        about = email.message_from_bytes(opened.read(f"pof-{pof.__version__}.dist-info/METADATA"))
    assert about["Version"] == pof.__version__
    assert about["License-Expression"] == "Apache-2.0"
    required = about.get_all("Requires-Dist", [])
    own = {line.split(">=")[0] for line in required if "extra ==" not in line}
    assert own == {"torch", "safetensors[torch]"}
    assert set(about.get_all("Provides-Extra", [])) == {
        *("app", "data", "dev", "docs", "export", "lightning", "ray", "transformers"),
    }


def test_installed_wheel_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    told = python(str(ROOT / "scripts" / "wheel_smoke.py"), folder=tmp_path, path=installed)
    assert f"from {installed / 'pof'}" in told
    assert told.endswith("all of it works\n")
    help_text = python("-m", "pof", "--help", folder=tmp_path, path=installed)
    assert "post-train" in help_text


@pytest.mark.parametrize("parameters", ["head", "all"])
def test_missing_libraries_are_named_with_the_remedy(parameters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match=r"pip install 'pof\[app\]'"):
        top_eigenvalues(mlp(), lambda z, y: ((z - 1) ** 2).mean(), batches(2), parameters=parameters)  # type: ignore[arg-type]
