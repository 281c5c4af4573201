"""Which device computes."""

import torch

from ijepa.errors import IjepaError


def pick_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:1` into a device that is there.

    Raises:
        IjepaError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise IjepaError(f"{name!r} is not a device; use auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise IjepaError(
            f"There is no device {name}; this machine has {torch.cuda.device_count()} CUDA devices."
        )
    return device


def device_name(device: torch.device) -> str:
    """What to write beside a number: the GPU's name, or `cpu` and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
