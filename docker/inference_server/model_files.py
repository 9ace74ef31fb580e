"""The models of a server: `models.yaml` says which file holds which model, and each file is checked against its SHA-256.

    models:
      mobilenet: {file: mobilenet_v2.tflite, input_type: uint8, sha256: 02d7c1...}
      resnet50: {file: resnet50.tflite, input_type: int8, sha256: 5f1e0a..., mean: 127.5, std: 127.5}
      vgg16: {absent: no VGG16 was compiled for this device}

`mean` and `std` say what a model was trained on: its real input is (pixel - mean) / std, one number or one for each of R, G, B.
"""

import hashlib
import reprlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import yaml

MANIFEST = "models.yaml"
INPUT_TYPES = ("uint8", "int8", "float32")
KEYS = ("file", "input_type", "sha256", "mean", "std")
CHUNK_BYTES = 1 << 20
LARGEST_NUMBER = 1e6
LONGEST_NAME = 200

_SHORT = reprlib.Repr()  # what a manifest holds may be long, and aliases in YAML make it longer
_SHORT.maxlevel = 2

Channels = Tuple[float, float, float]


class InvalidManifest(Exception):
    """models.yaml is missing or wrong; the message says where and what was expected."""


class ModelFile(NamedTuple):
    """One model whose file is there and whole.

    Attributes:
        name: what requests call it.
        path: its file.
        input_type: element type of its input: uint8, int8 or float32.
        mean, std: its real input is (pixel - mean) / std, for each of R, G, B.
        sha256: of the file, 64 hexadecimal digits.
    """

    name: str
    path: Path
    input_type: str
    mean: Channels
    std: Channels
    sha256: str


class ModelFiles(NamedTuple):
    """The files that can be loaded, and why each of the other models is absent, by its name."""

    files: List[ModelFile]
    absent: Dict[str, str]


def read_model_files(directory: Path) -> ModelFiles:
    """Read the manifest of a directory and check the files that it names.

    Raises:
        InvalidManifest: there is none, or it does not say what it should.
    """
    files: List[ModelFile] = []
    absent: Dict[str, str] = {}
    for name, entry in _entries(directory / MANIFEST).items():
        where = f"{directory / MANIFEST}: {name}"
        if "absent" in entry:
            if len(entry) > 1 or not isinstance(entry["absent"], str):
                raise InvalidManifest(f"{where}: expected either a file or {{absent: why}}, got {_SHORT.repr(entry)}")
            absent[name] = entry["absent"]
            continue
        model = _model_file(where, name, directory, entry)
        problem = _file_problem(model)
        if problem is None:
            files.append(model)
        else:
            absent[name] = problem
    return ModelFiles(files, absent)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which the later would take the place of the earlier."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {_SHORT.repr(key)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _entries(path: Path) -> Dict[str, Dict[str, Any]]:
    if path.exists() and not path.is_file():
        raise InvalidManifest(f"{path}: expected a regular file")
    try:
        content = yaml.load(path.read_bytes(), _UniqueKeys)
    except OSError as error:
        raise InvalidManifest(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidManifest(f"{path}: expected YAML, got something else ({' '.join(str(error).split())[:300]})") from error
    models = content.get("models") if isinstance(content, dict) else None
    if not isinstance(models, dict) or not models:
        raise InvalidManifest(f"{path}: expected a mapping 'models' from name to file")
    for name, entry in models.items():
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise InvalidManifest(
                f"{path}: expected names of 1 to {LONGEST_NAME} printable characters, got {ascii(_SHORT.repr(name))}"
            )
        if not isinstance(entry, dict):
            shown = _SHORT.repr(entry)
            raise InvalidManifest(f"{path}: {name}: expected {{file: ..., input_type: ..., sha256: ...}}, got {shown}")
    return models


def _model_file(where: str, name: str, directory: Path, entry: Dict[str, Any]) -> ModelFile:
    unknown = [str(key) for key in entry if key not in KEYS]
    if unknown:
        raise InvalidManifest(f"{where}: unknown key {unknown[0]}; there are {', '.join(KEYS)} and absent")
    file_name = entry.get("file")
    if not isinstance(file_name, str) or file_name in ("", "..") or Path(file_name).name != file_name or "\0" in file_name:
        raise InvalidManifest(f"{where}: file: expected the name of a file beside the manifest, got {_SHORT.repr(file_name)}")
    if entry.get("input_type") not in INPUT_TYPES:
        found = _SHORT.repr(entry.get("input_type"))
        raise InvalidManifest(f"{where}: input_type: expected one of {', '.join(INPUT_TYPES)}, got {found}")
    sha256 = str(entry.get("sha256", "")).lower()
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        found = _SHORT.repr(entry.get("sha256"))
        raise InvalidManifest(f"{where}: sha256: expected 64 hexadecimal digits in quotes, got {found}")
    mean = _channels(f"{where}: mean", entry.get("mean", 0.0))
    std = _channels(f"{where}: std", entry.get("std", 1.0))
    if min(std) <= 0:
        raise InvalidManifest(f"{where}: std: expected numbers above 0, got {_SHORT.repr(entry['std'])}")
    return ModelFile(name, directory / file_name, entry["input_type"], mean, std, sha256)


def _channels(where: str, value: Any) -> Channels:
    values = value if isinstance(value, list) else [value] * 3
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < LARGEST_NUMBER]
    if len(values) != 3 or len(numbers) != 3:
        raise InvalidManifest(f"{where}: expected a number, or three for R, G, B, got {_SHORT.repr(value)}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _file_problem(model: ModelFile) -> Optional[str]:
    """Why a file cannot be used, or None."""
    digest = hashlib.sha256()
    if model.path.exists() and not model.path.is_file():
        return f"{model.path} is no regular file"
    try:
        with model.path.open("rb") as file:
            for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                digest.update(chunk)
    except OSError as error:
        return f"{model.path} cannot be read: {error.strerror}"
    if digest.hexdigest() != model.sha256:
        return f"{model.path} has SHA-256 {digest.hexdigest()}, models.yaml says {model.sha256}"
    return None
