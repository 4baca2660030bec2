from ipaddress import IPv4Address
from typing import Annotated, Literal

from msgspec import Meta, Struct

from docs.keys import key_tables


class Wheel(Struct, kw_only=True, rename="kebab"):
    at: Annotated[IPv4Address, Meta(description="where it is")]
    pressure: Annotated[float, Meta(gt=0.0, le=9.5, description="in bar")] = 2.5


class Bell(Struct, kw_only=True, rename="kebab"):
    tone: Annotated[str | None, Meta(description="how it rings", extra={"default": "any"})] = None


class Bicycle(Struct, kw_only=True, rename="kebab"):
    top_speed: Annotated[int, Meta(ge=1, le=99, description="km/h")] = 30
    light: Annotated[bool, Meta(description="whether it has one")] = True
    bell: Annotated[Bell | Literal["off"], Meta(description="what others hear")] = "off"
    wheel: tuple[Wheel, ...] = ()


def test_a_schema_becomes_a_table_of_keys_for_each_table_of_the_file() -> None:
    head = ["| key | value | default | meaning |", "|---|---|---|---|"]
    assert key_tables(Bicycle, {}).splitlines() == [
        *head,
        "| `top-speed` | a number from 1 to 99 | `30` | km/h |",
        "| `light` | true or false | `true` | whether it has one |",
        '| `bell` | a table or "off" | `"off"` | what others hear |',
        "",
        "### `[bell]`",
        "",
        *head,
        "| `tone` | text | any | how it rings |",
        "",
        "### `[[wheel]]`",
        "",
        *head,
        '| `at` | "ADDR" | required | where it is |',
        "| `pressure` | a number above 0 and up to 9.5 | `2.5` | in bar |",
    ]
