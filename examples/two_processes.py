"""PoF in two processes, with DDP in a custom loop.

    python examples/two_processes.py

calls torchrun on this file.  On your machines call it yourself:

    torchrun --nproc-per-node 2 examples/two_processes.py
"""

from __future__ import annotations

import os

import torch
from torch import distributed, nn
from torch.distributed.run import main as torchrun
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pof


def make_data(n: int, seed: int) -> TensorDataset:
    """Ten overlapping clusters in 20 dimensions."""
    centres = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(10, (n,), generator=generator)
    return TensorDataset(centres[targets] + 1.5 * torch.randn(n, 20, generator=generator), targets)


def pretrain(data: TensorDataset) -> nn.Module:
    """Stands for your trained network; both processes use the same seed, so it is the same in both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        for inputs, targets in DataLoader(data, batch_size=100):
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def main() -> None:
    """What each process does."""
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, gpu = distributed.get_rank(), torch.cuda.is_available()
    device = f"cuda:{os.environ['LOCAL_RANK']}" if gpu else "cpu"
    data, test = make_data(1000, seed=1), DataLoader(make_data(1000, seed=2), batch_size=500)
    method = pof.PoF(pretrain(data).to(device))
    before = pof.evaluate(method.model, test)

    # Not the model: DDP notes at construction which parameters get gradients, and PoF freezes the head.
    module = DistributedDataParallel(method)
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=0.02, momentum=0.9)
    # Each process takes its share: together a mini-batch of 100.  The next 100 are the reference mini-batch B.
    sampler = DistributedSampler(data, seed=0)
    loader = DataLoader(data, batch_size=50, sampler=sampler, drop_last=True)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = [(inputs.to(device), targets.to(device)) for inputs, targets in loader]
        for batch, reference in zip(batches, batches[1:] + batches[:1], strict=True):
            out = module(*batch, *reference)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"process {rank}, epoch {epoch + 1}: radius {float(out.radius):.6f}", flush=True)
    # Every process does this: one that ended right after the last collective could abort as it exits (PyTorch's gloo).
    after = pof.evaluate(method.model, test)
    if rank == 0:
        print(f"test error {100 * before.error:.1f} % -> {100 * after.error:.1f} %")
    distributed.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torchrun(["--standalone", "--nproc-per-node=2", __file__])
