"""`s3diff-export push` and `pull`: bundles to the Hub, and from it or a store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from s3diff_runtime.bundle.card import CARD_NAME, model_card
from s3diff_runtime.bundle.fetching import HubBundle, asking_hub, download, hub_bundle, source_of
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.records import MANIFEST_NAME
from s3diff_runtime.errors import RequestError
from s3diff_runtime.files import require_replaceable
from s3diff_runtime.options import Options, argument, group, option

_KEPT = frozenset({CARD_NAME, ".gitattributes"})
"""Besides a bundle's own files, what a push leaves in a repository."""


@dataclass(frozen=True)
class Publishing(Options):
    """How a bundle is published on the Hub."""

    license: str = option(
        "other",
        "Identifier of the licence on the card, such as apache-2.0: what those of the weights allow.",
    )
    private: bool = option(False, "Make the repository private, where it is not there yet.")

    def problems(self) -> Iterator[str]:
        """What the card could not say."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            yield f"license is {self.license!r}, expected an identifier of the Hub, such as apache-2.0"


@dataclass(frozen=True)
class PushRequest(Options):
    """What `s3diff-export push` can be asked for."""

    bundle: Path = argument("Folder of the bundle.")
    repository: str = argument("OWNER/NAME on the Hub; made where it is not there.")
    publishing: Publishing = group(Publishing)


@dataclass(frozen=True)
class PullRequest(Options):
    """What `s3diff-export pull` can be asked for."""

    bundle: str = argument("OWNER/NAME or OWNER/NAME@REVISION on the Hub, or a URL.")
    output: Path = option(help="The bundle: a folder to make.", flags=("-o", "--output"))
    force: bool = option(False, "Replace a bundle that is there, once the new one is whole.")


def run_push(request: PushRequest) -> None:
    """Publish BUNDLE as the Hub's repository OWNER/NAME, in one commit, with a card made of its manifest.

    The token is the one of `hf auth login`, or of HF_TOKEN.

    Raises:
        BundleError: for a bundle that is not what its manifest says.
        RequestError: when the Hub refuses.
    """
    repository = writable_repository(request.repository, request.publishing)
    click.echo(push(request.bundle, repository, request.publishing))


def run_pull(request: PullRequest) -> None:
    """Fetch BUNDLE from the Hub or a store into a folder, and compare every file with its hash.

    Raises:
        BundleError: for a bundle that is not what its manifest says.
        RequestError: when it cannot be had.
    """
    source = source_of(request.bundle)
    if source is None:
        raise RequestError(f"{request.bundle} is a folder of this machine; expected OWNER/NAME or a URL")
    require_replaceable(request.output, request.force, MANIFEST_NAME, "bundle")
    download(source, request.output, source.manifest())
    click.echo(request.output)


def writable_repository(name: str, publishing: Publishing) -> HubBundle:
    """A repository that exists and takes what is pushed, made where it was not there.

    Raises:
        RequestError: for a name that is none, one with a revision, and a token that may not write there.
    """
    found = hub_bundle(name)
    if found is None or found.revision:
        raise RequestError(f"{name} is no repository of the Hub; expected OWNER/NAME")
    with asking_hub(name) as hub:
        api = hub.HfApi()
        api.create_repo(name, private=publishing.private or None, exist_ok=True)
        api.auth_check(name, write=True)
    return found


def push(bundle: Path, repository: HubBundle, publishing: Publishing) -> str:
    """Push a bundle whose every hash is right, and its card, in one commit; returns the commit's URL.

    What else the repository held is removed by the same commit, so that its folder is the bundle.

    Raises:
        BundleError: for a bundle that is not what its manifest says.
        RequestError: when the Hub refuses.
    """
    manifest = Manifest.read(bundle, check="hashes")
    card = model_card(manifest, repository.repository, publishing.license).encode()
    names = (MANIFEST_NAME, *manifest.files)
    with asking_hub(str(repository)) as hub:
        api = hub.HfApi()
        stale = set(api.list_repo_files(repository.repository)) - {*names, *_KEPT}
        operations = [hub.CommitOperationAdd(name, str((bundle / name).resolve())) for name in names]
        operations.append(hub.CommitOperationAdd(CARD_NAME, card))
        operations += [hub.CommitOperationDelete(name) for name in sorted(stale)]
        message = f"Bundle built {manifest.created} by {manifest.producer}"
        done = api.create_commit(repository.repository, operations, commit_message=message)
    return str(done.commit_url)
