"""What a store is worth: λ, T and k on validation text, size, overlap, intervals."""
