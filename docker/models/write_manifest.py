r"""Writes models.yaml, the manifest of a server's models, with the SHA-256 of each file, so that nobody types one.

    python3 write_manifest.py /opt/edge-models \
        mobilenet=mobilenet_v2.tflite:uint8 \
        resnet50=resnet50.tflite:int8:123.68,116.78,103.94:1 \
        efficientnet=efficientnet_s.tflite:uint8:127:128 \
        'vgg16=absent:was not compiled for this device'

A model is FILE:INPUT_TYPE[:MEAN:STD]. FILE lies in the directory, INPUT_TYPE is the element type of the model's input: uint8,
int8 or float32. MEAN and STD, a number or three for R,G,B, say what the network was trained on: (pixel - mean) / std; without
them a uint8 model gets the pixels as they are. Needs Python 3.11 and PyYAML.
"""

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

MANIFEST = "models.yaml"
MODELS = ("mobilenet", "resnet50", "efficientnet", "vgg16")
INPUT_TYPES = ("uint8", "int8", "float32")
FORM = "NAME=FILE:INPUT_TYPE[:MEAN:STD] or NAME=absent:REASON"


class BadModel(Exception):
    """A model on the command line is not written as it should be; the message says what is wrong with it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the manifest that the command line describes; the exit status is 0, 1 (a file cannot be used) or 2 (bad usage)."""
    parser = argparse.ArgumentParser(
        description="Write models.yaml for a directory of models.", epilog=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="where the model files are and models.yaml goes")
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"all four, each as {FORM}")
    options = parser.parse_args(arguments)
    try:
        entries = parse(options.models)
    except BadModel as error:
        parser.error(str(error))
    try:
        path = write(options.directory, entries)
    except OSError as error:
        print(f"write_manifest.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(path.read_text(), end="")
    return 0


def parse(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the models of a command line say, by name and in the order of MODELS; a file has no hash yet.

    Raises:
        BadModel: one is malformed, unknown, missing or there twice.
    """
    entries: dict[str, dict[str, Any]] = {}
    for text in models:
        name, _, value = text.partition("=")
        if name not in MODELS:
            raise BadModel(f"{text!r}: expected {FORM}, NAME one of {', '.join(MODELS)}")
        if name in entries:
            raise BadModel(f"{name} is there twice")
        entries[name] = entry(name, value)
    missing = [name for name in MODELS if name not in entries]
    if missing:
        raise BadModel(f"{missing[0]} is missing; say 'NAME=absent:REASON' for a model that this device does not have")
    return {name: entries[name] for name in MODELS}


def entry(name: str, value: str) -> dict[str, Any]:
    """What is said of one model.

    Raises:
        BadModel: it is malformed.
    """
    if value == "absent" or value.startswith("absent:"):
        reason = value.partition(":")[2].strip()
        if not reason:
            raise BadModel(f"{name}: expected a reason after absent:, as the server reports it in /health")
        return {"absent": reason}
    file, *rest = value.split(":")
    if len(rest) not in (1, 3):
        raise BadModel(f"{name}: expected FILE:INPUT_TYPE or FILE:INPUT_TYPE:MEAN:STD, got {value!r}")
    if not file or Path(file).name != file:
        raise BadModel(f"{name}: expected the name of a file in the directory, without a path, got {file!r}")
    if rest[0] not in INPUT_TYPES:
        raise BadModel(f"{name}: expected an input type of {', '.join(INPUT_TYPES)}, got {rest[0]!r}")
    found: dict[str, Any] = {"file": file, "input_type": rest[0]}
    if len(rest) == 3:
        found |= {"mean": channels(f"{name}: mean", rest[1]), "std": channels(f"{name}: std", rest[2])}
        if min(found["std"] if isinstance(found["std"], list) else [found["std"]]) <= 0:
            raise BadModel(f"{name}: std: expected numbers above 0, got {rest[2]!r}")
    return found


def channels(where: str, text: str) -> float | list[float]:
    """A number, or three for R, G, B.

    Raises:
        BadModel: it is neither.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise BadModel(f"{where}: expected a number, or three with commas for R, G, B, got {text!r}")
    return numbers[0] if len(numbers) == 1 else numbers


def write(directory: Path, entries: dict[str, dict[str, Any]]) -> Path:
    """Add the hashes and write the manifest, whole or not at all.

    Raises:
        OSError: a model's file cannot be read or the manifest not be written.
    """
    for found in entries.values():
        if "file" in found:
            with (directory / found["file"]).open("rb") as file:
                found["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    path, part = directory / MANIFEST, directory / f".{MANIFEST}.part"
    try:
        part.write_text(
            yaml.safe_dump({"models": entries}, sort_keys=False, default_flow_style=None, allow_unicode=True, width=240),
            encoding="utf-8",
        )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
