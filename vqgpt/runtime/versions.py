"""Versions of this package and of the libraries that shape its results. Must not import any of them."""

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("vqgpt", "torch", "torchvision", "numpy", "zarr", "numcodecs")


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def library_versions() -> dict[str, str]:
    """What an artefact records about the software that made it."""
    return {name: installed_version(name) or "absent" for name in LIBRARIES}
