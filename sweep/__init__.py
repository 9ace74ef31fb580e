"""A comparison as it is run: its cells, the workers that compute them, the folder that keeps them, and its tables."""
