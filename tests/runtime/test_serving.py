"""The HTTP service: every answer it can give, from the running server."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.runtime.fake_bundle import dark_noise, enlarged, estimate_of, expected_shift, write_fake_bundle
from tests.runtime.pictures import exif_with
from tests.runtime.served import Answered, Served, served

from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.serving.command import ServeRequest
from s3diff_runtime.serving.page import FILES

SMALL = dark_noise(12, 20)
SLOW_SIDE = 500
"""Thousands of tiles: work that lasts, and can be stopped."""
MOST_BYTES, MOST_PIXELS = 1_000_000, 300_000


def encoded(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:  # noqa: ANN401
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


SMALL_PNG = encoded(SMALL)
SLOW_PNG = encoded(np.full((SLOW_SIDE, SLOW_SIDE, 3), 60, np.uint8))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("serving") / "bundle", "dynamic")


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two places, two seconds, tiny tiles."""
    limits = ["--queue", "2", "--timeout", "2", "--max-bytes", str(MOST_BYTES)]
    limits += ["--max-pixels", str(MOST_PIXELS), "--tile", "8", "--batch", "1", "--threads", "1"]
    with served(bundle, tmp_path_factory.mktemp("log") / "log", *limits) as running:
        yield running


# --- pictures -------------------------------------------------------------------------------------


def assert_upscaled(answer: Answered, expected: np.ndarray) -> None:
    assert answer.status == 200, answer.body
    assert np.abs(pixels_of(answer.body).astype(int) - expected).max() <= 1


def test_a_picture_comes_back_upscaled_with_what_was_done(service: Served) -> None:
    answer = service.ask("/v1/upscale?color_fix=none", SMALL_PNG)
    scores = estimate_of(SMALL)
    assert_upscaled(answer, enlarged(SMALL, expected_shift(scores["noise"], scores["blur"])))
    assert answer.headers["content-type"] == "image/png"
    assert float(answer.headers["s3diff-noise"]) == pytest.approx(scores["noise"], abs=1e-3)
    assert float(answer.headers["s3diff-blur"]) == pytest.approx(scores["blur"], abs=1e-3)
    assert answer.headers["s3diff-engine"] == "openvino"
    assert answer.headers["s3diff-precision"] == "f32"
    assert answer.headers["s3diff-version"]
    assert answer.headers["s3diff-tiles"] == "6"
    assert {"queue", "read", "unet", "write"} <= set(
        re.findall(r"(\w+);dur=", answer.headers["server-timing"])
    )


def test_parameters_reach_the_network(service: Served) -> None:
    answer = service.ask("/v1/upscale?noise=0.5&blur=0.25&guidance=1.5&color_fix=none", SMALL_PNG)
    assert_upscaled(answer, enlarged(SMALL, expected_shift(0.5, 0.25, guidance=1.5)))
    assert answer.headers["s3diff-noise"] == "0.5"


def test_a_merged_bundle_tells_its_bin(tmp_path: Path) -> None:
    merged = write_fake_bundle(tmp_path / "bundle", "merged")
    with served(merged, tmp_path / "log") as running:
        assert running.ask("/v1/upscale?noise=1&blur=0", SMALL_PNG).headers["s3diff-bin"] == "n2-b0"
        assert running.ask("/v1/estimate", SMALL_PNG).json["bin"] == "n0-b0"


@pytest.mark.parametrize(
    ("sent", "query", "kind"),
    [
        ("PNG", "", "png"),
        ("JPEG", "", "jpeg"),
        ("WEBP", "", "webp"),
        ("TIFF", "", "tiff"),
        ("BMP", "", "png"),
        ("PNG", "?format=jpeg&quality=40", "jpeg"),
        ("JPEG", "?format=tiff", "tiff"),
    ],
)
def test_formats(service: Served, sent: str, query: str, kind: str) -> None:
    answer = service.ask(f"/v1/upscale{query}", encoded(SMALL, sent))
    assert answer.status == 200
    assert answer.headers["content-type"] == f"image/{kind}"
    assert Image.open(io.BytesIO(answer.body)).format == kind.upper()


