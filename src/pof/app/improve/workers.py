"""The runs of a rung in several local processes, bitwise as in one.

Nothing that a run depends on differs between the two: each starts from its own state on disk, with random states of
its own, and with the number of threads of the process that started the search.  Workers are started anew (``spawn``)
and end with it; what one was at when it is killed goes on from its last state.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

from pof.app.experiment.worker import end_with_parent
from pof.app.run_files import RunError

Row = dict[str, Any]
Judge = Callable[..., Row]
_judge: Judge | None = None


@contextmanager
def processes(
    make_judge: Callable[..., Judge], arguments: tuple[Any, ...], jobs: int
) -> Iterator[Callable[[Iterable[Any]], Iterator[Row]]]:
    """Start processes, each with ``make_judge(*arguments)``, and give a function that maps over tasks, unordered.

    Raises:
        ValueError: if the arguments cannot be sent to another process.
        RunError: if a process dies.
    """
    try:
        # Copies, read by our own processes only; by itself multiprocessing puts tensors into memory that all share.
        sent = pickle.dumps((make_judge, arguments))
    except Exception as error:  # whatever a user's objects raise
        raise ValueError(
            f"jobs {jobs} sends the network and its loaders to other processes, and they cannot be pickled: {error};"
            " give jobs 1"
        ) from error
    numerics = (torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision())
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(sent, *numerics)) as pool:

        def each(tasks: Iterable[Any]) -> Iterator[Row]:
            futures: list[Future[Row]] = [pool.submit(_run, task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()

        try:
            yield each
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()  # it saves its state after the step
            if isinstance(error, BrokenProcessPool):
                raise RunError(
                    "a process of the search ended by itself (out of memory? a script without"
                    ' `if __name__ == "__main__":`?): go on with resume, and fewer jobs'
                ) from error
            raise


def _begin(sent: bytes, threads: int, dtype: torch.dtype, products: str) -> None:
    global _judge
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent then tells this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(products)
    make_judge, arguments = pickle.loads(sent)
    _judge = make_judge(*arguments)


def _run(task: Any) -> Row:
    if _judge is None:
        raise RuntimeError("the process was not begun")
    return _judge(*task)
