"""The HTTP application that every inference server of the cluster shares.

A server brings a `Backend` for its device; this package brings the queue in front of it, the HTTP contract, the metrics
and the way to run them. It is valid Python 3.6, since that is the newest Python on the Jetson Nano.
"""

from inference_server.accelerator import (
    Accelerator,
    AcceleratorGone,
    Backend,
    BaseAccelerator,
    InferenceResult,
    InvalidRequest,
    QueueFull,
)
from inference_server.app import create_app
from inference_server.serve import serve

__all__ = [
    "Accelerator",
    "AcceleratorGone",
    "Backend",
    "BaseAccelerator",
    "InferenceResult",
    "InvalidRequest",
    "QueueFull",
    "create_app",
    "serve",
]
