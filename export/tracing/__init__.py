"""A module to a graph: what it is fed, what is changed while it is traced."""
