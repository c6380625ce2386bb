"""Which tensor of an output a loss takes, and as what: one number for each class, or for each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import pof
from pof.flatness import sam_sharpness
from pof.methods import Finetune
from pof.training.evaluation import evaluate


def test_a_network_that_ends_in_a_convolution_gives_one_prediction_per_sample() -> None:
    """(N, C, 1, 1), as training takes it too."""
    inputs, targets = torch.randn(20, 4, 3, 3), torch.randint(3, (20,))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1))
    found = evaluate(model, [(inputs, targets)])
    assert found == evaluate(nn.Sequential(model, nn.Flatten()), [(inputs, targets)])
    with pytest.raises(ValueError, match="several predictions for each sample"):
        evaluate(model[1], [(inputs, targets)])


class Pixels(nn.Module):
    """A convolution at the end, and what it reads beside its logits."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.pool, self.head, self.named = nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 3, 1), named

    def forward(self, x: Tensor) -> Any:
        found = self.pool(x)
        features = found.flatten(1) if self.named else found
        return {"features": features, "out": self.head(found)} if self.named else (self.head(found), features)


@pytest.mark.parametrize("named", [False, True])
def test_logits_of_a_convolution_are_found_beside_features(named: bool) -> None:
    inputs, targets, model = torch.randn(20, 6, 3, 3), torch.randint(3, (20,)), Pixels(named)
    found = evaluate(model, [(inputs, targets)])
    assert found == evaluate(nn.Sequential(model.pool, model.head), [(inputs, targets)]) and found.num_classes == 3
    assert Finetune(model)(inputs, targets).loss.item() == pytest.approx(found.nll)


class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.end = nn.GRU(2, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x)[0])


def test_a_number_for_each_step_of_a_sequence_reaches_the_loss_as_it_is() -> None:
    """(N, T, 1), which is no map of a convolution."""
    torch.manual_seed(0)
    model, inputs = Forecast(), torch.randn(16, 5, 2)
    targets = inputs.cumsum(1).sum(-1, keepdim=True)
    expected = F.mse_loss(model(inputs), targets).item()
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    for loss in ("mse", nn.MSELoss()):
        assert evaluate(model, batches, loss=loss).loss == pytest.approx(expected, rel=1e-6)
    assert sam_sharpness(model, nn.MSELoss(), batches).loss == pytest.approx(expected, rel=1e-6)


LOSSES: dict[str, tuple[Any, int, Callable[[Tensor], Tensor]]] = {
    "own": (lambda z, t: (z - t).square().mean(), 1, lambda t: t),
    "own, of numbers": (lambda z, t: (z[:, 0] - t).square().mean(), 1, lambda t: t[:, 0]),
    "mse": ("mse", 1, lambda t: t),
    "bce": ("bce", 1, lambda t: (t > 0).float()),
    "cross-entropy": (lambda z, t: F.cross_entropy(z, t), 3, lambda t: (t[:, 0] > 0).long()),
}


@pytest.mark.parametrize(("loss", "width", "form"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_training_and_validation_take_the_same_outputs_of_a_convolution(
    loss: Any, width: int, form: Callable[[Tensor], Tensor], axes: int
) -> None:
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[axes](1)
    end = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes](4, width, 1)
    inputs, targets = torch.randn(12, 4, *[3] * axes), form(torch.randn(12, 1))
    model = nn.Sequential(pool, end)
    flat = nn.Sequential(model, nn.Flatten())
    expected = evaluate(flat, [(inputs, targets)], loss=loss)
    for head in (None, "1"):
        assert evaluate(model, [(inputs, targets)], loss=loss, head=head) == expected
    assert Finetune(model, loss=loss, head="1")(inputs, targets).loss.item() == pytest.approx(expected.loss)
    if callable(loss):
        assert sam_sharpness(model, loss, [(inputs, targets)]).loss == pytest.approx(expected.loss)


def weight_normed(width: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool1d(1), weight_norm(nn.Conv1d(4, width, 1)))


def normed_before_it_is_pooled(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, width, 3), nn.BatchNorm1d(width), nn.AdaptiveAvgPool1d(1))


def unflattened(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.Unflatten(1, (width, 1)))


class HeadFirst(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head, self.body = nn.Conv1d(6, width, 1), nn.Conv1d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(2, keepdim=True))


