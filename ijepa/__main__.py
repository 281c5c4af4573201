"""`python -m ijepa`, the same as `ijepa`."""

from ijepa_cli.main import main

main()
