"""Measure bundles; never builds one."""
