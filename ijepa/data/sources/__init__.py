"""One file a kind of data set."""
