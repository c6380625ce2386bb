"""AdaRand: random feature references from class-conditional priors whose means adapt during fine-tuning.

Yamaguchi et al., CVPR 2024 (arXiv 2403.10097), section 4.  The means mu follow the features' own class means
and move away from each other, by one Adam step per iteration on a cosine objective; the deviations sigma
stay.

Neither K x K x D nor K x K is ever formed: a sum over all pairs of unit vectors is the squared norm of their
sum, so one update is a few passes over (K, D).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from pof._support.distributed import add_up
from pof._support.precision import at_least_float32, without_autocast
from pof.regularizers._base import OnFeatures, check_features, check_targets, counted_of, kept, nonnegative
from pof.regularizers._references import ReferenceStream, class_references, squared_distance
from pof.regularizers.statistics import check_moments, class_statistics

BETAS = (0.9, 0.999)
EPS = 1e-8


def class_sums(
    features: Tensor, targets: Tensor, num_classes: int, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add up the features (N, D) of each class of the global batch, of the samples counted, with one ``index_add``.

    Under several processes 4 K (D + 1) bytes (float32) are all-reduced.

    Returns:
        sums (K, D) and counts (K,), in the dtype of ``features``.
    """
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, targets, kept(features, counted))
    ones = features.new_ones(features.shape[0]) if counted is None else counted.to(features.dtype)
    counts = features.new_zeros(num_classes).index_add_(0, targets, ones)
    add_up([sums, counts])
    return sums, counts


def moving_average_(mu_bar: Tensor, sums: Tensor, counts: Tensor, alpha: float) -> None:
    """Set mu_bar_k <- alpha mu_bar_k + (1 - alpha) sums_k / counts_k where class k is present, in place.

    For mu_bar and sums (K, D) and counts (K,): sums become the batch's means; where the count is 0, mu_bar stays
    bitwise as it is.
    """
    means = sums.div_(counts.clamp(min=1)[:, None])
    mu_bar.lerp_(means, ((1 - alpha) * (counts > 0).to(counts.dtype))[:, None])


def mean_gradient(mu: Tensor, mu_bar: Tensor) -> Tensor:
    """Compute the gradient of the objective for mu, for mu and mu_bar (K, D).

    J = 1/K sum_k D(mu_k, mu_bar_k) - 1/(K(K-1)) sum_{k != l} D(mu_k, mu_l),  D = 1 - cosine.

    With u = mu/|mu|, v = mu_bar/|mu_bar| and s = sum_k u_k the pair sum is ||s||^2 - sum_k ||u_k||^2, so up
    to a radial part that the projection removes g_k = -v_k/K + 2 s/(K(K-1)), and dJ/dmu_k = (g_k - (g_k.u_k)
    u_k)/|mu_k|. A row of norm 0 has no direction: its u (or v) is taken as 0, and a mu_k of norm 0 gets
    gradient 0.

    Returns:
        (K, D).
    """
    num_classes = mu.shape[0]
    pull, push = 1 / num_classes, 2 / (num_classes * (num_classes - 1))
    inverse, inverse_bar = _inverse_norms(mu), _inverse_norms(mu_bar)
    direction_sum = inverse @ mu
    # Row products first: the gradient is then a combination of three known vectors, in one (K, D) buffer.
    cosine = torch.linalg.vecdot(mu, mu_bar) * inverse * inverse_bar
    radial = push * (mu @ direction_sum) * inverse - pull * cosine
    gradient = mu_bar * (-pull * inverse * inverse_bar)[:, None]
    gradient.addcmul_(mu, (-radial * inverse.square())[:, None])
    return gradient.addcmul_((push * inverse)[:, None], direction_sum)


def adam_step_(mu: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: Tensor, lr: float) -> None:
    """Make one step of Adam (betas 0.9 and 0.999, eps 1e-8, no decay) in place, without host synchronisation.

    For mu, gradient and both moments (K, D); the gradient is overwritten.  step, () int64, counts the steps before.
    """
    step += 1
    count = step.to(mu.dtype)
    bias_first, bias_second = 1 - BETAS[0] ** count, 1 - BETAS[1] ** count
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    # The factor of addcdiv is a number and bias_first a tensor: so it multiplies the denominator.
    denominator = torch.sqrt(second, out=gradient).mul_(bias_first / bias_second.sqrt()).add_(EPS * bias_first)
    mu.addcdiv_(first, denominator, value=-lr)


