"""The one exception for a host that is not as the daemons need it."""


class HostError(Exception):
    """One line for the operator: what is wrong, what to do. Whoever raises it has undone its own changes."""
