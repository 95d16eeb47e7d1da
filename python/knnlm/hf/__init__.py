"""Models of Hugging Face with their own `generate`, loss and evaluation, and a store beside them."""
