"""The page of the service in a real browser: choose, compare, move sliders, save."""

from __future__ import annotations

import importlib.util
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from tests.runtime.fake_bundle import dark_noise, enlarged, estimate_of, expected_shift, write_fake_bundle
from tests.runtime.served import Served, served

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SMALL = dark_noise(24, 36)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (DRIVER and shutil.which("chromium")), reason="Chromium is not installed"),
    pytest.mark.skipif(not importlib.util.find_spec("selenium"), reason="selenium is not installed"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    bundle = write_fake_bundle(folder / "bundle", "dynamic")
    options = ["--max-pixels", "40000", "--tile", "32"]
    with served(bundle, folder / "log", *options, S3DIFF_TOKEN="sesame") as running:
        running.headers["authorization"] = "Bearer sesame"
        yield running


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chrome(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    profile = tmp_path_factory.mktemp("chrome")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument("--window-size=1280,800")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(DRIVER))
    yield browser
    browser.quit()


class Page:
    """The page as somebody uses it, who knows the token."""

    def __init__(self, chrome: Chrome, service: Served) -> None:
        self.chrome, self.service = chrome, service
        chrome.get(service.url)
        chrome.execute_script("sessionStorage.setItem('token', 'sesame')")
        chrome.get(service.url)

    def find(self, css: str) -> Any:  # noqa: ANN401 - selenium's element
        return self.chrome.find_element("css selector", css)

    def choose(self, *files: Path) -> None:
        self.find("#choose").send_keys("\n".join(map(str, files)))

    @property
    def status(self) -> str:
        return str(self.find("#status").text)

    def until(self, script: str) -> Any:  # noqa: ANN401
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + 20
        while not (value := self.chrome.execute_script(f"return {script}")):
            assert time.monotonic() < deadline, f"{script}: {self.status}"
            time.sleep(0.05)
        return value

    def until_done(self, count: int = 1) -> None:
        self.until(f"document.querySelectorAll('.strip .done').length === {count}")

    def drag(self, slider: str, value: float) -> None:
        """Let go of a slider at a value, as a mouse would."""
        self.chrome.execute_script(
            "arguments[0].value = arguments[1];"
            "for (const name of ['input', 'change']) arguments[0].dispatchEvent(new Event(name))",
            self.find(slider),
            value,
        )

    def result(self) -> np.ndarray:
        """The pixels of what is shown as `after`."""
        script = """
            const image = document.getElementById('after'), canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext('2d').drawImage(image, 0, 0);
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return [canvas.height, canvas.width, ...data];
        """
        height, width, *levels = self.chrome.execute_script(script)
        return np.array(levels, np.uint8).reshape(height, width, 4)[..., :3]


@pytest.fixture
def page(chrome: Chrome, service: Served) -> Page:
    return Page(chrome, service)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "beach.one.png"
    Image.fromarray(SMALL).save(path)
    return path


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_photograph_is_upscaled_adjusted_and_saved(page: Page, photo: Path, downloads: Path) -> None:
    page.choose(photo)
    page.until_done()
    assert page.status.startswith("36 × 24 → 144 × 96 in")
    scores = estimate_of(SMALL)
    for name in ("noise", "blur"):  # the sliders begin where the network read them
        assert float(page.find(f"#{name}").get_property("value")) == pytest.approx(scores[name], abs=0.006)
    page.chrome.execute_script(
        "const fix = document.getElementById('color_fix'); fix.value = 'none';"
        "fix.dispatchEvent(new Event('change'))"
    )
    page.until("document.querySelector('#status').textContent.startsWith('36')")
    page.drag("#noise", 0.5)
    page.drag("#blur", 0.25)
    page.drag("#guidance", 1.5)
    page.until("document.querySelector('.strip .working') === null")
    page.until_done()
    expected = enlarged(SMALL, expected_shift(0.5, 0.25, guidance=1.5))
    page.until("document.getElementById('after').complete")
    assert_close(page.result(), expected)
    page.find("#save").click()
    saved = downloads / "beach.one-x4.png"
    deadline = time.monotonic() + 10
    while not saved.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_close(np.asarray(Image.open(io.BytesIO(saved.read_bytes()))), expected)
    page.find("#reset").click()
    page.until("document.getElementById('reset').hidden && document.querySelector('.strip .done')")
    assert float(page.find("#noise").get_property("value")) == pytest.approx(scores["noise"], abs=0.006)


def test_before_and_after_are_compared(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.until_done()
    divider = page.find("#divider")
    cut = page.find("#before").value_of_css_property("clip-path")
    divider.send_keys("\ue014" * 5)  # the right arrow
    assert divider.get_property("value") == "55"
    assert page.find("#before").value_of_css_property("clip-path") != cut
    scale = "new DOMMatrix(getComputedStyle(document.getElementById('after')).transform).a"
    fitting = page.chrome.execute_script(f"return {scale}")
    assert fitting > 2  # it fills the stage
    page.find("#zoom-one").click()
    assert page.chrome.execute_script(f"return {scale}") == 1  # a pixel of the result for one of the screen
    page.find("#stage").send_keys("0")
    assert page.chrome.execute_script(f"return {scale}") == pytest.approx(fitting)
    page.find("#stage").send_keys("+")
    assert page.chrome.execute_script(f"return {scale}") > fitting


def test_several_photographs_go_one_after_another(page: Page, photo: Path, tmp_path: Path) -> None:
    broken, large, tiff = tmp_path / "broken.png", tmp_path / "large.png", tmp_path / "scan.tif"
    broken.write_bytes(photo.read_bytes()[:-300])
    Image.new("RGB", (300, 300)).save(large)
    Image.fromarray(dark_noise(40, 60)).save(tiff)  # which the browser cannot show, and the service reads
    page.choose(photo, broken, large, tiff)
    page.until_done(2)
    page.until("document.querySelectorAll('.strip .failed').length === 2")
    assert page.find("#save-all").text == "Save all 2"
    said = []
    for button in page.chrome.find_elements("css selector", ".strip button"):
        button.click()
        said.append(page.status)
    assert said[0].startswith("36 × 24 → 144 × 96")
    assert said[1].startswith("The image cannot be read")
    limit = "more than the limit of 40000 pixels; make it smaller first."
    assert said[2] == f"The image has 300x300 pixels, {limit}"
    assert said[3].startswith("60 × 40 → 240 × 160")


def test_progress_is_shown_by_tiles(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.fromarray(dark_noise(180, 200)).save(path)
    page.chrome.execute_script(
        "window.seen = []; const status = document.getElementById('status');"
        "new MutationObserver(() => seen.push(status.textContent)).observe(status, {childList: true})"
    )
    page.choose(path)
    page.until_done()
    seen = page.chrome.execute_script("return window.seen")
    assert any(text.startswith("Restoring: ") and text.endswith(" tiles") for text in seen)


def test_a_token_is_asked_for(chrome: Chrome, service: Served, photo: Path) -> None:
    page = Page(chrome, service)
    chrome.execute_script("sessionStorage.clear()")
    chrome.get(service.url)
    page.until("document.getElementById('ask').open")
    page.find("#token").send_keys("sesame\n")
    page.until("document.getElementById('limits').textContent")
    page.choose(photo)
    page.until_done()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off(page: Page, photo: Path, width: int, dark: bool) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    try:
        page.choose(photo)
        page.until_done()
        overflowing = page.chrome.execute_script(
            "return [document.scrollingElement, document.getElementById('panel')]"
            ".filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.tagName)"
        )
        assert overflowing == []
        ground = page.find("body").value_of_css_property("background-color")
        assert (int(ground.split("(")[1].split(",")[0]) < 128) == dark
        page.chrome.get(f"{page.service.url}/docs")
        page.until("document.querySelectorAll('h2').length >= 5")
    finally:
        page.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_browser_found_nothing_wrong(page: Page, photo: Path) -> None:
    page.chrome.get_log("browser")
    page.choose(photo)
    page.until_done()
    assert [entry for entry in page.chrome.get_log("browser") if entry["level"] != "DEBUG"] == []
