"""Probabilities from neighbors: p_kNN, what mixes it with the model, and what else can be mixed in. NumPy only."""
