"""The live page: one file, which shows what /report.json says."""

import base64
import hashlib
import re
from importlib import resources

CONTENT_TYPE = "text/html; charset=utf-8"


def html() -> bytes:
    return resources.files(__name__).joinpath("index.html").read_bytes()


def security_policy(page: bytes) -> str:
    """A Content-Security-Policy by which the page runs its own script and style, and asks its own server."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash_of(page, 'script')}",
            f"style-src {_hash_of(page, 'style')}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hash_of(page: bytes, element: str) -> str:
    """Of the text of the only element of that name, as a source of a policy."""
    found = re.search(rf"<{element}>(.*)</{element}>".encode(), page, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"
