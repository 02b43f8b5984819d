"""The page: parsed as a browser would, it loads nothing, runs one script, and shows names as they are."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tests.benchmarks.reports import HOSTILE, report, table
from tests.benchmarks.test_writing import IMAGES, full_report

from s3diff_benchmarks.report.model import Picture
from s3diff_benchmarks.report.output import Output, write_report


class Page(HTMLParser):
    """All elements with their attributes, and the text of each kind of element."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} closes another element"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(name: str, folder: Path) -> tuple[str, Page]:
    made = full_report(name).model_copy(
        update={
            "title": name,
            "command": name,
            "options": {name: name},
            "tables": (table((name, 1.5, None, True, 2, 3)),),
        }
    )
    write_report(made, Output(folder, html=True), images=IMAGES)
    source = (folder / "report.html").read_text(encoding="utf-8")
    return source, Page(source)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return page_of(HOSTILE, tmp_path_factory.mktemp("page") / "report")


def test_hostile_names_stay_text(page: tuple[str, Page]) -> None:
    source, parsed = page
    assert len(parsed.all("script")) == 1
    assert all(set(image) <= {"src", "alt", "class", "loading"} for image in parsed.all("img"))
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    for tag in ("title", "h1", "td", "figcaption", "li", "pre"):
        assert any(HOSTILE in text for text in parsed.texts[tag]), tag
    assert "alert(1)</script>" not in source


def test_page_loads_nothing(page: tuple[str, Page]) -> None:
    source, parsed = page
    for _, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttp", source)


def test_policy_allows_only_the_script_of_the_house(page: tuple[str, Page]) -> None:
    _, parsed = page
    policy = next(meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta)
    script = parsed.texts["script"][0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_slider_shows_both_images_exactly(page: tuple[str, Page]) -> None:
    _, parsed = page
    slider = next(attributes for attributes in parsed.all("input"))
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "0", "100")
    assert "share of the image before" in (slider["aria-label"] or "")
    sources = {image["alt"]: image["src"] for image in parsed.all("img")}
    for name, image in IMAGES.items():
        kind, _, content = (sources[name] or "").partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as shown:
            assert shown.convert("RGB").tobytes() == image.tobytes()


def test_tables_sort_by_exact_values_and_say_how(page: tuple[str, Page]) -> None:
    _, parsed = page
    headings = parsed.texts["button"]
    assert headings == ["what", "median ↓", "low", "high", "p99 ↓", "peak ↓"]
    values = [cell.get("data-value", "none" if "data-none" in cell else "text") for cell in parsed.all("td")]
    assert values == ["text", "1.5", "none", "text", "2", "3"]


def test_machine_bundle_and_options_are_folded(page: tuple[str, Page]) -> None:
    _, parsed = page
    assert parsed.texts["summary"] == ["Machine", "Bundles", "Options"]
    assert any("Test CPU" in text for text in parsed.texts["dd"])


def test_one_image_is_shown_without_a_slider(tmp_path: Path) -> None:
    pictures = (Picture(name="grid", title="A grid", before="small", after="small"),)
    write_report(report(pictures=pictures), Output(tmp_path, html=True), images=IMAGES)
    parsed = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(parsed.all("img")) == 1
    assert not parsed.all("input")
