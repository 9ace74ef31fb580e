"""One emulated node: the shared HTTP application before an accelerator that is arithmetic.

Run as `python -m emulated_inference_server`, with its slice of the performance profile as a JSON line on standard input.
"""
