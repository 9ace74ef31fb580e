"""Exports the four networks of the experiment as ONNX graphs, the form from which TensorRT builds engines on the Jetson Nano.

    python3 export_onnx.py --weights imagenet --output onnx

writes onnx/mobilenet.onnx, resnet50.onnx, efficientnet.onnx (B1) and vgg16.onnx. Each graph takes `image`, one RGB image as
float32 [1, 224, 224, 3] with pixel values from 0 to 255, and gives `logits`, float32 [1, 1000]. The change of layout and the
ImageNet normalisation are nodes of the graph, so that they run on the GPU. requirements.txt names the packages needed.
"""

import argparse
import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SIDE_PIXELS = 224
MEAN = (123.675, 116.28, 103.53)  # of ImageNet: 255 times torchvision's 0.485, 0.456, 0.406
STD = (58.395, 57.12, 57.375)  # 255 times 0.229, 0.224, 0.225
SEED = 20260101
CHUNK_BYTES = 1 << 20


class Architecture(NamedTuple):
    """Where torchvision keeps a network: the function that builds it, and which of its trained weights are taken."""

    builder: str
    weights: str


ARCHITECTURES = {
    "mobilenet": Architecture("mobilenet_v2", "IMAGENET1K_V2"),
    "resnet50": Architecture("resnet50", "IMAGENET1K_V2"),
    "efficientnet": Architecture("efficientnet_b1", "IMAGENET1K_V2"),
    "vgg16": Architecture("vgg16", "IMAGENET1K_V1"),
}


class ExportError(Exception):
    """A graph could not be made; the message says why and what to do."""


