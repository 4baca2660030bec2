"""Wheels of what is in this environment, so that an installation is tried without the network."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

BUILDING = "hatchling"
_OF_THE_INSTALLER = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")


def pack(name: str, directory: Path) -> None:
    """Wheels of all that the distribution needs, and to build it, but not of itself."""
    for needed in {each.metadata["Name"]: each for each in _needed_by(name)}.values():
        _pack_one(needed, directory)


def environment(directory: Path) -> Mapping[str, str]:
    """For a pip that is to have nothing but these wheels."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(directory), "PIP_CONFIG_FILE": os.devnull}


def _needed_by(name: str) -> Iterator[Distribution]:
    queue, seen = [name, BUILDING], {name}
    while queue:
        found = distribution(queue.pop())
        if found.metadata["Name"] != name:
            yield found
        for line in found.requires or ():
            requirement = Requirement(line)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and requirement.name not in seen:
                seen.add(requirement.name)
                queue.append(requirement.name)


def _pack_one(found: Distribution, directory: Path) -> None:
    """Scripts are made anew by pip, from the entry points, which believes the tag in the file's name."""
    wheel = f"{found.metadata['Name'].replace('-', '_')}-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(directory / wheel, "w") as archive:
        for path in found.files or ():
            if path.parts[0] != ".." and path.suffix != ".pyc" and path.name not in _OF_THE_INSTALLER:
                archive.write(path.locate(), str(path))
        record = next(path for path in found.files or () if path.name == "RECORD")
        archive.writestr(str(record), "")
