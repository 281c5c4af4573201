"""What a device does in a second, as far as it was measured."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ijepa.config import CPU_WORKERS, Config, validated
from ijepa.errors import IjepaError
from ijepa.recipes import parse_yaml

Rate = Annotated[float, Field(gt=0)]


class Device(Config):
    """Rates of one device.

    Attributes:
        measured: False where all is assumed.
        source: who measured what.
        train_tflops: of matrix products in pretraining and fine-tuning; likewise `forward_tflops`
            of a frozen encoder, `probe_tflops` of heads and logistic regression.
        shard_images_per_second: checked and packed; likewise `render_` of scenes.
        read_images_per_second: full-size photographs decoded and cut by one process.
        workers: processes that read images for one device where `--workers` does not say.
        decoder_blocks_per_second: in training the decoder of predictions.
        stage_seconds: that any stage takes, however little it has to do.
    """

    measured: bool
    source: str
    train_tflops: Rate
    forward_tflops: Rate
    probe_tflops: Rate
    shard_images_per_second: Rate
    render_images_per_second: Rate
    read_images_per_second: Rate
    decoder_blocks_per_second: Rate
    stage_seconds: Rate
    workers: Annotated[int, Field(ge=1)] = CPU_WORKERS


def find_device(name: str) -> Device:
    """A device of the package by its name, or the only one of a YAML file of the same form.

    Raises:
        IjepaError: there is none, or a rate is missing.
    """
    known = _parse(resources.files("ijepa.forecast").joinpath("devices.yaml").read_text())
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise IjepaError(f"There is no file {name}.")
        own = _parse(Path(name).read_text(errors="replace"))
        if len(own) != 1:
            raise IjepaError(f"{name} has {len(own)} devices; one was expected.")
        return validated(Device, next(iter(own.values())), name)
    if name not in known:
        raise IjepaError(
            f"There is no device {name!r}; there are {', '.join(known)}, or a YAML file of yours."
        )
    return validated(Device, known[name], f"device {name}")


def _parse(text: str) -> dict[str, Any]:
    try:
        body = parse_yaml(text)
    except ValueError as error:
        raise IjepaError(f"The file of devices is not YAML: {error}.") from error
    if not isinstance(body, dict) or not all(isinstance(rates, dict) for rates in body.values()):
        raise IjepaError("A file of devices has their names as keys, and below each its rates.")
    return body
