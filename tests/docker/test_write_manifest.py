"""write_manifest.py: what it writes is what the servers read, and bad input is refused by name."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from inference_server.model_files import read_model_files

SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "models" / "write_manifest.py"
ABSENT = ["resnet50=absent:none", "efficientnet=absent:none", "vgg16=absent:none"]


@pytest.fixture
def models(tmp_path):
    for name in ("mobilenet_v2.tflite", "resnet50.tflite", "efficientnet.tflite"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    return tmp_path


def write_manifest(directory, *models):
    return subprocess.run([sys.executable, SCRIPT, directory, *models], capture_output=True, text=True)


def test_a_server_reads_what_it_writes(models):
    done = write_manifest(
        models,
        "vgg16=absent:was not compiled: 138 MB",
        "efficientnet=efficientnet.tflite:float32",
        "mobilenet=mobilenet_v2.tflite:uint8:127.5:128",
        "resnet50=resnet50.tflite:int8:123.68,116.78,103.94:58.4,57.12,57.38",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (models / "models.yaml").read_text()
    found = read_model_files(models)
    assert found.absent == {"vgg16": "was not compiled: 138 MB"}
    mobilenet, resnet50, efficientnet = found.files
    assert (mobilenet.name, mobilenet.path, mobilenet.input_type) == ("mobilenet", models / "mobilenet_v2.tflite", "uint8")
    assert (mobilenet.mean, mobilenet.std) == ((127.5,) * 3, (128.0,) * 3)
    assert mobilenet.sha256 == hashlib.sha256(mobilenet.path.read_bytes()).hexdigest()
    assert (resnet50.mean, resnet50.std) == ((123.68, 116.78, 103.94), (58.4, 57.12, 57.38))
    assert (efficientnet.name, efficientnet.mean, efficientnet.std) == ("efficientnet", (0.0,) * 3, (1.0,) * 3)


def test_writing_again_takes_the_present_files(models):
    arguments = ["mobilenet=mobilenet_v2.tflite:uint8", *ABSENT]
    write_manifest(models, *arguments)
    (models / "mobilenet_v2.tflite").write_bytes(b"another model")
    assert "SHA-256" in read_model_files(models).absent["mobilenet"]
    write_manifest(models, *arguments)
    assert [file.name for file in read_model_files(models).files] == ["mobilenet"]
    assert not list(models.glob(".*"))


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("alexnet=a.tflite:uint8", "'alexnet=a.tflite:uint8': expected NAME=FILE:INPUT_TYPE"),
        ("mobilenet", "mobilenet: expected FILE:INPUT_TYPE"),
        (
            "mobilenet=mobilenet_v2.tflite",
            "mobilenet: expected FILE:INPUT_TYPE or FILE:INPUT_TYPE:MEAN:STD, got 'mobilenet_v2.tflite'",
        ),
        ("mobilenet=mobilenet_v2.tflite:uint8:127.5", "mobilenet: expected FILE:INPUT_TYPE or FILE:INPUT_TYPE:MEAN:STD"),
        ("mobilenet=mobilenet_v2.tflite:uint4", "mobilenet: expected an input type of uint8, int8, float32, got 'uint4'"),
        ("mobilenet=../mobilenet_v2.tflite:uint8", "mobilenet: expected the name of a file in the directory"),
        (
            "mobilenet=mobilenet_v2.tflite:uint8:1,2:1",
            "mobilenet: mean: expected a number, or three with commas for R, G, B, got '1,2'",
        ),
        ("mobilenet=mobilenet_v2.tflite:uint8:nan:1", "mobilenet: mean: expected a number"),
        ("mobilenet=mobilenet_v2.tflite:uint8:0:1,0,1", "mobilenet: std: expected numbers above 0, got '1,0,1'"),
        ("mobilenet=absent:", "mobilenet: expected a reason after absent:"),
        ("vgg16=absent:again", "vgg16 is there twice"),
    ],
)
def test_a_model_that_is_not_written_as_it_should_be_is_refused(models, model, complaint):
    done = write_manifest(models, *ABSENT, model)
    assert done.returncode == 2
    assert complaint in " ".join(done.stderr.split())
    assert not (models / "models.yaml").exists()


def test_a_model_that_is_left_out_is_refused(models):
    done = write_manifest(models, "mobilenet=mobilenet_v2.tflite:uint8", *ABSENT[:2])
    assert done.returncode == 2
    assert "vgg16 is missing; say 'NAME=absent:REASON'" in done.stderr


def test_a_file_that_is_not_there_leaves_the_older_manifest(models):
    (models / "models.yaml").write_text("older")
    done = write_manifest(models, "mobilenet=missing.tflite:uint8", *ABSENT)
    assert (done.returncode, done.stderr) == (1, f"write_manifest.py: {models / 'missing.tflite'}: No such file or directory\n")
    assert (models / "models.yaml").read_text() == "older"


def test_what_it_writes_is_read_by_people_too(models):
    write_manifest(models, "mobilenet=mobilenet_v2.tflite:uint8", *ABSENT)
    lines = (models / "models.yaml").read_text().splitlines()
    assert lines[0] == "models:"
    assert lines[1].startswith("  mobilenet: {file: mobilenet_v2.tflite, input_type: uint8, sha256: ")
    assert lines[2] == "  resnet50: {absent: none}"
    assert yaml.safe_load("\n".join(lines))["models"].keys() == {"mobilenet", "resnet50", "efficientnet", "vgg16"}
