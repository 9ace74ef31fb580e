"""models.yaml and the files it names. Valid Python 3.6."""

import hashlib
import os
import re

import pytest

from inference_server.model_files import InvalidManifest, read_model_files

WEIGHTS = b"weights"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
GOOD = f"{{file: a.tflite, input_type: uint8, sha256: '{SHA256}'}}"


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "a.tflite").write_bytes(WEIGHTS)
    return tmp_path


def read(directory, *models):
    (directory / "models.yaml").write_text("models:\n" + "".join(f"  {model}\n" for model in models))
    return read_model_files(directory)


def test_a_whole_file_can_be_loaded(directory):
    files, absent = read(directory, "mobilenet: " + GOOD)
    assert absent == {}
    assert files[0]._asdict() == {
        "name": "mobilenet",
        "path": directory / "a.tflite",
        "input_type": "uint8",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "sha256": SHA256,
    }


def test_mean_and_std_for_all_channels_or_for_each(directory):
    entry = GOOD.replace("uint8", "int8, mean: 127.5, std: [1, 2.5, 3]").replace(SHA256, SHA256.upper())
    model = read(directory, "mobilenet: " + entry).files[0]
    assert model.mean == (127.5, 127.5, 127.5)
    assert model.std == (1.0, 2.5, 3.0)


def test_missing_and_changed_files_are_absent_and_the_others_stay(directory):
    (directory / "b.tflite").write_bytes(b"other")
    files, absent = read(
        directory,
        "mobilenet: " + GOOD,
        "resnet50: " + GOOD.replace("a.tflite", "b.tflite"),
        "efficientnet: " + GOOD.replace("a.tflite", "c.tflite"),
        "vgg16: {absent: no VGG16 for this device}",
    )
    assert [model.name for model in files] == ["mobilenet"]
    assert absent["vgg16"] == "no VGG16 for this device"
    assert "c.tflite cannot be read: No such file" in absent["efficientnet"]
    assert hashlib.sha256(b"other").hexdigest() in absent["resnet50"]
    assert SHA256 in absent["resnet50"]


@pytest.mark.parametrize(
    "text, names",
    [
        (None, "models.yaml: cannot be read: No such file"),
        ("models: [", "expected YAML"),
        ("\x00", "expected YAML"),
        ("", "expected a mapping 'models'"),
        ("[]", "expected a mapping 'models'"),
        ("models: {}", "expected a mapping 'models'"),
        ("models: [a]", "expected a mapping 'models'"),
        ("models: {mobilenet: a.tflite}", "mobilenet: expected {file"),
        ("models: {3: {}}", "expected names of 1 to 200 printable characters, got '3'"),
        ("models: {'': {}}", "expected names of 1 to 200 printable"),
        ('models: {"a\\tb": {}}', "expected names of 1 to 200 printable"),
        ('models: {"\\ud83d": {}}', "expected"),
        ("models: {mobilenet: {absent: a}, mobilenet: {absent: b}}", "the key 'mobilenet' stands twice"),
        ("models: {mobilenet: {absent: 2024-13-45}}", "expected YAML"),
        ("models: {mobilenet: {absent: !!int abc}}", "expected YAML"),
        ("[" * 5000, "expected YAML"),
        ("models: {mobilenet: {absent: 3}}", "mobilenet: expected either a file or"),
        ("models: {mobilenet: {absent: why, file: a}}", "mobilenet: expected either a file or"),
    ],
)
def test_a_wrong_manifest_says_where_and_what_was_expected(directory, text, names):
    if text is not None:
        (directory / "models.yaml").write_text(text)
    with pytest.raises(InvalidManifest, match=re.escape(names)):
        read_model_files(directory)


@pytest.mark.parametrize(
    "good, wrong, names",
    [
        ("file", "fiel", "unknown key fiel"),
        ("a.tflite", "../a.tflite", "file: expected the name of a file beside"),
        ("a.tflite", "''", "file: expected the name of a file beside"),
        ("a.tflite", '"a\\0b"', "file: expected the name of a file beside"),
        ("a.tflite", "..", "file: expected the name of a file beside"),
        ("uint8", "fp16", "input_type: expected one of uint8, int8, float32, got 'fp16'"),
        (SHA256, "abc", "sha256: expected 64 hexadecimal digits in quotes, got 'abc'"),
        ("uint8", "uint8, std: 0", "std: expected numbers above 0"),
        ("uint8", "uint8, mean: [1, 2]", "mean: expected a number, or three"),
        ("uint8", "uint8, mean: 1" + 400 * "0", "mean: expected a number, or three"),
        ("uint8", "uint8, mean: .nan", "mean: expected a number, or three"),
        ("uint8", "uint8, mean: yes", "mean: expected a number, or three"),
    ],
)
def test_a_wrong_entry_says_which_key_and_what_was_expected(directory, good, wrong, names):
    with pytest.raises(InvalidManifest, match="models.yaml: mobilenet: " + re.escape(names)):
        read(directory, "mobilenet: " + GOOD.replace(good, wrong))


def test_what_is_quoted_of_a_manifest_is_short(directory):
    bomb = ["&a0 [x]"] + [f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 8)]
    (directory / "models.yaml").write_text("".join(f"k{n}: {level}\n" for n, level in enumerate(bomb)) + "models: {m: *a7}\n")
    with pytest.raises(InvalidManifest) as raised:
        read_model_files(directory)
    assert len(str(raised.value)) < 2000


def test_what_is_no_regular_file_is_not_opened(directory):
    os.mkfifo(str(directory / "pipe"))
    files, absent = read(directory, "mobilenet: " + GOOD, "resnet50: " + GOOD.replace("a.tflite", "pipe"))
    assert [model.name for model in files] == ["mobilenet"]
    assert absent["resnet50"].endswith("pipe is no regular file")
    (directory / "models.yaml").unlink()
    os.mkfifo(str(directory / "models.yaml"))
    with pytest.raises(InvalidManifest, match="models.yaml: expected a regular file"):
        read_model_files(directory)
