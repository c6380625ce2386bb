"""A Ray cluster of two nodes on this machine: interrupted, and one node killed, it gives the local engine's figures."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import pof
from pof.app.cli import main
from pof.app.engine import cluster as module
from pof.app.engine.base import Ended, Numerics, packed
from pof.app.engine.cluster import _Place, connected
from tests.app.experiment.test_executor import table, wait_until
from tests.app.improve.test_improve import FAST, loaders, network

RECIPE = Path(__file__).parents[3] / "recipes" / "digits.yaml"
METHODS = "methods={pof: {method: pof, lr: 0.01}}"
TINY = ["--set", "seeds=4", METHODS, "control=pof", "pretrain.epochs=80", "budget=40"]


class Nodes:
    """The cluster: a head, and another node, which can be killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.second = self.cluster.add_node(num_cpus=1)

    def busy_with(self, runs: Path) -> set[str]:
        """The stages that the second node is at: its workers hold their locks."""
        raylet = self.second.all_processes["raylet"][0].process.pid
        files = [file for pid in children(raylet) for file in opened_by(pid) if file.parent == runs / ".locks"]
        return {file.name for file in files}


def children(pid: int) -> list[int]:
    return [int(n) for task in Path(f"/proc/{pid}/task").iterdir() for n in (task / "children").read_text().split()]


def opened_by(pid: int) -> Iterator[Path]:
    try:
        yield from [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # closed meanwhile
        return


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="experiments on a cluster need Ray: pip install 'pof[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Nodes()
        yield made
        made.cluster.shutdown()


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something beside the main thread; what it raises fails the test."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    if raised:
        raise raised[0]


def epochs_of(folder: Path) -> list[str]:
    """The rows of a run's epochs; they have the seconds that each took."""
    try:
        rows = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [row for row in rows if '"epoch"' in row and '"seconds"' in row]


def test_interrupted_and_with_a_node_killed_the_table_is_that_of_local_processes(
    nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["experiment", str(RECIPE), *TINY, "--out"]
    on_ray = [*command, str(out), "--engine", "ray", "--address", nodes.cluster.address]
    killed: dict[str, list[str]] = {}

    def at_work() -> set[str]:
        return {name for name in nodes.busy_with(out / "runs") if len(epochs_of(out / "runs" / name)) > 1}

    def interrupt() -> None:
        wait_until(lambda: bool(at_work()), "the second node trains")
        os.kill(os.getpid(), signal.SIGINT)

    def kill_the_node() -> None:
        wait_until(lambda: bool(at_work()), "the second node trains")
        killed.update({name: epochs_of(out / "runs" / name) for name in at_work()})
        nodes.cluster.remove_node(nodes.second, allow_graceful=False)

    with meanwhile(interrupt):
        assert main(on_ray) == 130
    assert not nodes.busy_with(out / "runs")
    assert len(list((out / "runs").glob("*/result.json"))) < 8
    with meanwhile(kill_the_node):
        assert main(on_ray) == 0
    assert killed
    for name, epochs in killed.items():  # it went on where it was
        assert epochs_of(out / "runs" / name)[: len(epochs) - 1] == epochs[:-1]
    assert "4 of 4 runs" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "local"), "--jobs", "1"]) == 0
    assert table(out, "digits") == table(tmp_path / "local", "digits")
    assert not list(out.glob(".*"))


def make(folder: str) -> Callable[[Any], Any]:
    def act(task: Any) -> Any:
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "raise":
            raise KeyError("no such layer")
        return task, os.getcwd(), os.environ["OMP_NUM_THREADS"], Numerics.here()

    return act


def test_what_dies_costs_its_task_and_errors_come_back(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRIES", 0)
    numerics = Numerics(1, torch.float64, "medium")
    with connected(nodes.cluster.address, jobs=1) as engine:
        assert engine.slots() == 1
        with engine.workers(packed(make, ""), numerics, tmp_path) as workers:
            ended: list[Ended] = list(workers.run(iter(["good", "die", None]).__next__))
            assert ended[0].value == ("good", os.getcwd(), "1", numerics)
            assert ended[1].value is None and "out of memory?" in str(ended[1].lost)
            workers.submit("raise")
            with pytest.raises(KeyError, match="no such layer"):
                workers.wait()


def test_a_search_finds_the_same_on_the_cluster(nodes: Nodes, tmp_path: Path) -> None:
    found = []
    with connected(nodes.cluster.address) as engine:
        for other in (None, engine):
            torch.manual_seed(11)
            options: dict[str, Any] = {"candidates": ["sgd", "pof", "sam auto"], "out": tmp_path / str(other is None)}
            found.append(pof.improve(network(), *loaders(), engine=other, **FAST | options | {"budget": 4.0}))
    assert found[0].table == found[1].table and found[0].message == found[1].message
    values = zip(found[0].model.state_dict().values(), found[1].model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in values)


def test_an_address_without_a_cluster_is_said_at_once() -> None:
    pytest.importorskip("ray", reason="connects to a cluster of Ray: pip install 'pof[ray]'")
    with socket.socket() as taken:
        taken.bind(("localhost", 0))  # and nobody listens
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no Ray cluster at {address}: .*refused"), connected(address):
            pass


def test_folders_that_a_machine_does_not_see_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"does not see the folder of the runs {tmp_path / 'out'}: .* all machines"):
        _Place(os.getcwd(), tmp_path / "out" / ".mark", Numerics(1)).enter()
    with pytest.raises(ValueError, match=f"does not see the current folder {tmp_path / 'cwd'}"):
        _Place(str(tmp_path / "cwd"), None, Numerics(1)).enter()


def test_without_ray_it_is_said_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'pof\[ray\]'"), connected():
        pass


@pytest.mark.parametrize("options", [{"num_cpus": 0.0}, {"num_gpus": float("nan")}])
def test_numbers_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    pytest.importorskip("ray", reason="reads Ray's options: pip install 'pof[ray]'")
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"), connected(**options):
        pass
