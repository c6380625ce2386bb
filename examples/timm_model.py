"""A timm network: its head is found automatically, and a custom loop takes two steps of PoF.

    python examples/timm_model.py [NAME]

The weights are random, so nothing is downloaded; with `pretrained=True` the rest stays the same.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import timm
import torch

import pof

CLASSES = 10


def main(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    side = model.default_cfg["input_size"][-1] if "vit" in name else 64
    network = pof.split(model)
    print(f"{name}: head {network.head_name}, {tuple(network.weight.shape)}, linear {network.linear}")

    method = pof.PoF(model)  # the same head; head="..." where it is ambiguous
    trained = sum(p.numel() for p in method.trainable_parameters())
    print(f"trains {trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    batches = [(torch.randn(8, 3, side, side), torch.randint(CLASSES, (8,))) for _ in range(3)]
    model.train()
    for reference, batch in pairwise(batches):
        out = method(*batch, *reference)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"loss {out.loss.item():.4f}, radius {out.radius.item():.4f}, bounded {out.bounded.item()}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mobilenetv3_small_050")
