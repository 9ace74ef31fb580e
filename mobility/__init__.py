"""Where the devices are: movement, radio cell, time to exit."""
