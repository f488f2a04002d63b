"""Run a bundle: one predict on every backend."""
