"""Hours, disk and memory of each stage of a plan, from counted FLOPs and a device's measured rates.

Meant to tell a minute from an hour from a week. What cannot be told is None, never a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ijepa.config import RUNTIME, PretrainConfig
from ijepa.config.architectures import architecture
from ijepa.errors import IjepaError
from ijepa.forecast.devices import Device
from ijepa.forecast.sizes import PHOTOGRAPHS, RENDERED, FeatureSet, ImageSet, image_set
from ijepa.jepa.flops import forward_flops
from ijepa.pretrain import PretrainPlan, plan_training
from ijepa.probes.linear_protocols import LINEAR_PROTOCOLS
from ijepa.recipes import load_recipe

TERA, GIGA = 1e12, 1e9
CHECKPOINT_BYTES = 16  # of a trained weight: itself, its average, AdamW's two moments
FORWARD_AND_BACKWARD = 3
PIXEL_NUMBERS = 16 * 16 * 3  # that the encoder `pixels` gives, see `ijepa.encoders`
PICTURE_SECONDS = 10  # of drawing, and of all that is as short
SUBSET = 0.01  # of the images, that a fine-tuning sees unless all
LBFGS_STEPS = 100  # of each of the values of C
FEW_SHOT_STEPS = 20  # fits in all, over few images


class Cost(NamedTuple):
    """Of one stage; None where unknown.

    Attributes:
        seconds: on the device.
        disk_gb: of the output.
        memory_gb: of weights and activations where a network is trained; else unknown.
    """

    seconds: float | None = None
    disk_gb: float | None = None
    memory_gb: float | None = None


@dataclass
class Forecaster:
    """Costs of stages in their order: each leaves behind what those after it need to know.

    Attributes:
        device: whose rates count.
        devices: how many share the work of training and of extraction.
    """

    device: Device
    devices: int = 1
    _images: dict[str, ImageSet] = field(default_factory=dict)
    _runs: dict[str, PretrainConfig] = field(default_factory=dict)
    _features: dict[str, FeatureSet] = field(default_factory=dict)

    def cost(self, stage: str, options: Mapping[str, Any]) -> Cost:
        """What a command would cost, whether or not it has run.

        Args:
            stage: of the command line, such as `probe`.
            options: as the command line has parsed them.
        """
        known = {
            "shard": self._shard,
            "pretrain": self._pretrain,
            "extract": self._extract,
            "probe": self._probe,
            "finetune": self._finetune,
            "train-decoder": self._decoder,
        }
        if stage not in known:
            return Cost(PICTURE_SECONDS + self.device.stage_seconds)
        try:
            cost = known[stage](options)
        except IjepaError:  # something that is there is broken: its stage will say so
            return Cost()
        return cost._replace(
            seconds=None if cost.seconds is None else cost.seconds + self.device.stage_seconds
        )

    def _shard(self, options: Mapping[str, Any]) -> Cost:
        source, out = str(options["source"]), Path(options["out"])
        found = image_set(source, out)
        if found is None:
            return Cost()
        self._images[str(out)] = found
        images = sum(found.images.values())
        rate = self.device.shard_images_per_second
        if found.kind == RENDERED:
            rate = self.device.render_images_per_second
        path = Path(source.rpartition(":")[2])
        size = found.num_bytes or (path.stat().st_size if path.is_file() else None)
        return Cost(images / rate, None if size is None else size / GIGA)

    def _pretrain(self, options: Mapping[str, Any]) -> Cost:
        config = load_recipe(options["recipe"], options["overrides"] or ())
        self._runs[str(options["out"])] = config
        data = self._images.get(str(options["data"]))
        if data is None:
            return Cost()
        plan = self._plan(config, data.images[config.data.split], options["micro_batch"])
        train = plan.images_seen * plan.gflops_per_image * GIGA / self._trained_a_second()
        read = plan.images_seen / self._read_a_second(data, options["workers"])
        weights = plan.encoder_parameters + plan.predictor_parameters
        kept = 1 + config.optimization.epochs // (config.checkpoint_epochs or 10**9)
        return Cost(max(train, read), kept * CHECKPOINT_BYTES * weights / GIGA, plan.memory_gb)

    def _plan(self, config: PretrainConfig, images: int, micro_batch: int | None) -> PretrainPlan:
        share = config.data.batch_size // self.devices or 1
        at_a_time = min(micro_batch or share, share)
        runtime = RUNTIME.model_copy(update={"micro_batch": at_a_time})
        return plan_training(images, config, runtime, on_gpu=self.device.train_tflops > 1)

    def _extract(self, options: Mapping[str, Any]) -> Cost:
        data = self._images.get(str(options["data"]))
        if data is None:
            return Cost()
        images, views = data.images.get(options["split"], 0), 1 + options["views"]
        config = self._config(str(options["encoder"]))
        if config is None and options["encoder"] != "pixels":
            return Cost()
        dim = architecture(config.encoder.arch).dim if config else PIXEL_NUMBERS
        layers = options["layers"] if config else 1
        self._features[str(options["out"])] = FeatureSet(images, views, dim, layers, data.classes)
        seen = images * views
        flops = forward_flops(config) if config else 0.0
        encode = seen * flops / (self.device.forward_tflops * TERA * self.devices)
        read = seen / self._read_a_second(data, options["workers"])
        width = 2 if options["dtype"] == "float16" else 4
        return Cost(max(encode, read), seen * layers * dim * width / GIGA)

    def _probe(self, options: Mapping[str, Any]) -> Cost:
        trains = [options["train"], *(options["baseline_train"] or ())]
        tests = [options["test"], *(options["baseline_test"] or ())]
        flops = 0.0
        for train_path, test_path in zip(trains, tests, strict=True):
            train, test = (self._features.get(str(path)) for path in (train_path, test_path))
            if train is None or test is None:
                return Cost()
            classes = train.classes.get(options["label"], 0)
            flops += _probe_flops(options, train, test, classes)
        return Cost(flops / (self.device.probe_tflops * TERA), 0.0)

    def _finetune(self, options: Mapping[str, Any]) -> Cost:
        from ijepa.finetune import finetune_config

        data, encoder = self._images.get(str(options["data"])), str(options["encoder"])
        config = self._config(encoder)
        if data is None or config is None:
            return Cost()
        tuned = finetune_config(
            options["protocol"], {"encoder": encoder}, options["overrides"] or ()
        )
        share = SUBSET if options["subset"] else 1.0
        trained = tuned.epochs * share * data.images.get(options["split"], 0)
        scored = data.images.get(options["test_split"], 0)
        once = forward_flops(config)
        seconds = FORWARD_AND_BACKWARD * trained * once / self._trained_a_second()
        seconds += scored * once / (self.device.forward_tflops * TERA)  # by one process
        return Cost(seconds)

    def _decoder(self, options: Mapping[str, Any]) -> Cost:
        from ijepa.config import DecoderConfig

        steps = options["steps"] or DecoderConfig.model_fields["steps"].default
        batch = DecoderConfig.model_fields["batch_size"].default
        return Cost(steps * batch / self.device.decoder_blocks_per_second)

    def _config(self, encoder: str) -> PretrainConfig | None:
        """Of a run of the plan, or of one that is there; None for encoders of others."""
        run = encoder.removeprefix("random:")
        if run not in self._runs:
            path = Path(run) / "config.yaml"
            if not path.is_file():
                return None
            self._runs[run] = load_recipe(str(path))
        return self._runs[run]

    def _trained_a_second(self) -> float:
        return self.device.train_tflops * TERA * self.devices

    def _read_a_second(self, data: ImageSet, workers: int | None) -> float:
        """Small images are read faster than any network takes them."""
        if data.kind not in PHOTOGRAPHS:
            return float("inf")
        workers = self.device.workers if workers is None else max(workers, 1)
        return self.device.read_images_per_second * workers * self.devices


def _probe_flops(
    options: Mapping[str, Any], train: FeatureSet, test: FeatureSet, classes: int
) -> float:
    """Of matrix products; forward and backward."""
    name = options["name"]
    if name == "knn":
        return 2.0 * train.rows * test.rows * train.dim
    once = 2.0 * FORWARD_AND_BACKWARD * train.rows * classes  # a head, for each of its inputs
    if name == "linear":
        protocol = LINEAR_PROTOCOLS[options["protocol"] or "ijepa"]
        inputs = sum(
            train.dim * (train.layers if head.features == "concat" else 1)
            for head in protocol.heads
        )
        epochs = protocol.epochs or protocol.steps * protocol.batch / max(train.rows, 1)
        return once * inputs * epochs * 2  # on a part of train to choose, then on all of it
    if name == "logistic":
        return once * train.dim * LBFGS_STEPS * 10
    return once * train.dim * LBFGS_STEPS * FEW_SHOT_STEPS * 0.05
