"""Which engine, as the command line asks for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pof.app.engine.base import Engine


@dataclass
class EngineOptions:
    """Where the runs are done.

    Args:
        engine: Engine: local (processes of this machine) or ray (a cluster, see docs/cluster.md).
        address: Address of the Ray cluster: auto or HOST:PORT. By default it is RAY_ADDRESS, this machine's cluster, or
            a new one.
        num_cpus: Cores of the cluster that a run takes. By default it is one for each of its threads.
        num_gpus: GPUs of the cluster that a run takes, also a share such as 0.5. By default it is 1 if there are any.
    """

    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None


@contextmanager
def opened(options: EngineOptions, *, local: int, jobs: int | None) -> Iterator["Engine"]:
    """Open the engine that is asked for: ``local`` processes, or a cluster with ``jobs`` tasks at a time."""
    if options.engine == "ray":
        from pof.app.engine.cluster import connected

        with connected(options.address, jobs=jobs, num_cpus=options.num_cpus, num_gpus=options.num_gpus) as cluster:
            yield cluster
        return
    from pof.app.engine.processes import Processes

    for field in fields(options):
        if field.name != "engine" and getattr(options, field.name) is not None:
            raise ValueError(f"--{field.name} is of the engine ray: give --engine ray too")
    yield Processes(local)
