"""Writes small real TensorFlow Lite classifiers: average pooling, then one fully connected layer with seeded random weights."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
import numpy.typing as npt
import tflite

CLASSES = 40
BLOCKS = 8
"""An image is pooled to so many by so many values for each channel."""
TYPES = {"uint8": tflite.TensorType.UINT8, "int8": tflite.TensorType.INT8, "float32": tflite.TensorType.FLOAT32}


class Quantisation(NamedTuple):
    """Real value = (stored value - zero point) * scale."""

    scale: float
    zero_point: int


class _Tensor(NamedTuple):
    name: str
    shape: Sequence[int]
    dtype: str
    quantisation: Quantisation | None = None
    content: npt.NDArray[Any] | None = None


def block_image(rng: np.random.Generator) -> bytes:
    """A random image of 224 * 224 * 3 uint8 whose blocks survive the pooling; white noise would be grey after it."""
    blocks = rng.integers(0, 256, (BLOCKS, BLOCKS, 3), dtype=np.uint8)
    side = 224 // BLOCKS
    return np.repeat(np.repeat(blocks, side, 0), side, 1).tobytes()


def classifier(input_type: str, quantisation: Quantisation | None = None, side: int = 224, seed: int = 0) -> bytes:
    """A model that tells `CLASSES` classes apart.

    Args:
        input_type: uint8, int8 or float32: the type of its input and output.
        quantisation: of its input, unless that is float32.
        side: height and width of its input.
        seed: of its weights and bias.
    """
    rng = np.random.default_rng(seed)
    features = BLOCKS * BLOCKS * 3
    weights = rng.normal(0, 1, (CLASSES, features)).clip(-3, 3)
    weight_quantisation = bias_quantisation = output_quantisation = None
    bias: npt.NDArray[Any] = rng.normal(0, 3, CLASSES)
    if quantisation is None:
        weights, bias = weights.astype(np.float32), bias.astype(np.float32)
    else:
        zero_point = 0 if input_type == "int8" else 128
        weight_quantisation = Quantisation(3 / 127, zero_point)
        weights = (np.rint(weights / weight_quantisation.scale) + zero_point).astype(input_type)
        bias_quantisation = Quantisation(quantisation.scale * weight_quantisation.scale, 0)
        bias = np.rint(bias / bias_quantisation.scale).astype(np.int32)
        output_quantisation = Quantisation(quantisation.scale * 40, zero_point)
    pooled = (1, BLOCKS, BLOCKS, 3)
    tensors = [
        _Tensor("image", (1, side, side, 3), input_type, quantisation),
        _Tensor("pooled", pooled, input_type, quantisation),
        _Tensor("shape", (2,), "int32", content=np.array([1, features], np.int32)),
        _Tensor("features", (1, features), input_type, quantisation),
        _Tensor("weights", weights.shape, input_type, weight_quantisation, weights),
        _Tensor("bias", bias.shape, str(bias.dtype), bias_quantisation, bias),
        _Tensor("scores", (1, CLASSES), input_type, output_quantisation),
    ]
    builder = flatbuffers.Builder()
    operators = [
        _operator(builder, 0, [0], [1], (tflite.BuiltinOptions.Pool2DOptions, _pool_options(builder, side // BLOCKS))),
        _operator(builder, 1, [1, 2], [3]),
        _operator(builder, 2, [3, 4, 5], [6], (tflite.BuiltinOptions.FullyConnectedOptions, _dense_options(builder))),
    ]
    kinds = tflite.BuiltinOperator
    codes = [_code(builder, kind) for kind in (kinds.AVERAGE_POOL_2D, kinds.RESHAPE, kinds.FULLY_CONNECTED)]
    return _file(builder, tensors, operators, codes, output=6)


def edge_tpu_model() -> bytes:
    """A model such as the Edge TPU's compiler leaves behind: one operator that only the Edge TPU's library knows."""
    builder = flatbuffers.Builder()
    tensors = [
        _Tensor("image", (1, 224, 224, 3), "uint8", Quantisation(1 / 128, 128)),
        _Tensor("scores", (1, CLASSES), "uint8", Quantisation(1 / 256, 0)),
    ]
    operators = [_operator(builder, 0, [0], [1])]
    return _file(builder, tensors, operators, [_code(builder, tflite.BuiltinOperator.CUSTOM, "edgetpu-custom-op")], output=1)


def _pool_options(builder: flatbuffers.Builder, size: int) -> int:
    tflite.Pool2DOptionsStart(builder)
    tflite.Pool2DOptionsAddPadding(builder, tflite.Padding.VALID)
    tflite.Pool2DOptionsAddStrideW(builder, size)
    tflite.Pool2DOptionsAddStrideH(builder, size)
    tflite.Pool2DOptionsAddFilterWidth(builder, size)
    tflite.Pool2DOptionsAddFilterHeight(builder, size)
    return int(tflite.Pool2DOptionsEnd(builder))


def _dense_options(builder: flatbuffers.Builder) -> int:
    tflite.FullyConnectedOptionsStart(builder)
    return int(tflite.FullyConnectedOptionsEnd(builder))


def _code(builder: flatbuffers.Builder, kind: int, custom: str | None = None) -> int:
    name = None if custom is None else builder.CreateString(custom)
    tflite.OperatorCodeStart(builder)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, kind)
    tflite.OperatorCodeAddBuiltinCode(builder, kind)
    tflite.OperatorCodeAddVersion(builder, 1)
    if name is not None:
        tflite.OperatorCodeAddCustomCode(builder, name)
    return int(tflite.OperatorCodeEnd(builder))


def _operator(
    builder: flatbuffers.Builder, code: int, inputs: Sequence[int], outputs: Sequence[int], options: tuple[int, int] | None = None
) -> int:
    inputs_at, outputs_at = _integers(builder, inputs), _integers(builder, outputs)
    tflite.OperatorStart(builder)
    tflite.OperatorAddOpcodeIndex(builder, code)
    tflite.OperatorAddInputs(builder, inputs_at)
    tflite.OperatorAddOutputs(builder, outputs_at)
    if options is not None:
        tflite.OperatorAddBuiltinOptionsType(builder, options[0])
        tflite.OperatorAddBuiltinOptions(builder, options[1])
    return int(tflite.OperatorEnd(builder))


def _tensor(builder: flatbuffers.Builder, tensor: _Tensor, buffer: int) -> int:
    name, shape = builder.CreateString(tensor.name), _integers(builder, tensor.shape)
    quantisation = None if tensor.quantisation is None else _quantisation(builder, tensor.quantisation)
    tflite.TensorStart(builder)
    tflite.TensorAddShape(builder, shape)
    tflite.TensorAddType(builder, {**TYPES, "int32": tflite.TensorType.INT32}[tensor.dtype])
    tflite.TensorAddBuffer(builder, buffer)
    tflite.TensorAddName(builder, name)
    if quantisation is not None:
        tflite.TensorAddQuantization(builder, quantisation)
    return int(tflite.TensorEnd(builder))


def _quantisation(builder: flatbuffers.Builder, quantisation: Quantisation) -> int:
    scales = builder.CreateNumpyVector(np.array([quantisation.scale], np.float32))
    zero_points = builder.CreateNumpyVector(np.array([quantisation.zero_point], np.int64))
    tflite.QuantizationParametersStart(builder)
    tflite.QuantizationParametersAddScale(builder, scales)
    tflite.QuantizationParametersAddZeroPoint(builder, zero_points)
    return int(tflite.QuantizationParametersEnd(builder))


def _buffer(builder: flatbuffers.Builder, content: npt.NDArray[Any] | None) -> int:
    if content is None:
        tflite.BufferStart(builder)
        return int(tflite.BufferEnd(builder))
    stored = content.tobytes()
    builder.Prep(16, len(stored))  # the schema wants the contents of buffers aligned
    data = builder.CreateByteVector(stored)
    tflite.BufferStart(builder)
    tflite.BufferAddData(builder, data)
    return int(tflite.BufferEnd(builder))


def _file(
    builder: flatbuffers.Builder, tensors: Sequence[_Tensor], operators: Sequence[int], codes: Sequence[int], output: int
) -> bytes:
    """A whole file; the first tensor is the input, buffer 0 the empty one that every file has."""
    buffers = [_buffer(builder, None), *(_buffer(builder, tensor.content) for tensor in tensors)]
    tensors_at = _offsets(builder, [_tensor(builder, tensor, buffer) for buffer, tensor in enumerate(tensors, start=1)])
    inputs_at, outputs_at = _integers(builder, [0]), _integers(builder, [output])
    operators_at, codes_at, buffers_at = (_offsets(builder, part) for part in (operators, codes, buffers))
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, tensors_at)
    tflite.SubGraphAddInputs(builder, inputs_at)
    tflite.SubGraphAddOutputs(builder, outputs_at)
    tflite.SubGraphAddOperators(builder, operators_at)
    subgraphs_at = _offsets(builder, [tflite.SubGraphEnd(builder)])
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, codes_at)
    tflite.ModelAddSubgraphs(builder, subgraphs_at)
    tflite.ModelAddBuffers(builder, buffers_at)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _integers(builder: flatbuffers.Builder, values: Sequence[int]) -> int:
    return int(builder.CreateNumpyVector(np.array(values, np.int32)))


def _offsets(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
