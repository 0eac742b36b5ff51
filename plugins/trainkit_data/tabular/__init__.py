"""Tables and ratings: rows of features, in which values may be missing."""
