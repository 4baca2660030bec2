"""`python -m lab up | down | status`: a lab that stands until it is taken down.

`down` also removes what killed runs left behind.
"""

import argparse
import os
import sys

from lab import Lab, LabError, daemon_program, load, run_directory

DAEMONS = ("balancer", "packetbridge")


def up(prefix: str) -> None:
    run_directory.remove(_left_behind)
    if any(found.prefix == prefix for found in run_directory.find()):
        print(f"The lab is up already.\n\n{usage(prefix)}")
        return
    with Lab(prefix=prefix) as lab:
        missing = missing_daemons()
        if missing:
            print(f"{' and '.join(missing)} not installed (`make setup` does): NGINX only.")
        else:
            lab.start_daemons()
        print(f"Logs: {lab.directory}/*/*.log\n\n{usage(prefix)}")
        lab.leave_standing()


def down(prefix: str) -> None:
    removed = run_directory.remove(lambda found: _left_behind(found) or found.prefix == prefix)
    print("Removed: " + ", ".join(removed) if removed else "There is no lab to remove.")


def status() -> None:
    found = run_directory.find()
    if not found:
        print("There is no lab.")
    for lab in found:
        owner = "of a running process" if lab.living else "standing" if lab.standing else "left behind"
        print(f"{lab.prefix} ({owner}), {lab.path}")
        for namespace in lab.namespaces:
            print(f"  {namespace}: {len(run_directory.processes(namespace))} processes")


def _left_behind(found: run_directory.FoundLab) -> bool:
    return not found.living and not found.standing


def usage(prefix: str) -> str:
    topology = load()
    sudo = "sudo " if "SUDO_UID" in os.environ else ""
    enter = f"{sudo}ip netns exec {prefix}-"
    name = prefix.removeprefix(run_directory.STANDING_PREFIX).removeprefix("-")
    take_down = f"{sys.executable} -m lab down --name {name}" if name else "make lab-down"
    return f"""\
Through the balancer:    {enter}client curl -i http://{topology.service.vip}/any/url
Directly from a node:    {enter}client curl -i http://{topology.nodes[0].backend}/any/url
Watch the handoffs:      {enter}balancer tcpdump -ni eth0 'ip[1] & 0xfc != 0'
A shell on a node:       {enter}node1 bash
Take it down:            {sudo}{take_down}"""


def missing_daemons() -> list[str]:
    missing = []
    for name in DAEMONS:
        try:
            daemon_program(name)
        except LabError:
            missing.append(name)
    return missing


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--name", help="of a lab beside the default one (lower-case letters and digits)")
    arguments = parser.parse_args()
    prefix = run_directory.STANDING_PREFIX + (f"-{arguments.name}" if arguments.name else "")
    try:
        if arguments.command == "up":
            up(prefix)
        elif arguments.command == "down":
            down(prefix)
        else:
            status()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
