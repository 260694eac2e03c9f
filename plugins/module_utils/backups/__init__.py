"""Backups by name: which one, where it lies, whether it is what was written down when it was made."""
