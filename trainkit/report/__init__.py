"""Pages, pictures and progress."""
