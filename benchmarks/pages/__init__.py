"""What is shown of measurements: tables, files, HTML, and the page of stored results."""