def test_metadata_is_kept(service: Served) -> None:
    picture = encoded(SMALL, "JPEG", exif=exif_with(6), dpi=(300, 300))
    result = Image.open(io.BytesIO(service.ask("/v1/upscale", picture).body))
    assert result.size == (12 * 4, 20 * 4)  # upright
    assert result.info["dpi"] == (300, 300)
    assert result.getexif()[0x13B] == "A. Photographer"


FORM = {"content_type": "multipart/form-data; boundary=x7"}


def form(*parts: tuple[str, bytes]) -> bytes:
    """A form of files, and of fields, whose names are followed by no file's."""
    heads = (f"--x7\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() for name, _ in parts)
    return b"".join(head + part[1] + b"\r\n" for head, part in zip(heads, parts, strict=True)) + b"--x7--\r\n"


FILE = ('name="picture"; filename="a.png"', SMALL_PNG)
NOISE = ('name="noise"', b"0.9")


def test_a_form_with_a_file_will_do(service: Served) -> None:
    found = service.ask("/v1/upscale", form(FILE), **FORM)
    assert found.body == service.ask("/v1/upscale", SMALL_PNG).body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (form(), "no picture came"),
        (SMALL_PNG, "the form cannot be read; send one as curl"),
        (form(FILE)[:-9], "the form cannot be read; send one as curl"),
        (form(FILE, NOISE), "the form has the field 'noise': parameters go into the query"),
        (form(FILE, FILE), "the form has 2 files, expected one"),
    ],
)
def test_a_form_with_anything_else_is_refused(service: Served, body: bytes, message: str) -> None:
    answer = service.ask("/v1/upscale", body, **FORM)
    assert (answer.status, answer.error[: len(message)]) == (400, message)


def test_an_encoded_body_is_refused(service: Served) -> None:
    answer = service.ask("/v1/upscale", gzip.compress(SMALL_PNG), content_encoding="gzip")
    assert (answer.status, answer.error) == (400, "the body is encoded (gzip): send the file as it is")


def test_estimate_gives_the_scores_alone(service: Served) -> None:
    found = service.ask("/v1/estimate", SMALL_PNG).json
    assert found.pop("noise") == pytest.approx(estimate_of(SMALL)["noise"], abs=1e-3)
    assert found.pop("blur") == pytest.approx(estimate_of(SMALL)["blur"], abs=1e-3)
    assert found == {"bin": None, "width": 20, "height": 12}


# --- refusals -------------------------------------------------------------------------------------

TRANSPARENT = encoded(np.dstack([SMALL, np.full(SMALL.shape[:2], 9, np.uint8)]))


