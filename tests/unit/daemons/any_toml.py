"""Files of any content, for configurations that must load or be refused."""

import json
from collections.abc import Callable, Mapping, Sequence

from hypothesis import strategies as st

from common.config import ConfigError

_KEYS = st.sampled_from(
    [
        *(
            "name",
            "listen",
            "dscp",
            "pool",
            "service",
            "node",
            "health",
            "weight",
            "address",
            "limits",
            "flows",
        ),
        *("vip-map", "files", "expect", "path", "interval", "timeout", "load-factor", "engine", "metrics"),
        *("key-file", "no-node", "hash-key", "hash-seed", "vip", "backend", "port", "adopt", "timeouts", "é"),
    ]
)
_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["map", "off", "10.0.0.1:80", "10.0.0.2", "all", "200-299", "path", "VIP"]),
    st.datetimes(),
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=30,
)
TABLES = st.dictionaries(_KEYS, _TREES, max_size=6)
CONTENTS = st.binary(max_size=200) | st.text(max_size=200).map(str.encode)


def written(tables: Mapping[str, object]) -> str:
    return "\n".join(f"{json.dumps(key)} = {_inline(value)}" for key, value in tables.items())


def assert_loads_or_is_refused_in_one_line(
    load: Callable[[Sequence[str]], object], arguments: Sequence[str]
) -> None:
    said = "loaded"
    try:
        load(arguments)
    except ConfigError as error:
        said = str(error)
    assert said
    assert "\n" not in said


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, (bool, float)) else str(value)
