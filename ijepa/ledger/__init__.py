"""What the numbers are of: which may stand side by side, which are a row of the paper's tables."""
