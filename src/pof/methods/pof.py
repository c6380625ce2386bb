"""PoF: Post-training of the Feature extractor (Sato et al., ICML 2022, arXiv 2207.01847).

Start from a trained network with extractor phi and head theta_0, which stays as it is.  Each step:

1. mini-batch B -> features -> normalised head gradient g_hat;
2. radius xi*_B = argmin_{xi >= 0} L_B(phi, theta_0 - xi g_hat), by an exact line search;
3. an independent mini-batch B~: the extractor descends L_B~(phi, theta_0 - gamma xi*_B g_hat).

No parameter is modified to do so: for a linear head the perturbed logits are Z - gamma xi* R, and PoF is a loss with
one backward.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pof._support import distributed
from pof._support.batches import Inputs, first_samples, rows_of, samples_of, to_device
from pof._support.checks import MOST_SEED, finite, whole_number
from pof._support.modules import device_of, every, frozen_statistics, packed, running_statistics, unpacked
from pof._support.passes import in_second_pass
from pof._support.precision import without_cast_cache
from pof._support.random import draw_seed, isolated, seeded
from pof.head.split import split
from pof.methods.base import Method, StepOutput, check_choice
from pof.methods.loss import AskedLoss, chosen_loss, features_and_logits, mean_loss
from pof.perturbation.line import along_head_gradient

Sampling = Literal["uniform", "fixed"]
Features = Literal["fresh", "previous"]
BatchNorm = Literal["batch", "running", "update"]


@dataclass(frozen=True, kw_only=True)
class PoFOutput(StepOutput):
    """One step of PoF; ``loss`` is taken at the perturbed head and its graph reaches the extractor only."""

    radius: Tensor
    """xi*, scalar, in units of head-parameter distance; 0 where there is no perturbation."""
    bounded: Tensor
    """bool scalar: False if B is separable along g_hat (no perturbation then)."""
    gradient_norm: Tensor
    """||g|| of B, scalar."""
    perturbed_logits: Tensor
    """(N, C): the logits that the loss is taken of."""
    expansion: float
    """The factor on xi* that was drawn: gamma, or a sample of U(0, gamma); 0 where there is no perturbation."""


class PoF(Method):
    """Post-training of the feature extractor under perturbations of the head (Sato et al., ICML 2022).

    The head's parameters are frozen (``requires_grad=False``) and stay bit-identical.  In eval mode without a
    reference mini-batch the loss is the plain one.  Under ``torch.distributed`` the reference mini-batches of all
    ranks act as one: direction and radius are the same everywhere.

    Args:
        model: any trained classifier; it is used as it is, in place.
        head: qualified name of the head; found by :func:`pof.find_head` if None.
        gamma: expansion of the radius, >= 0; the authors use 2.
        sampling: ``"uniform"`` draws the expansion from U(0, gamma) at every step, ``"fixed"`` takes gamma.
        features: ``"fresh"`` runs the reference mini-batch through the current extractor (one forward without
            gradient: about 4/3 of the cost of plain training); ``"previous"`` takes the features of the previous
            step's mini-batch (no extra forward; the first step has no perturbation).
        batch_norm: of the reference pass: ``"batch"`` normalises with its batch statistics and leaves the running
            ones untouched, ``"running"`` normalises with the running ones, ``"update"`` is an ordinary training pass.
        reference_size: samples of the reference mini-batch that are used, per process, >= 1; None is all of them.  With
            fresh features, a quarter of them costs a quarter of the extra forward.
        label_smoothing: of the cross-entropy, in [0, 1).
        class_weights: (C,) of the cross-entropy, or None.
        loss: ``"bce"`` (one logit, several labels), ``"mse"`` (regression), ``"ordinal"`` (ordered classes), or a
            function ``loss(outputs, targets)`` -> scalar mean or (N,); None is the cross-entropy.
            The line search of any other is numerical, and finds the first local minimum; each of the three
            named ones is convex and has no other.
        seed: of the expansion and of the dropout in the reference pass; the global generators are left alone.

    Raises:
        ValueError: if an option is not one of those named here, or ``model`` is in ``DistributedDataParallel``
            already with a head that is trained.
    """

    remedy = "lower the learning rate, or gamma, or draw it (sampling='uniform')"

    def __init__(
        self,
        model: nn.Module,
        head: str | None = None,
        *,
        gamma: float = 2.0,
        sampling: Sampling = "uniform",
        features: Features = "fresh",
        batch_norm: BatchNorm = "batch",
        reference_size: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        loss: AskedLoss = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("sampling", sampling, get_args(Sampling))
        check_choice("features", features, get_args(Features))
        check_choice("batch_norm", batch_norm, get_args(BatchNorm))
        finite("gamma", gamma, 0)
        if reference_size is not None:
            whole_number("reference_size", reference_size, 1)
        whole_number("seed", seed, 0, MOST_SEED)
        self.loss = chosen_loss(loss, label_smoothing, class_weights)
        self.network = split(model, head, end=self.loss.end)
        self._freeze_head()
        self.gamma, self.sampling, self.features, self.batch_norm = gamma, sampling, features, batch_norm
        self.reference_size, self.needs_reference = reference_size, features == "fresh"
        self._generator = seeded(seed)
        self._previous: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        reference_inputs: Inputs | None = None,
        reference_targets: Tensor | None = None,
    ) -> PoFOutput:
        """Compute the loss of one step on B~ = (inputs, targets).

        Args:
            inputs: (N, ...), or a mapping passed to the model as keywords.
            targets: (N,) class indices or (N, C) probabilities.
            reference_inputs: mini-batch B of direction and radius, (M, ...); for fresh features only.
            reference_targets: (M,) or (M, C).

        Returns:
            The output; ``out.loss.backward()`` gives the extractor's gradients.

        Raises:
            ValueError: if fresh features are asked for in training mode and no reference is given.
        """
        reference = self._reference(reference_inputs, reference_targets)
        network = self.network
        features, logits = features_and_logits(network, inputs)
        if self.features == "previous" and self.training:
            # Gathered at once: every process then holds the same state, which a checkpoint saves once.
            used, samples = slice(self.reference_size), samples_of(targets)
            kept = features.detach()[used], rows_of(targets, used, samples)
            self._previous = distributed.gather_batch(*kept)
        if reference is None:
            perturbed, expansion, norm, radius = logits, 0.0, logits.new_zeros(()), logits.new_zeros(())
            bounded = torch.ones_like(radius, dtype=torch.bool)
        else:
            seen, labels, known = reference
            with running_statistics(network.head) if self.batch_norm == "running" else nullcontext():
                line = along_head_gradient(network, seen, labels, self.loss, known)
                search = line.minimise()
            expansion = self._draw_expansion()
            norm, radius, bounded = line.norm, search.radius, search.bounded
            perturbed = line.logits(features, logits, expansion * radius) if expansion else logits
        return PoFOutput(
            loss=mean_loss(self.loss, perturbed, targets),
            logits=logits.detach(),
            metrics={"radius": radius, "separable": (~bounded).to(norm.dtype), "gradient_norm": norm},
            radius=radius,
            bounded=bounded,
            gradient_norm=norm,
            perturbed_logits=perturbed,
            expansion=expansion,
        )

    def _reference(self, inputs: Inputs | None, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Features, targets and logits (where known) of B over all ranks, or None where there is no perturbation."""
        if self.features == "previous":
            if self.training and in_second_pass(self.model):
                raise ValueError(
                    "features='previous' takes one pass per step, and the optimizer makes two: in the second one the"
                    " previous mini-batch would be this one; use features='fresh', or an optimizer of one pass"
                )
            return (*self._previous, None) if self.training and self._previous else None
        if inputs is not None and targets is not None:
            if self.reference_size is not None:
                inputs, targets = first_samples(inputs, targets, self.reference_size)
            own, logits = self._fresh(inputs)
            features, targets = distributed.gather_batch(own, targets)
            return features, targets, logits if features is own else None
        if self.training or inputs is not None or targets is not None:
            raise ValueError(
                "features='fresh' needs a second mini-batch in every training step: call"
                " method(inputs, targets, reference_inputs, reference_targets), or use features='previous'"
            )
        return None

    @torch.no_grad()
    def _fresh(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        network = self.network
        device = device_of(network)
        torch_only = _draws_from_torch_only(network.model)
        with isolated(draw_seed(self._generator), device, torch_only=torch_only), without_cast_cache(device):
            if self.batch_norm == "update":
                return features_and_logits(network, inputs)
            mode = frozen_statistics if self.batch_norm == "batch" else running_statistics
            with mode(network.model):
                return features_and_logits(network, inputs)

    def _draw_expansion(self) -> float:
        if self.sampling == "fixed":
            return self.gamma
        return self.gamma * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def get_extra_state(self) -> Tensor:
        """Generator and previous features, so that a state dict resumes exactly."""
        return packed({"generator": self._generator.get_state(), "previous": self._previous})

    def set_extra_state(self, state: Any) -> None:
        """Take back what :meth:`get_extra_state` gave."""
        state = unpacked(state)
        self._generator.set_state(state["generator"].cpu())
        previous = state["previous"]
        self._previous = None if previous is None else to_device(previous, device_of(self.network))


def _draws_from_torch_only(model: nn.Module) -> bool:
    """Whether every layer is known to draw from no generator of Python or NumPy; custom ones may."""
    return all(_is_of_torch(name) for name in {type(module).__module__ for module in every(model)})


@cache
def _is_of_torch(name: str) -> bool:
    return name.startswith(("torch.", "torchvision.", "pof.models."))
