"""What the commands share with a terminal: options, progress, the summary that is printed."""
