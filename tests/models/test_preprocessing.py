"""The preprocessing that a network was trained with, number by number against the library that says it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config

from pof._support.preprocessing import Preprocessing
from pof.data.images import Prepare, opened
from pof.models import preprocessing_of
from tests.data.test_images import photograph
from tests.models import folders

SIZES = ((500, 375), (375, 501), (1203, 800), (333, 333))
ROUNDING = 2e-6
"""Of the normalisation in float32; pixels are the same 8-bit numbers."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number, size in enumerate(SIZES):
        photograph(*size).save(folder / f"{number}.{'png' if number % 2 else 'jpg'}", quality=92)
    return sorted(folder.iterdir())


def ours(how: Preprocessing | None, file: Path) -> torch.Tensor:
    assert how is not None
    with opened(file) as image:
        return Prepare(how, augment=False)(image)


TIMM = (
    "timm:resnet50",  # bicubic, 0.95
    "timm:vit_base_patch16_224",  # bicubic, 0.9, mean 0.5
    "timm:inception_v3",  # 299 px
    "timm:vit_medium_patch16_gap_384.sw_in12k_ft_in1k",  # squash
    "timm:tf_efficientnet_lite1",
    "timm:test_vit.r160_in1k",
)


@pytest.mark.parametrize("name", TIMM)
def test_timm(files, name):
    config = timm.models.get_pretrained_cfg(name.removeprefix("timm:")).to_dict()
    theirs = create_transform(**resolve_data_config({}, pretrained_cfg=config), is_training=False)
    for file in files:
        torch.testing.assert_close(ours(preprocessing_of(name), file), theirs(Image.open(file)), rtol=0, atol=ROUNDING)


def test_timm_of_another_size(files):
    how = preprocessing_of("timm:test_vit", {"img_size": 64})
    config = resolve_data_config({"img_size": 64}, model=timm.create_model("test_vit"))
    theirs = create_transform(**config)
    torch.testing.assert_close(ours(how, files[0]), theirs(Image.open(files[0])), rtol=0, atol=ROUNDING)
    own = preprocessing_of("timm:test_vit", {"pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3)}})
    assert own is not None
    assert own.mean == (0.1, 0.2, 0.3)


def test_timm_of_a_folder(tmp_path):
    model = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    timm.models.save_for_hf(model, tmp_path)
    found = preprocessing_of(f"timm:local-dir:{tmp_path}")
    assert found is not None
    assert found.mean == (0.1, 0.2, 0.3)


def test_what_timm_does_to_no_square_is_refused():
    with pytest.raises(ValueError, match="takes images of 160 x 160 px, crop mode 'border'; images are made square"):
        preprocessing_of("timm:test_vit", {"pretrained_cfg_overlay": {"crop_mode": "border"}})


@pytest.mark.parametrize("name", ["resnet50", "swin_t", "efficientnet_v2_s", "vit_h_14", "googlenet"])
def test_torchvision(files, name):
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    for file in files:
        found = ours(preprocessing_of(f"torchvision:{name}"), file)
        torch.testing.assert_close(found, theirs(Image.open(file)), rtol=0, atol=ROUNDING)


def test_all_of_torchvision_can_be_said():
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) > 50
    assert all(isinstance(preprocessing_of(f"torchvision:{name}"), Preprocessing) for name in names)


PROCESSORS = {
    "ViT": ("ViTImageProcessor", {"size": {"height": 224, "width": 224}}),
    "CLIP": ("CLIPImageProcessor", {}),
    "SigLIP": ("SiglipImageProcessor", {}),
    "DeiT: squashed and cropped": ("DeiTImageProcessor", {}),
    "BiT": ("BitImageProcessor", {"size": {"shortest_edge": 256}}),
    "ConvNeXt, an odd margin": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}),
    "ConvNeXt, squashed": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "PoolFormer": ("PoolFormerImageProcessor", {}),
    "without normalisation": ("ViTImageProcessor", {"do_normalize": False}),
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_image_processors(tmp_path, files, case):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    name, options = PROCESSORS[case]
    folders.vit(tmp_path)
    getattr(transformers, name)(**options).save_pretrained(tmp_path)
    how = preprocessing_of(f"hf:{tmp_path}")
    assert how is not None
    std = torch.tensor(how.std)[:, None, None]
    load = transformers.AutoImageProcessor.from_pretrained
    by_backend = {backend: load(tmp_path, backend=backend) for backend in ("pil", "torchvision")}
    for file in files:
        found = ours(how, file)
        for backend, processor in by_backend.items():
            theirs = processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"][0]
            levels = ((found - theirs) * std * 255).abs()
            # Pillow's pixels are the same; torch's resize of bytes rounds on its own: two levels of 255 at most.
            assert float(levels.max()) < (1e-3 if backend == "pil" else 2.5), backend
            assert float(levels.mean()) < 0.5, backend


def test_image_processors_that_do_more_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folders.vit(tmp_path)
    for processor in (
        transformers.MobileViTImageProcessor(do_flip_channel_order=True),
        transformers.ViTImageProcessor(do_rescale=False),
        transformers.ViTImageProcessor(size={"shortest_edge": 224}),
    ):
        processor.save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=r"does not just resize, crop the centre and normalise; give .*all of them"
        ):
            preprocessing_of(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").unlink(missing_ok=True)
    with pytest.warns(UserWarning, match=r"comes without preprocessor_config.json"):
        assert preprocessing_of(f"hf:{tmp_path}").size == 32


def test_networks_that_say_nothing(tmp_path):
    assert preprocessing_of("resnet20") is None
    assert preprocessing_of("some.module:factory") is None
    folders.bert(tmp_path)
    assert preprocessing_of(f"hf:{tmp_path}") is None


def test_a_crop_that_is_a_quotient_of_whole_numbers_gives_the_size_back():
    for side in range(224, 448):  # of 354 for one 224 / (224 / 354) is less than 354
        how = Preprocessing(224, (0.5,) * 3, (0.5,) * 3, crop=224 / side)
        assert how.resized(side, 2 * side) == (side, 2 * side)
