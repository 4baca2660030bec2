from pathlib import Path

import pytest

import common.options


@pytest.fixture(autouse=True)
def _no_configuration_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What /etc/l3dsr says here is none of the tests' business."""
    monkeypatch.setattr(common.options, "DEFAULT_CONFIG_DIR", tmp_path / "etc")
