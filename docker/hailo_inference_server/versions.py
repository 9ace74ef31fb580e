"""HailoRT works only where driver, firmware, library and Python binding have one version; this says which one has not.

The driver's version is read from the node. Library and binding are compared as the binding is imported, by HailoRT itself: it
refuses to be imported beside another library, and there is no call that tells the library's version.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from inference_server.backend import AcceleratorGone

MOUNTED_VERSION_FILE = Path("/host/hailo_driver_version")
SYSTEM_VERSION_FILE = Path("/sys/module/hailo_pci/version")


def imported_hailort() -> tuple[ModuleType, str]:
    """HailoRT's Python interface, and the version of library and binding.

    Raises:
        AcceleratorGone: it cannot be imported.
    """
    try:
        import hailo_platform
        from hailo_platform.pyhailort import pyhailort
    except Exception as error:  # a damaged installation raises more than ImportError
        raise AcceleratorGone(
            f"HailoRT cannot be imported ({error}): the image needs libhailort and the Python binding hailo_platform of one and "
            "the same version, and the Python that this binding was built for"
        ) from error
    return pyhailort, str(hailo_platform.__version__)


def driver_version(environment: Mapping[str, str]) -> str:
    """Version of the node's driver, such as 4.23.0.

    Args:
        environment: its `HAILO_DRIVER_VERSION_FILE` says where the version is mounted.

    Raises:
        AcceleratorGone: it is not to be had.
    """
    paths = Path(environment.get("HAILO_DRIVER_VERSION_FILE") or MOUNTED_VERSION_FILE), SYSTEM_VERSION_FILE
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue
        found = re.match(r"\d+\.\d+\.\d+(?!\d)", text)
        if found is None:
            raise AcceleratorGone(f"{path}: expected the driver's version such as 4.23.0, found {text[:80]!r}")
        return found.group()
    raise AcceleratorGone(
        f"the driver's version is not to be had: neither {paths[0]} nor {paths[1]} can be read. Either the driver hailo_pci is "
        "not loaded on this node (install hailort-pcie-driver and restart it), or its version file is not mounted"
    )


def require_one_version(driver: str, image: str, firmware: str | None = None) -> None:
    """Check that all parts have one version.

    Args:
        driver: of the node's driver.
        image: of library and Python binding.
        firmware: of the chip; None where it is not known.

    Raises:
        AcceleratorGone: they have not.
    """
    if image == driver == (firmware or driver):
        return
    found = f"driver {driver}, library and Python binding {image}" + (f", firmware {firmware}" if firmware else "")
    raise AcceleratorGone(
        f"HailoRT's parts must have one and the same version, found {found}. Driver and firmware belong to the node, library and "
        f"binding to the image: install hailort-pcie-driver {image} on the node and restart it, or build the image with HailoRT "
        f"{driver}"
    )
