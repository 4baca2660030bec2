"""`python -m packetbridge`."""

from packetbridge.cli import main

main()
