"""Run Python with a CUDA runtime that has two H100 and computes nothing.

The runtime is loaded before anything else, so faking takes a process of its own.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("runtime.cpp")
LIBRARY = "libcuda.so.1"  # torch opens the driver by this name, and then finds ours loaded


def why_not() -> str | None:
    """Why this machine cannot fake CUDA; None where it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "fake CUDA needs Linux on x86-64"
    if shutil.which("g++") is None:
        return "fake CUDA needs g++"
    if _cuda_headers() is None:
        return "fake CUDA needs a CUDA build of torch, with CUDA's wheels beside it"
    return None


def environment() -> dict[str, str]:
    """Variables of a process whose torch sees the fake device; the library is built if needed."""
    preload = [str(_library()), *filter(None, [os.environ.get("LD_PRELOAD")])]
    return os.environ | {
        "LD_PRELOAD": ":".join(preload),
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "1",
    }


def run_faked(package: str) -> None:
    """Start `python -m package` again with fake CUDA and the same arguments, unless it runs so."""
    if LIBRARY in os.environ.get("LD_PRELOAD", ""):
        return
    reason = why_not()
    if reason:
        sys.exit(reason)
    command = [sys.executable, "-m", package, *sys.argv[1:]]
    os.execve(sys.executable, command, environment())


def _library() -> Path:
    """The compiled runtime, kept in the user's temporary folder for each source and torch."""
    about = SOURCE.read_bytes() + importlib.metadata.version("torch").encode()
    name = f"fake-cuda-{os.getuid()}-{hashlib.sha256(about).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    library = folder / LIBRARY
    if library.exists():
        return library
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        (Path(work) / "crt").mkdir()
        (Path(work) / "crt" / "host_defines.h").touch()  # see `runtime.cpp`
        built = Path(work) / LIBRARY
        includes = [f"-I{work}", f"-I{_cuda_headers()}"]
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
        subprocess.run(["g++", *flags, *includes, "-o", built, SOURCE], check=True)
        built.rename(library)
    return library


def _cuda_headers() -> Path | None:
    """Folder of `driver_types.h` among the wheels of CUDA that a CUDA build of torch brings."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    for place in places or ():
        for header in sorted(Path(place).glob("*/include/driver_types.h")):
            return header.parent
    return None
