"""The command `balancer`."""

from balancer import config, daemon
from common.config import configure_logging
from common.daemon import run_command


def main() -> None:
    """Exit code 0 after SIGTERM or Ctrl-C, 2 if the configuration or the host does not allow to start."""
    settings = config.parse()
    logger = configure_logging("balancer", settings.host.log_level)
    run_command("balancer", lambda: daemon.run(settings, logger))
