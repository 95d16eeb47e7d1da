"""Text to a store: dumped or built in one pass, kept up to date, re-trained."""