def _inverse_norms(rows: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1)
    return torch.where(norms > 0, norms.reciprocal(), 0)


class AdaRand(OnFeatures):
    """strength * mean_n 1/D ||f_n - z_n||^2 with z_n ~ N(mu[y_n], diag sigma[y_n]^2); ``update`` adapts mu.

    All state (mu, mu_bar, sigma, both moments, the step, the random stream) is in buffers and extra state: it
    is saved by ``state_dict``, and neither an optimizer nor DDP takes it for parameters.

    Args:
        mean: (K, D), K >= 2, where mu and mu_bar start: the class means of the pre-trained features.
        std: (K, D), sigma, >= 0; kept in the dtype given.
        strength: lambda, the weight of the penalty, >= 0.
        alpha: share of the old value in the moving average mu_bar, in [0, 1].
        lr: Adam's learning rate for mu, >= 0.
        seed: of the references; every process needs the same one.

    Raises:
        ValueError: if the statistics are misshapen or not finite, there are fewer than two classes, or a
            setting is out of range.
    """

    mu: Tensor
    mu_bar: Tensor
    sigma: Tensor
    first_moment: Tensor
    second_moment: Tensor
    step: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        *,
        strength: float = 1.0,
        alpha: float = 0.5,
        lr: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__(strength)
        check_moments(mean, std, 2)
        if mean.shape[0] < 2:
            raise ValueError("AdaRand needs at least two classes to move apart; got mean and std of one")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1]; got {alpha!r}")
        self.alpha, self.seed, self.dimension = alpha, seed, mean.shape[1]
        self.lr = nonnegative("lr", lr)
        self.stream = ReferenceStream(seed)
        mean = at_least_float32(mean.detach())
        self.register_buffer("mu", mean.clone())
        self.register_buffer("mu_bar", mean.clone())
        self.register_buffer("sigma", std.detach().clone())
        self.register_buffer("first_moment", torch.zeros_like(self.mu))
        self.register_buffer("second_moment", torch.zeros_like(self.mu))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=mean.device))

    @classmethod
    def from_loader(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        num_classes: int,
        strength: float = 1.0,
        alpha: float = 0.5,
        lr: float = 1e-2,
        seed: int = 0,
    ) -> Self:
        """Start mu and sigma from one pass of the pre-trained model over the training set.

        sigma is kept in bfloat16, a tenth less state: it only scales noise, and its rounding of at most 0.4 % is far
        below the uncertainty of a deviation estimated from n samples, 1/sqrt(2(n - 1)).

        Args:
            model: a ``SplitModel``; see :func:`~pof.regularizers.class_statistics`.
            loader: the whole training set, in every process.
            num_classes: K.
            strength: lambda, >= 0.
            alpha: share of the old value in the moving average, in [0, 1].
            lr: Adam's learning rate for mu, >= 0.
            seed: of the references.

        Returns:
            The regulariser, on the device of the model.

        Raises:
            ValueError: if the statistics cannot be computed or a setting is out of range.
        """
        found = class_statistics(model, loader, num_classes=num_classes)
        return cls(found.mean, found.std.bfloat16(), strength=strength, alpha=alpha, lr=lr, seed=seed)

    def penalty(self, features: Tensor, targets: Tensor | None, counted: Tensor | None) -> Tensor:
        """Penalty of features (N, D) with new references for targets (N,)."""
        targets = check_targets(targets, features, self.mu.shape[0])
        noise = self.stream(features.detach(), torch.randn)
        references = class_references(self.mu, self.sigma, targets, noise)
        return self.strength * squared_distance(features, references, counted)

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Adapt mu_bar and mu, once after the optimizer's step; a collective call under several processes.

        Args:
            features: (N, D) of the forward pass that the step was made from (with accumulation: of all its
                passes).
            targets: (N,) class indices.

        Raises:
            ValueError: if features or targets do not fit the statistics.
        """
        if self.strength == 0:
            return
        check_features(features, self.dimension)
        counted = counted_of(targets)
        targets = check_targets(targets, features, self.mu.shape[0])
        with without_autocast(features.device):
            sums, counts = class_sums(features.detach().to(self.mu.dtype), targets, self.mu.shape[0], counted)
            moving_average_(self.mu_bar, sums, counts, self.alpha)
            del sums
            gradient = mean_gradient(self.mu, self.mu_bar)
            adam_step_(self.mu, gradient, self.first_moment, self.second_moment, self.step, self.lr)
