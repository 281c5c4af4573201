"""Run one of the tools in a process whose torch sees the fake device."""

import importlib
import sys

from .runtime import run_faked

TOOLS = {
    "memory": "peak memory of a training step, counted and predicted",
    "step": "kernels, bytes and predicted time of a training step on an H100",
    "claims": "what tests/test_gpu_rig.py asks, as one JSON object",
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TOOLS:
        listed = "".join(f"\n  {name:8}{text}" for name, text in TOOLS.items())
        sys.exit(f"usage: python -m {__package__} TOOL [OPTION ...], where TOOL is one of{listed}")
    run_faked(__package__)
    name = sys.argv.pop(1)
    importlib.import_module(f".{name}", __package__).main()


if __name__ == "__main__":
    main()
