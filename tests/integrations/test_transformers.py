"""PostTrainer: resume, dict batches of images and texts, label smoothing, checkpointing, precision, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset

import pof
from tests.integrations.test_same_steps import adarand, co_tuning, ema, late_sam, sam, swa
from tests.integrations.trainers import (
    CLIP,
    LR,
    QUIET,
    hugging_face_trainer,
    in_fit,
    in_hugging_face,
    loader,
    net,
    recorded,
    samples,
    sgd,
    trace,
)
from tests.networks import TRANSFORMERS

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from pof.integrations.transformers import STATE_FILE, PostTrainer  # noqa: E402

pytestmark = [pytest.mark.filterwarnings(line) for line in QUIET]


def delta(model: Any) -> pof.Method:
    """It copies the network as it was before training."""
    return pof.Regularized(model, pof.DELTA(model, ["body"], strength=5.0), "classifier")


@pytest.mark.parametrize("step", [3, 8], ids=["within an epoch", "between epochs"])
@pytest.mark.parametrize("make", [pof.PoF, adarand, ema, swa, late_sam, delta])
def test_resume_gives_the_same_weights_to_the_bit(make: Any, step: int, tmp_path: Path) -> None:
    def run(resume: str | None = None) -> dict[str, Any]:
        options: Any = {"train_sampling_strategy": "random", "num_train_epochs": 3}
        options |= {"save_strategy": "no" if resume else "steps", "save_steps": step}
        model = net(norm=True, dropout=0.3)
        trainer = hugging_face_trainer(make, model, tmp_path, seed=99 if resume else 7, data_seed=4, **options)
        trainer.train(resume)
        assert trainer.state.global_step == 12
        method = trainer.method
        return {**method.state_dict(), "delivered": torch.cat([p.flatten() for p in method.candidate().parameters()])}

    whole = run()
    resumed = run(str(tmp_path / f"checkpoint-{step}"))
    for name, value in whole.items():
        assert not isinstance(value, Tensor) or torch.equal(value, resumed[name]), name


def test_resume_takes_the_last_checkpoint_and_no_other_method_s(tmp_path: Path) -> None:
    options: Any = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}
    whole = hugging_face_trainer(pof.PoF, net(), tmp_path, **options)
    whole.train()
    again = hugging_face_trainer(pof.PoF, net(), tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(ValueError, match=r"is of another method; they differ in \['_extra_state'\]"):
        hugging_face_trainer(pof.Finetune, net(), tmp_path, **options).train(True)
    (tmp_path / "checkpoint-8" / STATE_FILE).unlink()
    with pytest.raises(ValueError, match=rf"holds no {STATE_FILE}: it was not written by a PostTrainer"):
        hugging_face_trainer(pof.PoF, net(), tmp_path, **options).train(True)


class Collated(PostTrainer):
    """With mini-batches as a tokenizer's collator gives them, which are no dicts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=self.collated, **kwargs)

    @staticmethod
    def collated(items: list[Any]) -> Any:
        return transformers.BatchEncoding({name: torch.stack([item[name] for item in items]) for name in items[0]})


def test_resume_within_an_epoch_takes_the_mini_batches_of_a_tokenizer(tmp_path: Path) -> None:
    options: Any = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2, "kind": Collated}
    whole = hugging_face_trainer(pof.PoF, net(), tmp_path, **options)
    whole.train()
    again = hugging_face_trainer(pof.PoF, net(), tmp_path, **options)
    again.train(str(tmp_path / "checkpoint-3"))
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


class Noisy(Dataset[Any]):
    """Nobody has seeded its draws."""

    def __init__(self, n: int = 60) -> None:
        self.samples = samples(n)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        return {**self.samples[i], "x": torch.from_numpy(np.random.default_rng().normal(size=5)).float()}


def test_a_resume_with_other_data_is_refused(tmp_path: Path) -> None:
    def trained(data: Any, folder: str, resume: Any = None, **options: Any) -> int:
        options |= {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}
        trainer = hugging_face_trainer(pof.PoF, net(), tmp_path / folder, data=data, **options)
        torch.manual_seed(1)
        trainer.train(resume)
        return int(trainer.state.global_step)

    trained(samples(), "plain")
    other = [{**row, "x": row["x"].flip(0)} for row in samples()]
    last = str(tmp_path / "plain" / "checkpoint-4")
    with pytest.raises(ValueError, match=r"checkpoint-4 was written with other training data: give the same, or"):
        trained(other, "plain", last)
    with pytest.raises(ValueError, match=r"data with 60 samples, and now there are 64: give the same"):
        trained(samples(64), "plain", last)
    assert trained(other, "plain", last, ignore_data_skip=True) == 8
    assert trained(samples(), "plain", last) == 8
    trained(Noisy(), "noisy")
    assert trained(Noisy(), "noisy", True) == 8


