"""Text that goes on: a model with a cache, one token after the other."""
