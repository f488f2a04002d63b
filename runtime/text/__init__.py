"""Texts in, answers out: tokens, batches of like lengths, and what a model's head means."""