def test_what_a_regulariser_trains_is_trained(tmp_path: Path) -> None:
    """The Trainer knows the parameters of its model alone: those of the source head stayed where they were."""
    in_hugging_face(co_tuning, net(), tmp_path).close_to(in_fit(co_tuning, net()))
    options: Any = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    own, again = (hugging_face_trainer(co_tuning, net(), tmp_path, **options) for _ in range(2))
    own.train()
    again.train(str(tmp_path / "checkpoint-3"))
    fitted, start = co_tuning(net()), co_tuning(net())
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in fitted.trainable_parameters() if (p.ndim > 1) == decays], "weight_decay": weight}
            for decays, weight in ((True, 1e-3), (False, 0.0))
        ],
        lr=LR,
        momentum=0.9,
    )
    pof.fit(
        fitted,
        loader(),
        epochs=2,
        optimizer=optimizer,
        schedule=pof.Schedule("constant"),
        accumulation=2,
        clip_norm=CLIP,
        device="cpu",
    )
    for name, value in own.method.state_dict().items():
        assert torch.equal(value, again.method.state_dict()[name]), name
        torch.testing.assert_close(value, fitted.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)
    moved = "regularizer.source_head.weight"
    assert not torch.equal(own.method.state_dict()[moved], start.state_dict()[moved])


def test_no_reference_comes_from_the_epoch_before(tmp_path: Path) -> None:
    pairs: list[tuple[Tensor, Tensor]] = []

    class Recorded(pof.PoF):
        def forward(self, inputs: Any, targets: Any, *reference: Any) -> Any:
            pairs.append((inputs["x"], reference[0]["x"]))
            return super().forward(inputs, targets, *reference)

    options: Any = {"train_sampling_strategy": "random", "num_train_epochs": 2}
    hugging_face_trainer(Recorded, net(), tmp_path, **options).train()
    assert len(pairs) == 16
    for epoch in (pairs[:8], pairs[8:]):
        expected = [batch for batch, _ in [*epoch[1:], epoch[0]]]
        assert all(torch.equal(reference, batch) for (_, reference), batch in zip(epoch, expected, strict=True))


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    return next(case for case in TRANSFORMERS if case.family == family).build()


def examples(family: str, n: int = 28, classes: int = 10) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (n,), generator=generator).tolist()
    if family == "ViT":
        images = torch.randn(n, 3, 32, 32, generator=generator)
        return [{"pixel_values": image, "labels": y} for image, y in zip(images, labels, strict=True)]
    tokens = torch.randint(3, 50, (n, 7), generator=generator)
    mask = (torch.arange(7) < torch.randint(3, 8, (n, 1), generator=generator)).long()
    return [{"input_ids": t, "attention_mask": m, "labels": y} for t, m, y in zip(tokens, mask, labels, strict=True)]


