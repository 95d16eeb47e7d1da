"""Stores of other programs in, ours out: raw files, FAISS, Arrow. Foreign files are not trusted. No torch."""
