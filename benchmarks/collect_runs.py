"""Put the figures of run folders into one JSON file, without paths, for the documentation.

python benchmarks/collect_runs.py NAME=RUN [NAME=RUN ...] --out results/NAME.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pof.app.run_folder import read_config, read_rows

PATHS = ("weights", "data_root")


def collect(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    for group in (config["model"], config["data"]):
        for name in PATHS:
            if group.get(name):
                group[name] = Path(group[name]).name
    environment = json.loads((folder / "environment.json").read_text())
    del environment["command"]
    return {
        "config": config,
        "environment": environment,
        "result": json.loads((folder / "result.json").read_text()),
        "epochs": [row for row in read_rows(folder) if row["event"] == "epoch"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    named = dict(item.split("=", 1) for item in options.runs)
    figures = {name: collect(Path(folder)) for name, folder in named.items()}
    Path(options.out).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
