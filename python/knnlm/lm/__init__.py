"""The method in use: neighbors of each token, scores, text, explanations."""
