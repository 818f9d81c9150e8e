"""The shared store of content: committed directories and files, by URI.

The default root is a local directory, where jobs write in place; any fsspec URL (``s3://…``)
serves too: content is then uploaded, its manifest last, and fetched into a local cache before
use. Either way readers get a local path that was verified against the expected digest.
"""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlparse

import fsspec
from fsspec.implementations.local import LocalFileSystem

from millrace_runtime import manifest


class ContentOutsideRoot(ValueError):
    """A URI points outside the store."""


class ContentStore:
    """Content below ``root``; ``cache`` is where remote content is kept locally.

    ``sign`` signs a committed directory where that was not done (``signing.Signer.sign``).
    """

    def __init__(self, root: str, cache: Path, sign: Callable[[Path], None] | None = None) -> None:
        self._filesystem, path = fsspec.core.url_to_fs(root)
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        self._root = str(Path(path).resolve()) if self._is_local else path.rstrip("/")
        self._cache = cache
        self._sign = sign

    def working_path(self, relative: str) -> Path:
        """Where a job writes content that is to become ``relative`` in the store.

        Raises:
            ContentOutsideRoot: ``relative`` leads out of the root.
        """
        root = (Path(self._root) if self._is_local else self._cache / "outgoing").resolve()
        path = (root / relative).resolve()
        if not path.is_relative_to(root):
            raise ContentOutsideRoot(f"{relative!r} leads out of the data root")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, path: Path) -> str:
        """Make what lies at a working path readable by all services; return its URI.

        A committed directory is signed first. Whoever records content publishes it, so one that
        was committed by a process that was then killed is signed too.

        Raises:
            OSError: the filesystem refused.
        """
        if self._sign is not None and (path / manifest.MANIFEST_NAME).is_file():
            self._sign(path)
        if self._is_local:
            return path.resolve().as_uri()
        root = (self._cache / "outgoing").resolve()
        target = f"{self._root}/{path.resolve().relative_to(root).as_posix()}"
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        # The manifest goes last: a directory without one was never committed.
        for file in sorted(files, key=lambda file: file.name == manifest.MANIFEST_NAME):
            suffix = "" if path.is_file() else f"/{file.relative_to(path).as_posix()}"
            self._filesystem.put_file(str(file), target + suffix)
        return str(self._filesystem.unstrip_protocol(target))

    def remove(self, relative: str) -> None:
        """Remove a file or a directory from the store; nothing happens when it is not there.

        Raises:
            ContentOutsideRoot: ``relative`` leads out of the root.
        """
        _remove(self.working_path(relative))
        if not self._is_local and self._filesystem.exists(f"{self._root}/{relative}"):
            self._filesystem.rm(f"{self._root}/{relative}", recursive=True)

    def directory(self, uri: str, digest: str) -> Path:
        """A local path of a committed directory, every byte of it verified.

        Raises:
            ManifestError: it is not what ``digest`` says.
            ContentOutsideRoot: ``uri`` points elsewhere.
        """
        path = self._local_path(uri)
        if not self._is_local:
            path = self._cached(uri, digest, manifest.verify)
        manifest.verify(path, digest)
        return path

    def signature(self, uri: str) -> bytes:
        """The signature that lies in a committed directory, not yet verified.

        Raises:
            FileNotFoundError: there is no signature, or no such directory.
            ContentOutsideRoot: ``uri`` points elsewhere.
        """
        return self._read(uri, manifest.SIGNATURE_NAME)

    def manifest_of(self, uri: str) -> bytes:
        """The manifest of a committed directory, not yet verified; its files are not read.

        Raises:
            FileNotFoundError: there is no such directory.
            ContentOutsideRoot: ``uri`` points elsewhere.
        """
        return self._read(uri, manifest.MANIFEST_NAME)

    def _read(self, uri: str, name: str) -> bytes:
        """From the store, not the cache: a directory may have been signed after it was fetched."""
        if self._is_local:
            return (self._local_path(uri) / name).read_bytes()
        return bytes(self._filesystem.cat_file(f"{self._remote_path(uri)}/{name}"))

    def file(self, uri: str, digest: str) -> Path:
        """A local path of a single file, its bytes verified.

        Raises:
            ManifestMismatch: it is not what ``digest`` says.
            ContentOutsideRoot: ``uri`` points elsewhere.
        """
        path = self._local_path(uri)
        if not self._is_local:
            path = self._cached(uri, digest, _require_file)
        _require_file(path, digest)
        return path

    def _cached(self, uri: str, digest: str, check: Callable[[Path, str], object]) -> Path:
        """The cache's copy of remote content; one that is damaged is fetched again."""
        path = self._cache / "incoming" / digest.removeprefix("sha256:")
        if _is_whole(path, digest, check):
            return path
        temporary = manifest.temporary_sibling(path)
        try:
            fetched = temporary / path.name
            self._fetch(self._remote_path(uri), fetched)
            if not _is_whole(path, digest, check):  # else another process was quicker
                _remove(path)
                fetched.rename(path)
        finally:
            manifest.remove_tree(temporary)
        return path

    def _fetch(self, remote: str, path: Path) -> None:
        if self._filesystem.isdir(remote):
            self._filesystem.get(f"{remote}/", f"{path}/", recursive=True)
        else:
            self._filesystem.get_file(remote, str(path))

    def _local_path(self, uri: str) -> Path:
        if not self._is_local:
            return Path()
        path = Path(unquote(urlparse(uri).path)).resolve()
        if urlparse(uri).scheme != "file" or not path.is_relative_to(self._root):
            raise ContentOutsideRoot(f"{uri} is not in the data root")
        return path

    def _remote_path(self, uri: str) -> str:
        path = str(self._filesystem._strip_protocol(uri))
        if not path.startswith(self._root + "/") or ".." in path.split("/"):
            raise ContentOutsideRoot(f"{uri} is not in the data root")
        return path


def _require_file(path: Path, digest: str) -> None:
    """
    Raises:
        ManifestMismatch: ``path`` is no regular file with that digest.
    """
    if path.is_symlink() or not path.is_file():
        raise manifest.ManifestMismatch(f"{path} is no regular file; it should be {digest}")
    found = manifest.sha256_file(path)
    if found != digest:
        raise manifest.ManifestMismatch(f"{path} is {found}, not {digest}")


def _is_whole(path: Path, digest: str, check: Callable[[Path, str], object]) -> bool:
    try:
        check(path, digest)
    except manifest.ManifestError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        manifest.remove_tree(path)
    else:
        path.unlink(missing_ok=True)
