"""What a run logs, and how it is read again."""
