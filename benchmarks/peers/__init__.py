"""What users would take instead of tfx, run on the same texts in environments of their own."""
