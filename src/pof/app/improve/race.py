"""The race: every candidate from the same start for a short run, then a long run of the best from there.

A run that goes on after a rung does so where it was, bitwise.  Its training state is in a folder of its own; the
journal holds what was judged of it at each rung.  A race that is killed and started again repeats nothing that the
journal knows, and ends bitwise the same.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from pof._support.files import append, replacing
from pof._support.modules import contents, copied, device_of, put_back
from pof._support.random import derive_seed, isolated, loader_generators
from pof.app.engine.base import Engine, Numerics, Workers, packed
from pof.app.improve.attempt import Readable, Refused, built, folder_of, schedule_in
from pof.app.improve.candidates import Candidate
from pof.app.improve.judge import Figures, figures, logits_on
from pof.app.improve.rungs import Rung
from pof.app.method_options import AverageOptions
from pof.app.methods import Context, average_of
from pof.app.run_files import RunError
from pof.combine import estimate_statistics, interpolate
from pof.methods import Averaged, Method
from pof.training.checkpoint import has_state
from pof.training.interrupt import Interrupts
from pof.training.loop import Loop
from pof.training.result import FitResult
from pof.training.settings import Timetable
from pof.training.stream import micro_batches, set_epoch

KINDS = ("last", "ema")
"""The networks that a run gives: its iterate, and an average of its iterates, exponential unless it has another."""
JUDGED = (*KINDS, "halfway")
"""And the one halfway between the incoming network and the iterate, by which a run may be ahead as well: methods that
first raise the loss (SAM, head ascent) are ahead there long before they are at their end."""
HALFWAY = 0.5
EMA_HORIZON = 0.1
"""Share of the first rung that the moving average beside a run looks back on, where the run has none of its own."""
Judging = Callable[[Sequence[tuple[Candidate, int]]], Iterator[dict[str, Any]]]


@dataclass
class Run:
    """What is known of a candidate."""

    candidate: Candidate
    passes: float = 0.0
    rung: int = 0
    figures: dict[str, Figures] | None = None
    """Of those of ``JUDGED`` that have finite outputs, on the samples that choose, at its last rung."""
    dropped: str = ""
    """Why it did not go on."""

    @property
    def best(self) -> str:
        """The better of its networks."""
        return min(KINDS, key=lambda kind: rank(self.figures[kind]) if self.figures else (math.inf, math.inf))

    @property
    def standing(self) -> tuple[float, float]:
        """Its place among the runs, that of the best that was judged of it."""
        return min(map(rank, self.figures.values())) if self.figures else (math.inf, math.inf)


def rank(found: Figures) -> tuple[float, float]:
    """The order of networks: by the NLL after their own temperature, then by error."""
    return found.scaled_nll, found.error


@dataclass
class Race:
    """Runs candidates from one network; the incoming network itself is never touched."""

    incoming: nn.Module
    head: str | None
    train_loader: Iterable[Any]
    val_loader: Iterable[Any]
    chooses: Tensor
    """Indices of the validation samples that choose."""
    targets: Tensor
    classes: int
    steps_per_epoch: int
    """Optimizer steps, of several mini-batches each where gradients are accumulated."""
    folder: Path
    seed: int
    log: Callable[[Mapping[str, Any]], None]
    engine: Engine | None = None
    """What the runs of a rung are shared among; None runs them here."""

    def __post_init__(self) -> None:
        # Every run sees the mini-batches in the same order, also of loaders that draw from a generator of their own.
        self._generators = [(g, g.get_state()) for g in loader_generators(self.train_loader)]
        self._device = device_of(self.incoming)
        self._journal = self.folder / "journal.jsonl"
        text = self._journal.read_text(encoding="utf-8") if self._journal.exists() else ""
        rows = [json.loads(line) for line in text.split("\n")[:-1]]  # the last one is empty, or was cut short
        self._known = {(row["run"], row["rung"]): row for row in rows}

    def go(self, candidates: Sequence[Candidate], plan: Sequence[Rung]) -> list[Run]:
        """Run the whole race; the finalists first, then those dropped last."""
        self._plan = plan
        if self._journal.exists():
            with replacing(self._journal) as partial:  # without a line that was cut short: the next one would join it
                partial.write_text("".join(json.dumps(row) + "\n" for row in self._known.values()), encoding="utf-8")
        runs = [Run(candidate) for candidate in candidates]
        alive = list(runs)
        spent = [0.0]
        spent += [fmean(self._passes(candidate, n) for candidate in candidates) for n in range(len(plan))]
        total = sum(rung.runs * (spent[n + 1] - spent[n]) for n, rung in enumerate(plan))
        self.log({"event": "plan", "runs": [run.candidate.name for run in runs], "passes": total})
        with self._judging() as judged:
            for number in range(len(plan)):
                self._run_rung(alive, number, judged)
                alive = [run for run in alive if not run.dropped]
                alive.sort(key=lambda run: run.standing)
                following = plan[number + 1].runs if number + 1 < len(plan) else len(alive)
                for place, run in enumerate(alive[following:], start=following + 1):
                    run.dropped = f"place {place} of {len(alive)} after {run.passes:.3g} passes"
                alive = alive[:following]
        return sorted(runs, key=lambda run: (bool(run.dropped), -run.rung, run.standing))

    def estimate(self, network: nn.Module) -> nn.Module:
        """Estimate batch-norm statistics anew, always from the same pass over the training data; gives the network."""
        self.rewind()
        with isolated(derive_seed(self.seed, "statistics"), self._device):
            estimate_statistics(network, self.train_loader)
        return network

    def between(self, network: nn.Module, share: float) -> nn.Module:
        """A network on the way from the incoming one to one that was trained from there."""
        return self.estimate(interpolate(self.incoming, network, share))

    def judged(self, network: nn.Module) -> Figures:
        """A network's figures on the samples that choose."""
        logits, _ = logits_on(network, self.val_loader, self.targets, self.head)
        return figures(logits[self.chooses], self.targets[self.chooses])

    def rewind(self) -> None:
        """Put the training loader back to where the race started."""
        for generator, state in self._generators:
            generator.set_state(state)
        set_epoch(self.train_loader, 0)  # ours count the passes themselves

    def _networks(self, method: Method) -> dict[str, nn.Module]:
        average = copied(method.candidate())
        last = method.model
        if isinstance(method, Averaged) and getattr(method.method, "kind", None) == "msam":
            last = self.estimate(copied(last))  # its own are those of the perturbed weights
        return {"last": last, "ema": self.estimate(average)}

    def network(self, run: Run) -> nn.Module:
        """The better network of a run where it stands, with the modes, hooks and frozen parts of the incoming one."""
        method, _ = self._trained(run.candidate, run.rung)
        return self._like_incoming(self._networks(method)[run.best])

    def _like_incoming(self, trained: nn.Module) -> nn.Module:
        """A trained network with all else as the incoming one has it."""
        network = copied(self.incoming)
        put_back(network, contents(trained, copies=False))
        return network

    def _ends(self, candidate: Candidate, number: int) -> tuple[int, ...]:
        """The steps at which the rungs of a training end: of the short one, or of the long one that a rung begins."""
        ends: list[int] = []
        for rung in self._plan[number:] if self._plan[number].anew else [one for one in self._plan if not one.anew]:
            left = max(0.0, rung.passes - candidate.passes_once)
            steps = round(left / candidate.passes_per_epoch * self.steps_per_epoch)
            ends.append(max(steps, ends[-1] + 1 if ends else 1))
        return tuple(ends)

    def _passes(self, candidate: Candidate, number: int) -> float:
        """What a candidate has spent at the end of a rung, which is whole steps, and one at least."""
        return self._after(candidate, number, self._ends(candidate, number)[self._place(number)])

    def _after(self, candidate: Candidate, number: int, steps: int) -> float:
        """What a candidate has spent after so many steps of the training that it is in at a rung."""
        each = candidate.passes_per_epoch / self.steps_per_epoch
        return self._before(candidate, number) + candidate.passes_once + steps * each

    def _before(self, candidate: Candidate, number: int) -> float:
        """What a candidate had spent when the training began that it is in at a rung."""
        return self._passes(candidate, number - 1) if self._plan[number].anew and number else 0.0

    def _place(self, number: int) -> int:
        """Of a rung among those of its training: a long one is the only one."""
        return 0 if self._plan[number].anew else number

    def _run_rung(self, runs: Sequence[Run], number: int, judged: Judging) -> None:
        waiting = [(run.candidate, number) for run in runs if (run.candidate.name, number) not in self._known]
        for run in runs:
            if (run.candidate.name, number) in self._known:
                self._note(run, number, known=True)
        by_name = {run.candidate.name: run for run in runs}
        for row in judged(waiting):
            self._known[row["run"], number] = row
            append(self._journal, (json.dumps(row) + "\n").encode())
            self._note(by_name[row["run"]], number, known=False)

    @contextmanager
    def _judging(self) -> Iterator[Judging]:
        """What trains and judges the runs of a rung: this process, or others, in any order."""
        if self.engine is None:
            yield lambda tasks: (self._judge(*task) for task in tasks)
            return
        self.rewind()
        fixed = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in {"log", "engine"}}
        with self.engine.workers(packed(_judge_of, fixed, self._plan), Numerics.here(), self.folder) as workers:
            yield lambda tasks: _rows(workers, tasks)

    def _note(self, run: Run, number: int, *, known: bool) -> None:
        row = self._known[run.candidate.name, number]
        run.passes, run.dropped, run.rung = row["passes"], row["dropped"], number
        run.figures = {kind: Figures(**row[kind]) for kind in JUDGED if row[kind] is not None} or None
        self.log({"event": "rung", "known": known, **row, "rung": number + 1})

    def _heard(self, candidate: Candidate, number: int) -> Callable[[Mapping[str, Any]], None]:
        """Tell of each step of a run by what the run has spent."""

        def hear(row: Mapping[str, Any]) -> None:
            if row["event"] == "step":
                passes = self._after(candidate, number, row["step"])
                self.log({"event": "step", "run": candidate.name, "passes": passes})

        return hear

    def _judge(self, candidate: Candidate, number: int) -> dict[str, Any]:
        before = self._passes(candidate, number - 1) if number else 0.0
        row = {"run": candidate.name, "rung": number, "passes": before, "dropped": "", **dict.fromkeys(JUDGED)}
        try:
            method, result = self._trained(candidate, number)
        except Refused as refusal:
            return row | {"dropped": " ".join(str(refusal).split())}
        row["passes"] = self._after(candidate, number, result.steps)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        if result.stopped == "diverged":
            return row | {"dropped": f"diverged: {result.message}"}
        networks = self._networks(method)
        networks["halfway"] = self.between(self._like_incoming(networks["last"]), HALFWAY)
        for kind, network in networks.items():
            found = self.judged(network)
            if found.finite:
                row[kind] = asdict(found)
            elif kind in KINDS:
                return row | {"dropped": "its outputs are not finite", **dict.fromkeys(JUDGED)}
        return row

    def _trained(self, candidate: Candidate, number: int) -> tuple[Method, FitResult]:
        """Train to the end of a rung, from where the run stands; all draws, of a radius too, are those of its start."""
        self.rewind()
        seed = derive_seed(self.seed, "run")
        with warnings.catch_warnings(), isolated(seed, self._device), Interrupts() as interrupts:
            warnings.simplefilter("ignore", UserWarning)  # told in the table
            method, loop = self._loop(candidate, number)
            return method, loop.run(True, interrupts)

    def _loop(self, candidate: Candidate, number: int) -> tuple[Method, Loop]:
        """A candidate's method around a copy of the incoming network, and its loop up to the end of a rung."""
        ends = self._ends(candidate, number)
        options = replace(candidate.options, epochs=-(-ends[-1] // self.steps_per_epoch))
        if average_of(options) == "none":
            decay = 1.0 - 1.0 / max(2.0, EMA_HORIZON * ends[0])
            options = replace(options, average=AverageOptions("ema", decay=decay))
        network, loader = copied(self.incoming), Readable(self.train_loader)
        context = Context(network, self.head, options, self.classes, loader, loader)
        method, stepper = built(context, options, self._device)
        folder = self.folder / "runs" / (folder_of(candidate.name) + "-long" * self._plan[number].anew)
        if isinstance(method, Averaged):
            method.estimates = False  # done where networks are judged
            if getattr(method.method, "rho", None) == 0 and not has_state(folder):
                raise Refused("its radius from the data is 0, as the network does not fit them: it is plain training")
        lengths = (options.epochs, self.steps_per_epoch, options.accumulation, None)
        times = Timetable(*lengths, schedule_in(ends, options), total_steps=ends[-1], stop_at=ends[self._place(number)])
        stream = micro_batches(self.train_loader, method.needs_reference, self._device)
        return method, Loop(method, stepper, stream, times, None, folder, self._heard(candidate, number))


def _judge_of(fixed: dict[str, Any], plan: Sequence[Rung]) -> Callable[[tuple[Candidate, int]], dict[str, Any]]:
    """What a process of its own does with a run: the same, unheard."""
    race = Race(**fixed, log=lambda row: None)
    race._plan = plan
    return lambda task: race._judge(*task)


def _rows(workers: Workers, tasks: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for ended in workers.run(partial(next, iter(tasks), None)):
        if ended.lost is not None:
            raise RunError(
                f'a run of the search was lost: {ended.lost} (a script without `if __name__ == "__main__":`?):'
                " go on with resume, and fewer jobs"
            )
        yield ended.value
