"""`python -m balancer`."""

from balancer.cli import main

main()
