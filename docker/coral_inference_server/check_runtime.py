"""Checks while the image is built, without a stick, that the parts of the Coral runtime fit together."""

import ctypes
import importlib
import importlib.util
import struct

PYCORAL_MODULE = "pycoral.utils.edgetpu"


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
    print("pycoral imports" if import_pycoral() else "pycoral was left out")


if __name__ == "__main__":
    main()
