"""The version of this project and of the packages on which its results depend."""

import platform
from importlib import metadata

VERSION = "1.0.0"  # also in CITATION.cff and CHANGELOG.md
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy")


def versions() -> str:
    """The versions in one line, as --version prints them. The packages are not imported."""
    parts = [f"DDPM {VERSION}", f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            parts.append(f"no {package}")
    return ", ".join(parts)
