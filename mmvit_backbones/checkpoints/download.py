"""Download files once for all processes of a machine."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import wrap_file

from mmvit_backbones.checkpoints.errors import CheckpointError

TIMEOUT = 30  # seconds without an answer
HOME = 'MMVIT_HOME'
HUB = 'hf-hub:'
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


class DownloadError(CheckpointError):
    """No address gave the file."""


@dataclass(frozen=True)
class Address:
    """Where a file can be downloaded.

    Attributes:
        url: Its http or https address.
        sha256: Its SHA-256, or the first digits of it; None if it is not known.
        by_hand: Whether it is a page from which only a person gets the file.
    """

    url: str
    sha256: str | None = None
    by_hand: bool = False


def cache_folder() -> Path:
    """Return the folder of downloads.

    That is `$MMVIT_HOME/checkpoints`, else a folder inside that of `torch.hub`, which `TORCH_HOME`
    moves.
    """
    if home := os.environ.get(HOME):
        return Path(home).expanduser() / 'checkpoints'
    return Path(torch.hub.get_dir()) / 'checkpoints' / 'mmvit_backbones'


def cached_path(url: str) -> Path:
    """Return where the download of an address is kept.

    The name starts with a digest of the whole address, because the last part of an address is no
    name: every file of timm's hub is called `model.safetensors`.
    """
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    name = re.sub(r'[^\w.-]', '_', Path(urlparse(url).path).name)
    return cache_folder() / f'{digest}-{name}'


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raise CheckpointError if the SHA-256 of a file does not start with the expected digits."""
    if not (found := file_sha256(path)).startswith(expected.lower()):
        raise CheckpointError(f'SHA-256 is {found}, expected {expected}')


def download(name: str, addresses: Sequence[Address], check: Callable[[Path], object]) -> Path:
    """Return the local copy of a file, downloaded if there is none yet.

    The addresses are tried in their order. A file lock makes one process of the machine download
    while the others wait for its result, good or bad. A file appears under its name only when it is
    complete and has passed all checks. Where its hash is known, the local copy is checked each
    time; one that has been damaged since is downloaded again.

    Args:
        name: What the user asked for, for the error.
        addresses: Mirrors of the file.
        check: Raises CheckpointError if a complete download is not usable.

    Raises:
        DownloadError: If no address gave the file; it tells how to put the file there by hand.
    """
    for address in addresses:
        if path := _cached(address):
            return path
    asked = time.time()
    problems = {}
    for address in addresses:
        if address.by_hand:
            problems[address.url] = 'a page for download by hand'
            continue
        try:
            return _download_locked(address, check, asked)
        except (OSError, HTTPException, CheckpointError) as error:
            problems[address.url] = str(error) or type(error).__name__
    raise DownloadError(_describe(name, problems))


def download_from_hub(repository: str, check: Callable[[Path], object]) -> Path:
    """Return the local copy of a repository's weights, kept where `huggingface_hub` keeps them.

    Args:
        repository: `<owner>/<name>`.
        check: Raises CheckpointError if the file is not usable.

    Raises:
        DownloadError: If `huggingface_hub` is not installed or does not get the file.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError, HfHubHTTPError
    except ImportError:
        raise DownloadError(
            f'{HUB}{repository} needs the package huggingface_hub: pip install huggingface_hub'
        ) from None
    problems = {}
    for file in HUB_FILES:
        try:
            path = Path(hf_hub_download(repository, file))
        except (OSError, ValueError, EntryNotFoundError, HfHubHTTPError) as error:
            problems[file] = str(error).splitlines()[0]
        else:
            check(path)
            return path
    raise DownloadError(f'{HUB}{repository} could not be downloaded: {problems}')


def _cached(address: Address) -> Path | None:
    """Return the local copy, None if there is none or it is damaged."""
    path = cached_path(address.url)
    if not path.exists():
        return None
    if address.sha256:
        try:
            check_sha256(path, address.sha256)
        except CheckpointError as error:
            print_log(f'{path} is not used: {error}', logger='current', level=logging.WARNING)
            return None
    return path


def _download_locked(address: Address, check: Callable[[Path], object], asked: float) -> Path:
    path = cached_path(address.url)
    failed = path.with_name(f'{path.name}.failed')
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):
        if cached := _cached(address):
            return cached
        if failed.exists() and failed.stat().st_mtime > asked:
            # Another process tried while this one waited for the lock.
            raise CheckpointError(failed.read_text(encoding='utf-8'))
        try:
            _fetch(address, path, check)
        except (OSError, HTTPException, CheckpointError) as error:
            failed.write_text(str(error), encoding='utf-8')
            raise
        failed.unlink(missing_ok=True)
    return path


def _fetch(address: Address, path: Path, check: Callable[[Path], object]) -> None:
    part = path.with_name(f'{path.name}.part')  # one left by a killed process is overwritten
    request = Request(address.url, headers={'User-Agent': 'mmvit_backbones'})
    try:
        with urlopen(request, timeout=TIMEOUT) as response, part.open('wb') as file:
            size = int(response.headers.get('Content-Length') or 0)
            console = Console(stderr=True)
            with wrap_file(response, size, description=path.name, console=console) as source:
                shutil.copyfileobj(source, file, 1 << 20)
        if size and (received := part.stat().st_size) != size:
            raise CheckpointError(f'truncated, {received} of {size} bytes')
        check(part)
        if address.sha256:
            check_sha256(part, address.sha256)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _describe(name: str, problems: dict[str, str]) -> str:
    lines = [f'{name!r} could not be downloaded. Tried:']
    lines += [f'  {url}\n    {problem}' for url, problem in problems.items()]
    lines.append(f'Downloads are kept in {cache_folder()} ({HOME} or TORCH_HOME moves it).')
    lines.append('To put the file there by hand, get it elsewhere and save it as:')
    lines += [f'  {url}\n    -> {cached_path(url)}' for url in problems]
    lines.append('Or give the path of any copy of the file instead of the name.')
    return '\n'.join(lines)
