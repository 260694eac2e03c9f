"""Restoring a whole PostgreSQL database beside the live one, and swapping the two by rename."""
