"""Translation that remembers: a store of the states of an encoder-decoder over parallel text, kNN-MT."""
