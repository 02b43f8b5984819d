"""The page, and that of the paths: plain files, read once. Nothing else is ever served."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

_HERE = Path(__file__).parent
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_NAMES = {
    "/": "index.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/viewer.js": "viewer.js",
    "/icon.svg": "icon.svg",
    "/docs": "docs.html",
    "/docs.js": "docs.js",
}
FILES: Mapping[str, tuple[bytes, str]] = MappingProxyType(
    {path: ((_HERE / name).read_bytes(), _KINDS[Path(name).suffix]) for path, name in _NAMES.items()}
)
"""By path: the content of a file, and its media type."""
