"""The HTTP application that every inference server of the cluster shares.

A server brings a `Backend` for its device; this package brings the queue in front of it, the HTTP contract, the metrics
and the way to run them. It is valid Python 3.6, since that is the newest Python on the Jetson Nano.
"""

from inference_server.accelerator import Accelerator, BaseAccelerator, InferenceResult
from inference_server.app import create_app
from inference_server.backend import (
    AcceleratorGone,
    Backend,
    Gauge,
    InvalidRequest,
    OutOfMemory,
    QueueFull,
    UnusableModel,
    warmed_up,
)
from inference_server.model_files import ModelFile, ModelFiles, read_model_files
from inference_server.serve import serve

__all__ = [
    "Accelerator",
    "AcceleratorGone",
    "Backend",
    "BaseAccelerator",
    "Gauge",
    "InferenceResult",
    "InvalidRequest",
    "ModelFile",
    "ModelFiles",
    "OutOfMemory",
    "QueueFull",
    "UnusableModel",
    "create_app",
    "read_model_files",
    "serve",
    "warmed_up",
]
