"""Pages: what every HTML page of the project shares. Knows nothing of what is shown."""
