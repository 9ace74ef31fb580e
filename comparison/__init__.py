"""Many runs: the cells of a comparison, where they are computed and kept, their statistics, tables and sentences."""
