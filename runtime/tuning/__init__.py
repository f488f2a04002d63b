"""The fastest right way to run a bundle on this machine: measured, kept, and used."""
