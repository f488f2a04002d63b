"""Rewrites: a pattern found, checked, and replaced by one operator; or the reason why not."""
