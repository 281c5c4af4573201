"""`python -m ijepa_cli`, as torchrun starts it."""

from ijepa_cli.main import main

main()
