"""The command `packetbridge`."""

from common.daemon import run_command
from common.log import configure_logging
from packetbridge import config, daemon


def main() -> None:
    """Exit code 0 after SIGTERM or Ctrl-C, 2 if the configuration or the host does not allow to start."""
    settings = config.parse()
    logger = configure_logging("packetbridge", settings.host.log_level, settings.host.log_format)
    if settings.is_removal:
        run_command("packetbridge", lambda: daemon.remove(settings, logger))
    else:
        run_command("packetbridge", lambda: daemon.run(settings, config.load, logger))
