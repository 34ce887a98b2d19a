"""The command line: one small file for each command, no logic, and nothing heavy imported until it is run."""
