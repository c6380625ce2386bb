"""``improve``: find out what makes a trained network better, and hand back that or the network as it came.

1. The incoming network is measured, and the largest stable learning rates are searched for.
2. Candidates race within the budget (``race.py``): short runs, then a long one of the best.  A network that does
   not fit its training data gets plain training alone.
3. Without more training, the best networks are put together: interpolated with the incoming one, and a greedy soup.
4. The one that is best on half of the validation data is confirmed on the other half, or the incoming one is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pof._support.checks import MOST_EPOCHS, MOST_PROCESSES, MOST_SEED, finite, gives_batches, whole_number
from pof._support.modules import refuse_no_grad
from pof.app.engine.base import Engine
from pof.app.engine.processes import Processes
from pof.app.improve.candidates import MOST, UNFITTED, Candidate, check_options, families, make_candidates
from pof.app.improve.folder import RATES, SEEN, digest, question, rates_in, seen, take
from pof.app.improve.judge import Figures, confirm, figures, fit_of, halves, logits_on
from pof.app.improve.race import Race, Run, rank
from pof.app.improve.rate import RateSearch, check_shared, first_rate, steps_of
from pof.app.improve.result import (
    ImproveResult,
    Row,
    as_json,
    message_of,
    metrics_of,
    noted,
    notes_on,
    on_the_way,
    row_of,
    rows_of,
)
from pof.app.improve.rungs import CHOOSING, CHOOSING_UNFITTED, most_candidates, rungs
from pof.app.options import TrainOptions
from pof.app.run_folder import write_json
from pof.combine import greedy_soup
from pof.head.split import split
from pof.training.fit import find_device, length_of
from pof.weights import NETWORK_FILE, save_model

SHARES = (0.25, 0.5, 0.75)
"""Of the way from the incoming network to a candidate."""
Log = Callable[[Mapping[str, Any]], None]


def improve(
    model: nn.Module,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    *,
    budget: float = 20,
    candidates: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    jobs: int = 1,
    engine: Engine | None = None,
    head: str | None = None,
    lr: float | None = None,
    training: TrainOptions | None = None,
    device: str | torch.device | None = None,
    log: Log | None = None,
    taken: Callable[[], None] | None = None,
    metadata: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ImproveResult:
    """Find out what makes a trained network better, and hand back that or nothing.

    Args:
        model: a trained classifier; moved to the device, and otherwise left as it is.
        train_loader: yields ``(inputs, targets)`` or dicts with ``labels``; has a length.
        val_loader: the same, in a fixed order; never the data that the network was trained on, nor the test set.
        budget: passes over the training set (forward and backward) that may be spent in all.
        candidates: names (``"sam auto"``, ..., those of ``--method``), or names with options; None: the usual.
        seed: of everything random, and of the split of the validation data.
        out: folder for states, tables and the network; None keeps nothing.
        resume: go on with what is in ``out``.
        overwrite: remove the search that is in ``out``, once this one is ready to start.
        jobs: processes that the runs of a rung are shared among, bitwise as in one; see docs/improve.md.
        engine: what runs them instead, such as the cluster of docs/cluster.md.
        head: qualified name of the head; None: found by :func:`pof.find_head`.
        lr: such as the peak rate of its training, of which half and a tenth are tried; None: the largest stable one.
        training: optimizer, precision, ... of all candidates; by default SGD.
        device: None takes the accelerator that Accelerate finds, else the CPU.
        log: called with a row for the plan, for each step (of one process), and for each run at each rung.
        taken: called once ``out`` is this search's.
        metadata: strings for the header of the network's file.
        settings: what else a search that goes on must find unchanged, in plain values by name.

    Returns:
        The network, the judgement, and the table of all that was tried.

    Raises:
        ValueError: for an argument out of range, a loader without length or fixed order, or a used folder (RunError).
    """
    _check(model, head, budget, seed, jobs, lr)
    _check_held_out(train_loader, val_loader)
    seed = int(seed)  # NumPy's would give other draws
    base = training or TrainOptions("finetune", seed=seed)
    check_shared(base)
    check_options(kinds := families(candidates), base)
    network = model.to(find_device(device))
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (logits, targets, first), length = _finite_logits(network, val_loader, head), length_of(train_loader)
        if not length:
            raise ValueError("the training loader is empty: is its batch size larger than the data, with drop_last?")
        own = {"weights": digest(network.state_dict()), "labels of val_loader": digest({"": targets}), SEEN: first}
        asked = question(budget, candidates, seed, lr, base)
        asked |= {**own, "length of train_loader": length, "head": head, **(settings or {})}
        stack.callback(take(folder, asked, resume=resume, overwrite=overwrite))
        if taken is not None:
            taken()
        chooses, confirms = halves(targets, seed)
        steps = -(-length // base.accumulation)
        given = (network, head, train_loader, val_loader, chooses, targets, logits.shape[1], steps)
        race = Race(*given, folder, seed, log or (lambda row: None), engine or (Processes(jobs) if jobs > 1 else None))
        fit, named = fit_of(network, train_loader, head), candidates is not None
        fits = fit.fits if (known := rates_in(folder)) is None else known["fits"]
        alone = not named and not fits
        kinds = UNFITTED if alone else kinds
        tried, spent = _candidates(race, kinds, base, lr, budget, fits=fits, named=named)
        plan = rungs(len(tried), _left(budget, spent), CHOOSING_UNFITTED if alone else CHOOSING)
        incoming = figures(logits[chooses], targets[chooses])
        plain = all(candidate.options.method == "finetune" for candidate in tried)
        notes = notes_on(fit, incoming, len(confirms), (spent, budget, _left(budget, spent)), plain=plain)
        result = _judged(race, race.go(tried, plan), incoming, (logits, confirms), spent, notes)
        return _kept(result, None if out is None else folder, metadata)


def _kept(result: ImproveResult, folder: Path | None, metadata: Mapping[str, str] | None) -> ImproveResult:
    """Write the network and the figures, if anywhere."""
    if folder is not None:
        save_model(result.model, folder / NETWORK_FILE, metadata=metadata)
        write_json(folder / "result.json", as_json(result))
    return result


def _candidates(
    race: Race,
    kinds: Mapping[str, Mapping[str, Any]],
    base: TrainOptions,
    lr: float | None,
    budget: float,
    *,
    fits: bool,
    named: bool,
) -> tuple[list[Candidate], float]:
    """What is tried, as many as the budget pays unless they are named, and the passes that finding the rates took.

    A search that goes on takes them from its folder: another machine may find other rates, and so other candidates.
    """
    if not named:
        kinds = dict(islice(kinds.items(), most_candidates(budget, race.steps_per_epoch)))
    known = rates_in(race.folder)
    if known is None:
        rates, spent = _rates(race, kinds, base, lr, budget)
        known = {"fits": fits, "rates": rates, "spent": spent}
        write_json(race.folder / RATES, known)
    most = MOST if named else most_candidates(_left(budget, known["spent"]), race.steps_per_epoch)
    return make_candidates(kinds, base, known["rates"], most), known["spent"]


def _left(budget: float, spent: float) -> float:
    """Passes for the race: a tenth of the budget at least."""
    return max(budget - spent, 0.1 * budget)


def _rates(
    race: Race, kinds: Mapping[str, Mapping[str, Any]], base: TrainOptions, lr: float | None, budget: float
) -> tuple[dict[str, float], float]:
    """The first rate of each family, and the passes that it took to find them."""
    if lr is not None:
        return {name: first_rate(float(lr), str(options["method"])) for name, options in kinds.items()}, 0.0
    length = length_of(race.train_loader)
    given = (race.incoming, race.head, race.train_loader, race.rewind, race.classes, length)
    search = RateSearch(*given, steps_of(budget, length))
    return search.rates(kinds, base), search.spent


@dataclass(frozen=True)
class _Entry:
    """A network that may be handed back."""

    row: Row
    network: nn.Module
    found: Figures
    trained: bool
    """By one training; not put together of several."""


def _pool(race: Race, runs: Sequence[Run]) -> list[_Entry]:
    """The best networks of the race, and what can be put together of them."""
    pool: list[_Entry] = []

    def judge(name: str, network: nn.Module, run: Run | None, trained: bool = False) -> None:
        found = race.judged(network)
        row = row_of(name, run.candidate if run else None, run.passes if run and trained else 0.0, found)
        pool.append(_Entry(row, network, found, trained))

    def name_of(run: Run) -> str:
        return f"{run.candidate.name}, {run.best}"

    usable = [run for run in runs if run.figures is not None]
    parts: list[nn.Module] = []
    for run in usable[:4]:
        network = race.network(run)
        parts.append(network)
        judge(name_of(run), network, run, True)
    for run, network in list(zip(usable, parts, strict=False))[:2]:
        for share in SHARES:
            judge(on_the_way(share, run.candidate, run.best), race.between(network, share), run)
    if len(parts) > 1:
        greedy = greedy_soup([race.incoming, *parts], lambda network: race.judged(race.estimate(network)).scaled_nll)
        if len(greedy.indices) > 1:
            names = ["incoming", *map(name_of, usable)]
            judge(f"soup of {'; '.join(names[index] for index in sorted(greedy.indices))}", greedy.model, None)
    return pool


def _rows(runs: Sequence[Run], pool: Sequence[_Entry], incoming: Figures) -> list[Row]:
    """The incoming network, every run, and what was put together."""
    rows = [row_of("incoming", None, 0.0, incoming), *rows_of(runs)]
    known = {row.name for row in rows}
    return rows + [entry.row for entry in pool if entry.row.name not in known]


def _best(pool: Sequence[_Entry], incoming: Figures) -> _Entry | None:
    """The first in rank, if it is ahead of the incoming network."""
    better = (entry for entry in pool if rank(entry.found) < rank(incoming))
    return min(better, key=lambda entry: rank(entry.found), default=None)


def _judged(
    race: Race,
    runs: Sequence[Run],
    incoming: Figures,
    confirming: tuple[Tensor, Tensor],
    spent: float,
    notes: tuple[str, ...],
) -> ImproveResult:
    """Put the best of the race together and confirm the best of all, by the incoming logits (N, C) of some samples."""
    logits, confirms = confirming
    pool = _pool(race, runs)
    rows = _rows(runs, pool, incoming)
    targets = race.targets[confirms]
    before = metrics_of(logits[confirms], targets)
    after, confirmation, improved = before, None, False
    best, single = _best(pool, incoming), _best([entry for entry in pool if entry.trained], incoming)
    if best is not None:
        new, _ = logits_on(best.network, race.val_loader, race.targets, race.head)
        temperatures = (incoming.temperature, best.row.temperature)
        confirmation = confirm(logits[confirms], new[confirms], targets, temperatures, race.seed)
        improved = confirmation.better
        after = metrics_of(new[confirms], targets) if improved else before
    found = None if best is None else best.row
    chosen = best.row.name if best is not None and improved else "incoming"
    message = message_of(rows, found, confirmation, improved)
    table = tuple(noted(row, chosen, found) for row in rows)
    return ImproveResult(
        best.network if best is not None and improved else race.incoming,
        chosen,
        improved,
        before,
        after,
        1.0 if confirmation is None else confirmation.p_error,
        confirmation,
        spent + sum(run.passes for run in runs),
        message,
        notes,
        table,
        race.incoming if single is None else single.network,
    )


def _finite_logits(
    network: nn.Module, val_loader: Iterable[Any], head: str | None
) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """The incoming network's logits, the targets, and a few values of the first mini-batch."""
    first: list[dict[str, Any]] = []

    def hear(batch: Any) -> None:
        if not first:
            first.extend(seen(batch))

    logits, targets = logits_on(network, val_loader, None, head, hear)
    if not bool(logits.isfinite().all()):
        raise ValueError("the incoming network's logits on the validation data are not finite: check both for NaN")
    if len(targets) < 2:
        raise ValueError("val_loader gives one sample: give two at least, one to choose by and one to confirm")
    return logits, targets, first


def _check(model: nn.Module, head: str | None, budget: float, seed: int, jobs: int, lr: float | None) -> None:
    if not 0 < budget <= MOST_EPOCHS:
        raise ValueError(f"budget must be a finite number of passes > 0, at most {MOST_EPOCHS}; got {budget}")
    whole_number("seed", seed, 0, MOST_SEED)
    whole_number("jobs", jobs, 1, MOST_PROCESSES)
    if lr is not None:
        finite("lr", lr, above=0)
    refuse_no_grad("pof.improve")
    split(model, head)  # or says why it has no head


def _check_held_out(train_loader: Any, val_loader: Any) -> None:
    gives_batches("val_loader", val_loader)
    own = [getattr(loader, "dataset", loader) for loader in (train_loader, val_loader)]
    if own[0] is own[1]:
        raise ValueError(
            "val_loader gives the data of train_loader, and would favour whatever fits them best: give held-out data"
        )
