"""``pof predict`` and ``pof export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pof.app.options import DataOptions, ModelOptions

if TYPE_CHECKING:
    from torch import Tensor

    from pof.app.predict import Predictions

MOST_PRINTED = 50


@dataclass
class NetworkOptions:
    """Which network.

    Args:
        model: Name of the network, for weights that do not say it, and for a factory, as its code runs.
        weights: Folder of a run, or file of weights.
        head: Qualified name of the head. It is found by itself if not given.
    """

    model: str
    weights: str | None = None
    head: str | None = None


@dataclass
class NetworkData(DataOptions):
    """Data of the network, where its weights do not say its classes and inputs, and for samples held out."""


@dataclass
class PredictOptions:
    """What to predict.

    Args:
        images: Image files, folders with images at any depth, or tables (CSV or Parquet) with a column for the path.
        out: CSV or Parquet file to write. Without it a table is printed.
        top: Number of classes to name for each image, the most probable one first.
        temperature: Temperature that the logits are divided by.
        calibrate: Fit the temperature on the validation data of the run.
        batch_size: Images per forward pass.
        device: Device to compute on, such as cpu or cuda. It is found by itself if not given.
    """

    images: list[str]
    out: str | None = None
    top: int = 1
    temperature: float | None = None
    calibrate: bool = False
    batch_size: int = 128
    device: str | None = None


@dataclass
class ExportOptions:
    """What to write.

    Args:
        format: Format of the export; hf and timm are folders that Transformers and timm read.
        out: File or folder to write. Nothing that is there is replaced.
    """

    format: Literal["onnx", "torch-export", "safetensors", "hf", "timm"]
    out: str


def predict_images(network: NetworkOptions, data: NetworkData, options: PredictOptions) -> int:
    """Print or write the classes of image files; 1 if some could not be read."""
    from pof.app.cli._display import console
    from pof.app.inherit import given_in
    from pof.app.known import held_out, known_network
    from pof.app.predict import check_outputs, check_table, image_files, predict, temperature_on, write_table
    from pof.training.fit import find_device

    if options.calibrate and options.temperature is not None:
        raise ValueError(f"--temperature {options.temperature} and --calibrate, which fits one: give one of them")
    out = None if options.out is None else Path(options.out)
    if out is not None:
        check_table(out)
    model, given = ModelOptions(**vars(network)), given_in(network, data)
    paths, note = image_files(options.images)
    if note:
        console.print(f"note: {note}", soft_wrap=True)
    trained, card = known_network(model, data, given, purpose="predict")
    check_outputs(card)
    trained = trained.to(find_device(options.device))
    temperature = 1.0 if options.temperature is None else options.temperature
    if options.calibrate:
        held = held_out(model, data, given, batch_size=options.batch_size)
        temperature = temperature_on(trained, held, head=card.head)
        console.print(f"temperature {temperature:.4g}, fitted on the validation data")
    sizes = {"batch_size": options.batch_size, "workers": data.workers}
    found = predict(trained, card, paths, top=options.top, temperature=temperature, **sizes)
    _show(found, out)
    if out is not None:
        write_table(found, out)
        console.print(f"{len(found.paths)} predictions written to {out}", soft_wrap=True)
    return 1 if found.unreadable else 0


def _show(found: "Predictions", out: Path | None) -> None:
    import sys

    from pof.app.cli._display import console, rows_table
    from pof.app.errors import shortened

    for text in found.unreadable:
        print(f"pof: not predicted: {shortened(text)}", file=sys.stderr)
    if out is not None:
        return
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows()]
    console.print(rows_table("predictions", rows[:MOST_PRINTED]))
    if len(rows) > MOST_PRINTED:
        console.print(f"and {len(rows) - MOST_PRINTED} more: --out FILE.csv writes all of them")


def export_network(network: NetworkOptions, data: NetworkData, options: ExportOptions) -> int:
    """Write a network for other programs, and print how far its logits are from the network's own there."""
    from pof.app.cli._display import console
    from pof.app.export.write import check_target, export
    from pof.app.inherit import given_in
    from pof.app.known import known_network

    check_target(Path(options.out), options.format)
    model, given = ModelOptions(**vars(network)), given_in(network, data)
    trained, card = known_network(model, data, given, purpose="export")
    samples, why = _real(model, data, given)
    done = export(trained, card, options.out, format=options.format, samples=samples)
    real = f"{done.samples} held-out samples" if why is None else f"no real ones ({why})"
    console.print(
        f"loaded again: the logits differ by {done.difference:.2g} at most, on random inputs and {real}", soft_wrap=True
    )
    console.print(f"written: {', '.join(map(str, done.paths))}", soft_wrap=True)
    return 0


def _real(model: ModelOptions, data: NetworkData, given: set[str]) -> tuple["Tensor | None", str | None]:
    """Held-out inputs for the check of an export, or why there are none; data that are asked for must be there."""
    from torch import Tensor

    from pof.app.errors import one_line
    from pof.app.known import held_out

    try:
        inputs, _ = next(iter(held_out(model, data, given, batch_size=64)))
    except Exception as error:
        if "data" in given:
            raise
        return None, one_line(error)
    return (inputs, None) if isinstance(inputs, Tensor) else (None, "they are several tensors")
