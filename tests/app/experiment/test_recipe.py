"""Recipes and plans: what is refused, what overrides what, which stages are one, and how they are shared out."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from pof._support import precision
from pof.app.cli import main, parse
from pof.app.cli._experiment import ExperimentOptions
from pof.app.engine.options import EngineOptions
from pof.app.experiment.plan import GROUPS, Plan, make_plan, shard
from pof.app.experiment.recipe import RecipeError, parse_recipe, read_recipe
from pof.app.methods import METHODS as ALL_METHODS
from pof.app.options import TrainOptions
from pof.training.schedules import Schedule
from pof.weights import save_model

RECIPES = sorted((Path(__file__).resolve().parents[3] / "recipes").glob("*.yaml"))
SOURCE: dict[str, Any] = {
    "name": "small",
    "seeds": 3,
    "data": {"data": "digits", "train_size": 100},
    "model": {"model": "small-cnn"},
    "pretrain": {"epochs": 2, "lr": 0.1},
    "settings": {
        "few": {},
        "more": {"data": {"train_size": 200}, "train": {"schedule": {"warmup_steps": 5}}, "budget": 8},
    },
    "train": {"lr": 1e-2, "batch_size": 50, "schedule": {"kind": "constant"}},
    "budget": 4,
    "methods": {"sgd": {"method": "finetune"}, "pof": {"method": "pof"}, "long": {"method": "sam", "epochs": 7}},
    "control": "sgd",
}


def changed(**parts: Any) -> dict[str, Any]:
    """The recipe with keys set, or taken away by None."""
    source = copy.deepcopy(SOURCE) | parts
    return {key: value for key, value in source.items() if value is not None}


def plan_of(**parts: Any) -> Plan:
    return make_plan(parse_recipe(changed(**parts)))


def test_sections_are_merged_key_by_key() -> None:
    recipe = parse_recipe(SOURCE)
    assert (recipe.name, recipe.seeds, recipe.control) == ("small", (0, 1, 2), "sgd")
    few, more = recipe.settings
    assert (few.data.train_size, more.data.train_size, more.data.data) == (100, 200, "digits")
    assert few.methods["sgd"].schedule == Schedule("constant")
    assert more.methods["sgd"].schedule == Schedule("constant", warmup_steps=5)
    assert few.pretrain is not None and few.pretrain.method == "finetune"
    assert {m.lr for m in few.methods.values()} == {1e-2}


def test_budget_sets_the_epochs_and_a_method_may_have_its_own() -> None:
    few, more = parse_recipe(SOURCE).settings
    assert {name: method.epochs for name, method in few.methods.items()} == {"sgd": 4, "pof": 3, "long": 7}
    assert {name: method.epochs for name, method in more.methods.items()} == {"sgd": 8, "pof": 6, "long": 7}


def test_without_settings_there_is_one_by_the_name_of_the_recipe() -> None:
    assert [setting.name for setting in parse_recipe(changed(settings=None)).settings] == ["small"]


METHODS = SOURCE["methods"]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"trian": {}}, "the recipe has an unknown key 'trian'"),
    ({"data": None}, "the recipe lacks 'data'"),
    ({"name": "a/b"}, "name: it becomes a folder .* got 'a/b'"),
    ({"name": "runs"}, "name: it becomes a folder .* got 'runs'"),
    ({"settings": {"a|b": {}}}, "settings: a name is a text without .* got 'a|b'"),
    ({"methods": {" a": {"method": "pof"}}, "control": None}, "methods: a name is a text without .* got ' a'"),
    ({"methods": {1: {"method": "pof"}}, "control": None}, "methods: a name is a text without .* got 1"),
    ({"seeds": 0}, "seeds: give a number >= 1"),
    ({"seeds": [1, 1]}, "seeds: give a number .* or a list of different numbers"),
    ({"seeds": True}, "seeds: give a number"),
    ({"data": {"data": "digits", "splitseed": 1}}, "data: .*'splitseed' is not accepted"),
    ({"data": {"data": None}}, "data.data is not given: name it in the recipe, or add --set data.data="),
    ({"data": {"data": "digits", "workers": 10**9}}, "data: workers must be at most 1024"),
    ({"data": {"data": "digits", "split_seed": -1}}, "data: split_seed must be a whole number >= 0; got -1"),
    ({"data": {"data": "digits", "train_size": 10**40}}, "data: train_size must be at most"),
    ({"data": {"data": "digits", "fraction": float("inf")}}, "data: .*fraction"),
    ({"model": {"model": "small-cnn", "wieghts": "x"}}, "model: .*'wieghts' is not accepted"),
    ({"pretrain": {"lr": "fast"}}, 'pretrain: .*"lr".*float.*fast'),
    ({"pretrain": {"seed": 1}}, "pretrain.seed: the seeds of an experiment are under"),
    ({"train": {"seed": 1}}, "methods.sgd.seed"),
    ({"train": {"epochs": 3}}, "train.epochs and budget are both given"),
    ({"train": 3}, "train: give keys and values; got 3"),
    ({"settings": {"few": {"methods": {}}}}, "settings.few has an unknown key 'methods'"),
    ({"methods": {}}, "methods: give at least one"),
    ({"methods": METHODS | {"new": {"method": "pof", "pof": {"gama": 1}}}}, "methods.new: .*'pof' .* 'gama'"),
    ({"methods": METHODS | {"new": {"method": "pof", "pof": 3}}}, "methods.new: "),
    ({"methods": METHODS | {"new": {}}}, "methods.new.method is not given"),
    ({"control": "none"}, "control: 'none' is none of the methods sgd, pof, long"),
    ({"budget": 0.5}, "methods.sgd: a budget of 0.5 does not pay one epoch"),
    ({"budget": "4 epochs"}, "budget: give a number"),
    ({"budget": float("inf")}, "budget: give a number .*got inf"),
    ({"name": "a" * 101}, "name: it becomes a folder .* at most 100"),
    ({"settings": {"a" * 101: {}}}, "settings: a name has at most 100 characters; got one of 101"),
    ({"control": ["sgd"]}, "control: .*'sgd'.* is none of the methods"),
    ({"control": {"sgd": 1}}, "control: .* is none of the methods"),
    ({"seeds": 10**30}, "seeds: give a number >= 1"),
    ({"seeds": [2**64]}, "seeds: give a number >= 1"),
    ({"methods": METHODS | {"new": {"method": "sma"}}}, "methods.new: unknown method 'sma': choose one of"),
    ({"methods": METHODS | {"new": {"method": "../up"}}}, "methods.new: unknown method '../up'"),
    ({"methods": METHODS | {"new": {"method": "sam", "lr": -0.1}}}, "methods.new: lr must be a finite number > 0"),
    ({"methods": METHODS | {"new": {"method": "sam", "sam": {"rho": -1}}}}, "methods.new: rho"),
    ({"methods": METHODS | {"new": {"method": "sam", "sam": {"ascent_share": float("inf")}}}}, "methods.new: ascent_s"),
    ({"methods": METHODS | {"new": {"method": "ema", "average": {"kind": "swa"}}}}, "methods.new: .* averages already"),
    ({"methods": METHODS | {"new": {"method": "pof", "epochs": None}}}, "methods.new: .*epochs"),
    ({"methods": METHODS | {"new": {"method": "pof", "epochs": 10**30}}}, "methods.new: epochs must be at most"),
    ({"methods": METHODS | {"new": {"method": "pof", "label_smoothing": 2.0}}}, "methods.new: label_smoothing"),
    ({"methods": METHODS | {"new": {"method": "adarand", "regularizer": {"lr": -1.0}}}}, "methods.new: lr"),
    ({"methods": METHODS | {"new": {"method": "pof", "device": "nope"}}}, "methods.new: .*nope"),
    # What does nothing would stand in the tables under its name.
    (
        {"methods": METHODS | {"sam": {"method": "finetune", "sam": {"rho": "auto"}}}},
        "methods.sam.sam.rho is an option",
    ),
    (
        {"methods": METHODS | {"new": {"method": "late-sam", "sam": {"rho": 0.1}, "pof": {"gamma": 4}}}},
        "methods.new.pof.gamma is an option of pof, and its method is late-sam: leave it out",
    ),
    ({"methods": METHODS | {"new": {"method": "fnp", "regularizer": {"k": 2}}}}, "new.regularizer.k is an .* of bss"),
    ({"methods": METHODS | {"new": {"method": "ema", "average": {"window": 2}}}}, "new.average.window .* of lawa"),
    ({"settings": {"a": {"pretrain": {"sam": {"rho": 1}}}}}, "settings.a.pretrain.sam.rho is an option"),
    ({"pretrain": {"probe": {"l2": 0.1}}}, "pretrain.probe.l2 is an option of lp-ft, and its method is finetune"),
    (
        {"pretrain": {"method": "sam", "sam": {"rho": "auto"}}},
        "pretrain: sam.rho auto is for a network that is trained",
    ),
]


@pytest.mark.parametrize(("parts", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(changed(**parts))


def test_overrides_are_typed_and_reach_names_with_dots(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    source = changed(methods=METHODS | {"pof 0.5": {"method": "pof"}})
    file.write_text(yaml.safe_dump(source, sort_keys=False))
    overrides = ["train.lr=1e-3", "data.mean=[0.5]", "methods.pof 0.5.pof.gamma=0.5", "seeds=[4]", "model.head=fc"]
    recipe = read_recipe(file, overrides)
    few = recipe.settings[0]
    assert few.methods["sgd"].lr == 1e-3
    assert few.methods["pof 0.5"].pof.gamma == 0.5
    assert (few.data.mean, few.model.head, recipe.seeds) == ((0.5,), "fc", (4,))
    for wrong, message in {
        "train.lr=fast": "lr",
        "train.lrr=1": "lrr",
        "lr": "--set takes KEY=VALUE",
        "name.x=1": "'name' is 'small' and has no keys",
    }.items():
        with pytest.raises(RecipeError, match=message):
            read_recipe(file, [wrong])


@pytest.mark.parametrize("text", ["", "- a\n", "a: [1", "name: x\n"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml is|the recipe lacks 'seeds'"):
        read_recipe(file)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_every_method_is_built_on_the_stand_in(name: str) -> None:
    source: dict[str, Any] = {"methods": {"it": {"method": name, "epochs": 1}}, "control": None}
    if name == "co-tuning":
        source |= {"pretrain": None, "model": {"model": "small-cnn", "source_classes": 20}}
    few, _ = parse_recipe(changed(**source)).settings
    assert few.methods["it"].method == name


def test_co_tuning_without_a_source_head_is_refused_before_anything_runs() -> None:
    method: dict[str, Any] = {"methods": {"it": {"method": "co-tuning"}}, "control": None}
    for model in ({"model": "small-cnn"}, {"model": "small-cnn", "source_classes": 20}):  # the pretrained one has none
        with pytest.raises(
            RecipeError, match=r"methods\.it: co-tuning needs the head .* in --source_classes the number of classes"
        ):
            parse_recipe(changed(model=model, **method))


def test_lp_ft_from_scratch_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"pretrain: lp-ft trains a head on features that are trained already"):
        parse_recipe(changed(pretrain={"epochs": 2, "lr": 0.1, "method": "lp-ft"}))


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("name: a\ntrain:\n  lr: 0.1\n  momentum: 0.9\n  lr: 0.2\n")
    with pytest.raises(ValueError, match=r"twice\.yaml, line 3: the key 'lr' is given twice"):
        read_recipe(file)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        "a: &a [1, 2, 3, 4, 5, 6, 7, 8]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    ],
    ids=["in itself", "8 to the 9th"],
)
def test_aliases_that_expand_without_end_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"bomb\.yaml has more than 100000 values"):
        read_recipe(file)


def test_methods_share_their_pre_trained_network() -> None:
    plan = plan_of()
    assert len(plan.trials) == 6
    assert len(plan.stages) == 6 * (1 + 3)
    for cell in plan.trials:
        assert {plan.stages[name].parent for name in cell.methods.values()} == {cell.pretrain}
        seeds = {(plan.stages[name].training.seed, plan.stages[name].data.split_seed) for name in cell.stages}
        assert seeds == {(cell.seed, cell.seed)}
    assert next(iter(plan.stages)) == plan.trials[0].pretrain


def test_the_same_stage_is_there_once_whatever_it_is_called() -> None:
    one = {"few": {}}
    twice = plan_of(settings=one, methods=METHODS | {"again": {"method": "finetune", "epochs": 4}})
    assert twice.stages.keys() == plan_of(settings=one).stages.keys()
    same_start = plan_of(settings={"a": {}, "b": {"train": {"lr": 0.5}}})
    assert len(same_start.stages) == 3 * (1 + 3 + 3)


def test_options_of_other_methods_do_not_matter() -> None:
    """A group of options for a new method must not make every finished run of the others worthless."""
    plain, shared = plan_of(), plan_of(train=SOURCE["train"] | {"pof": {"gamma": 1.0}, "regularizer": {"k": 2}})
    for before, after in zip(plain.trials, shared.trials, strict=True):
        assert before.pretrain == after.pretrain
        assert (before.methods["sgd"], before.methods["long"]) == (after.methods["sgd"], after.methods["long"])
        assert plain.stages[before.methods["sgd"]] == shared.stages[after.methods["sgd"]]
        assert before.methods["pof"] != after.methods["pof"]


def test_a_setting_may_pre_train_by_another_method() -> None:
    first = {"pretrain": SOURCE["pretrain"] | {"method": "sam", "sam": {"rho": 0.1}}}
    plan = plan_of(**first, settings={"a": {}, "plain": {"pretrain": {"method": "finetune"}}})
    assert {trial.pretrain for trial in plan.trials if trial.setting == "plain"} == {
        trial.pretrain for trial in plan_of(settings={"plain": {}}).trials
    }


def test_a_method_may_have_the_options_of_its_own_average() -> None:
    averages = {"sam": {"method": "sam", "average": {"kind": "ema", "decay": 0.9}}, "swa": {"method": "swa"}}
    kinds = plan_of(methods=averages | {"own": {"method": "swa", "average": {"start": 0.5}}}, control=None)
    assert len(kinds.trials[0].methods) == 3


def test_every_group_of_options_has_its_methods() -> None:
    groups = {f.name for f in fields(TrainOptions) if is_dataclass(getattr(TrainOptions("pof"), f.name))}
    assert groups - {"schedule", "average"} == {*GROUPS}
    assert {entry.group for entry in ALL_METHODS.values()} == {*GROUPS, None}


CHANGES: list[dict[str, Any]] = [
    {"data": SOURCE["data"] | {"augment": "none"}},
    {"data": SOURCE["data"] | {"split_seed": 0}},
    {"model": {"model": "resnet20"}},
    {"pretrain": SOURCE["pretrain"] | {"lr": 0.2}},
    {"train": SOURCE["train"] | {"lr": 2e-2}},
    {"budget": 5, "settings": {"few": {}}},
]


@pytest.mark.parametrize("parts", CHANGES)
def test_what_determines_a_stage_is_in_its_name(parts: dict[str, Any]) -> None:
    seed = 1
    before = next(c for c in plan_of().trials if (c.setting, c.seed) == ("few", seed))
    after = next(c for c in plan_of(**parts).trials if (c.setting, c.seed) == ("few", seed))
    assert before.methods["sgd"] != after.methods["sgd"]
    assert (before.pretrain == after.pretrain) == (
        "data" not in parts and "model" not in parts and "pretrain" not in parts
    )


def test_the_precision_that_is_found_is_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the word auto: what was computed in fp32 stays what it was, and other hardware is another stage."""
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    plans = [plan_of(train=SOURCE["train"] | {"precision": name}) for name in ("auto", "fp32", "bf16")]
    assert plan_of().stages.keys() == plans[0].stages.keys() == plans[1].stages.keys() != plans[2].stages.keys()
    assert {stage.training.precision for stage in plans[0].stages.values()} == {"fp32"}
    # As named before the option auto was there.
    assert next(iter(plans[0].stages)) == "pretrain-1f82636a9a8b"
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    assert {stage.training.precision for stage in plan_of().stages.values()} == {"bf16"}


