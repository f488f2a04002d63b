"""Models as PyTorch modules: found, loaded, changed, and wrapped for tracing."""
