"""Nearest-neighbour language models: fast, durable, traceable to the document."""