def test_threads_and_the_content_of_weights_are_in_the_name(tmp_path: Path) -> None:
    recipe = parse_recipe(SOURCE)
    assert make_plan(recipe).stages.keys().isdisjoint(make_plan(recipe, threads=2).stages)
    file, copied = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    plans = []
    for path, width in ((file, 2), (copied, 2), (file, 3)):
        model = nn.Linear(width, 2)
        nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
        save_model(model, path)
        weights = {"model": "small-cnn", "weights": str(path)}
        plans.append(plan_of(pretrain=None, model=weights).stages.keys())
    assert plans[0] == plans[1]
    assert plans[0].isdisjoint(plans[2])


def test_there_must_be_a_network_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="setting 'few' has no network to start from: give 'pretrain'"):
        plan_of(pretrain=None)
    with pytest.raises(RecipeError, match=r"no such file: .*absent\.pth"):
        plan_of(pretrain=None, model={"model": "small-cnn", "weights": str(tmp_path / "absent.pth")})
    factory = plan_of(pretrain=None, model={"model": "backbones:some", "source_classes": 10})
    assert {stage.parent for stage in factory.stages.values()} == {None}


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("settings", [SOURCE["settings"], {"a": {}, "b": {"train": {"lr": 0.5}}}])
def test_shards_share_no_stage_and_leave_none_out(count: int, settings: dict[str, Any]) -> None:
    whole = plan_of(settings=settings)
    shards = [shard(whole, index, count) for index in range(count)]
    names = [name for part in shards for name in part.stages]
    assert len(names) == len(set(names))
    assert set(names) == whole.stages.keys()
    assert sum(len(part.trials) for part in shards) == len(whole.trials)
    if settings == SOURCE["settings"]:
        assert [cell for cell in shards[0].trials] == [cell for n, cell in enumerate(whole.trials) if n % count == 0]


