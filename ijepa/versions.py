"""Which versions made a result."""

import contextlib
import platform
from importlib import metadata

LIBRARIES = ("ijepa", "torch", "timm", "numpy", "scikit-learn", "h5py", "faiss-cpu", "pillow")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a result."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
