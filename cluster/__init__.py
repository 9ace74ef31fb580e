"""The clusters that an experiment runs on: queues, HTTP, discovery, emulated nodes and virtual time."""
