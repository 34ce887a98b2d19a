"""The certificate of a merge: a written model judged by code that does not merge."""
