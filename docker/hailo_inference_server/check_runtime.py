"""Checks while the image is built, without a board, that HailoRT's library, its Python binding and numpy fit together.

Run as `python3 -m hailo_inference_server.check_runtime 4.23.0`, with the version that must be found.
"""

import sys


def quantised() -> "list[int]":
    """What the library makes of 0, 0.5 and 100 at a scale of 0.5 and a zero point of 10, handed over as numpy arrays."""
    import numpy as np
    from hailo_platform.pyhailort._pyhailort import QuantInfo
    from hailo_platform.pyhailort.pyhailort import HailoRTTransformUtils

    real = np.array([0.0, 0.5, 100.0], dtype=np.float32)
    stored = np.zeros(real.size, dtype=np.uint8)
    HailoRTTransformUtils.quantize_input_buffer(real, stored, real.size, QuantInfo(10.0, 0.5, -5.0, 122.5))
    return [int(value) for value in stored]


def main(wanted: str) -> None:
    """Check each part and print what was found.

    Args:
        wanted: version of HailoRT.

    Raises:
        RuntimeError: another version is installed, or arrays do not reach the library intact.
    """
    import hailo_platform
    import numpy as np

    if hailo_platform.__version__ != wanted:
        raise RuntimeError(f"HailoRT's Python binding is {hailo_platform.__version__}, expected {wanted}")
    print(f"HailoRT {wanted}: library and binding import")
    if (found := quantised()) != [10, 11, 210]:
        raise RuntimeError(
            f"HailoRT's Python binding does not work with numpy {np.__version__}: "
            f"it quantised 0, 0.5, 100 to {found}, expected [10, 11, 210]"
        )
    print(f"arrays of numpy {np.__version__} pass through the binding")


if __name__ == "__main__":
    main(sys.argv[1])