FAMILIES = ["ViT", "Bert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_finetuning_with_label_smoothing_is_the_trainers_own(family: str, tmp_path: Path) -> None:
    """28 samples in mini-batches of 4, 2 to a step: the last step of an epoch has one of them."""
    options: Any = {"label_smoothing_factor": 0.2, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    ours, theirs = tiny(family), tiny(family)
    mine = hugging_face_trainer(pof.Finetune, ours, tmp_path, data=examples(family), **options)
    mine.train()
    assert mine.method.loss.label_smoothing == 0.2

    class Plain(transformers.Trainer):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, method: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    other = hugging_face_trainer(pof.Finetune, theirs, tmp_path, data=examples(family), kind=Plain, **options)
    other.train()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    rows = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (mine, other)]
    assert rows[0] == pytest.approx(rows[1], abs=2e-4)
    figures = [trainer.evaluate(examples(family))["eval_loss"] for trainer in (mine, other)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_pof_trains_the_extractor_and_saves_the_plain_model(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    before = copy.deepcopy(model.state_dict())
    trainer = hugging_face_trainer(pof.PoF, model, tmp_path, data=examples(family), num_train_epochs=1)
    trainer.train()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith("classifier") for name in moved)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert all({"radius", "separable", "gradient_norm", "grad_norm"} <= row.keys() for row in rows)
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / STATE_FILE).exists()
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    predicted = trainer.predict(examples(family)).predictions
    batch = {k: torch.stack([torch.as_tensor(e[k]) for e in examples(family)]) for k in examples(family)[0]}
    with torch.no_grad():
        expected = loaded.eval()(**batch).logits
    torch.testing.assert_close(torch.from_numpy(predicted), expected, rtol=1e-4, atol=1e-5)


# PoF's reference pass has no graph, of which the reentrant variant warns.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [pof.PoF, sam])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_weights(family: str, make: Any, reentrant: bool, tmp_path: Path) -> None:
    """Dropout included: the recomputed pass draws its masks again."""
    found = []
    for options in ({}, {"activation_checkpointing": True}):
        if options:
            options["activation_checkpointing_kwargs"] = {"use_reentrant": reentrant}
        model = tiny(family)
        data = examples(family, 12)
        trainer = hugging_face_trainer(make, model, tmp_path, data=data, num_train_epochs=1, **options)
        trainer.train()
        assert model.is_activation_checkpointing == bool(options)
        found.append(model)
    for p, q in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_bf16_is_as_in_fit(tmp_path: Path) -> None:
    method, rows = pof.PoF(net()), []
    constant = pof.Schedule("constant")
    options: Any = {"epochs": 5, "accumulation": 2, "clip_norm": 0.5, "precision": "bf16", "device": "cpu"}
    optimizer = method.build_optimizer(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
    from tests.integrations.trainers import loader

    pof.fit(method, loader(), optimizer=optimizer, schedule=constant, log=rows.append, **options)
    expected = [row["loss"] for row in rows if row["event"] == "step"]  # type: ignore[call-overload]
    found = in_hugging_face(pof.PoF, net(), tmp_path, bf16=True)
    assert found.losses == pytest.approx(expected, rel=1e-5)


def test_sam_wraps_the_trainers_optimizer_and_its_groups(tmp_path: Path) -> None:
    trainer = hugging_face_trainer(sam, net(), tmp_path, num_train_epochs=1)
    trainer.train()
    optimizer = trainer.plain_optimizer()
    assert isinstance(optimizer, pof.SAM) and isinstance(optimizer.base_optimizer, torch.optim.SGD)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0.0]


def test_msam_accumulates_at_the_perturbed_point(tmp_path: Path) -> None:
    def msam(model: Any) -> pof.Method:
        return pof.SharpnessAware(model, kind="msam")

    in_hugging_face(msam, net(norm=True), tmp_path).close_to(in_fit(msam, net(norm=True)))


def test_class_weights_are_not_those_of_the_penalty(tmp_path: Path) -> None:
    def weighted(model: Any) -> pof.Method:
        weights = torch.tensor([0.1, 1.0, 5.0, 20.0])
        return pof.Regularized(model, pof.regularizers.FNP(strength=0.5), class_weights=weights)

    expected = in_fit(weighted, net()).weights
    for name, value in in_hugging_face(weighted, net(), tmp_path).weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=2e-6, msg=name)


def test_a_resume_with_model_init_copies_the_start(tmp_path: Path) -> None:
    options: Any = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    arguments = hugging_face_trainer(delta, net(), tmp_path, **options).args
    weights = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        trainer = PostTrainer(None, arguments, train_dataset=samples(), model_init=lambda: net(), method=delta)
        trainer.train(resume)
        weights.append(trainer.model.body.weight)
    assert torch.equal(*weights)


