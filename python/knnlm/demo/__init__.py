"""The whole method on text that every CPython carries."""