class Exported(NamedTuple):
    """A graph that was written."""

    path: Path
    size_bytes: int
    parameters: int
    sha256: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line asks for; the exit status is 0, 1 (failed) or 2 (bad usage)."""
    options = command_line().parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for name in options.models:
            done = export(name, options.weights == "imagenet", options.opset, options.output)
            print(f"{done.path}  {done.size_bytes} bytes  {done.parameters} parameters  sha256 {done.sha256}", flush=True)
    except ExportError as error:
        print(f"export_onnx.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"export_onnx.py: cannot write {error.filename or options.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="Export the four networks of the experiment as ONNX graphs.")
    parser.add_argument(
        "--weights",
        choices=("none", "imagenet"),
        required=True,
        help="imagenet: torchvision's trained weights, downloaded (670 MB for all four); "
        "none: random ones from a fixed seed, right for timing, useless for classes",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="made if missing; older files are replaced")
    parser.add_argument("--models", type=model_names, default=list(ARCHITECTURES), metavar="A,B", help="default: all four")
    parser.add_argument(
        "--opset", type=int, choices=range(9, 18), default=13, metavar="N", help="9 to 17, default 13: the last of TensorRT 8.2"
    )
    return parser


def model_names(text: str) -> list[str]:
    """The names in a list with commas."""
    names = text.split(",")
    for name in names:
        if name not in ARCHITECTURES:
            raise argparse.ArgumentTypeError(f"no model {name!r}; there are {', '.join(ARCHITECTURES)}")
    return names


def export(name: str, trained: bool, opset: int, directory: Path) -> Exported:
    """Write <directory>/<name>.onnx, whole or not at all.

    Raises:
        ExportError: a package is missing, the weights cannot be had, or the graph is not valid ONNX.
        OSError: the file cannot be written.
    """
    torch, _, onnx = packages()
    model = network(name, trained)
    path, part = directory / f"{name}.onnx", directory / f".{name}.onnx.part"
    try:
        with warnings.catch_warnings():
            # TensorRT 8.2 reads what this exporter writes; the one that replaces it begins at opset 18.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            torch.onnx.export(
                with_preprocessing(model),
                (torch.zeros(1, SIDE_PIXELS, SIDE_PIXELS, 3),),
                str(part),
                input_names=["image"],
                output_names=["logits"],
                opset_version=opset,
                do_constant_folding=True,
                dynamo=False,
            )
        try:
            onnx.checker.check_model(str(part), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"{name}: the exported graph is not valid ONNX: {one_line(error)}") from error
        parameters = sum(parameter.numel() for parameter in model.parameters())
        done = Exported(path, part.stat().st_size, parameters, sha256_of(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return done


def network(name: str, trained: bool) -> Any:
    """A network of torchvision, ready for inference: trained, or with the same random weights each time.

    Raises:
        ExportError: a package is missing, or the weights cannot be downloaded.
    """
    torch, torchvision, _ = packages()
    builder, weights = ARCHITECTURES[name]
    if not trained:
        torch.manual_seed(SEED)
        return settled(torchvision.models.get_model(builder, weights=None).eval())
    try:
        return torchvision.models.get_model(builder, weights=weights).eval()
    except (OSError, RuntimeError) as error:
        raise ExportError(f"{name}: cannot download torchvision's weights {weights} of {builder}: {one_line(error)}") from error


def settled(model: Any) -> Any:
    """An untrained model, changed where torchvision's initial values make it behave unlike a trained one.

    Biases get random values: equal ones the exporter stores once and copies by nodes that a trained graph does not have.
    Normalisation layers divide by the size of what they get for a random image: else MobileNet and EfficientNet shrink their
    input until no logit is above 1e-9, which is zero in FP16, and an engine cannot be compared with its graph.
    Squeeze-and-excitation gets smaller weights: else 23 gates in a row blow rounding errors up to a hundredth of the result.
    """
    torch, torchvision, _ = packages()

    def divide_by_size(norm: Any, inputs: Any) -> None:
        norm.running_var = inputs[0].square().mean((0, 2, 3))

    hooks = []
    for layer in model.modules():
        if isinstance(layer, torchvision.ops.SqueezeExcitation):
            layer.fc1.reset_parameters()
            layer.fc2.reset_parameters()
        if getattr(layer, "bias", None) is not None:
            torch.nn.init.normal_(layer.bias, std=0.01)
        if isinstance(layer, torch.nn.BatchNorm2d):
            hooks.append(layer.register_forward_pre_hook(divide_by_size))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one order of summing, whatever the number of cores: the same bits
    with torch.no_grad():
        model(torch.randn(1, 3, SIDE_PIXELS, SIDE_PIXELS))
    torch.set_num_threads(threads)
    for hook in hooks:
        hook.remove()
    return model


def with_preprocessing(model: Any) -> Any:
    """The model behind what turns an image as the server holds it into an input as the network was trained on."""
    torch = packages().torch

    class Preprocessed(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

        def forward(self, image: Any) -> Any:
            return self.model((image.permute(0, 3, 1, 2) - self.mean) / self.std)

    return Preprocessed().eval()


class Packages(NamedTuple):
    """What requirements.txt brings, imported only when something is to be exported."""

    torch: Any
    torchvision: Any
    onnx: Any


@functools.cache
def packages() -> Packages:
    """The packages.

    Raises:
        ExportError: one is missing or does not fit the others.
    """
    try:
        import onnx.checker
        import onnx.shape_inference
        import torch

        return Packages(torch, torchvision_beside(torch), onnx)
    except (ImportError, OSError, RuntimeError) as error:
        needed = f"python3 -m pip install -r {REQUIREMENTS}"
        raise ExportError(f"a package that it needs cannot be imported ({one_line(error)}): {needed}") from error


def torchvision_beside(torch: Any) -> Any:
    """Torchvision, also where its compiled library does not load.

    That happens when torchvision was built for CUDA and torch for the CPU. Its import then fails on two operators of that
    library, which no classifier uses: declared, they do no more harm. Where the library loads, it declares them itself.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.operators_declared_here = library  # they are gone when the object is
    return torchvision


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def one_line(error: Exception) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