def test_a_cell_that_shares_runs_with_two_others_keeps_all_in_one_shard(tmp_path: Path) -> None:
    save_model(nn.Linear(1, 1), tmp_path / "weights.safetensors")
    whole = plan_of(
        pretrain=None,
        seeds=1,
        model={"model": "small-cnn", "weights": str(tmp_path / "weights.safetensors")},
        methods={"own rate": {"method": "finetune", "lr": 1.0}, "own size": {"method": "finetune", "batch_size": 10}},
        control=None,
        settings={
            "a": {"train": {"lr": 0.5, "batch_size": 20}},
            "c": {"train": {"lr": 0.3, "batch_size": 30}},
            "as a and as c": {"train": {"lr": 0.3, "batch_size": 20}},
            "as a": {"train": {"lr": 0.5, "batch_size": 40}},
        },
    )
    assert [len(shard(whole, index, 2).trials) for index in (0, 1)] == [4, 0]


def test_shards_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2/2"):
        shard(plan_of(), 2, 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["r.yaml"], {}),
        (["r.yaml", "--set", "a=1", "b.c=[2]"], {"set": ["a=1", "b.c=[2]"]}),
        (["r.yaml", "--set", "a=1", "--set", "b=2", "--jobs", "2"], {"set": ["a=1", "b=2"], "jobs": 2}),
        (["--dry-run", "--out", "x", "r.yaml"], {"dry_run": True}),
        (["r.yaml", "--dry_run", "false", "--probe=false"], {"probe": False}),
    ],
)
def test_the_short_form_of_the_command(given: list[str], expected: dict[str, Any]) -> None:
    options = parse(["experiment", *given, *([] if "--out" in given else ["--out", "x"])]).options
    assert options == [ExperimentOptions("r.yaml", "x", **expected), EngineOptions()]


