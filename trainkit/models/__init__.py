"""What a run needs of models: their arguments, their anatomy, their weights in files."""
