"""Records of scores, tables and the page."""
