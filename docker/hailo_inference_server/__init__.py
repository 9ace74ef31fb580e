"""Inference server of a node with a Hailo-8L."""