PUBLIC = ("cifar10-public-resnet20", "cifar10-public-resnet20-full")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_of_the_repository_can_be_planned(file: Path, tmp_path: Path) -> None:
    save_model(nn.Linear(1, 1), tmp_path / "weights.safetensors")
    weights = [f"model.weights={tmp_path}/weights.safetensors"]
    folder = {name: ["data.data=folder"] for name in ("dtd", "birds", "birds-strengths", "birds-post")}
    needed = folder | dict.fromkeys(PUBLIC, weights)
    plan = make_plan(read_recipe(file, needed.get(file.stem, [])))
    assert plan.recipe.name == file.stem
    # The first chooses and claims nothing; the other is one network, for minutes of a GPU.
    assert len(plan.recipe.seeds) >= (1 if file.stem in {"birds-strengths", "wrn-28-10-short"} else 3)
    other = {"ascent-share": "sam", "extractor-only": "sam", "defaults": "pof"}
    other |= {"improve-digits": "sgd 0.5", "improve-fashion-mnist": "sgd 0.1"}
    other |= {"improve-cifar10": "sgd 0.1", "improve-not-fitted": "sgd 0.05", "improve-not-fitted-digits": "sgd 0.1"}
    other |= {"wrn-28-10-short": "finetune 1.6e-4", "sgd-rates": "sgd 0.1"}
    assert plan.recipe.control == other.get(file.stem, "finetune")
    assert len({stage.name for stage in plan.stages.values()}) == len(plan.stages)


