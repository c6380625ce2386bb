"""What a trainer leaves behind, and what it reads and switches on the way: streams, loaders, hooks, modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import GradientState
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer

import pof
from pof.integrations._leaving import Leaving
from tests.integrations.trainers import (
    QUIET,
    Make,
    hugging_face_trainer,
    lightning_module,
    lightning_trainer,
    loader,
    net,
    samples,
)

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
STEPS, BATCH = 20, 8


class Endless(IterableDataset[dict[str, Tensor]]):
    """A stream without an end, that counts what is read of it and gives up behind twice a run and a little."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        data = samples(64)
        for number in count():
            self.read += 1
            if self.read > 3 * STEPS * BATCH:
                raise AssertionError("the stream is read without an end")
            yield data[number % 64]


def ema(model: nn.Module) -> pof.Method:
    return pof.Averaged(pof.Finetune(model), "ema")


def msam(model: nn.Module) -> pof.Method:
    return pof.SharpnessAware(model, kind="msam")


def delta(model: nn.Module) -> pof.Method:
    return pof.Regularized(model, pof.DELTA(model, ["body"], strength=5.0), "classifier")


def in_the_trainer(make: Make, folder: Path, model: nn.Module, **options: Any) -> Any:
    trainer = hugging_face_trainer(make, model, folder, **{"num_train_epochs": 1, "logging_steps": 1000, **options})
    trainer.train()
    return trainer


@pytest.mark.parametrize("make", [ema, msam])
def test_an_endless_stream_is_read_once_more_for_statistics_and_no_further(make: Make, tmp_path: Path) -> None:
    of_lightning, of_trainer = Endless(), Endless()
    options = {"max_epochs": 1, "limit_train_batches": STEPS, "accumulate_grad_batches": 1}
    lightning_trainer(**options).fit(lightning_module(make(net(norm=True))), DataLoader(of_lightning, batch_size=BATCH))
    options = {"max_steps": STEPS, "gradient_accumulation_steps": 1}
    in_the_trainer(make, tmp_path, net(norm=True), data=of_trainer, **options)
    assert of_lightning.read == 2 * STEPS * BATCH
    assert of_trainer.read in range(2 * STEPS * BATCH, 2 * STEPS * BATCH + 3 * BATCH)  # Accelerate fetches ahead


