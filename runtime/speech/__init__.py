"""Recorded speech: files to samples, samples to a model's input, outputs to words."""
