"""Reports of runs and of comparisons: pages, figures and tables."""
