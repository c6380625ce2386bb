"""The fine-tuning regularisers read off the papers, one number at a time: loops, autograd, torch.optim.Adam."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn


def squared_distance(features: Tensor, references: Tensor) -> Tensor:
    n, d = features.shape
    total = torch.zeros((), dtype=features.dtype)
    for i in range(n):
        for j in range(d):
            total = total + (features[i, j] - references[i, j]) ** 2 / d
    return total / n


def class_references(mean: Tensor, std: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
    return torch.stack([mean[y] + std[y] * e for y, e in zip(targets.tolist(), noise, strict=True)])


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def mean_objective(mu: Tensor, mu_bar: Tensor) -> Tensor:
    classes = range(len(mu))
    pull = sum((cosine_distance(mu[k], mu_bar[k]) for k in classes), torch.zeros((), dtype=mu.dtype))
    push = torch.zeros((), dtype=mu.dtype)
    for k in classes:
        for other in classes:
            if other != k:
                push = push + cosine_distance(mu[k], mu[other])
    return pull / len(mu) - push / (len(mu) * (len(mu) - 1))


class AdaRandTwin:
    def __init__(self, mean: Tensor, std: Tensor, alpha: float, lr: float) -> None:
        self.mu = nn.Parameter(mean.clone())
        self.mu_bar, self.sigma, self.alpha = mean.clone(), std, alpha
        self.adam = torch.optim.Adam([self.mu], lr=lr)

    def penalty(self, features: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        references = class_references(self.mu.detach(), self.sigma, targets, noise)
        return squared_distance(features, references)

    def update(self, features: Tensor, targets: Tensor) -> None:
        for k in range(len(self.mu)):
            rows = [f for f, y in zip(features.detach(), targets.tolist(), strict=True) if y == k]
            if rows:
                mean = torch.stack(rows).mean(dim=0)
                self.mu_bar[k] = self.alpha * self.mu_bar[k] + (1 - self.alpha) * mean
        self.adam.zero_grad()
        mean_objective(self.mu, self.mu_bar).backward()
        self.adam.step()


def spectral_shrinkage(features: Tensor, k: int) -> Tensor:
    # Squared singular values are eigenvalues of the smaller Gram matrix.
    n, d = features.shape
    gram = features @ features.T if n <= d else features.T @ features
    return torch.linalg.eigvalsh(gram)[:k].sum()


def start_point(model: nn.Module, start: dict[str, Tensor], head: str, alpha: float, beta: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if name.startswith(head):
            total = total + beta / 2 * sum(w**2 for w in parameter.flatten())
        else:
            origin = start[name].flatten()
            total = total + alpha / 2 * sum((w - o) ** 2 for w, o in zip(parameter.flatten(), origin, strict=True))
    return total


def map_distance(maps: Tensor, source: Tensor, weights: Tensor) -> Tensor:
    n, channels, height, width = maps.shape
    total = torch.zeros((), dtype=maps.dtype)
    for i in range(n):
        for c in range(channels):
            total = total + weights[c] * (maps[i, c] - source[i, c]).square().sum()
    return total / (2 * n * channels * height * width)


def moments(rows: list[list[float]]) -> tuple[list[float], list[float]]:
    n, columns = len(rows), list(zip(*rows, strict=True))
    mean = [math.fsum(column) / n for column in columns]
    pairs = zip(columns, mean, strict=True)
    std = [math.sqrt(math.fsum((v - m) ** 2 for v in column) / max(n - 1, 1)) for column, m in pairs]
    return mean, std


def relationship(source_logits: Tensor, targets: Tensor, classes: int, temperature: float) -> Tensor:
    rows = []
    for k in range(classes):
        of_class = [z for z, y in zip(source_logits, targets.tolist(), strict=True) if y == k] or list(source_logits)
        rows.append(
            torch.stack([(z / temperature).exp() / (z / temperature).exp().sum() for z in of_class]).mean(dim=0)
        )
    return torch.stack(rows)


class CoTuningTwin:
    def __init__(self, head: nn.Linear, relation: Tensor) -> None:
        self.weight, self.bias = (p.detach().clone().requires_grad_() for p in (head.weight, head.bias))
        self.relation = relation

    def penalty(self, features: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        total = torch.zeros((), dtype=features.dtype)
        for f, y in zip(features, targets.tolist(), strict=True):
            scores = self.weight @ f + self.bias
            for s in range(len(scores)):
                total = total - self.relation[y, s] * (scores[s].exp() / scores.exp().sum()).log()
        return total / len(features)


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


class BiTuningTwin:
    """Keys in lists, the newest last; one sample and one key at a time."""

    def __init__(self, model: nn.Module, projection: nn.Linear, keys: int, temperature: float, momentum: float) -> None:
        self.model, self.key_model = model, deepcopy(model)
        self.projection, self.key_projection = deepcopy(projection), deepcopy(projection)
        self.keys, self.temperature, self.momentum = keys, temperature, momentum
        self.queue: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.new: list[tuple[int, Tensor, Tensor]] = []

    def contrast(self, own: Tensor, stored: dict[int, list[Tensor]], y: int) -> Tensor:
        positives = [own, *stored.get(y, [])]
        negatives = [score for k, scores in stored.items() if k != y for score in scores]
        total = sum(((score / self.temperature).exp() for score in [*positives, *negatives]), torch.zeros(()))
        terms = [((score / self.temperature).exp() / total).log() for score in positives]
        return -sum(terms, torch.zeros(())) / len(positives)

    def penalty(self, features: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            encoded = self.key_model[:-1](inputs)  # type: ignore[index]
        head, one, total = self.model[-1], torch.ones(1, dtype=features.dtype), torch.zeros(())  # type: ignore[index]
        for f, h, y in zip(features, encoded, targets.tolist(), strict=True):
            vector = unit(torch.cat([head.weight[y], head.bias[y : y + 1]]).detach())
            key, projected = unit(torch.cat([h, one])), unit(self.key_projection(h)).detach()
            query = unit(self.projection(f))
            at_head = {k: [vector @ a for a, _ in pairs] for k, pairs in self.queue.items()}
            beside = {k: [query @ b for _, b in pairs] for k, pairs in self.queue.items()}
            total = total + self.contrast(vector @ unit(torch.cat([f, one])), at_head, y)
            total = total + self.contrast(query @ projected, beside, y)
            self.new.append((y, key, projected))
        return total / len(features)

    @torch.no_grad()
    def update(self, features: Tensor, targets: Tensor) -> None:
        followers = [*self.key_model.parameters(), *self.key_projection.parameters()]
        for p, q in zip(followers, [*self.model.parameters(), *self.projection.parameters()], strict=True):
            p.copy_(self.momentum * p + (1 - self.momentum) * q)
        for y, key, projected in self.new:
            self.queue[y] = [*self.queue.get(y, []), (key, projected)][-self.keys :]
        self.new.clear()
