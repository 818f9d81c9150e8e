"""Small filesystems of our own, to be filled and cut off, where the machine lets us make them."""

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXT4_BYTES = 64 << 20

# linux/ext4.h: EXT4_IOC_SHUTDOWN, and what it does with the journal.
_SHUTDOWN = 0x8004587D
LOG_FLUSH = 1
NO_LOG_FLUSH = 2


class DisksNotAllowed(Exception):
    """Filesystems cannot be made here; the message says what is missing."""


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A tmpfs at ``folder`` that holds ``size_bytes``.

    Raises:
        DisksNotAllowed
    """
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up all room of a disk; removing the file that is returned gives it back."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as stream:
        try:
            while True:
                stream.write(b"\0" * 4096)
        except OSError:
            return ballast


class Ext4Disk:
    """An ext4 filesystem in a file, whose power can be cut.

    Raises:
        DisksNotAllowed
    """

    def __init__(self, image: Path, folder: Path) -> None:
        self._image = image
        self.folder = folder
        self._is_mounted = False
        if shutil.which("mkfs.ext4") is None:
            raise DisksNotAllowed("mkfs.ext4 (e2fsprogs) is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as stream:
            stream.truncate(EXT4_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)

    def mount(self) -> None:
        _mount("-t", "ext4", "-o", "loop", str(self._image), str(self.folder))
        self._is_mounted = True

    def cut_power(self, flag: int) -> None:
        """Nothing reaches the disk from now on; NO_LOG_FLUSH: nor does the journal in memory."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", flag))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        if self._is_mounted:
            subprocess.run(["umount", str(self.folder)], check=True, capture_output=True)
            self._is_mounted = False


def _mount(*arguments: str) -> None:
    if shutil.which("mount") is None:
        raise DisksNotAllowed("mount is not installed")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise DisksNotAllowed(f"mounting is not allowed here: {done.stderr.strip()}")