def test_options_that_came_later_are_in_the_name_where_they_are_used() -> None:
    def name(**sam: Any) -> str:
        methods = {"sgd": {"method": "finetune"}, "sam": {"method": "sam", "sam": {"rho": "auto"} | sam}}
        return next(name for name in plan_of(methods=methods).stages if name.startswith("sam-"))

    assert name() == name(level=0.15) == name(level_kind="level")
    assert len({name(), name(level=0.2), name(level_kind="rise"), name(every=2), name(rho="budget")}) == 5
    stages = plan_of(methods={"sgd": {"method": "finetune"}, "swa": {"method": "swa"}}, train={"lr": 1e-2}).stages
    assert {s.training.schedule.kind for s in stages.values() if s.training.method == "swa"} == {"constant"}
    assert {s.training.schedule.kind for s in stages.values() if s.training.method == "finetune"} == {"cosine"}


def test_a_recipe_that_starts_from_a_run_splits_the_data_as_that_run_did(tmp_path: Path) -> None:
    options = ["--data", "digits", "--train_size", "60", "--split_seed", "5", "--model", "small-cnn"]
    assert (
        main(
            [
                "train",
                *options,
                "--epochs",
                "1",
                "--batch_size",
                "20",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "base"),
            ]
        )
        == 0
    )
    parts: dict[str, Any] = {"pretrain": None, "settings": None}
    plan = plan_of(**parts, model={"model": "small-cnn", "weights": str(tmp_path / "base")})
    assert {stage.data.split_seed for stage in plan.stages.values()} == {5}
    assert len(plan.trials) == 3
    # Its weights in another place say nothing of their data: the documented split by seed.
    (tmp_path / "elsewhere.safetensors").write_bytes((tmp_path / "base" / "model.safetensors").read_bytes())
    plan = plan_of(**parts, model={"model": "small-cnn", "weights": str(tmp_path / "elsewhere.safetensors")})
    assert {stage.data.split_seed for stage in plan.stages.values()} == {0, 1, 2}
    # And what the run does not allow is refused before anything runs.
    for section in ({"split_seed": 1}, {"validation": 0.3}):
        data = {"data": "digits", "train_size": 100, **section}
        with pytest.raises(ValueError, match="has seen samples that would be held out now"):
            plan_of(**parts, data=data, model={"model": "small-cnn", "weights": str(tmp_path / "base")})
