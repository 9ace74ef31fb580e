"""What a comparison of scheduling policies comes to: tables and sentences from cells, by pure functions."""
