"""What campaigns found once, read again: see `python -m tests.fuzz`."""

from pathlib import Path

import pytest
from tests.fuzz.running import CORPUS, outcome
from tests.fuzz.targets import TARGETS

FOUND = sorted(path.relative_to(CORPUS) for path in CORPUS.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp(kind) for kind in TARGETS}
    for kind, folder in made.items():
        TARGETS[kind].seeds(folder)
    return made


@pytest.mark.parametrize("name", FOUND, ids=str)
def test_what_was_found_is_refused(name: Path, folders: dict[str, Path]) -> None:
    kind = name.parts[0]
    assert outcome(kind, CORPUS / name, folders[kind]) == "refused"


def test_corpus_has_every_kind() -> None:
    assert {name.parts[0] for name in FOUND} == set(TARGETS)
