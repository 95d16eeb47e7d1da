"""The datastore as Python sees it: vectors and integer values on disk, documents, search, neighbors. No torch."""
