"""A bundle's graph to a TensorRT engine."""
