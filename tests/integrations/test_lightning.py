"""PostTraining in Lightning: resume, precision, logging, modules that exist already, and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import pof
from pof.integrations._ahead import AheadLoader
from pof.methods.base import Method, StepOutput
from tests.integrations.test_same_steps import adarand, ema, late_sam, sam, swa
from tests.integrations.trainers import (
    ACCUMULATION,
    CLIP,
    QUIET,
    Trace,
    in_fit,
    in_lightning,
    lightning_module,
    lightning_trainer,
    loader,
    make_optimizer,
    net,
    recorded,
    samples,
    sgd,
    trace,
)

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from pof.integrations.lightning import PostTraining  # noqa: E402

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]


@pytest.mark.parametrize(
    ("when", "step"),
    [({"every_n_train_steps": 3}, 3), ({"every_n_train_steps": 8}, 8), ({"every_n_epochs": 1}, 4)],
    ids=["within an epoch", "between epochs", "as ModelCheckpoint does by itself"],
)
@pytest.mark.parametrize("make", [pof.PoF, adarand, ema, swa, late_sam])
def test_resume_gives_the_same_weights_to_the_bit(make: Any, when: Any, step: int, tmp_path: Path) -> None:
    """With a shuffled loader and dropout: their random numbers are in the checkpoint too."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(resume: Path | None = None) -> dict[str, Tensor]:
        method = make(net(norm=True, dropout=0.3))
        torch.manual_seed(99 if resume else 5)
        saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **when)
        trainer = lightning_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[saving])
        trainer.fit(lightning_module(method), loader(shuffle=True), ckpt_path=resume)
        assert trainer.global_step == 12
        return {**method.state_dict(), "delivered": torch.cat([p.flatten() for p in method.candidate().parameters()])}

    whole = run()
    resumed = run(tmp_path / f"step={step}.ckpt")
    for name, value in whole.items():
        assert not isinstance(value, Tensor) or torch.equal(value, resumed[name]), name


@pytest.mark.parametrize("step", [2, 3, 4, 8], ids=lambda step: f"step {step}")
@pytest.mark.parametrize("when", [{}, {"val_check_interval": 4}], ids=["each epoch", "within an epoch too"])
def test_validation_draws_nothing_that_training_draws(when: dict[str, Any], step: int, tmp_path: Path) -> None:
    """Lightning's checkpoints come before the validation that a resumed run leaves out; its loader draws a seed."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(resume: Path | None = None, **options: Any) -> Tensor:
        torch.manual_seed(99 if resume else 5)
        module = lightning_module(pof.PoF(net(norm=True, dropout=0.3)))
        type(module).validation_step = lambda self, batch, batch_idx: None
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1)
        trainer = lightning_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[saving], **options)
        trainer.fit(module, loader(shuffle=True), loader(), ckpt_path=resume)
        return torch.cat([parameter.flatten() for parameter in module.method.parameters()])

    whole = run(**when)
    assert torch.equal(whole, run(tmp_path / f"step={step}.ckpt", **when))
    assert torch.equal(whole, run(limit_val_batches=0))


def bi_tuning(model: nn.Module) -> pof.Method:
    return pof.Regularized(model, pof.BiTuning(model, "classifier", keys=4, dimension=3), "classifier")


@pytest.mark.parametrize("make", [pof.PoF, sam, adarand, ema, bi_tuning])
def test_resume_between_the_mini_batches_of_a_step(make: Any, tmp_path: Path) -> None:
    """Validation after 3 of 8 mini-batches, 2 to a step: its checkpoint has half of the gradient of the second step."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(resume: Path | None = None) -> dict[str, Any]:
        torch.manual_seed(99 if resume else 5)
        module = lightning_module(make(net(norm=True, dropout=0.3)))
        type(module).validation_step = lambda self, batch, batch_idx: None
        saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=False)
        trainer = lightning_trainer(
            max_epochs=2, enable_checkpointing=True, callbacks=[saving], val_check_interval=3, gradient_clip_val=CLIP
        )
        trainer.fit(module, loader(shuffle=True), loader(), ckpt_path=resume)
        return module.method.state_dict()

    whole = run()
    for step in (1, 3):  # 3 mini-batches, and 6
        resumed = run(tmp_path / f"step={step}.ckpt")
        for name, value in whole.items():
            assert not isinstance(value, Tensor) or torch.equal(value, resumed[name]), (step, name)


