"""The store of features, and what is asked of features."""
