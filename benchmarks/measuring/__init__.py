"""Rows measured side by side: their processes, rounds, outputs, accuracy and figures."""
