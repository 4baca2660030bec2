"""The command line's parser."""

import argparse
from typing import NoReturn

DESCRIPTION = (
    "See what balancer and packetbridge do on this host, change what a balancer does with its nodes, watch"
    " packets pass, and find what is wrong with a host or a path."
)


class Parser(argparse.ArgumentParser):
    """An error is one line and exit code 2. Texts are the same on every terminal: documents quote them."""

    def __init__(self, prog: str = "l3dsr", description: str = DESCRIPTION) -> None:
        super().__init__(prog=prog, description=description, formatter_class=_formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=30, width=100)
