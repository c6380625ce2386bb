"""Twenty steps are the same twenty steps in every home, with accumulation, clipping, and an unequal last mini-batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import pof
from tests.integrations import trainers
from tests.integrations.trainers import QUIET, Trace, in_fit, net

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]


@pytest.fixture(params=[False, True], ids=["plain net", "batch norm"])
def norm(request: Any) -> bool:
    return request.param


def reference(norm: bool) -> Trace:
    found = in_fit(pof.PoF, net(norm))
    assert len(found.losses) == 20 and max(found.radii) > 0.1 and found.losses[-1] != found.losses[0]
    return found


def test_plain_loop(norm: bool) -> None:
    trainers.in_plain_loop(pof.PoF, net(norm)).close_to(reference(norm))


def test_accelerate(norm: bool) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    trainers.in_accelerate(pof.PoF, net(norm)).close_to(reference(norm))


def test_lightning(norm: bool) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    trainers.in_lightning(pof.PoF, net(norm)).close_to(reference(norm))


def test_hugging_face(norm: bool, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    trainers.in_hugging_face(pof.PoF, net(norm), tmp_path).close_to(reference(norm))


def sam(model: nn.Module) -> pof.Method:
    return pof.SharpnessAware(model, rho=0.5)


def co_tuning(model: nn.Module) -> pof.Method:
    """With a head of its own, that is trained too."""
    torch.manual_seed(4)
    source, relationship = nn.Linear(12, 6), torch.rand(4, 6)
    relationship /= relationship.sum(dim=1, keepdim=True)
    return pof.Regularized(model, pof.CoTuning(source, relationship, strength=1.0), "classifier")


def weighted_pof(model: nn.Module) -> pof.Method:
    return pof.PoF(model, class_weights=torch.tensor([0.1, 1.0, 3.0, 0.5]))


def test_class_weights_weigh_mini_batches_alike_everywhere(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    wanted = in_fit(weighted_pof, net()).weights
    for found in (
        trainers.in_lightning(weighted_pof, net()),
        trainers.in_hugging_face(weighted_pof, net(), tmp_path),
    ):
        for name, value in found.weights.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=2e-6, msg=name)


def adarand(model: nn.Module) -> pof.Method:
    generator = torch.Generator().manual_seed(2)
    mean = torch.randn(trainers.CLASSES, 12, generator=generator)
    return pof.Regularized(model, pof.AdaRand(mean, torch.ones_like(mean), strength=0.3))


def ema(model: nn.Module) -> pof.Method:
    return pof.Averaged(pof.PoF(model), "ema", decay=0.9)


def swa(model: nn.Module) -> pof.Method:
    return pof.Averaged(pof.Finetune(model), "swa", start=0.4)


def late_sam(model: nn.Module) -> pof.Method:
    return pof.SharpnessAware(model, rho=0.5, last_epochs=2)


def late_sam_of_a_half(model: nn.Module) -> pof.Method:
    return pof.SharpnessAware(model, rho=0.5, last_epochs=2, ascent_share=0.5)


def delivered(home: Any, make: Any, norm: bool, *args: Any) -> dict[str, torch.Tensor]:
    """The network that a method delivers, trained in a home."""
    made: list[pof.Method] = []

    def remember(model: nn.Module) -> pof.Method:
        made.append(make(model))
        return made[-1]

    home(remember, net(norm), *args)
    return made[0].candidate().state_dict()


@pytest.mark.parametrize("make", [sam, adarand])
def test_steps_of_other_methods_in_lightning(make: Any, norm: bool) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    if make is adarand:
        trainers.in_lightning(make, net(norm)).close_to(in_fit(make, net(norm)))
        return
    # Lightning has no place for the second pass but a closure around the last mini-batch: compare what comes out.
    expected = delivered(in_fit, make, norm)
    for name, value in delivered(trainers.in_lightning, make, norm).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("make", [sam, adarand])
def test_steps_of_other_methods_in_hugging_face(make: Any, norm: bool, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    found = trainers.in_hugging_face(make, net(norm), tmp_path, 2 if make is sam else 1)
    found.close_to(in_fit(make, net(norm)))


@pytest.mark.parametrize("make", [ema, swa, late_sam, late_sam_of_a_half])
def test_averages_and_late_sam(make: Any, tmp_path: Path) -> None:
    for name in ("lightning", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    expected = delivered(in_fit, make, True)
    for found in (
        delivered(trainers.in_lightning, make, True),
        delivered(trainers.in_hugging_face, make, True, tmp_path, 1),
    ):
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("home", ["lightning", "transformers"])
@pytest.mark.parametrize("steps", [3, 6])
def test_a_run_that_ends_inside_of_an_epoch_ends_it(home: str, steps: int, tmp_path: Path) -> None:
    """Averages had statistics of an epoch before, or of the incoming network, and MSAM of its perturbed weights."""
    pytest.importorskip(home, reason=f"{home} is not installed")
    averages = [pof.Averaged(pof.PoF(net(True)), "ema"), pof.Averaged(pof.PoF(net(True)), "swa")]
    for method in (*averages, pof.SharpnessAware(net(True), kind="msam")):
        options: dict[str, Any] = {"max_steps": steps}
        if home == "lightning":
            trainer = trainers.lightning_trainer(max_epochs=-1, accumulate_grad_batches=1, **options)
            trainer.fit(trainers.lightning_module(method), trainers.loader(n=40))
        else:
            options |= {"gradient_accumulation_steps": 1, "data": trainers.samples(40)}
            trainers.hugging_face_trainer(method, method.model, tmp_path, **options).train()
        found = copy.deepcopy(method.candidate())
        pof.estimate_statistics(found, trainers.loader(n=40))
        for name, value in method.candidate().state_dict().items():
            torch.testing.assert_close(value, found.state_dict()[name], msg=name)
    assert [average._count for average in averages] == [steps, 1 if steps == 3 else 2]


class Endless(IterableDataset[Any]):
    """It has no length, so with max_steps nobody knows how many epochs there will be."""

    def __iter__(self) -> Iterator[Any]:
        return iter(trainers.samples())


BY_EPOCHS: dict[str, Any] = {
    "last_epochs": lambda model: pof.SharpnessAware(model, rho=0.5, last_epochs=1),
    "anneal": lambda model: pof.SharpnessAware(model, rho=0.5, budget=0.1),
    "start": lambda model: pof.Averaged(pof.PoF(model), "swa", start=0.5),
}


@pytest.mark.parametrize("home", ["lightning", "transformers"])
@pytest.mark.parametrize("option", BY_EPOCHS)
def test_what_goes_by_the_number_of_epochs_needs_it(option: str, home: str, tmp_path: Path) -> None:
    """The last epochs of 9223372036854775807 never came; of one more than have passed each is the last."""
    pytest.importorskip(home, reason=f"{home} is not installed")

    def run(make: Any) -> None:
        model = net()
        if home == "lightning":
            module = trainers.lightning_module(make(model))
            data = DataLoader(Endless(), batch_size=8)
            trainers.lightning_trainer(max_epochs=-1, max_steps=6).fit(module, data)
        else:
            trainers.hugging_face_trainer(make, model, tmp_path, data=Endless(), max_steps=6).train()

    with pytest.raises(ValueError, match=rf"{option} goes by the number of epochs, .* has no length"):
        run(BY_EPOCHS[option])
    run(sam)


def hidden_weights(model: nn.Module) -> pof.Method:
    weights = torch.tensor([0.1, 1.0, 3.0, 0.5])
    return pof.PoF(model, loss=lambda z, y: nn.functional.cross_entropy(z, y, weight=weights))


@pytest.mark.parametrize("home", ["lightning", "transformers"])
def test_a_loss_that_is_no_mean_over_samples_is_noticed(home: str, tmp_path: Path) -> None:
    pytest.importorskip(home, reason=f"{home} is not installed")
    with pytest.warns(UserWarning, match="the loss is no mean over the samples of a mini-batch"):
        if home == "lightning":
            trainers.in_lightning(hidden_weights, net(), max_epochs=1)
        else:
            trainers.in_hugging_face(hidden_weights, net(), tmp_path, num_train_epochs=1)
