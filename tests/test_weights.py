from __future__ import annotations

import errno
import os
import pickle
import resource
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from torch import nn

import pof
from pof import weights
from pof.weights import WeightsError, load_model, load_weights, read_weights, save_model

PUBLIC = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "weights" / "resnet20-12fca82f.th"


def network(classes: int = 3) -> nn.Sequential:
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4), fc=nn.Linear(4, classes)))
    model.conv.weight.data = model.conv.weight.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.arange(value.numel()).reshape(value.shape) + 1)
    return model


def blank(classes: int = 3) -> nn.Sequential:
    model = network(classes)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    return model


def assert_same(model: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)


def test_save_and_load_gives_the_same_bits_in_the_same_storage(tmp_path):
    model, other = network(), blank()
    storage = {name: value.data_ptr() for name, value in other.state_dict().items()}
    save_model(model, tmp_path / "m.safetensors", metadata={"epoch": "3"})
    assert load_model(other, tmp_path / "m.safetensors") == {"epoch": "3"}
    assert_same(model, other)
    assert {name: value.data_ptr() for name, value in other.state_dict().items()} == storage
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_the_archive_of_the_imagenet_example_and_class_weights_beside_the_network(tmp_path):
    model, other = network(), blank()
    inside = {f"model.{name}": value for name, value in model.state_dict().items()} | {
        "criterion.weight": torch.ones(3)
    }
    torch.save({"epoch": 3, "state_dict": inside}, tmp_path / "best.pth.tar")
    load_weights(other, tmp_path / "best.pth.tar")
    assert_same(model, other)
    (tmp_path / "real.tar").write_bytes(bytes(10240))
    with pytest.raises(WeightsError, match=r"damaged, or not a file of torch\.save"):
        load_weights(other, tmp_path / "real.tar")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("view", self.first.bias.data[:2])


def test_tied_tensors_are_saved_and_loaded(tmp_path):
    model, other = Tied(), Tied()
    save_model(model, tmp_path / "tied.safetensors")
    load_model(other, tmp_path / "tied.safetensors")
    assert_same(model, other)
    assert other.second.weight is other.first.weight
    state = model.state_dict()
    del state["second.weight"]
    torch.save(state, tmp_path / "once.pt")
    load_weights(fresh := Tied(), tmp_path / "once.pt")
    assert_same(model, fresh)


WRAPPED = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "net": lambda state: {"net": state, "acc": 91.0},
    "state_dict_ema": lambda state: {"state_dict_ema": state},
    "model.state_dict": lambda state: {"model": {"state_dict": state}},
    "weights before their average": lambda state: {
        "state_dict_ema": {k: v * 0 for k, v in state.items()},
        "state_dict": state,
    },
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt"])
@pytest.mark.parametrize("nesting", WRAPPED)
def test_nested_checkpoints(tmp_path, nesting, suffix):
    model, other = network(), blank()
    torch.save(WRAPPED[nesting](model.state_dict()), tmp_path / f"c{suffix}")
    load_weights(other, tmp_path / f"c{suffix}")
    assert_same(model, other)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_prefixes_of_wrappers(tmp_path, prefix):
    model, other = network(), blank()
    torch.save({f"{prefix}{k}": v for k, v in model.state_dict().items()}, tmp_path / "c.pt")
    load_weights(other, tmp_path / "c.pt")
    assert_same(model, other)


def test_prefixes_that_the_model_has_itself_stay(tmp_path):
    model, other = nn.ModuleDict({"model": network(), "module": network()}), nn.ModuleDict()
    other["model"], other["module"] = blank(), blank()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    load_weights(other, tmp_path / "c.pt")
    assert_same(model, other)
    wrapped = nn.ModuleDict({"model": blank()})
    torch.save(network().state_dict(), tmp_path / "bare.pt")
    load_weights(wrapped, tmp_path / "bare.pt")
    assert_same(wrapped["model"], network())