def test_a_trainer_of_ones_own_model_init_and_a_second_run(tmp_path: Path) -> None:
    class Own(transformers.Trainer):  # type: ignore[misc, name-defined]
        rows = 0

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            self.rows += 1
            super().log(logs, *args, **kwargs)

    class Mine(PostTrainer, Own):
        pass

    trainer = hugging_face_trainer(pof.PoF, net(), tmp_path, kind=Mine, num_train_epochs=1)
    trainer.train()
    first = trainer.method
    trainer.train()
    assert trainer.rows == 10 and trainer.method is first
    arguments = trainer.args
    built = PostTrainer(None, arguments, train_dataset=samples(), model_init=lambda: net(), method=pof.PoF)
    built.train()
    assert built.method.model is built.model
    expected = hugging_face_trainer(pof.PoF, net(), tmp_path, num_train_epochs=1)
    expected.train()
    for p, q in zip(built.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_loss_of_a_trainer_s_own_is_no_loss_of_the_method(tmp_path: Path) -> None:
    """It would be the loss of evaluation, and training would be with another one, in silence."""

    class Own(transformers.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(model, inputs, *args, **kwargs)

    class Mine(PostTrainer, Own):
        pass

    wanted = (
        r"Own.compute_loss would be used in evaluation alone: give the method that loss, as in pof.PoF\(model, loss="
    )
    for make in (pof.PoF, ema):
        with pytest.raises(ValueError, match=wanted):
            hugging_face_trainer(make, net(), tmp_path, kind=Mine).train()

    def twice(model: Any) -> pof.Method:
        return pof.PoF(model, loss=lambda z, y: 2 * F.cross_entropy(z, y))

    hugging_face_trainer(twice, net(), tmp_path, kind=Mine, num_train_epochs=1).train()


def test_a_loader_without_length(tmp_path: Path) -> None:
    class Numbers(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(samples())

    method = pof.PoF(net())
    trainer = hugging_face_trainer(method, method.model, tmp_path, data=Numbers(), max_steps=4)
    trainer.optimizer = sgd(method.trainable_parameters())
    with recorded(method) as rows:
        trainer.train()
    # The Trainer steps after two mini-batches, whether the epoch has ended or not.
    expected = in_fit(pof.PoF, net(), epochs=1)
    assert trace(method, rows).losses[:4] == pytest.approx(expected.losses, rel=1e-5)


def multi_label(n: int = 16) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(5, generator=generator), "labels": torch.randint(2, (4,), generator=generator).float()}
        for _ in range(n)
    ]


def binary(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets)


def test_several_labels_per_sample_need_a_loss_and_then_work(tmp_path: Path) -> None:
    for make in (pof.PoF, pof.Finetune, ema):
        with pytest.raises(
            ValueError, match=r"labels of torch.float32 and shape \(8, 4\): .*use pof.PoF\(model, loss="
        ):
            hugging_face_trainer(make, net(), tmp_path, data=multi_label()).train()
    model = tiny("Bert")
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="problem_type='multi_label_classification': the cross-entropy"):
        hugging_face_trainer(pof.PoF, model, tmp_path).train()
    method = pof.PoF(net(), loss=binary)
    before = copy.deepcopy(method.model.state_dict())
    trainer = hugging_face_trainer(method, method.model, tmp_path, data=multi_label(), num_train_epochs=1)
    with recorded(method) as rows:
        trainer.train()
    assert all(radius > 0 for _, radius, _ in rows)
    assert torch.equal(method.model.state_dict()["classifier.weight"], before["classifier.weight"])
    assert not torch.equal(method.model.state_dict()["body.weight"], before["body.weight"])


def test_one_label_per_token_is_refused_with_the_reason(tmp_path: Path) -> None:
    config = tiny("Bert").config
    model = transformers.BertForTokenClassification(config)
    data = [{**row, "labels": torch.ones(7, dtype=torch.long)} for row in examples("Bert", 8)]
    with pytest.raises(ValueError, match=r"integer targets \(8, 7\) are not one-hot"):
        hugging_face_trainer(pof.PoF, model, tmp_path, data=data).train()


def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    for method in (None, "sam"):
        with pytest.raises(ValueError, match=f"a function of the model such as pof.PoF; got {method!r}"):
            hugging_face_trainer(method, net(), tmp_path)
    with pytest.raises(ValueError, match=r"function must return a pof\.Method; got None"):
        hugging_face_trainer(lambda model: None, net(), tmp_path).train()
    with pytest.raises(ValueError, match=r"got OptimizedModule; compile it in place, method\.compile\(\)$"):
        hugging_face_trainer(lambda m: torch.compile(pof.Finetune(m), backend="eager"), net(), tmp_path).train()
    with pytest.raises(ValueError, match="the method is around another model"):
        hugging_face_trainer(pof.PoF(net()), net(), tmp_path)
    method = pof.PoF(tiny("ViT"), loss=binary)
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1 belongs to the cross-entropy"):
        hugging_face_trainer(method, method.model, tmp_path, label_smoothing_factor=0.1)

    class Losing(PostTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, compute_loss_func=print, **kwargs)

    with pytest.raises(ValueError, match="compute_loss_func would not be used"):
        hugging_face_trainer(pof.PoF, net(), tmp_path, kind=Losing)
    trainer = hugging_face_trainer(sam, net(), tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match=r"SAM with fp16: .*use bf16=True"):
        trainer.train()
    with pytest.raises(ValueError, match=r"there is no optimizer yet"):
        hugging_face_trainer(sam, net(), tmp_path).plain_optimizer()
