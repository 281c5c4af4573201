"""The paper as pure tensor functions: no files, no clocks."""
