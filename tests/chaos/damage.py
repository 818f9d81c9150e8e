"""Ways in which stored content is damaged: drawn, done, and described."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from millrace_runtime import manifest
from millrace_runtime.manifest import MANIFEST_NAME


@dataclass(frozen=True)
class Damage:
    """What was done, and the names one of which a reader must say."""

    what: str
    names: tuple[str, ...]


FileDamage = Callable[[Path, random.Random, Path], None]
"""``damage(path, draw, outside)``: ``outside`` is an empty folder that is not in the store."""


def flip_bit(path: Path, draw: random.Random, _outside: Path) -> None:
    content = bytearray(path.read_bytes())
    bit = draw.randrange(len(content) * 8)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random, _outside: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def empty(path: Path, _draw: random.Random, _outside: Path) -> None:
    path.write_bytes(b"")


def append(path: Path, draw: random.Random, _outside: Path) -> None:
    with path.open("ab") as stream:
        stream.write(draw.randbytes(draw.randrange(1, 100)))


def replace_by_as_much(path: Path, draw: random.Random, _outside: Path) -> None:
    content = path.read_bytes()
    other = bytes([content[0] ^ 1]) + draw.randbytes(len(content) - 1)
    path.write_bytes(other)


def delete(path: Path, _draw: random.Random, _outside: Path) -> None:
    path.unlink()


def make_a_directory(path: Path, _draw: random.Random, _outside: Path) -> None:
    path.unlink()
    path.mkdir()


def link_out(path: Path, _draw: random.Random, outside: Path) -> None:
    """The same bytes, by a link out of the store: they may change at any time."""
    target = outside / path.name
    shutil.move(path, target)
    path.symlink_to(target)


FILE_DAMAGES: tuple[FileDamage, ...] = (
    flip_bit,
    truncate,
    empty,
    append,
    replace_by_as_much,
    delete,
    make_a_directory,
    link_out,
)


def damage_file(path: Path, draw: random.Random, outside: Path) -> Damage:
    """Damage a single file."""
    damage = draw.choice(FILE_DAMAGES)
    damage(path, draw, outside)
    return Damage(f"{damage.__name__} {path.name}", (path.name,))


def damage_directory(root: Path, draw: random.Random, outside: Path) -> Damage:
    """Damage one thing of a committed directory."""
    kinds = [_a_file, _a_file, _a_file, _swapped, _added, _consistent, _gone, _linked_directory]
    return draw.choice(kinds)(root, draw, outside)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _a_file(root: Path, draw: random.Random, outside: Path) -> Damage:
    return damage_file(draw.choice(_files(root)), draw, outside)


def _swapped(root: Path, draw: random.Random, _outside: Path) -> Damage:
    """Two files in each other's place, of the same size where there are such."""
    files = [path for path in _files(root) if path.name != MANIFEST_NAME]
    pairs = [(a, b) for a in files for b in files if a < b and a.read_bytes() != b.read_bytes()]
    same_size = [(a, b) for a, b in pairs if a.stat().st_size == b.stat().st_size]
    first, second = draw.choice(same_size or pairs)
    aside = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(aside)
    return Damage(f"swap {first.name} and {second.name}", (first.name, second.name))


def _added(root: Path, draw: random.Random, _outside: Path) -> Damage:
    path = draw.choice(_files(root)).with_name(f"added-{draw.randrange(1000)}")
    path.write_bytes(b"")
    return Damage(f"add {path.name}", (path.name,))


def _consistent(root: Path, draw: random.Random, outside: Path) -> Damage:
    """A file and the manifest with it, so that the two agree."""
    path = draw.choice([path for path in _files(root) if path.name != MANIFEST_NAME])
    flip_bit(path, draw, outside)
    document = json.loads((root / MANIFEST_NAME).read_bytes())
    for entry in document["files"]:
        entry["sha256"] = manifest.sha256_file(root / entry["path"])
        entry["size_bytes"] = (root / entry["path"]).stat().st_size
    content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    (root / MANIFEST_NAME).write_bytes(content)
    return Damage(f"flip_bit {path.name}, and the manifest with it", ("manifest",))


def _gone(root: Path, _draw: random.Random, _outside: Path) -> Damage:
    shutil.rmtree(root)
    return Damage("remove the directory", (root.name,))


def _linked_directory(root: Path, draw: random.Random, outside: Path) -> Damage:
    """The directory itself, or one in it, moved out of the store and linked to."""
    path = draw.choice([root, *(path for path in sorted(root.rglob("*")) if path.is_dir())])
    target = outside / path.name
    shutil.move(path, target)
    path.symlink_to(target, target_is_directory=True)
    return Damage(f"link {path.name} out of the store", (path.name,))


def damage_engine(folder: Path, draw: random.Random, outside: Path) -> Damage:
    """Damage a version's folder in Triton's repository."""
    path = draw.choice(sorted(folder.iterdir()))
    if path.name == "artifact":
        path.unlink()
        path.symlink_to(outside, target_is_directory=True)
        return Damage("link artifact out of the store", ("artifact",))
    if path.stat().st_size == 0:
        append(path, draw, outside)
        return Damage(f"append {path.name}", (path.name,))
    return damage_file(path, draw, outside)
