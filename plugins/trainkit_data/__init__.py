"""Sources of data beside the host's: rows of features, and images for few-shot tasks."""
