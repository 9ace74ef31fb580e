"""Prints, as JSON, what is in a graph of export_onnx.py and how far its logits are from the network's own.

Run by test_export_onnx.py in the environment that has torch and onnx: onnx_report.py GRAPH...
The preprocessing here is torchvision's (ToTensor, Normalize with the published ImageNet constants), not the script's.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docker"))

import numpy as np
import onnx
import onnxruntime

from models import export_onnx

torchvision = export_onnx.packages().torchvision
torch = export_onnx.packages().torch
IMAGE = np.random.default_rng(7).integers(0, 256, (224, 224, 3), dtype=np.uint8)


def report(path: Path) -> dict[str, Any]:
    """What the test asks of one graph."""
    graph = onnx.load(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": IMAGE[None].astype(np.float32)})
    right, wrong = expected(path.stem)
    return {
        "inputs": [[each.name, each.shape, each.type] for each in session.get_inputs()],
        "outputs": [[each.name, each.shape, each.type] for each in session.get_outputs()],
        "opset": {each.domain: each.version for each in graph.opset_import},
        "ir_version": graph.ir_version,
        "operators": sorted({node.op_type for node in graph.graph.node}),
        "convolutions": [node.name for node in graph.graph.node if node.op_type == "Conv"],
        "external_data": any(each.external_data for each in graph.graph.initializer),
        "parameters": parameters(graph),
        "spread": float(right.std()),
        "error": float(np.abs(logits - right).max()),
        "error_if_preprocessed_wrongly": {how: float(np.abs(each - right).max()) for how, each in wrong.items()},
    }


def expected(name: str) -> tuple[Any, dict[str, Any]]:
    """The logits of the network itself, and what they would be with mistakes that a graph could make."""
    network = export_onnx.network(name, trained=False)
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def logits(image: Any) -> Any:
        with torch.inference_mode():
            return network(image[None]).numpy()

    scaled = torchvision.transforms.ToTensor()(IMAGE)
    wrong = {
        "not normalised": scaled,
        "not scaled": normalise(scaled * 255),
        "BGR": normalise(scaled.flip(0)),
        "rows and columns swapped": normalise(scaled.transpose(1, 2)),
        "channels first": normalise(torch.from_numpy(IMAGE.reshape(3, 224, 224)) / 255),
    }
    return logits(normalise(scaled)), {how: logits(image) for how, image in wrong.items()}


def parameters(model: Any) -> Any:
    """How many numbers were trained, counted in the graph.

    Batch normalisation is folded into the convolution before it, whose one bias a channel stands for the norm's two parameters.
    These convolutions are told from those of squeeze-and-excitation, which have a bias of their own, by their size above 1 × 1.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {each.name: [d.dim_value for d in each.type.tensor_type.shape.dim] for each in graph.value_info}
    stored = {each.name: each for each in graph.initializer}
    total = sum(math.prod(each.dims) for name, each in stored.items() if name not in ("mean", "std"))
    folded = [node for node in graph.node if node.op_type == "Conv" and node.input[2].startswith("onnx::Conv")]
    assert all(math.prod(shapes[node.output[0]][2:]) > 1 for node in folded)
    return total + sum(math.prod(stored[node.input[2]].dims) for node in folded)


print(json.dumps({Path(path).stem: report(Path(path)) for path in sys.argv[1:]}))
