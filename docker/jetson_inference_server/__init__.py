"""Inference server of a node with the GPU of an NVIDIA Jetson Nano."""
