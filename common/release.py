"""Which release of this software runs."""

from importlib.metadata import version

RELEASE = version("l3dsr")
