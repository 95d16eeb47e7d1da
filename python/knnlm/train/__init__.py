"""A small decoder of our own, trained here."""
