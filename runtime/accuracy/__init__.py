"""How right a session is on a dataset: its samples, metrics, and their intervals."""
