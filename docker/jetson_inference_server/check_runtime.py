"""Checks while the image is built, without a GPU, that what the Jetson server needs was installed for its interpreter.

pycuda and TensorRT are only looked for: both load libcuda, which the node provides at run time.
"""

import importlib
import importlib.util
import sys

IMPORTED = ("fastapi", "numpy", "prometheus_client", "pydantic", "pythonjsonlogger.jsonlogger", "uvicorn", "yaml")


def main() -> None:
    """Check each part and print what was found."""
    for module in IMPORTED:
        importlib.import_module(module)
    print("Python {}.{}.{} imports {}".format(*sys.version_info[:3], ", ".join(IMPORTED)))
    if importlib.util.find_spec("pycuda._driver") is None:
        raise RuntimeError(f"pycuda was compiled for another interpreter than {sys.executable}: see BUILDER_IMAGE")
    print("pycuda is compiled for it")
    here = importlib.util.find_spec("tensorrt") is not None
    print("tensorrt is installed for it" if here else "tensorrt is not in the image: the node's container runtime must mount it")


if __name__ == "__main__":
    main()