@pytest.mark.parametrize("prefix", ["net.", "student.backbone.", "net._orig_mod.", "method.network.model."])
def test_the_network_of_a_lightning_module(tmp_path, prefix):
    state = {f"{prefix}{k}": v for k, v in network().state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3)}}, tmp_path / "c.ckpt")
    load_weights(other := blank(), tmp_path / "c.ckpt")
    assert_same(network(), other)
    save_model(nn.ModuleDict({"net": network()}), tmp_path / "c.safetensors")
    load_weights(other := blank(), tmp_path / "c.safetensors")
    assert_same(network(), other)


def test_what_is_beside_the_network_is_said_and_two_networks_are_refused(tmp_path):
    state = {f"net.{k}": v for k, v in network().state_dict().items()}
    torch.save({**state, "metric.total": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.warns(UserWarning, match=r"c\.pt: the network is taken from under 'net', 1 .* left out: metric\.total"):
        load_weights(other := blank(), tmp_path / "c.pt")
    assert_same(network(), other)
    torch.save({**state, "net.aux.weight": torch.ones(1)}, tmp_path / "more.pt")
    with pytest.raises(WeightsError, match=r"does not fit the Sequential: 1 unexpected: aux\.weight"):
        load_weights(blank(), tmp_path / "more.pt")
    torch.save({**state, **{f"ema.{k}": v + 1 for k, v in network().state_dict().items()}}, tmp_path / "two.pt")
    with pytest.raises(WeightsError, match=r"2 networks, under 'net' and 'ema': save the one .* pof\.save_model"):
        load_weights(other := blank(), tmp_path / "two.pt")
    assert_same(other, blank())


def test_a_module_and_its_method_hold_one_network(tmp_path):
    """As Lightning saves a module that keeps its network beside ``self.method``."""
    state = network().state_dict()
    both = {f"{prefix}{k}": v for prefix in ("net.", "method.network.model.") for k, v in state.items()}
    torch.save({"state_dict": both}, tmp_path / "c.ckpt")
    load_weights(other := blank(), tmp_path / "c.ckpt")
    assert_same(network(), other)


@pytest.mark.parametrize("prefixes", [("net.", "twin."), ("net.", "net.orig."), ("net.orig.", "net.")])
def test_two_names_of_one_network_may_differ_in_what_only_counts(tmp_path, prefixes):
    state = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).state_dict()
    both = {f"{prefix}{k}": v for prefix in prefixes for k, v in state.items()}
    both[f"{prefixes[1]}1.num_batches_tracked"] = torch.tensor(7)
    torch.save(both, tmp_path / "c.pt")
    load_weights(other := nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), tmp_path / "c.pt")
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
    torch.save({**both, f"{prefixes[1]}1.running_var": torch.full((3,), 2.0)}, tmp_path / "two.pt")
    with pytest.raises(WeightsError, match="2 networks, under"):
        load_weights(other, tmp_path / "two.pt")


def test_a_file_of_torch_is_no_broken_safetensors(tmp_path):
    torch.save(network().state_dict(), tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"a \.pt file, as torch\.save writes: read it with pof\.load_weights"):
        load_model(blank(), tmp_path / "net.pt")


@pytest.mark.parametrize("make", [pof.Finetune, pof.PoF, pof.SharpnessAware], ids=lambda make: make.__name__)
def test_the_network_of_a_method(tmp_path, make):
    net = nn.Sequential(OrderedDict(body=nn.Linear(4, 3), norm=nn.BatchNorm1d(3), fc=nn.Linear(3, 2)))
    torch.save({"method": 1, "model": make(net).state_dict()}, tmp_path / "c.pt")
    other = nn.Sequential(OrderedDict(body=nn.Linear(4, 3), norm=nn.BatchNorm1d(3), fc=nn.Linear(3, 2)))
    load_weights(other, tmp_path / "c.pt")
    assert_same(net, other)


def test_averaged_model(tmp_path):
    torch.save(torch.optim.swa_utils.AveragedModel(network()).state_dict(), tmp_path / "swa.pt")
    load_weights(other := blank(), tmp_path / "swa.pt")
    assert_same(network(), other)


