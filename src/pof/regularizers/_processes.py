"""The global batch under several processes: which rows of it are this process's, its features.

Nothing is communicated in a single process.  Rows of the global batch are ordered by rank; the processes may hold
different numbers of rows.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pof._support import distributed


def own_rows(rows: Tensor) -> tuple[slice, int]:
    """Place the rows (N_r, ...) of this process in the global batch.

    Several processes exchange 8 N bytes, and the host waits for them.

    Returns:
        The slice that they are, and the global batch's size N.
    """
    count = rows.shape[0]
    if not distributed.active():
        return slice(0, count), count
    rank = dist.get_rank()
    (owners,) = distributed.gather_rows(torch.full((count,), rank, device=rows.device))
    start = int((owners < rank).sum())
    return slice(start, start + count), owners.shape[0]


def gather_with_graph(rows: Tensor) -> Tensor:
    """Concatenate the rows (N_r, D) of all processes.

    Returns:
        (N, D): this process's own rows with their graph, those of the others as constants.
    """
    if not distributed.active():
        return rows
    own, _ = own_rows(rows)
    (everywhere,) = distributed.gather_rows(rows.detach())
    return torch.cat([everywhere[: own.start], rows, everywhere[own.stop :]])
