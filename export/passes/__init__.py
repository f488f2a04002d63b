"""The ordered changes an export makes to a traced graph; each says what it did."""
