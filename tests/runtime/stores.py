"""An S3 server on this machine, for tests: moto's, in a thread of the test process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import boto3
import numpy as np
import pytest
import s3fs
from moto.moto_api._internal import moto_api_backend
from moto.server import ThreadedMotoServer
from PIL import Image

SECRET = "what-nobody-may-read"


class Bucket:
    """The bucket `photos` of the server, seen without our own code."""

    def __init__(self) -> None:
        self._client: Any = boto3.client("s3")
        self.empty()

    def empty(self) -> None:
        """Begin with nothing on the server but the bucket."""
        moto_api_backend.reset()
        self._client.create_bucket(Bucket="photos")

    def put(self, key: str, content: bytes | np.ndarray) -> None:
        """Put bytes, or a picture as PNG."""
        if not isinstance(content, bytes):
            file = BytesIO()
            Image.fromarray(content).save(file, "PNG")
            content = file.getvalue()
        self._client.put_object(Bucket="photos", Key=key, Body=content)

    def get(self, key: str) -> bytes:
        """The content of an object."""
        content: bytes = self._client.get_object(Bucket="photos", Key=key)["Body"].read()
        return content

    def picture(self, key: str) -> np.ndarray:
        """The pixels of an object."""
        with Image.open(BytesIO(self.get(key))) as image:
            return np.asarray(image)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._client.delete_object(Bucket="photos", Key=key)

    def keys(self, prefix: str = "") -> dict[str, int]:
        """What it holds, with sizes."""
        found = self._client.list_objects_v2(Bucket="photos", Prefix=prefix).get("Contents", [])
        return {entry["Key"]: entry["Size"] for entry in found}


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Serve an S3, to which the environment leads."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()  # instances remember where they were led to
    try:
        yield Bucket()
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