class Variables(nn.Module):
    """K steps of one variable: the head is applied to each variable, not to each step."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(9, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.transpose(1, 2)).relu()).transpose(1, 2)


def test_steps_of_one_variable_reach_the_loss_as_they_are() -> None:
    torch.manual_seed(0)
    model, x = Variables(), torch.randn(20, 9, 1)
    for targets in (torch.randn(20), torch.randn(20, 5)):

        def loss(z: Tensor, t: Tensor) -> Tensor:
            return ((z[..., 0].sum(-1) if t.ndim == 1 else z[..., 0]) - t).square().mean()

        expected = loss(model(x), targets).item()
        assert evaluate(model, [(x, targets)], loss=loss).loss == pytest.approx(expected)


class Adapter(nn.Module):
    """A layer that says nothing of its size, as an adapter around one."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


class Heads(nn.ModuleList):
    """A head for each of three numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self], dim=1)


@pytest.mark.parametrize(
    "head",
    [
        lambda: Adapter(nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)),
        Heads,
    ],
)
def test_numbers_in_columns_are_read_as_training_reads_them(head: Callable[[], nn.Module]) -> None:
    """(N, 3, 1) of heads that do not say how many numbers they give."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), head(), nn.Unflatten(1, (3, 1)))
    x, targets = torch.randn(20, 6), torch.randn(20, 3)
    expected = (model(x)[..., 0] - targets).square().mean().item()
    assert evaluate(model, [(x, targets)], loss=nn.MSELoss(), head="2").loss == pytest.approx(expected)
    assert evaluate(model, [(x, targets)], loss=nn.MSELoss()).loss == pytest.approx(expected)
    labels, own = torch.randint(3, (20,)), lambda z, t: F.cross_entropy(z, t)
    of_labels = F.cross_entropy(model(x)[..., 0], labels).item()
    assert evaluate(model, [(x, labels)], loss=own, metric="loss").loss == pytest.approx(of_labels)
    beside = {"y": targets, "map": torch.randn(20, 2, 3, 3)}
    found = evaluate(model, [(x, beside)], loss=lambda z, t: (z - t["y"]).square().mean(), head="2")
    assert found.loss == pytest.approx(expected)


class Domains(nn.Module):
    """Three numbers in columns, and a head of another task."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.domain, self.numbers = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.numbers(self.body(x).relu()).unsqueeze(-1)


def test_targets_tell_where_two_layers_could_be_the_head() -> None:
    torch.manual_seed(0)
    model, x, targets = Domains(), torch.randn(20, 6), torch.randn(20, 3)
    expected = (model(x)[..., 0] - targets).square().mean().item()
    assert evaluate(model, [(x, targets)], loss=nn.MSELoss()).loss == pytest.approx(expected)


class Filtered(nn.Module):
    """A number for each of as many steps as a convolution before it has channels."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.body, self.end = (
            nn.Conv1d(2, 8, 3, padding=1),
            nn.GRU(8, 6, batch_first=True),
            nn.Linear(6, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(self.filter(x.transpose(1, 2)).transpose(1, 2))[0])


def test_as_many_steps_as_channels_reach_the_loss_as_they_are() -> None:
    torch.manual_seed(0)
    model, x, targets = Filtered(), torch.randn(8, 8, 2), torch.randn(8, 8)
    expected = (model(x)[..., 0] - targets).square().mean().item()
    own: Callable[[Tensor, Tensor], Tensor] = lambda z, t: (z[..., 0] - t).square().mean()  # noqa: E731
    assert evaluate(model, [(x, targets)], loss=own).loss == pytest.approx(expected)


class Gated(HeadFirst):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gate = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.body(x)
        shares = self.gate(positions.transpose(1, 2)).softmax(1).transpose(1, 2)
        return self.head((shares * positions).sum(2, keepdim=True))


@pytest.mark.parametrize("make", [weight_normed, normed_before_it_is_pooled, unflattened, HeadFirst])
def test_a_class_each_is_one_prediction_whatever_layers_give_it(make: Callable[[int], nn.Module]) -> None:
    """(N, C, 1): for the cross-entropy always, for other losses as training takes it, or as the targets say."""
    torch.manual_seed(0)
    inputs, classes, numbers = torch.randn(20, 4, 9), torch.randint(3, (20,)), torch.randn(20, 3)
    model = make(3)
    flat = nn.Sequential(model, nn.Flatten())
    assert evaluate(model, [(inputs, classes)]) == evaluate(flat, [(inputs, classes)])
    of_flat = sam_sharpness(flat, F.cross_entropy, [(inputs, classes)])
    assert sam_sharpness(model, F.cross_entropy, [(inputs, classes)]) == of_flat
    for loss in ("mse", nn.MSELoss()):
        found = evaluate(model, [(inputs, numbers)], loss=loss).loss
        assert found == evaluate(flat, [(inputs, numbers)], loss=loss).loss


