"""The tiny networks and their files that the tests of this room share."""

from __future__ import annotations

import pytest
from tests.export.models import LAYOUTS, Files, tiny_base, tiny_network, write_files

from s3diff_training.network.base import BaseModel
from s3diff_training.network.model import S3Diff


@pytest.fixture(scope="session")
def bases() -> dict[str, BaseModel]:
    """Return a base model of each layout; networks get copies."""
    return {layout: tiny_base(layout) for layout in LAYOUTS}


@pytest.fixture(scope="session")
def networks(bases: dict[str, BaseModel]) -> dict[str, S3Diff]:
    """Return a network of each layout in the released configuration, with small ranks."""
    return {layout: tiny_network(base) for layout, base in bases.items()}


@pytest.fixture(scope="session", params=LAYOUTS)
def network(request: pytest.FixtureRequest, networks: dict[str, S3Diff]) -> S3Diff:
    """Return the network of each layout in turn."""
    return networks[request.param]


@pytest.fixture(scope="session")
def files(bases: dict[str, BaseModel], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return the files of the f4 network, whose exports take the least time."""
    return write_files(bases["f4"], tmp_path_factory.mktemp("weights"))