def test_a_stream_that_is_resumed_has_the_statistics_of_one_that_was_not(tmp_path: Path) -> None:
    options: Any = {"max_steps": 6, "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 4}
    whole = in_the_trainer(ema, tmp_path / "whole", net(norm=True), data=Endless(), **options)
    again = hugging_face_trainer(ema, net(norm=True), tmp_path / "whole", data=Endless(), logging_steps=1000, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, value in whole.method.candidate().state_dict().items():
        assert torch.equal(value, again.method.candidate().state_dict()[name]), name


def test_lightning_takes_statistics_over_as_much_as_an_epoch_trains_on() -> None:
    seen: list[int] = []

    class Counting(pof.Averaged):
        def after_epoch(self, epoch: int, epochs: int, batches: Callable[[], Any]) -> None:
            seen.append(len(list(batches())))

    options = {"max_epochs": 2, "limit_train_batches": 3, "accumulate_grad_batches": 1}
    lightning_trainer(**options).fit(lightning_module(Counting(pof.Finetune(net()), "ema")), loader())
    assert seen == [3, 3]


def test_no_loader_is_left_with_accelerate(tmp_path: Path) -> None:
    # Accelerate's record is one for all trainers of the process.
    record = GradientState()

    def left(make: Make) -> tuple[int, int]:
        before = len(record.dataloader_references)
        trainer = in_the_trainer(make, tmp_path / make.__name__, net(norm=True), num_train_epochs=3)
        return len(trainer.accelerator._dataloaders), len(record.dataloader_references) - before

    plain = left(pof.Finetune)
    assert plain[0] == 1
    assert left(ema) == plain


def _ends(make: Make, folder: Path) -> dict[str, nn.Module]:
    """The model behind a run in each trainer."""
    models = {name: net() for name in ("fit", "lightning", "transformers")}
    pof.fit(make(models["fit"]), loader(), epochs=1, device="cpu")
    lightning_trainer(max_epochs=1).fit(lightning_module(make(models["lightning"])), loader())
    in_the_trainer(make, folder, models["transformers"])
    return models


def test_a_head_that_was_held_fixed_is_trained_again_behind_every_trainer(tmp_path: Path) -> None:
    for name, model in _ends(pof.PoF, tmp_path).items():
        assert all(parameter.requires_grad for parameter in model.parameters()), name


def test_no_hook_is_left_on_the_model_behind_every_trainer(tmp_path: Path) -> None:
    for name, model in _ends(delta, tmp_path).items():
        assert not any(module._forward_hooks for module in model.modules()), name


def test_a_second_run_holds_the_head_fixed_again(tmp_path: Path) -> None:
    model = net()
    module = lightning_module(pof.PoF(model))
    trainer = in_the_trainer(pof.PoF, tmp_path, net())
    heads = [part.classifier.weight.detach().clone() for part in (model, trainer.model)]
    for _ in range(2):
        lightning_trainer(max_epochs=1).fit(module, loader())
        trainer.train()
    for part, head in zip((model, trainer.model), heads, strict=True):
        assert torch.equal(part.classifier.weight, head)


class Modes(torch.optim.SGD):
    """Trains other weights than those to be evaluated, as schedule-free optimizers do; starts to be evaluated."""

    training, steps = False, 0

    def train(self) -> None:
        self.training = True

    def eval(self) -> None:
        self.training = False

    def step(self, closure: Any = None) -> Any:
        assert self.training, "a step in the mode for evaluation"
        self.steps += 1
        return super().step(closure)


@pytest.mark.parametrize("make", [pof.Finetune, lambda model: pof.SharpnessAware(model, rho=0.05)])
def test_the_trainer_switches_schedule_free_optimizers_as_it_always_does(make: Make, tmp_path: Path) -> None:
    at_evaluation: list[bool] = []

    class Watching(Trainer):
        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            found: Any = super().evaluation_loop(*args, **kwargs)
            at_evaluation.append(self.plain().training)
            return found

        def plain(self) -> Any:
            own: Any = self.optimizer
            while not isinstance(own, Modes):
                own = getattr(own, "base_optimizer", None) or own.optimizer
            return own

    from pof.integrations.transformers import PostTrainer

    class Both(PostTrainer, Watching):
        def __init__(self, *args: Any, **options: Any) -> None:
            modes = Modes, {"lr": 0.05}
            super().__init__(*args, eval_dataset=samples(), optimizer_cls_and_kwargs=modes, **options)

    model = net()
    trainer = hugging_face_trainer(make, model, tmp_path, kind=Both, num_train_epochs=2, eval_strategy="epoch")
    trainer.train()
    assert trainer.plain().steps == 8
    assert at_evaluation == [False, False]


class Bounded(IterableDataset[dict[str, Tensor]]):
    """A stream with an end: eight mini-batches."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from samples(8 * BATCH)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_stream_goes_on_behind_an_epoch(tmp_path: Path, forgotten: bool) -> None:
    """``forgotten``: the checkpoint is of a version that did not say how much of the epoch had been trained on."""
    options: Any = {"max_steps": 20, "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 8}

    def swa(model: nn.Module) -> pof.Method:
        return pof.Averaged(pof.Finetune(model), "swa")

    whole = in_the_trainer(swa, tmp_path, net(norm=True), data=Bounded(), **options)
    checkpoint = tmp_path / "checkpoint-8"
    if forgotten:
        state = torch.load(checkpoint / "pof_state.pt", weights_only=True)
        del state["taken"]
        torch.save(state, checkpoint / "pof_state.pt")
    again = hugging_face_trainer(swa, net(norm=True), tmp_path, data=Bounded(), logging_steps=1000, **options)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 20
    if not forgotten:
        for name, value in whole.method.candidate().state_dict().items():
            torch.testing.assert_close(again.method.candidate().state_dict()[name], value, msg=name)


class Uneven(IterableDataset[dict[str, Tensor]]):
    """A stream with an end: five mini-batches, which two per step do not divide."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from samples(5 * BATCH)


@pytest.mark.parametrize("step", [4, 5, 6])
def test_an_average_has_the_networks_of_all_epochs_of_a_resumed_stream(tmp_path: Path, step: int) -> None:
    """The last mini-batch of an epoch, without a step, is read behind the checkpoint of its last step."""
    options: Any = {"max_steps": 8, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1}

    def swa(model: nn.Module) -> pof.Method:
        return pof.Averaged(pof.Finetune(model), "swa")

    whole = in_the_trainer(swa, tmp_path, net(), data=Uneven(), **options)
    again = hugging_face_trainer(swa, net(), tmp_path, data=Uneven(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert again.method._count == whole.method._count == 4
    assert again._surroundings.epoch == whole._surroundings.epoch


def test_lightning_lets_go_also_where_a_run_breaks_off() -> None:
    model = net()
    module = lightning_module(delta(model))

    class Broken(type(module)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 2:
                raise KeyError("broken")
            return super().training_step(batch, batch_idx)

    trainer = lightning_trainer(max_epochs=1)
    with pytest.raises(KeyError, match="broken"):
        trainer.fit(Broken(), loader())
    assert not any(part._forward_hooks for part in model.modules())
    assert "process_dataloader" not in vars(trainer.strategy)
    # And nothing of it is in the way of another module in the same trainer.
    assert not any(isinstance(callback, Leaving) for callback in trainer.callbacks)


def test_nothing_of_a_run_is_left_in_the_trainer() -> None:
    trainer = lightning_trainer(max_epochs=1)
    before = list(trainer.callbacks)
    for _ in range(2):
        trainer.fit(lightning_module(pof.PoF(net())), loader())
        assert trainer.callbacks == before


def test_the_part_of_a_later_epoch_that_the_trainer_drops_is_no_epoch(tmp_path: Path) -> None:
    options: Any = {"max_steps": 20, "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 4}
    ended: list[int] = []

    class Counting(pof.Averaged):
        def after_epoch(self, epoch: int, epochs: int, batches: Any) -> None:
            ended.append(sum(1 for _ in batches()))
            super().after_epoch(epoch, epochs, batches)

    def swa(model: nn.Module) -> pof.Method:
        return Counting(pof.Finetune(model), "swa")

    in_the_trainer(swa, tmp_path / "whole", net(norm=True), data=Bounded(), **options)
    assert ended == [8, 8, 4]
    for step, left in ((4, [8, 8, 4]), (8, [8, 8, 4]), (12, [8]), (16, [8, 4])):
        ended.clear()
        place = tmp_path / str(step)
        again = hugging_face_trainer(swa, net(norm=True), place, data=Bounded(), logging_steps=1000, **options)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert ended == left, step


def test_the_tuner_leaves_nothing_behind(tmp_path: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    for make in (delta, pof.PoF):
        model = net()
        made = type(lightning_module(make(model)))

        class Tuned(made):  # type: ignore[misc, valid-type]
            lr = 0.01

        trainer = lightning_trainer(max_epochs=1, default_root_dir=tmp_path)
        Tuner(trainer).lr_find(Tuned(), loader(), num_training=5)
        assert not any(part._forward_hooks for part in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert "process_dataloader" not in vars(trainer.strategy)
        assert not any(isinstance(callback, Leaving) for callback in trainer.callbacks)
