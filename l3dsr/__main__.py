"""`python -m l3dsr`."""

from l3dsr.cli import main

main()
