"""Memory of loading a full-size published file: python benchmarks/published_memory.py.

Writes 10 GB with both encoders, predictor and optimizer state, loads the target encoder in a
fresh process, extracts features of four images in another, and prints the peak of resident memory
over the encoder's own weights. Mapped pages of the file count, and so do the libraries, whose share
another process prints. The file is deleted afterwards.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ijepa.config import ExtractConfig, Runtime
from ijepa.recipes import load_recipe

RECIPE = "in1k_vith14_ep300"
IMAGES = 4


def make(path: Path) -> None:
    """Write the file; optimizer state is zeros, the rest random."""
    from ijepa.jepa.model import build_ijepa

    with torch.device("meta"):
        model = build_ijepa(load_recipe(RECIPE))
    body: dict[str, object] = {"epoch": 300}
    for part in ("encoder", "predictor", "target_encoder"):
        shapes = {name: value.shape for name, value in getattr(model, part).state_dict().items()}
        body[part] = {f"module.{n}": torch.empty(s).normal_(0, 0.02) for n, s in shapes.items()}
    trained = [*model.encoder.parameters(), *model.predictor.parameters()]
    body["opt"] = {
        "state": {
            number: {"exp_avg": torch.zeros(value.shape), "exp_avg_sq": torch.zeros(value.shape)}
            for number, value in enumerate(trained)
        }
    }
    torch.save(body, path)


def load(path: Path) -> None:
    """Load the target encoder."""
    from ijepa.encoders.spec import load_encoder

    load_encoder(str(path))
    report("load_encoder")


def extract_some(path: Path) -> None:
    """Extract features of some images."""
    from ijepa.extract import extract
    from ijepa.shard import shard

    images = path.parent / "images" / "class"
    images.mkdir(parents=True)
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    shard(str(images.parent), path.parent / "shards", runtime=Runtime(workers=0))
    config = ExtractConfig(encoder=str(path))
    extract(path.parent / "shards", path.parent / "F.h5", config, Runtime(device="cpu", workers=0))
    report(f"extract {IMAGES} images")


def imports(path: Path) -> None:
    """Import what extraction imports, and load nothing."""
    del path
    import ijepa.encoders.own
    import ijepa.extract  # noqa: F401  # its imports are measured

    report("imports alone")


def report(what: str) -> None:
    """Print peak of resident memory, and how much of it is now anonymous, over the weights."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split() for line in lines if line.endswith("kB")}
    peak, anonymous = (int(sizes[name][1]) * 1024 for name in ("VmHWM", "RssAnon"))
    from ijepa.config import architecture
    from ijepa.jepa.vit import Encoder

    config = load_recipe(RECIPE)
    with torch.device("meta"):
        encoder = Encoder(architecture("vit_huge"), config.data.image_size, config.encoder.patch_px)
    weights = sum(value.nbytes for value in encoder.state_dict().values())
    line = {
        "what": what,
        "weights_gb": round(weights / 1e9, 3),
        "peak_rss_gb": round(peak / 1e9, 3),
        "peak_rss_over_weights": round(peak / weights, 3),
        "anonymous_at_end_gb": round(anonymous / 1e9, 3),
    }
    print(json.dumps(line), flush=True)


STEPS = {"make": make, "imports": imports, "load": load, "extract": extract_some}


def main() -> None:
    """Every step in a process of its own."""
    if len(sys.argv) == 3:
        STEPS[sys.argv[1]](Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "vith14.pth.tar"
        for step in STEPS:
            subprocess.run([sys.executable, __file__, step, str(path)], check=True)
            if step == "make":
                print(json.dumps({"file_gb": round(path.stat().st_size / 1e9, 2)}), flush=True)


if __name__ == "__main__":
    main()
