"""The `ijepa` command line: parse, call, print."""