@pytest.mark.parametrize(
    ("query", "body", "message"),
    [
        ("?noise=2", SMALL_PNG, "noise is 2.0, expected from 0 to 1"),
        ("?noise=high&quality=x", SMALL_PNG, "noise is 'high', expected a number; quality is 'x'"),
        ("?noise=nan", SMALL_PNG, "noise is nan"),
        ("?blur=0&blur=1", SMALL_PNG, "blur is given more than once"),
        ("?path=/etc/passwd", SMALL_PNG, "unknown parameter 'path', expected noise, blur, guidance"),
        ("?color_fix=red", SMALL_PNG, "color_fix is 'red', expected one of wavelet, adain, none"),
        ("?format=gif", SMALL_PNG, "format is 'gif', expected one of png, jpeg, webp, tiff"),
        ("?prompt=bright", SMALL_PNG, "this bundle has its prompts folded in"),
        ("", b"not a picture", "the image is not a PNG, JPEG"),
        ("", SMALL_PNG[:-200], "the image cannot be read"),
        ("", b"", "no picture came"),
        ("?format=jpeg", TRANSPARENT, "JPEG holds no transparency"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(
    service: Served, query: str, body: bytes, message: str
) -> None:
    answer = service.ask(f"/v1/upscale{query}", body)
    assert answer.status == 400
    assert answer.error.startswith(message)
    assert answer.json["request"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/page/../page.js", 404),
        ("GET", "/v1/upscale", 405),
        ("PUT", "/", 405),
        ("POST", "/v1/estimate?noise=1", 400),
    ],
)
def test_paths_that_are_none(service: Served, method: str, path: str, status: int) -> None:
    answer = service.ask(path, SMALL_PNG if method == "POST" else None, method)
    assert answer.status == status
    assert answer.error


def test_too_many_bytes_are_refused_before_they_are_sent(service: Served) -> None:
    with socket.create_connection(("127.0.0.1", service.port), 10) as raw:
        raw.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        assert raw.recv(12) == b"HTTP/1.1 413"


def test_too_many_bytes_are_refused_while_they_stream(service: Served) -> None:
    answer = service.ask("/v1/upscale", iter([b"\0" * 100_000] * 200))
    assert answer.status == 413
    assert answer.error == f"the file is larger than the {MOST_BYTES} bytes that this service takes"


def test_too_many_pixels_are_refused(service: Served) -> None:
    answer = service.ask("/v1/upscale", encoded(np.zeros((600, 600, 3), np.uint8)))
    assert answer.status == 413
    limit = f"more than the limit of {MOST_PIXELS} pixels; make it smaller first"
    assert answer.error == f"the image has 600x600 pixels, {limit}"


def test_pillows_own_limit_is_not_told_to_clients(service: Served) -> None:
    head = bytearray(SMALL_PNG)
    head[16:24] = struct.pack(">II", 20000, 20000)
    head[29:33] = struct.pack(">I", zlib.crc32(head[12:29]))
    answer = service.ask("/v1/upscale", bytes(head))
    assert answer.status == 413
    assert answer.error.startswith("the image has 20000x20000 pixels, more than the limit")


def test_a_body_that_does_not_come_is_not_waited_for(service: Served) -> None:
    with socket.create_connection(("127.0.0.1", service.port), 30) as raw:
        raw.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        assert raw.recv(12) == b"HTTP/1.1 408"


def test_a_head_that_does_not_come_is_not_waited_for(service: Served) -> None:
    with socket.create_connection(("127.0.0.1", service.port), 30) as raw:
        raw.sendall(b"POST /v1/upscale HTTP/1.1\r\nHo")
        start = time.monotonic()
        assert raw.recv(12) == b""
        assert time.monotonic() - start < 10


def test_without_a_free_place_a_picture_is_refused_at_once(service: Served) -> None:
    with ThreadPoolExecutor(2) as threads:
        slow = [threads.submit(service.ask, "/v1/upscale", SLOW_PNG) for _ in range(2)]
        service.until("pictures_inside", 2)
        start = time.monotonic()
        for path in ("/v1/upscale", "/v1/estimate"):
            answer = service.ask(path, SMALL_PNG)
            assert (answer.status, answer.error) == (503, "the service is busy; try again in a moment")
            assert int(answer.headers["retry-after"]) >= 1
        assert time.monotonic() - start < 1
        assert service.ask("/healthz").status == 200
        # They take longer than they may: 504, and their places are free once the network has let go of them.
        for each in slow:
            assert (each.result().status, each.result().error[:30]) == (504, "the picture was not done withi")
    service.until("pictures_inside", 0)
    assert service.ask("/v1/upscale", SMALL_PNG).status == 200


def test_a_client_that_went_is_never_computed(service: Served) -> None:
    before = service.metric("pictures_total")
    connections = [service.connection() for _ in range(2)]
    for connection in connections:
        connection.request("POST", "/v1/upscale", SLOW_PNG)
    service.until("pictures_inside", 2)
    for connection in connections:
        connection.close()
    service.until("pictures_inside", 0)
    assert service.metric("pictures_total") == before
    line = service.logged(error="the client went away")
    assert (line["path"], line["status"]) == ("/v1/upscale", 499)


# --- progress -------------------------------------------------------------------------------------


def events_of(answer: Answered) -> list[tuple[str, dict[str, Any]]]:
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.body.decode())
    return [(name, json.loads(data)) for name, data in found]


def test_progress_is_told_by_tiles(service: Served) -> None:
    picture = encoded(dark_noise(50, 35))
    answer = service.ask("/v1/upscale?color_fix=none&noise=0&blur=0", picture, accept="text/event-stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    *steps, (name, result) = events_of(answer)
    assert name == "result"
    done = [step["done"] for _, step in steps[2:]]  # behind the waiting, and the beginning
    assert done == list(range(1, len(done) + 1))
    assert 0 < len(done) <= result["tiles"] == steps[-1][1]["tiles"]
    assert (result["width"], result["height"], result["type"]) == (140, 200, "image/png")
    assert_upscaled(Answered(200, {}, base64.b64decode(result["picture"])), enlarged(dark_noise(50, 35)))


def test_streams_refuse_too(service: Served) -> None:
    bad = service.ask("/v1/upscale", b"no picture", accept="text/event-stream")
    assert bad.status == 400
    late = service.ask("/v1/upscale", SLOW_PNG, accept="text/event-stream", x_request_id="late-stream")
    assert (late.status, service.logged(request="late-stream")["status"]) == (200, 504)
    assert events_of(late)[-1][0] == "error"
    assert events_of(late)[-1][1]["status"] == 504
    service.until("pictures_inside", 0)


# --- operating it ---------------------------------------------------------------------------------


def test_pages_come_from_here_alone(service: Served) -> None:
    for path in FILES:
        answer = service.ask(path)
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        outside = re.findall(r"(?:https?:)?//\w[\w.]+", re.sub(r"(?m)^\s*//.*$", "", answer.body.decode()))
        assert set(outside) <= {"http://www.w3.org"}  # the name of a namespace
    assert service.ask("/", method="HEAD").body == b""


def test_openapi_describes_the_parameters(service: Served) -> None:
    described = service.ask("/openapi.json").json["paths"]["/v1/upscale"]["post"]
    parameters = {each["name"]: each["schema"] for each in described["parameters"]}
    assert parameters["noise"] == {"type": "number", "minimum": 0, "maximum": 1}
    assert parameters["format"]["enum"] == ["png", "jpeg", "webp", "tiff"]
    assert {"200", "400", "401", "408", "413", "500", "503", "504"} == set(described["responses"])
    assert 'path="/openapi.json"' in service.ask("/metrics").body.decode()


def test_requests_are_logged_and_counted(service: Served) -> None:
    counted = service.metric("request_seconds_count")
    answer = service.ask("/v1/upscale", SMALL_PNG, x_request_id="from-a-proxy")
    assert answer.headers["x-request-id"] == "from-a-proxy"
    line = service.logged(request="from-a-proxy")
    assert (line["status"], line["path"], line["received"]) == (200, "/v1/upscale", len(SMALL_PNG))
    assert line["stages"]["unet"] >= 0
    assert service.ask("/healthz", x_request_id='"; drop').headers["x-request-id"] != '"; drop'
    assert service.metric("request_seconds_count") >= counted + 3


def test_a_token_is_asked_for(bundle: Path, tmp_path: Path) -> None:
    with served(bundle, tmp_path / "log", "--tile", "768", wait=False, S3DIFF_TOKEN="open sesame") as running:
        first = running.ask("/v1/upscale", SMALL_PNG, authorization="Bearer open sesame")
        assert (first.status, first.error) == (503, "the service is warming up")
        assert first.headers["retry-after"]
        for path, body in (("/v1/upscale", SMALL_PNG), ("/v1/estimate", SMALL_PNG), ("/metrics", None)):
            for wrong in ({}, {"authorization": "Bearer open"}, {"authorization": "Basic open sesame"}):
                answer = running.ask(path, body, **wrong)
                assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert running.ask("/").status == running.ask("/healthz").status == 200
        assert running.ask("/readyz").status == 503
        while running.ask("/readyz").status == 503:
            time.sleep(0.05)
        assert running.ask("/v1/upscale", SMALL_PNG, authorization="bearer open sesame").status == 200
        assert "open sesame" not in running.log.read_text()


def test_an_empty_token_is_no_token(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3DIFF_TOKEN", "")
    with pytest.raises(RequestError, match="S3DIFF_TOKEN is set and empty; give it a token, or unset it"):
        refuse(ServeRequest(str(bundle)).problems())


def test_what_was_taken_in_is_answered_before_it_stops(bundle: Path, tmp_path: Path) -> None:
    options = ["--tile", "20", "--batch", "1", "--threads", "1"]
    with served(bundle, tmp_path / "log", *options) as running, ThreadPoolExecutor(2) as threads:
        picture = encoded(dark_noise(200, 200))
        asked = [threads.submit(running.ask, "/v1/upscale", picture) for _ in range(2)]
        running.until("pictures_inside", 2)
        assert running.stop() == 0
        assert [each.result().status for each in asked] == [200, 200]
        assert "Traceback" not in running.log.read_text()
