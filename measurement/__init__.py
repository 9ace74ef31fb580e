"""What a run is measured by: its tasks, its energy, its summary, and metrics while it runs."""
