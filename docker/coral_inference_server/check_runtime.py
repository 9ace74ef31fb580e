"""Checks while the image is built, without a stick, that the parts of the Coral runtime fit together."""

import ctypes
import importlib
import importlib.util
import re
import struct
from pathlib import Path

PYCORAL_MODULE = "pycoral.utils.edgetpu"
LIBRARY_SOURCE = Path("/usr/local/lib/libedgetpu.source")  # its address, which names the TensorFlow that it was built with
OLDEST_TFLITE = (2, 11, 1)


def empty_model() -> bytes:
    """A TensorFlow Lite model with one subgraph that holds nothing, written by the rules of FlatBuffers."""
    header = struct.pack("<I4s", 24, b"TFL3")  # the root table is at 24
    model_fields = struct.pack("<8H", 14, 16, 4, 0, 8, 0, 12, 0)  # 8: where version, subgraphs and buffers are
    model = struct.pack("<4I", 16, 3, 8, 12)  # 24: version 3, subgraphs at 40, buffers at 48
    subgraphs = struct.pack("<2I", 1, 24)  # 40: one, at 68
    buffers = struct.pack("<I", 0)  # 48
    subgraph_fields = struct.pack("<8H", 12, 20, 4, 8, 12, 16, 0, 0)  # 52: where tensors, inputs, outputs, operators are
    subgraph = struct.pack("<5I", 16, 16, 12, 8, 4)  # 68: all four are the empty vector at 88
    nothing = struct.pack("<I", 0)  # 88
    return b"".join([header, model_fields, model, subgraphs, buffers, subgraph_fields, subgraph, nothing])


def build_interpreter() -> str:
    """Build an interpreter, which fails where a mere import succeeds; give the version of numpy.

    Raises:
        RuntimeError: numpy is one that tflite-runtime was not built for.
    """
    import numpy
    from tflite_runtime.interpreter import Interpreter

    try:
        Interpreter(model_content=empty_model()).allocate_tensors()
    except SystemError as error:
        raise RuntimeError(f"tflite-runtime builds no interpreter with numpy {numpy.__version__}: numpy<2 is needed") from error
    return str(numpy.__version__)


def compare_versions(tflite: str, library_source: str) -> str:
    """Whether tflite-runtime and libedgetpu are of one TensorFlow; where they are not, an inference may end in a crash.

    Args:
        tflite: version of tflite-runtime.
        library_source: address that libedgetpu was fetched from.

    Returns:
        What was found, for people.

    Raises:
        RuntimeError: libedgetpu's releases are known not to work with this tflite-runtime.
    """
    named = re.search(r"tf(\d+)\.(\d+)\.(\d+)", library_source.lower())
    ours = re.match(r"(\d+)\.(\d+)\.(\d+)", tflite)
    if named is None or ours is None:
        return f"not known whether tflite-runtime {tflite} and libedgetpu ({library_source}) are of one TensorFlow"
    library, runtime = (tuple(map(int, found.groups())) for found in (named, ours))
    version = ".".join(named.groups())
    if library == runtime:
        return f"tflite-runtime and libedgetpu are both of TensorFlow {version}"
    if not OLDEST_TFLITE <= runtime <= library:
        raise RuntimeError(
            f"tflite-runtime {tflite} does not work with a libedgetpu of TensorFlow {version}: expected {version},"
            " or at least one from 2.11.1 on that is not newer; give TFLITE_WHEEL and LIBEDGETPU_URL of one TensorFlow"
        )
    return f"tflite-runtime {tflite} is older than libedgetpu's TensorFlow {version}: reported to work, one version is safer"


def import_pycoral() -> bool:
    """Import what the server uses of pycoral; False if it was left out of the image.

    Raises:
        RuntimeError: it is installed, but does not work here.
    """
    if importlib.util.find_spec("pycoral") is None:
        return False
    try:
        importlib.import_module(PYCORAL_MODULE)
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f"{PYCORAL_MODULE} does not import ({error}): give another PYCORAL_WHEEL, or an empty one to leave it out"
        ) from error
    return True


def main() -> None:
    """Check each part and print what was found."""
    print(f"tflite-runtime builds an interpreter (numpy {build_interpreter()})")
    ctypes.CDLL("libedgetpu.so.1")
    print("libedgetpu.so.1 loads with all libraries it needs")
    print(compare_versions(str(importlib.import_module("tflite_runtime").__version__), LIBRARY_SOURCE.read_text().strip()))
    print("pycoral imports" if import_pycoral() else "pycoral was left out")


if __name__ == "__main__":
    main()
