"""What SAM and its relatives share: a base optimizer, and weights that are perturbed and brought back.

A subclass says along what it perturbs (``_entries``); everything else is here.  The parameter groups and the state
are the base optimizer's own objects, so that schedulers, ``state_dict`` and ``add_param_group`` see one optimizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pof._support.modules import frozen_statistics
from pof._support.norms import global_norm
from pof._support.passes import second_pass
from pof.optim._entries import Entry, build_base, defines, rescaled, unscale
from pof.optim._equations import perturb_, radius_within

T = TypeVar("T")


class PerturbingOptimizer(Optimizer, ABC):
    """A base optimizer that is given the gradient of a perturbed point; subclasses are final."""

    # GradScaler then hands over its scale and its verdict instead of calling step blindly, which is the only way to
    # notice scaler.step(optimizer, closure): the closure's gradients would be scaled, and nobody would unscale them.
    _step_supports_amp_scaling = True
    grad_scale: Tensor | None
    found_inf: Tensor

    loss_scale: Tensor | float
    """What the loss is multiplied by before ``backward``, as a GradScaler does; a loss budget has to know it."""
    radius: Tensor | None
    """Of the last ascent, scalar, where a loss budget sets it; else None."""
    goes_on: bool
    """Whether it has stepped, or was given the state of one that has: its radius may have followed a schedule."""

    follows_a_pass = True  # at the weights themselves; the perturbed one is then the second
    _saved: list[tuple[Tensor, Tensor]] | None
    _frozen: ExitStack
    _ascended: bool

    def __init__(
        self,
        params: Any,
        base_optimizer_class: Callable[..., Optimizer],
        own: dict[str, Any],
        base_options: dict[str, Any],
        model: nn.Module | None = None,
    ) -> None:
        self._reset()
        self.model = model
        self.base_optimizer = build_base(params, base_optimizer_class, base_options, own)
        self._own = own
        super().__init__(self.base_optimizer.param_groups, {**self.base_optimizer.defaults, **own})
        self._share()

    @abstractmethod
    def _entries(self) -> Iterator[Entry]:
        """What to perturb, and along what: one entry per parameter."""

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse a parameter group that cannot be perturbed."""
        for name in ("rho", "eta", "budget"):
            if group.get(name) is not None and not 0.0 <= group[name] < float("inf"):
                raise ValueError(f"{name} must be finite and not negative; got {group[name]!r}")
        for parameter in group["params"]:
            if parameter.is_complex():
                raise ValueError(f"complex parameters are not supported; got one of shape {tuple(parameter.shape)}")

    def run_passes(self, closure: Callable[[], T], model: nn.Module | None = None) -> T:
        """Run a closure as often as a step needs; the gradients are then those that :meth:`step` is to use.

        For loops that do something between the backward passes and the step, such as clipping.

        Args:
            closure: clears the gradients and computes them anew.
            model: its running statistics are those of the first pass; None for the one given to the optimizer.

        Returns:
            What the closure returned first.
        """
        self.radius = None
        result = closure()
        # Without a radius the second pass would compute the same again, but draw other dropout masks than plain
        # training does.
        if self.will_ascend:
            with self.perturbed(model):
                closure()
        return result

    @property
    def will_ascend(self) -> bool:
        """Whether the gradients being computed are those of an ascent: there is a radius, and no perturbation yet."""
        return self._saved is None and any(group["rho"] and group.get("budget") != 0 for group in self.param_groups)

    @torch.no_grad()
    def ascend(self, model: nn.Module | None = None) -> Tensor:
        """Move the weights to the perturbed point.

        Until :meth:`restore`, running statistics are frozen too.  Under DDP the gradients are averaged before, so that
        all ranks perturb alike; not so inside ``no_sync``.

        Args:
            model: whose statistics; None for the one given to the optimizer, if any.

        Returns:
            Scalar: the norm by which the direction was divided, in the units of the gradients at hand (scaled, if
            they are).  Where it is 0 or not finite, nothing was perturbed.

        Raises:
            RuntimeError: if the weights are perturbed already.
            ValueError: if a gradient is sparse.
        """
        self._refuse_while_perturbed("ascend()")
        entries = list(self._entries())
        norm = global_norm(rescaled(entry, 1) for entry in entries)
        moved = [entry for entry in entries if entry.radius]
        self._saved = [(entry.parameter, entry.parameter.detach().clone()) for entry in moved]
        try:
            for entry in moved:
                radius: Tensor | float = entry.radius
                if entry.budget is not None:
                    radius = radius_within(entry.radius, entry.budget * self.loss_scale, norm)
                    self.radius = radius.abs()
                perturb_(entry.parameter, rescaled(entry, 2), radius / norm)
            if self.follows_a_pass:
                self._frozen.enter_context(second_pass(p for group in self.param_groups for p in group["params"]))
            watched = self.model if model is None else model
            if watched is not None:
                self._frozen.enter_context(frozen_statistics(watched))
        except BaseException:
            self.restore()
            raise
        self._ascended = True
        return norm

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the weights back, bit for bit and in place; does nothing if they are not perturbed.

        Parameters that had no gradient in the second pass (stochastic depth) are brought back like all others.
        """
        saved, self._saved = self._saved, None
        for parameter, value in saved or ():
            parameter.copy_(value)
        self._frozen.close()

    @contextmanager
    def perturbed(self, model: nn.Module | None = None) -> Iterator[Tensor]:
        """Perturb the weights for the body; they are back afterwards, also when the body raises.

        Args:
            model: as for :meth:`ascend`.

        Yields:
            What :meth:`ascend` returns.
        """
        norm = self.ascend(model)
        try:
            yield norm
        except BaseException:
            self._ascended = False
            raise
        finally:
            self.restore()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the weights.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss.  With it, this
                is the whole step, and the closure runs as often as the method has passes.  Without it, the passes
                have been made with :meth:`ascend` and :meth:`restore` (or :meth:`perturbed`), and the base
                optimizer steps with the gradients as they are.

        Returns:
            The loss that the closure returned first, or None.

        Raises:
            RuntimeError: if the weights are still perturbed; if there is no closure and no perturbation was made
                since the last step, where one would have changed the gradient; if a GradScaler passes a closure.
        """
        self._refuse_while_perturbed("step()")
        if getattr(self, "found_inf", None) is not None:
            self._scaled_step(closure)
            return None
        loss = None
        if closure is None:
            self._refuse_plain_step()
        else:
            before = self._marks()
            with torch.enable_grad():
                loss = self.run_passes(closure)
            if all(old is new and count == now for (old, count), (new, now) in zip(before, self._marks(), strict=True)):
                raise RuntimeError(
                    "the closure changed no gradient: it must clear the gradients, compute the loss, call backward and"
                    " return the loss"
                )
        self._step_base()
        return loss

    def _step_base(self) -> None:
        # One without gradients, by which others make the state of an optimizer, is no step of a radius.
        self._ascended, self.goes_on = False, self.goes_on or self._ascended or not self.will_ascend
        self.base_optimizer.step()

    def _marks(self) -> list[tuple[Tensor | None, int]]:
        """The gradients, and how often each was written to."""
        return [(p.grad, getattr(p.grad, "_version", 0)) for group in self.param_groups for p in group["params"]]

    def _scaled_step(self, closure: Callable[[], float] | None) -> None:
        """Do what GradScaler asks for: nothing if it found an overflow, otherwise unscale (unless done) and step."""
        try:
            if closure is not None:
                raise RuntimeError(
                    "scaler.step(optimizer, closure) cannot work: the closure's gradients would be scaled, and applied"
                    " as they are.  Run both passes yourself: scaler.scale(loss).backward(), the second one inside"
                    " `with optimizer.perturbed():`, then scaler.step(optimizer)"
                )
            self._refuse_plain_step()
            self._refuse_other_scale()
            if not self.found_inf.item():
                unscale(self.param_groups, self.grad_scale)
                self._step_base()
            self._ascended = False
        except BaseException:
            # The scaler takes its attributes back only from a step that returns.
            del self.grad_scale, self.found_inf
            raise

    def _refuse_while_perturbed(self, what: str) -> None:
        if self._saved is not None:
            raise RuntimeError(f"{what} while the weights are perturbed: call restore() first")

    def _refuse_plain_step(self) -> None:
        if self._ascended:
            return
        if any(entry.radius and bool(entry.direction.any()) for entry in self._entries()):
            name = type(self).__name__
            raise RuntimeError(
                f"{name}.step() without a perturbation would be a step of {type(self.base_optimizer).__name__}: pass a "
                "closure, or run the pass whose gradient counts inside `with optimizer.perturbed():` before step()"
            )

    def _refuse_other_scale(self) -> None:
        budget = any(group.get("budget") for group in self.param_groups)
        if budget and self.grad_scale is not None and float(self.grad_scale) != float(self.loss_scale):
            raise RuntimeError(
                f"the loss was scaled by {float(self.grad_scale):g} and the budget by {float(self.loss_scale):g}: set"
                " optimizer.loss_scale = scaler.get_scale() before ascend()"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, to the base optimizer too; options it lacks take their defaults.

        Raises:
            RuntimeError: if the weights are perturbed.
            ValueError: if an option is out of range, or a parameter complex.
        """
        self._refuse_while_perturbed("add_param_group()")
        for name, value in self._own.items():
            param_group.setdefault(name, value)
        if self.param_groups is self.base_optimizer.param_groups:
            self.base_optimizer.add_param_group(param_group)
        else:  # during construction, when the base optimizer has it already
            super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """Collect the state, the base optimizer's included.

        Returns:
            ``state`` and ``param_groups``, as of any optimizer; rho and the like are in the groups.

        Raises:
            RuntimeError: if the weights are perturbed, as a checkpoint of the model would hold the wrong ones.
        """
        self._refuse_while_perturbed("state_dict()")
        return self.base_optimizer.state_dict() if defines(self.base_optimizer, "state_dict") else super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, or the state of a plain base optimizer, whose momentum is then kept.

        Args:
            state_dict: of this class, or of the base optimizer's.

        Raises:
            RuntimeError: if the weights are perturbed.
        """
        self._refuse_while_perturbed("load_state_dict()")
        own = [{name: group[name] for name in self._own} for group in self.param_groups]
        if defines(self.base_optimizer, "load_state_dict"):
            self.base_optimizer.load_state_dict(state_dict)
        else:
            super().load_state_dict(state_dict)
            self.base_optimizer.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share()
        for group, options in zip(self.param_groups, own, strict=True):
            group.update({**options, **group})
        # A format of the base optimizer's own may lack them, or have them in another way.
        groups = [group for group in state_dict.get("param_groups", ()) if isinstance(group, dict)] or [self._own]
        self._ascended, self.goes_on = False, any(self._own.keys() & group.keys() for group in groups)

    @property
    def train(self) -> Any:
        """That of a base optimizer which trains other weights than those to be evaluated; no other has it."""
        return self.base_optimizer.train  # type: ignore[attr-defined]

    @property
    def eval(self) -> Any:
        """As :attr:`train`."""
        return self.base_optimizer.eval  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_while_perturbed("copying or pickling")
        own = {name: vars(self)[name] for name in ("base_optimizer", "model", "_own", "goes_on")}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset(goes_on=state.get("goes_on", False))  # torch loads states by this too

    def _reset(self, *, goes_on: bool = False) -> None:
        self._saved, self._frozen, self._ascended = None, ExitStack(), False
        self.loss_scale, self.radius, self.goes_on = 1.0, None, goes_on

    def _share(self) -> None:
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state
