"""From the pixels of an image to the input tensor of a TensorFlow Lite model, without a silent cast."""

from typing import Any

import numpy as np
import numpy.typing as npt

from inference_server.backend import IMAGE_SIDE, UnusableModel
from inference_server.model_files import ModelFile

INPUT_SHAPE = (1, IMAGE_SIDE, IMAGE_SIDE, 3)


class ImageConversion:
    """How the pixels of an image become a model's input tensor: through a table, since a pixel has only 256 values.

    Args:
        model: type, mean and std of the input.
        scale: quantisation of the input tensor; 0 where it has none.
        zero_point: quantised value that stands for 0.

    Raises:
        UnusableModel: the tensor cannot hold what mean and std make of an image.
    """

    def __init__(self, model: ModelFile, scale: float, zero_point: int) -> None:
        self._tables: list[npt.NDArray[Any]] = []
        if model.input_type == "uint8" and model.mean == (0.0, 0.0, 0.0) and model.std == (1.0, 1.0, 1.0):
            return
        for mean, std in zip(model.mean, model.std, strict=True):
            real = (np.arange(256) - mean) / std
            if model.input_type == "float32":
                self._tables.append(real.astype(np.float32))
            else:
                self._tables.append(_quantised(real, np.dtype(model.input_type), scale, zero_point))
        if all(np.array_equal(table, self._tables[0]) for table in self._tables):
            del self._tables[1:]

    def __call__(self, image: bytes) -> npt.NDArray[Any]:
        """The input tensor of an image of 224 * 224 * 3 uint8; may share its memory."""
        pixels = np.frombuffer(image, np.uint8).reshape(INPUT_SHAPE)
        if not self._tables:
            return pixels
        if len(self._tables) == 1:
            return self._tables[0].take(pixels)
        tensor = np.empty(INPUT_SHAPE, self._tables[0].dtype)
        for channel, table in enumerate(self._tables):
            tensor[..., channel] = table.take(pixels[..., channel])
        return tensor


def _quantised(real: npt.NDArray[np.floating[Any]], dtype: np.dtype[Any], scale: float, zero_point: int) -> npt.NDArray[Any]:
    """Quantise as TensorFlow Lite does: halves away from zero, values out of range to its end.

    Args:
        real: what the pixel values 0 to 255 stand for.
        dtype: uint8 or int8.
        scale: difference between two quantised values.
        zero_point: quantised value that stands for 0.

    Raises:
        UnusableModel: there is no scale, or most of the values are out of range.
    """
    if scale <= 0:
        raise UnusableModel(f"its {dtype.name} input has no quantisation (scale {scale}), so pixels cannot be converted to it")
    steps = real / scale
    unclipped: npt.NDArray[np.floating[Any]] = np.trunc(steps + np.copysign(0.5, steps)) + zero_point
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    lost = int(((unclipped < lowest) | (unclipped > highest)).sum())
    if lost > len(real) / 2:
        raise UnusableModel(
            f"{lost} of the 256 pixel values lie outside what its {dtype.name} input (scale {scale:g}, zero point {zero_point})"
            " can hold: mean and std in models.yaml must be those that the model was trained with"
        )
    return unclipped.clip(lowest, highest).astype(dtype)
