"""Processes, files and the terminal: what a run needs of the machine."""
