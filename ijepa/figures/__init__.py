"""One file a figure: compute, then draw."""
