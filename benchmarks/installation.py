"""What each way of installing brings: packages and their size on disk, beyond the library itself.

    python benchmarks/installation.py

Adds up the files of every package that an extra needs, directly or not, in this environment.  Writes
results/installation.json.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from pof.app.run_folder import environment

EXTRAS = ("transformers", "lightning", "data", "export", "ray")
ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "installation.json"


def needed(texts: Iterable[str]) -> set[str]:
    """All packages that these requirements need, directly or not."""
    waiting, seen = [Requirement(text) for text in texts], set()
    while waiting:
        requirement = waiting.pop()
        name, extras = requirement.name.lower().replace("_", "-"), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for more in map(Requirement, metadata.requires(name) or ()):
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(more)
    return {name for name, _ in seen}


def megabytes(packages: Iterable[str]) -> float:
    """Size of their files on disk."""
    files = {file.locate() for package in packages for file in metadata.files(package) or ()}
    return sum(Path(file).stat().st_size for file in files if Path(file).is_file()) / 1e6


def measure() -> dict[str, dict[str, float]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    library, extras = needed(project["dependencies"]), project["optional-dependencies"]
    app = needed(extras["app"])
    ways = {"library": library, "app": app - library}
    ways |= {extra: needed(extras[extra]) - app - library for extra in EXTRAS}
    return {way: {"packages": len(names), "megabytes": round(megabytes(names))} for way, names in ways.items()}


if __name__ == "__main__":
    result = {
        "question": "packages and size of each way of installing; app beyond the library, the others beyond app",
        "environment": {name: value for name, value in environment().items() if name != "command"},
        "ways": measure(),
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["ways"], indent=2))
