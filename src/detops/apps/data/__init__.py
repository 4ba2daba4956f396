"""Data sets: reading, generating, batching."""