def test_a_gate_before_a_convolution_is_no_head_with_one_output() -> None:
    model, x, labels = Gated(3), torch.randn(20, 4, 9), torch.randint(3, (20,))
    assert evaluate(model, [(x, labels)]) == evaluate(nn.Sequential(model, nn.Flatten()), [(x, labels)])


class Temperature(nn.Module):
    """Behind a head, so that training on that head is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(2.0))

    def forward(self, logits: Tensor) -> Tensor:
        return logits / self.value


def test_classes_behind_what_training_refuses_can_be_evaluated() -> None:
    inputs, classes = torch.randn(20, 9), torch.randint(3, (20,))
    flat = nn.Sequential(nn.Linear(9, 3), Temperature())
    model, expected = nn.Sequential(flat, nn.Unflatten(1, (3, 1))), evaluate(flat, [(inputs, classes)])
    for head in (None, "0.0"):
        assert evaluate(model, [(inputs, classes)], head=head) == expected


@pytest.mark.parametrize("loss", ["mse", nn.MSELoss()])
def test_validation_takes_what_training_takes_of_a_head_that_holds_a_convolution(loss: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Sequential(nn.Dropout(0.0), nn.Conv1d(4, 1, 1)))
    batches, rows = [(torch.randn(20, 4, 9), torch.randn(20, 1))], []
    method = Finetune(model, head="1", loss=loss)
    resting = torch.optim.SGD(method.trainable_parameters(), lr=0.0)
    pof.fit(method, batches, val_loader=batches, epochs=1, optimizer=resting, device="cpu", log=rows.append)
    (found,) = [row["val_loss"] for row in rows if "val_loss" in row and row.get("epoch") == 1]
    expected = (model(batches[0][0]).flatten(1) - batches[0][1]).square().mean()
    assert found == pytest.approx(expected.item())


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_convolution_over_a_sequence_reaches_the_loss_as_it_is() -> None:
    torch.manual_seed(0)

    class Steps(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    model, inputs, targets = Steps(2, 1, 1), torch.randn(16, 5, 2), torch.randn(16, 5, 1)
    expected = (model(inputs) - targets).square().mean().item()
    for loss in ("mse", nn.MSELoss(), lambda z, t: (z[..., 0] - t[..., 0]).square().mean()):
        assert evaluate(model, [(inputs, targets)], loss=loss).loss == pytest.approx(expected)
    assert sam_sharpness(model, nn.MSELoss(), [(inputs, targets)]).loss == pytest.approx(expected)
    # Without the last axis they fit as well, and would be broadcast by a loss that does not know of it.
    assert evaluate(Forecast(), [(inputs, targets[..., 0])], loss="mse").n == 16
    with pytest.raises(ValueError, match=r"broadcasts targets \(16, 1\) against outputs \(16, 1, 1\)"):
        evaluate(Forecast(), [(inputs[:, :1], targets[:, 0])], loss=nn.MSELoss())


class Beside(nn.Module):
    """Logits of a weight that is no layer's, and what was pooled for them; of a convolution, and its features."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.head, self.kind = (nn.Conv3d if kind == "3d" else nn.Conv1d)(6, 3, 1), kind

    def forward(self, x: Tensor) -> Any:
        features = x.mean((2, 3), keepdim=True)
        if self.kind in {"1d", "3d"}:
            return self.head(features[..., None] if self.kind == "3d" else features[..., 0]), features.flatten(1)
        return F.linear(features.flatten(1), self.head.weight[..., 0], self.head.bias), features


def test_logits_of_no_layer_are_found_beside_pooled_maps_with_a_word() -> None:
    model, batches = Beside("no layer"), [(torch.randn(20, 6, 3, 3), torch.randint(3, (20,)))]
    with pytest.warns(UserWarning, match=r"\(20, 3\) at 0, \(20, 6\) at 1, .* does not tell .*those at 0 are taken"):
        found = evaluate(model, batches)
    expected = F.cross_entropy(model(batches[0][0])[0], batches[0][1])
    assert found.nll == pytest.approx(expected.item()) and found.num_classes == 3
    with pytest.raises(ValueError, match="the head 'head' ran 0 times"):
        evaluate(model, batches, head="head")