def test_old_checkpoint_without_batch_counters(tmp_path):
    state = {k: v for k, v in network().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    other = blank()
    other.norm.num_batches_tracked.fill_(7)
    load_weights(other, tmp_path / "old.pt")
    assert int(other.norm.num_batches_tracked) == 7
    assert torch.equal(other.norm.running_var, network().norm.running_var)


MISFITS = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != "conv.bias"}, r"1 missing: conv\.bias \(4,\)"),
    "unexpected": (lambda s: {**s, "aux.weight": torch.ones(2)}, r"1 unexpected: aux\.weight"),
    "misshapen": (
        lambda s: {**s, "fc.weight": torch.ones(9, 4)},
        r"1 misshapen: fc\.weight \(9, 4\) where the model has \(3, 4\)",
    ),
    "many": (lambda s: {f"x{i}": torch.ones(1) for i in range(8)}, r"x4 and 3 more"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_file_that_does_not_fit_is_named_and_changes_nothing(tmp_path, case):
    change, message = MISFITS[case]
    torch.save(change(network().state_dict()), tmp_path / "c.pt")
    model = blank()
    with pytest.raises(WeightsError, match=message):
        load_weights(model, tmp_path / "c.pt")
    assert_same(model, blank())


@pytest.mark.parametrize("key", ["network_weights", 0])
def test_the_one_state_dict_in_a_file_is_taken_whatever_it_is_called(tmp_path, key):
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    saved = {"epoch": 3, key: network().state_dict(), "optimizer": optimizer.state_dict(), "history": {}}
    torch.save(saved, tmp_path / "c.pth")
    load_weights(model := blank(), tmp_path / "c.pth")
    assert_same(model, network())
    torch.save(saved | {"averaged": network().state_dict()}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=rf"several could be the state_dict, {key!r}, 'averaged': save the one that"):
        load_weights(blank(), tmp_path / "c.pth")


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def damaged(folder: Path, case: str) -> Path:
    file = folder / ("c.safetensors" if "safetensors" in case else "c.pt")
    if case == "code":
        torch.save({"weight": torch.ones(1), "hook": Code()}, file)
    elif case == "plain pickle with code":
        file.write_bytes(pickle.dumps({"hook": Code()}))
    elif case == "whole module":
        torch.save(network(), file)
    elif case == "no tensors":
        torch.save({"epoch": 3, "lr": 0.1}, file)
    elif case == "text":
        file.write_text("<html>404 not found</html>")
    else:
        if "safetensors" in case:
            save_model(network(), file)
        else:
            torch.save(network().state_dict(), file, _use_new_zipfile_serialization="legacy" not in case)
        content = file.read_bytes()
        file.write_bytes(content[: 0 if "empty" in case else len(content) // 2])
    return file


DAMAGED = {
    "code": r"refused, because reading it would execute code \(it refers to posix\.mkdir\).*torch\.save\(model\.state",
    "plain pickle with code": "refused, because reading it would execute code",
    "whole module": r"refused.*torch\.nn\.modules",
    "no tensors": "no state_dict in it: found a dict with epoch, lr",
    "text": "damaged, or not a file of torch.save",
    "truncated zip": "damaged, or not a file of torch.save.*copy or download it again",
    "truncated legacy": "damaged, or not a file of torch.save",
    "empty pt": "the file is empty",
    "truncated safetensors": "not a complete safetensors file",
    "empty safetensors": "the file is empty",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_and_dangerous_files(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    file = damaged(tmp_path, case)
    with pytest.raises(WeightsError, match=DAMAGED[case]) as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert not Path("executed").exists()


def test_an_archive_that_is_far_larger_inside(tmp_path):
    torch.save({"weight": torch.zeros(2**22)}, tmp_path / "plain.pt")
    assert read_weights(tmp_path / "plain.pt")["weight"].shape == (2**22,)
    with ZipFile(tmp_path / "plain.pt") as plain, ZipFile(tmp_path / "bomb.pt", "w", ZIP_DEFLATED) as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
    with pytest.raises(WeightsError, match=r"bomb\.pt: 16,77\d,\d+ bytes once it is unpacked, 100 times its size"):
        read_weights(tmp_path / "bomb.pt")


def test_no_such_file_folder_and_suffix(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such weights file.*absent\.pt"):
        load_weights(network(), tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        load_model(network(), tmp_path / "absent.safetensors")
    with pytest.raises(IsADirectoryError, match="a folder"):
        read_weights(tmp_path)
    (tmp_path / "c.h5").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"unknown kind of weights file '\.h5'; known are \.safetensors, \.pt"):
        read_weights(tmp_path / "c.h5")


class Extra(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


def test_extra_state_cannot_be_saved(tmp_path):
    with pytest.raises(WeightsError, match="'_extra_state' is a dict"):
        save_model(Extra(), tmp_path / "m.safetensors")


SAVE = """
import sys, torch
from pof.weights import save_model
try:
    save_model(torch.nn.Linear(300, 300), sys.argv[1])
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""


def assert_untouched_after_failure(run: subprocess.CompletedProcess[str], target: Path, code: int) -> None:
    assert run.returncode == 0, run.stderr
    assert f"OSError {code} " in run.stdout
    assert "cannot write: " in run.stdout
    assert "what was there is untouched" in run.stdout
    assert str(target) in run.stdout
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == [target.name]


def test_full_disk(tmp_path):
    """On a tmpfs of 64 KB, in a mount namespace of its own."""
    target = tmp_path / "small" / "m.safetensors"
    target.parent.mkdir()
    script = (
        'mount -t tmpfs -o size=64k none "$1" && shift && printf old > "$1" && "$2" -c "$3" "$1" && ls -A "${1%/*}"'
    )
    probe = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k none "$0"', str(target.parent)]
    try:
        if subprocess.run(probe, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs is not permitted")
    except FileNotFoundError:
        pytest.skip("no unshare on this system")
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(target.parent), str(target), sys.executable, SAVE]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    message, *listing = run.stdout.splitlines()
    assert f"OSError {errno.ENOSPC} " in message
    assert "cannot write: No space left on device; free some space or choose another folder" in message
    assert "what was there is untouched" in message
    assert listing == ["m.safetensors"]


def test_file_size_limit(tmp_path):
    """Like a full disk, where no tmpfs can be mounted."""
    target = tmp_path / "m.safetensors"
    target.write_text("old")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))

    run = subprocess.run([sys.executable, "-c", SAVE, str(target)], capture_output=True, text=True, preexec_fn=limit)
    assert_untouched_after_failure(run, target, errno.EFBIG)


@pytest.mark.skipif(not PUBLIC.exists(), reason="../shared/data/weights is not there")
def test_public_checkpoint_has_prefixed_keys():
    weights = read_weights(PUBLIC)
    assert weights["module.linear.weight"].shape == (10, 64)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("complex64 strided", lambda value: value * (1 + 1j)),
        ("float32 sparse_coo", lambda value: value.to_sparse()),
        ("float32", lambda value: value.to("meta")),
    ],
)
def test_tensors_of_another_kind_change_nothing(kind, changed, monkeypatch):
    values = network().state_dict()
    values["fc.weight"] = changed(values["fc.weight"])
    monkeypatch.setattr(weights, "read_weights", lambda path: values)
    model = blank()
    with pytest.raises(WeightsError, match=f"1 of another kind: fc.weight {kind}$"):
        load_weights(model, "weights.pt")
    assert_same(model, blank())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("complex128 strided", torch.zeros(2, dtype=torch.complex128)),
        ("float32 sparse_coo", torch.eye(2).to_sparse()),
        ("float32", torch.zeros(2, device="meta")),
    ],
)
def test_what_safetensors_cannot_hold_is_named(kind, value, tmp_path):
    model = network()
    model.register_buffer("mask", value)
    with pytest.raises(WeightsError, match=f"'mask' is {kind}: leave it out"):
        save_model(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_nothing_is_loaded_into_a_network_without_values(tmp_path):
    save_model(network(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4), fc=nn.Linear(4, 3)))
    for load in (load_model, load_weights):
        with pytest.raises(ValueError, match=r"on the meta device and has no values: .* to_empty\(\) first"):
            load(model, tmp_path / "model.safetensors")
