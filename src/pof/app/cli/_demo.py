"""``pof demo``."""

from dataclasses import dataclass
from itertools import count
from pathlib import Path


@dataclass
class DemoOptions:
    """The demonstration.

    Args:
        out: Folder of the demonstration. A number is added if it is there already.
        resume: Go on with the demonstration that is in the folder.
    """

    out: str = "runs/demo"
    resume: bool = False


def demo(options: DemoOptions) -> int:
    """Train a small network on a few digits, and improve it."""
    from pof._support.devices import torch_threads
    from pof.app.cli._display import console
    from pof.app.cli._improve import show
    from pof.app.cli._progress import SearchProgress
    from pof.app.demo import BUDGET, DATA, TRAINING, improve_digits, train_digits

    folder = Path(options.out) if options.resume else _unused(Path(options.out))
    with torch_threads(1):  # the same bits on any number of cores; more make so small a network no faster
        console.print(f"training a small CNN on {DATA.train_size} digits, {TRAINING.epochs} epochs", highlight=False)
        base = train_digits(folder)
        console.print(f"improving it within {BUDGET:g} passes over them", highlight=False)
        with SearchProgress() as progress:
            result, test = improve_digits(folder, base, progress)
    show(result, test, folder / "better")
    return 0


def _unused(folder: Path) -> Path:
    candidates = (folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 10_000)))
    return next(candidate for candidate, _ in zip(candidates, count(), strict=False) if not candidate.exists())