@pytest.mark.parametrize("kind", ["1d", "3d"])
def test_features_are_not_taken_for_the_logits_of_a_convolution(kind: str) -> None:
    model, batches = Beside(kind), [(torch.randn(20, 6, 3, 3), torch.randint(3, (20,)))]
    with pytest.raises(ValueError, match=r"does not tell which are the logits: .*name its head"):
        evaluate(model, batches)
    expected = F.cross_entropy(model(batches[0][0])[0].flatten(1), batches[0][1])
    found = evaluate(model, batches, head="head")
    assert found.nll == pytest.approx(expected.item()) and found.num_classes == 3


class States(Forecast):
    """With a state for each sample, so that a part of a mini-batch does not fit."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.end(self.body(x, state)[0])


class Horizon(nn.Module):
    """T numbers of each sample, each in a column of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.end = nn.Linear(10, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x.flatten(1)).relu()).unsqueeze(-1)


class Recurrent(nn.Module):
    """Ends in no layer that could be a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Linear(2, 8), nn.GRU(8, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.embedding(x))[0]


class Convolved(nn.Module):
    """Ends in a convolution along the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.end = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x.transpose(1, 2)).relu()).transpose(1, 2)


def test_steps_and_horizons_reach_the_loss_as_they_are() -> None:
    torch.manual_seed(0)
    x, targets = torch.randn(20, 5, 2), torch.randn(20, 5, 1)
    for model, inputs in ((Horizon(), x), (States(), (x, torch.zeros(1, 20, 8))), (Recurrent(), x), (Convolved(), x)):
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        expected = (model(*given) - targets).square().mean().item()
        for loss in ("mse", nn.MSELoss()):
            assert evaluate(model, [(inputs, targets)], loss=loss).loss == pytest.approx(expected)
        assert sam_sharpness(model, nn.MSELoss(), [(inputs, targets)]).loss == pytest.approx(expected)


@pytest.mark.parametrize("model", [Forecast, Recurrent, Convolved])
@pytest.mark.parametrize("steps", [7, 8])
def test_a_loss_of_ones_own_of_some_steps_gets_all_axes(model: Callable[[], nn.Module], steps: int) -> None:
    """As many steps as an inner convolution has channels too, where the targets are numbers."""
    torch.manual_seed(0)
    x, numbers, network = torch.randn(20, steps, 2), torch.randn(20), model()
    last, columns = network(x)[:, -1, 0], numbers[:, None]
    expected = F.mse_loss(last, numbers).item()
    summed: Callable[[Tensor, Tensor], Tensor] = lambda z, t: (z[:, -1].sum(-1) - t).square().mean()  # noqa: E731
    assert evaluate(network, [(x, numbers)], loss=summed).loss == pytest.approx(expected)
    assert evaluate(network, [(x, columns)], loss=lambda z, t: F.mse_loss(z[:, -1], t)).loss == pytest.approx(expected)


@pytest.mark.parametrize("model", [Forecast, Recurrent, Convolved])
def test_a_loss_of_ones_own_of_labels_gets_all_axes(model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    x, labels, network = torch.randn(20, 7, 2), torch.randint(2, (20,)), model()

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z[:, -1, 0], t.float())

    expected = loss(network(x), labels).item()
    assert evaluate(network, [(x, labels)], loss=loss).loss == pytest.approx(expected)


def test_a_number_in_a_column_is_read_as_training_reads_it_and_a_step_is_left() -> None:
    """(N, 1, 1) of a layer with one output."""
    torch.manual_seed(0)
    x, targets, loss = torch.randn(20, 1, 2), torch.randn(20, 1), nn.MSELoss()
    column = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.Unflatten(1, (1, 1)))
    expected = Finetune(column, loss=loss)(x, targets).loss.item()
    assert evaluate(column, [(x, targets)], loss=loss).loss == pytest.approx(expected)
    step, state = States(), torch.zeros(1, 20, 8)
    expected = (step(x, state) - targets[..., None]).square().mean().item()
    own: Callable[[Tensor, Tensor], Tensor] = lambda z, t: (z - t[..., None]).square().mean()  # noqa: E731
    assert evaluate(step, [((x, state), targets)], loss=own).loss == pytest.approx(expected)


def test_a_logit_for_each_step_is_no_class() -> None:
    model = Forecast()
    nn.init.constant_(model.end.bias, 2.0)  # nothing that could be a probability
    with pytest.raises(ValueError, match=r"gives \(20, 7, 1\), several predictions for each sample"):
        evaluate(model, [(torch.randn(20, 7, 2), torch.randint(2, (20,)))])