def test_resume_with_other_data_is_refused(tmp_path: Path) -> None:
    module = lightning_module(pof.PoF(net()))
    trainer = lightning_trainer(max_epochs=1)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = DataLoader([{**row, "x": row["x"].flip(0)} for row in samples()], batch_size=8)
    wanted = r"the training data are not those of the interrupted run.*or load its weights alone, without ckpt_path"
    with pytest.raises(ValueError, match=wanted):
        lightning_trainer(max_epochs=2).fit(module, other, ckpt_path=tmp_path / "last.ckpt")
    lightning_trainer(max_epochs=2).fit(module, loader(), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("limit", [{}, {"max_steps": 12}], ids=["epochs", "steps"])
@pytest.mark.parametrize(
    "when",
    [{"every_n_train_steps": 3}, {"every_n_train_steps": 4}, {"every_n_epochs": 1}],
    ids=["step", "last step", "epoch"],
)
def test_resume_of_a_loader_without_length(when: Any, limit: Any, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(resume: Path | None = None) -> tuple[Tensor, int]:
        torch.manual_seed(99 if resume else 5)
        module = lightning_module(pof.PoF(net(dropout=0.3)))
        saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **when)
        trainer = lightning_trainer(**{"max_epochs": 3, **limit}, enable_checkpointing=True, callbacks=[saving])
        trainer.fit(module, DataLoader(Numbers(), batch_size=8), ckpt_path=resume)
        return torch.cat([p.detach().flatten() for p in module.method.parameters()]), trainer.global_step

    whole, steps = run()
    again, found = run(tmp_path / f"step={when.get('every_n_train_steps', 4)}.ckpt")
    assert steps == found == 12 and torch.equal(whole, again)


@pytest.mark.parametrize(
    ("limit", "sized"), [("overfit_batches", True), ("limit_train_batches", True), ("limit_train_batches", False)]
)
def test_an_epoch_that_is_limited_is_all_there_is(limit: str, sized: bool) -> None:
    """The reference of its last mini-batch is its first, not one that is not trained on."""
    method = pof.PoF(net())
    data = loader() if sized else DataLoader(Numbers(), batch_size=8)
    lightning_trainer(**{limit: 3}).fit(lightning_module(method), data)
    other, first = pof.PoF(net()), list(loader())[:3]
    options: Any = {"epochs": 5, "accumulation": ACCUMULATION, "clip_norm": CLIP, "schedule": pof.Schedule("constant")}
    pof.fit(other, first, optimizer=make_optimizer(other), device="cpu", **options)
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(method.model.state_dict()[name], value, rtol=1e-5, atol=2e-6, msg=name)


def test_averages_in_double_precision() -> None:
    """Batch-norm statistics of the average come from mini-batches as the trainer gives them."""
    method = swa(net(norm=True))
    lightning_trainer(max_epochs=2, precision="64-true").fit(lightning_module(method), loader())
    assert {value.dtype for value in method.candidate().state_dict().values()} <= {torch.float64, torch.int64}


def test_method_metrics_and_loss_are_logged() -> None:
    trainer = lightning_trainer(max_epochs=1)
    method = pof.PoF(net())
    with recorded(method) as rows:
        trainer.fit(lightning_module(method), loader())
    logged = trainer.callback_metrics
    assert set(logged) == {"pof/loss", "pof/radius", "pof/separable", "pof/gradient_norm"}
    assert (float(logged["pof/loss"]), float(logged["pof/radius"])) == pytest.approx(rows[-1][:2])


def fitted(make: Any, precision: Any) -> Trace:
    method, rows = make(net()), []
    options: Any = {"epochs": 2, "accumulation": ACCUMULATION, "clip_norm": CLIP, "precision": precision}
    constant = pof.Schedule("constant")
    optimizer = make_optimizer(method)
    pof.fit(method, loader(), optimizer=optimizer, schedule=constant, device="cpu", log=rows.append, **options)
    steps: Any = [row for row in rows if row["event"] == "step"]  # type: ignore[call-overload]
    return Trace([row["loss"] for row in steps], [row["radius"] for row in steps], method.model.state_dict())


def as_in_half_precision(found: Trace, expected: Trace) -> None:
    """Sums in another order are rounded apart by half precision, from the first unequal step (the fourth) on."""
    assert found.losses[:4] == pytest.approx(expected.losses[:4], rel=1e-6)
    assert found.radii[:4] == pytest.approx(expected.radii[:4], rel=1e-6)
    assert found.losses == pytest.approx(expected.losses, rel=0.02)


def test_bf16_is_as_in_fit() -> None:
    as_in_half_precision(in_lightning(pof.PoF, net(), max_epochs=2, precision="bf16-mixed"), fitted(pof.PoF, "bf16"))


def test_grad_scaler_is_as_in_fit() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    as_in_half_precision(in_lightning(pof.PoF, net(), max_epochs=2, plugins=[plugin]), fitted(pof.PoF, "fp16"))


class Existing(pl.LightningModule):  # type: ignore[misc, name-defined]
    """A module as people have them, for plain training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(norm=True)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["logits"]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError("PostTraining's own comes first")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(len(batch["labels"]))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch["x"]), batch["labels"]))

    def configure_optimizers(self) -> Any:
        return sgd(self.parameters())


class Post(PostTraining, Existing):
    def __init__(self) -> None:
        super().__init__()
        self.method = pof.PoF(self.net)


class Plain(Existing):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.method is not None
        return F.cross_entropy(self(batch["x"]), batch["labels"])


class Hooked(Plain):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """As Lightning's own documentation has it, without ``super()``."""


class Judged(Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.method(batch["x"], batch["labels"]).loss)


class Calls(Existing):
    """Knows that there is a method."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.method_loss(batch)


class Helped(Existing):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.helper(batch)

    def helper(self, batch: Any) -> Tensor:
        return self.method_loss(batch)


class Cooperative(Existing):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super(Existing, self).training_step(batch, batch_idx)


class Skips(Existing):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 0 else self.method_loss(batch)


def behind(first: type) -> Any:
    class Behind(first, PostTraining):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.method = pof.Finetune(self.net)  # a hook of the module that comes first fetches no reference

    return Behind()


@pytest.mark.parametrize(("first", "accumulate"), [(Plain, 1), (Plain, 2), (Hooked, 1), (Judged, 1)])
def test_a_training_step_that_does_not_use_the_method_is_refused(first: type, accumulate: int) -> None:
    """By the order of the classes the network would be trained plainly, without a word."""
    module = behind(first)
    before = copy.deepcopy(module.net.state_dict())
    said = r"training_step of Plain does not use .* self\.method_loss.* first, class Behind\(PostTraining, \.\.\.\)"
    with pytest.raises(ValueError, match=said):
        lightning_trainer(accumulate_grad_batches=accumulate).fit(module, datamodule=Data())
    assert all(torch.equal(p, before[name]) for name, p in module.net.named_parameters())
    assert not module.method._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("first", [Calls, Helped, Cooperative, Skips])
def test_a_training_step_that_uses_the_method_may_come_first(first: type) -> None:
    module = behind(first)
    with recorded(module.method) as rows:
        lightning_trainer(max_epochs=1, accumulate_grad_batches=1).fit(module, datamodule=Data())
    assert [row for row in rows if row] and not module.method._forward_pre_hooks


class Later(Post):
    """Takes the method up in its second epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        plain = F.cross_entropy(self(batch["x"]), batch["labels"])
        return plain if self.current_epoch == 0 else self.method_loss(batch)


class Never(Post):
    """Logs more than the step that was there, and calls that."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["x"]), batch["labels"])


def set_on_the_instance() -> Any:
    module = Post()
    module.training_step = lambda batch, batch_idx: F.cross_entropy(module(batch["x"]), batch["labels"])
    return module


def with_a_share() -> Any:
    """Of whose mini-batch SAM's first pass takes a part, by its forward."""
    module = Never()
    module.method = pof.SharpnessAware(module.net, ascent_share=0.5)
    module.configure_optimizers = lambda: module.method.build_optimizer(torch.optim.SGD, lr=0.05)
    return module


def with_options(kind: Any, asks_the_loss: bool = False, **options: Any) -> Any:
    def make() -> Any:
        module = Never()
        module.method = kind(module.net, **(options or {"label_smoothing": 0.3}))
        module.configure_optimizers = lambda: module.method.build_optimizer(torch.optim.SGD, lr=0.05)
        if asks_the_loss:
            module.training_step = lambda batch, batch_idx: module.method.loss(module(batch["x"]), batch["labels"])
        return module

    return make


OPTIONS = [
    with_options(pof.Finetune),
    with_options(pof.SharpnessAware),
    with_options(pof.Finetune, class_weights=torch.tensor([1.0, 2.0, 3.0, 4.0])),
    with_options(pof.PoF, asks_the_loss=True),
    with_options(pof.SharpnessAware, loss=partial(nn.functional.cross_entropy, label_smoothing=0.3)),
]


@pytest.mark.parametrize("make", [Later, Never, set_on_the_instance, with_a_share, *OPTIONS])
def test_a_training_step_beside_the_method_is_warned_of_where_an_epoch_goes_by_without(make: Any) -> None:
    module = make()
    said = "in this epoch the training_step of .* does not use the method.* self.method_loss.*, unless it is to begin"
    with recorded(module.method) as rows, pytest.warns(UserWarning, match=said) as warned:
        lightning_trainer(max_epochs=2, accumulate_grad_batches=1).fit(module, datamodule=Data())
    (one,) = [str(each.message) for each in warned if "does not use" in str(each.message)]
    plain = not isinstance(module.method, pof.PoF) and getattr(module.method, "ascent_share", 1.0) == 1.0
    assert ("or computes the method's loss itself" in one) == plain
    assert bool([row for row in rows if row]) == (make is Later)
    assert not module.method._forward_pre_hooks and "training_step" not in vars(module.trainer.strategy)


class Logs(Post):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.method_loss(batch)
        self.log("mine", loss)
        return loss


def test_a_training_step_beside_the_method_that_uses_it_is_not_warned_of() -> None:
    module = Logs()
    with recorded(module.method) as rows:  # a warning is an error in tests
        lightning_trainer(max_epochs=2, accumulate_grad_batches=1).fit(module, datamodule=Data())
    assert [row for row in rows if row] and not module.method._forward_pre_hooks


@pytest.mark.parametrize("kind", [pof.Finetune, pof.SharpnessAware])
def test_a_step_that_asks_the_users_own_module_that_the_method_has_is_not_warned_of(kind: Any) -> None:
    loss = nn.CrossEntropyLoss(label_smoothing=0.3)
    module = with_options(kind, loss=loss)()
    module.training_step = lambda batch, batch_idx: loss(module(batch["x"]), batch["labels"])
    lightning_trainer(max_epochs=1, accumulate_grad_batches=1).fit(module, datamodule=Data())
    assert module.trainer.global_step and not loss._forward_pre_hooks


@pytest.mark.parametrize("kind", [pof.Finetune, pof.SharpnessAware])
def test_a_step_that_asks_the_loss_of_a_method_has_its_options(kind: Any) -> None:
    module = with_options(kind, asks_the_loss=True)()
    lightning_trainer(max_epochs=1, accumulate_grad_batches=1).fit(module, datamodule=Data())
    assert module.trainer.global_step and not module.method.loss._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("kind", [pof.Finetune, pof.SharpnessAware])
def test_a_scripted_loss_which_takes_no_hooks_trains(kind: Any) -> None:
    module = with_options(kind, loss=torch.jit.script(nn.CrossEntropyLoss(label_smoothing=0.3)))()
    module.training_step = lambda batch, batch_idx: module.method_loss(batch)
    lightning_trainer(max_epochs=1, accumulate_grad_batches=1).fit(module, datamodule=Data())
    assert module.trainer.global_step and not module.method._forward_pre_hooks


class Losing(Method):
    """A method of ones own may have no loss to name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = pof.split(model)

    def forward(self, inputs: Any, targets: Any) -> StepOutput:
        return StepOutput(F.cross_entropy(self.network(inputs)["logits"], targets), {})


def test_a_method_without_a_loss_of_its_name_trains_by_a_step_of_ones_own() -> None:
    module = Never()
    module.method = Losing(module.net)
    module.training_step = lambda batch, batch_idx: module.method_loss(batch)
    module.configure_optimizers = lambda: torch.optim.SGD(module.net.parameters(), lr=0.05)
    lightning_trainer(max_epochs=1, accumulate_grad_batches=1).fit(module, datamodule=Data())
    assert module.trainer.global_step


@pytest.mark.parametrize(
    "make",
    [
        pof.Finetune,
        pof.SharpnessAware,
        lambda model: pof.Averaged(pof.Finetune(model), "ema"),
        lambda model: pof.Finetune(model, loss=nn.CrossEntropyLoss()),
    ],
)
def test_a_plain_training_step_is_that_of_plain_training_of_sam_and_of_averages(make: Any) -> None:
    """SAM is in the optimizer, and an average behind the step: no word where nothing is lost."""
    module = Never()
    module.method = make(module.net)
    module.configure_optimizers = lambda: module.method.build_optimizer(torch.optim.SGD, lr=0.05)
    lightning_trainer(max_epochs=1, accumulate_grad_batches=1).fit(module, datamodule=Data())
    assert module.trainer.global_step


class Data(pl.LightningDataModule):  # type: ignore[misc, name-defined]
    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return loader()


def test_an_existing_module_and_its_data_module_stay_as_they_are() -> None:
    module = Post()
    trainer = lightning_trainer(num_sanity_val_steps=1)
    with recorded(module.method) as rows:
        trainer.fit(module, datamodule=Data())
    training = [row for row in rows if row]
    trace(module.method, training).close_to(in_fit(pof.PoF, net(norm=True)))
    assert module.seen == [8, 8, 8, 8, 8, 8, 8, 4] * 5
    assert "val_loss" in trainer.callback_metrics
    assert "process_dataloader" not in vars(trainer.strategy)


def test_a_training_step_of_ones_own_gets_plain_batches() -> None:
    class Own(PostTraining):
        def __init__(self) -> None:
            super().__init__()
            self.method = pof.PoF(net())

        def training_step(self, batch: Any) -> Any:  # type: ignore[override]
            assert set(batch) == {"x", "labels"}
            return {"loss": self.method_loss(batch), "more": 1}

        def configure_optimizers(self) -> Any:
            return make_optimizer(self.method)

    module = Own()
    with recorded(module.method) as rows:
        lightning_trainer().fit(module, loader())
    trace(module.method, rows).close_to(in_fit(pof.PoF, net()))


def test_sam_accumulates_with_a_training_step_of_one_argument() -> None:
    class Own(PostTraining):
        def __init__(self) -> None:
            super().__init__()
            self.method = sam(net(norm=True))

        def training_step(self, batch: Any) -> Any:  # type: ignore[override]
            return {"loss": self.method_loss(batch)}

        def configure_optimizers(self) -> Any:
            return make_optimizer(self.method)

    module = Own()
    lightning_trainer().fit(module, loader())
    expected = in_fit(sam, net(norm=True)).weights
    for name, value in module.method.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=2e-6)


def test_sam_with_value_clipping_leaves_the_direction_alone() -> None:
    """Clipped by value, the first gradient would point elsewhere."""
    options: Any = {"max_epochs": 1, "accumulate_grad_batches": 1, "gradient_clip_algorithm": "value"}
    method, slow = sam(net()), net()
    module = lightning_module(method)
    lightning_trainer(gradient_clip_val=0.05, **options).fit(module, loader())
    optimizer = pof.SAM(slow.parameters(), sgd_class, rho=0.5)
    for batch in loader():
        with_loss(slow, batch).backward()
        with optimizer.perturbed():
            optimizer.zero_grad()
            with_loss(slow, batch).backward()
        nn.utils.clip_grad_value_(slow.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    for p, q in zip(method.model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def sgd_class(parameters: Any) -> Any:
    return sgd(parameters)


def with_loss(model: Any, batch: Any) -> Tensor:
    loss: Tensor = model(**batch)["loss"]
    return loss


class Numbers(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(samples())


def test_loaders_without_length_and_limits_on_batches() -> None:
    method = pof.PoF(net())
    with recorded(method) as rows:
        lightning_trainer().fit(lightning_module(method), DataLoader(Numbers(), batch_size=8))
    trace(method, rows).close_to(in_fit(pof.PoF, net()))
    short = pof.PoF(net())
    with recorded(short) as rows:
        lightning_trainer(limit_train_batches=3, max_epochs=2).fit(lightning_module(short), loader())
    assert len(rows) == 6


def test_what_cannot_be_right_is_refused() -> None:
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"SAM with precision=.*there is no second pass; use 'bf16-mixed'"):
        lightning_trainer(plugins=[scaler]).fit(lightning_module(sam(net())), loader())
    msam = pof.SharpnessAware(net(), kind="msam")
    with pytest.raises(ValueError, match=r"MSAM with accumulate_grad_batches=2: .* use larger mini-batches"):
        lightning_trainer().fit(lightning_module(msam), loader())
    with pytest.raises(ValueError, match=r"takes one training loader; got a list of them"):
        lightning_trainer().fit(lightning_module(pof.PoF(net())), [loader(), loader()])

    class Empty(PostTraining):
        def configure_optimizers(self) -> Any:
            return sgd(net().parameters())

    with pytest.raises(ValueError, match=r"Empty needs self.method, such as self.method = pof.PoF\(model\)"):
        lightning_trainer().fit(Empty(), loader())

    class Forgetful(PostTraining):
        def __init__(self) -> None:
            super().__init__()
            self.method = pof.PoF(net())

        def setup(self, stage: str) -> None:
            pass

        def configure_optimizers(self) -> Any:
            return make_optimizer(self.method)

    with pytest.raises(ValueError, match=r"setup was overridden without super\(\)"):
        lightning_trainer().fit(Forgetful(), loader())
    module = lightning_module(pof.PoF(net()))
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="needs automatic_optimization=True"):
        lightning_trainer(accumulate_grad_batches=1, gradient_clip_val=None).fit(module, loader())


@pytest.mark.parametrize("make", [pof.PoF, sam])
def test_the_tuner_finds_a_rate_and_leaves_the_fit_as_it_was(make: Any, tmp_path: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    def trained(tuned: bool) -> list[Tensor]:
        module = lightning_module(make(net(norm=True)))
        module.lr = 0.1
        trainer = lightning_trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
        if tuned:
            found = Tuner(trainer).lr_find(module, loader(), num_training=5, update_attr=False)
            assert found is not None
            assert all(map(math.isfinite, found.results["loss"])) and len(found.results["loss"]) > 2
        trainer.fit(module, loader())
        return [p.detach().clone() for p in module.method.model.parameters()]

    for plain, after in zip(trained(False), trained(True), strict=True):
        assert torch.equal(plain, after)


def test_msam_without_accumulation_is_as_in_fit() -> None:
    def msam(model: nn.Module) -> pof.Method:
        return pof.SharpnessAware(model, kind="msam")

    method, other = msam(net()), msam(net())
    lightning_trainer(accumulate_grad_batches=1).fit(lightning_module(method), loader())
    constant, optimizer = pof.Schedule("constant"), make_optimizer(other)
    pof.fit(other, loader(), epochs=5, optimizer=optimizer, schedule=constant, clip_norm=CLIP, device="cpu")
    for p, q in zip(method.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)


def test_references_of_an_epoch_that_was_left_early_are_forgotten() -> None:
    """The loader fetches more than is trained on: what waits then belongs to no mini-batch of the next epoch."""
    data = loader(shuffle=True)
    ahead = AheadLoader(data, True, lambda: 0, lambda: 8)
    for _ in range(2):
        batches, references = [], []
        for number, batch in enumerate(ahead):
            batches.append(batch["x"])
            if number == 3:
                break
            references.append(ahead.take()["x"])
        for following, reference in zip(batches[1:], references, strict=True):
            assert torch.equal(following, reference)


def test_sam_of_ones_own_takes_running_statistics_from_its_first_pass() -> None:
    class Own(PostTraining):
        def __init__(self) -> None:
            super().__init__()
            self.method = pof.Finetune(net(norm=True))

        def configure_optimizers(self) -> Any:
            return pof.SAM(self.method.parameters(), torch.optim.SGD, rho=0.5, lr=0.05)

    module = Own()
    lightning_trainer(max_epochs=1).fit(module, loader())
    assert int(module.method.model.norm.num_batches_tracked) == 8  # type: ignore[union-attr, arg-type]


def test_seeding_of_workers_reaches_the_loader() -> None:
    data = loader()
    ahead = AheadLoader(data, True, lambda: 0, lambda: 8)
    ahead.worker_init_fn = print
    assert data.worker_init_fn is print and ahead.batch_size == 8 and len(ahead) == 8


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_penalty_that_counts_by_class_weights_is_said(accumulation: int, recwarn: pytest.WarningsRecorder) -> None:
    method = pof.Regularized(net(), pof.regularizers.FNP(), class_weights=torch.tensor([0.1, 1.0, 5.0, 20.0]))
    lightning_trainer(accumulate_grad_batches=accumulation, max_epochs=1).fit(lightning_module(method), loader())
    said = [str(one.message) for one in recwarn if "class weights beside a regulariser" in str(one.message)]
    assert len(said) == (accumulation > 1)
