"""Run hostile tries and count what became of them: ``python -m scripts.hostile`` (about 15 minutes on two cores)."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from scripts.hostile import calls, commands, damage, disagreement, files, kills
from scripts.hostile.trial import VERDICTS, Try
from scripts.hostile.world import make_world

Tries = Callable[[Path, Path, str, int], Iterator[Try]]
KINDS: dict[str, Tries] = {
    "commands": lambda folder, world, wanted, seed: commands.tries(folder, world, wanted),
    "calls": lambda folder, world, wanted, seed: calls.tries(folder, wanted),
    "files": lambda folder, world, wanted, seed: files.tries(folder, world, wanted),
    "kills": kills.tries,
    "damage": damage.tries,
    "disagreement": lambda folder, world, wanted, seed: disagreement.tries(folder, world, wanted),
}
"""Each gets a folder of its own, the world, a part of the names that are wanted, and the seed."""


def main() -> int:
    """Run what is asked for; 1 if anything failed."""
    options = _options()
    kinds = options.only or list(KINDS)
    found: list[Try] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):  # what is done so far is reported
        world = make_world(Path(folder, "world"))
        for kind in kinds:
            since = time.monotonic()
            for one in KINDS[kind](Path(folder), world, options.match, options.seed):
                found.append(one)
                if one.verdict != "fine":
                    print(f"{one.verdict}: {one.kind}: {one.name}: {one.said[:300]!r}", flush=True)
            print(f"{kind}: {time.monotonic() - since:.0f} s", flush=True)
    report = _report(found, options.seed)
    if options.out is not None:
        report = _merged(options.out, report)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(_table(report["counts"]))
    return int(bool(report["failures"]))


def _stop(number: int, _: object) -> None:
    """Stop trying, once: another signal must not end the report."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.hostile", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), help="kinds of tries; all if not given")
    parser.add_argument("--match", default="", help="a part of the names of the tries")
    parser.add_argument("--seed", type=int, default=0, help="of moments, bits and cuts")
    parser.add_argument("--out", type=Path, help="JSON file; kinds that are tried again take the place of the old ones")
    return parser.parse_args()


def _report(found: list[Try], seed: int) -> dict[str, dict[str, object]]:
    from pof.app.run_folder import environment

    kinds = dict.fromkeys(one.kind for one in found)
    own = {kind: [one for one in found if one.kind == kind] for kind in kinds}
    counts = {
        kind: {
            "tries": len(tries),
            **{verdict: Counter(one.verdict for one in tries)[verdict] for verdict in VERDICTS},
            "seconds": round(sum(one.seconds for one in tries)),
            "slowest": max(one.seconds for one in tries),
        }
        for kind, tries in own.items()
    }
    failures = {kind: [asdict(one) for one in tries if one.verdict != "fine"] for kind, tries in own.items()}
    about = {"seed": seed, "commit": environment()["commit"], "processor": environment()["processor"]}
    return {
        "counts": counts,
        "failures": {k: v for k, v in failures.items() if v},
        "about": dict.fromkeys(kinds, about),
    }


def _merged(path: Path, report: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """A report with the kinds of an earlier one that were not tried again."""
    if not path.exists():
        return report
    earlier = json.loads(path.read_text(encoding="utf-8"))
    kept = {part: {k: v for k, v in values.items() if k not in report["counts"]} for part, values in earlier.items()}
    return {part: {**kept[part], **report[part]} for part in report}


def _table(counts: dict[str, object]) -> str:
    head = ("", "tries", *VERDICTS, "seconds", "slowest")
    lines = [head, *((kind, *(str(row[name]) for name in head[1:])) for kind, row in counts.items())]
    widths = [max(len(line[number]) for line in lines) for number in range(len(head))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