class Scored(nn.Module):
    """Class scores of positions, pooled; an embedding beside them, perhaps of a layer of its own."""

    def __init__(self, *, projected: bool) -> None:
        super().__init__()
        self.body, self.score = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)
        self.projection = nn.Conv2d(8, 16, 1) if projected else nn.Identity()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x).relu()
        scores = F.adaptive_avg_pool2d(self.score(maps), 1)
        return {"scores": scores, "embedding": self.projection(maps).mean((2, 3))}


def test_an_embedding_is_not_taken_for_pooled_scores() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3, 8, 8)
    model = Scored(projected=False)
    own = model(x)["scores"].flatten(1).argmax(1)
    with pytest.raises(ValueError, match=r"the head 'score' got features .* map positions"):
        evaluate(model, [(x, own)])
    with pytest.raises(ValueError, match=r"\(40, 5\) at 'scores', \(40, 16\) at 'embedding', .*does not tell"):
        evaluate(Scored(projected=True), [(x, own)])


class Attention(nn.Module):
    """Multiple-instance learning: logits, and the weight of each instance, (N, T, 1)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.weights, self.kind = nn.Linear(6, 8), nn.Linear(8, 1), kind
        self.bag = nn.Linear(8, 3) if kind == "layer" else nn.Identity()
        self.prototypes = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        weights = self.weights(features).softmax(1)
        mean = (weights * features).sum(1)
        return self.bag(mean) if self.kind == "layer" else -torch.cdist(mean, self.prototypes), weights


def test_logits_are_told_from_weights_of_instances_by_their_layer() -> None:
    torch.manual_seed(0)
    model, x, labels = Attention("layer"), torch.randn(20, 7, 6), torch.randint(3, (20,))
    expected = F.cross_entropy(model(x)[0], labels).item()
    with pytest.warns(UserWarning, match=r"\(20, 3\) at 0, \(20, 7\) at 1, .*those at 0 are taken"):
        assert evaluate(model, [(x, labels)]).nll == pytest.approx(expected)
    # Without one they could be attention beside a number for each step.
    with pytest.raises(ValueError, match="the head 'weights' got features"):
        evaluate(Attention("prototypes"), [(x, labels)])


class Embedded(nn.Module):
    """Cosines to class vectors that are no layer's, and a normalised embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.projection = nn.Linear(6, 8), nn.Linear(8, 5)
        self.classes = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = F.normalize(self.projection(self.body(x).relu()))
        return 8 * embedding @ F.normalize(self.classes, dim=0), embedding


class Projected(nn.Module):
    """Logits of a convolution, and a normalised projection of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.projection = nn.Linear(4, 6), nn.Conv1d(6, 3, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        return self.head(features[..., None]), F.normalize(self.projection(features))


@pytest.mark.parametrize(("network", "inputs", "classes"), [(Embedded, 6, 4), (Projected, 4, 3)])
def test_of_two_tensors_none_is_taken_that_the_head_did_not_give(
    network: type[nn.Module], inputs: int, classes: int
) -> None:
    with pytest.raises(ValueError, match=rf"\(8, {classes}\) at 0, \(8, 5\) at 1, none of which is the same"):
        evaluate(network(), [(torch.randn(20, inputs), torch.randint(classes, (20,)))])


class Pooled(nn.Module):
    """Logits behind a temperature, and the map that was pooled for them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.scale = nn.Conv3d(2, 8, 1), nn.Linear(8, 4), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.body(x).relu().mean((2, 3, 4), keepdim=True)
        return self.head(pooled.flatten(1)) * self.scale, pooled


def test_logits_as_wide_as_the_head_are_taken_beside_a_pooled_map() -> None:
    torch.manual_seed(0)
    model, x, labels = Pooled(), torch.randn(20, 2, 3, 3, 3), torch.randint(4, (20,))
    with pytest.warns(UserWarning, match="those at 0 are taken"):
        assert evaluate(model, [(x, labels)]).nll == pytest.approx(F.cross_entropy(model(x)[0], labels).item())


class Latent(nn.Module):
    """Two numbers, and four others as a column, (N, 4, 1), of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.latent = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).relu()
        return self.mean(features), self.latent(features).unsqueeze(2)


def test_columns_of_a_linear_layer_are_not_taken_for_outputs() -> None:
    torch.manual_seed(0)
    model, x, targets = Latent(), torch.randn(20, 6), torch.randn(20, 2)
    with pytest.warns(UserWarning, match="those at 0 are taken"):
        found = evaluate(model, [(x, targets)], loss="mse")
    assert found.loss == pytest.approx((model(x)[0] - targets).square().mean().item())
