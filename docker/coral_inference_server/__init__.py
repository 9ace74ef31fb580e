"""Inference server of a node with a Google Coral USB Edge TPU."""
