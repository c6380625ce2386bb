"""A folder of images, one subfolder per class: fine-tune a backbone with AdaRand.

    python examples/image_folder.py

Here the folder is made from digits.  With your own folder and a pre-trained backbone the command line does the same:

    pof fine-tune --model timm:resnet18 --weights pretrained --data path/to/images --out runs/ft
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits

import pof
from pof.data import eval_loader, load_data, train_loader
from pof.models import build_model, replace_head

CLASSES = 5


def write_images(root: Path) -> None:
    """60 PNGs each of the digits 5 to 9: the target task."""
    digits = load_digits()
    for label in range(5, 10):
        folder = root / str(label)
        folder.mkdir()
        for number, image in enumerate(digits.images[digits.target == label][:60]):
            Image.fromarray((image * 15.9).astype("uint8")).save(folder / f"{number:03}.png")


def pretrained_backbone() -> torch.nn.Module:
    """A network that knows the digits 0 to 4: the source task."""
    digits = load_digits(n_class=5)
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1).expand(-1, 3, -1, -1) / 16
    source = torch.utils.data.TensorDataset((images - 0.45) / 0.225, torch.tensor(digits.target))
    model = build_model("small-cnn", num_classes=5)
    loader = torch.utils.data.DataLoader(source, batch_size=50, shuffle=True, drop_last=True)
    pof.fit(pof.Finetune(model), loader, epochs=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    return model


def main() -> None:
    torch.manual_seed(0)
    model = pretrained_backbone()
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name))
        # A fifth of the images, always the same, is the test set.  At 8 pixels a random crop destroys a digit.
        data = load_data("folder", data_root=name, image_size=8, augment="none")
        print(f"{len(data.train_labels)} training images of classes {', '.join(data.classes)}")
        train = train_loader(data, batch_size=20, seed=0, workers=0)
        test = eval_loader(data, "test", batch_size=60, workers=0)

        replace_head(model, CLASSES)
        network = pof.split(model)
        adarand = pof.AdaRand.from_loader(network, train, num_classes=CLASSES, seed=0)
        method = pof.Regularized(model, adarand)
        print(f"new head: {network.head_name}, test error {100 * pof.evaluate(model, test).error:.1f} %")
        pof.fit(method, train, epochs=5, optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True))
        print(f"fine-tuned: {pof.evaluate(model, test)}")


if __name__ == "__main__":
    main()
