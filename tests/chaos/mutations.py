"""Stored content is damaged at random, and read: every damage is found before anything uses it.

For each: the work or version ends with a reason that names what is wrong, in the API and as a
fact. Nothing else of the mesh runs; the readers are the services' own (``content_readers``).
"""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.chaos import damage
from tests.chaos.content_readers import (
    CompressorReader,
    DataReader,
    Reader,
    Reading,
    TrainerReader,
    TunerReader,
)
from tests.chaos.damage import Damage
from tests.chaos.outcome import Outcome, Say
from tests.chaos.registry_reader import EngineFolderReader, RegistryReader

CODE = "content_damaged"
_SAY_EVERY = 100


def readers(folder: Path) -> list[Reader]:
    """Every reader of stored content, each with a folder and a database of its own."""

    def at(name: str) -> Path:
        path = folder / name
        path.mkdir()
        return path

    return [
        TrainerReader(at("trainer-dataset"), "dataset"),
        TrainerReader(at("trainer-checkpoint"), "checkpoint"),
        TunerReader(at("tuner-base"), "base"),
        TunerReader(at("tuner-file"), "file"),
        CompressorReader(at("compressor-checkpoint"), "checkpoint"),
        CompressorReader(at("compressor-evaluation"), "evaluation"),
        DataReader(at("data-read"), "read"),
        DataReader(at("data-dataset"), "dataset"),
        RegistryReader(at("registry-placed"), "placed"),
        RegistryReader(at("registry-served"), "served"),
        RegistryReader(at("registry-beside"), "beside"),
        EngineFolderReader(at("registry-engine")),
    ]


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """Damage ``runs`` times, every reader in turn."""
    draw = random.Random(seed)
    known = readers(directory)
    violations: list[str] = []
    counts: Counter[str] = Counter()
    started = time.monotonic()
    for number in range(runs):
        reader = known[number % len(known)]
        path = reader.prepare(draw)
        with tempfile.TemporaryDirectory(prefix="millrace-outside-") as outside:
            done = _damage(reader, path, draw, Path(outside))
            reading = reader.read()
        found = list(_broken_promises(reader, done, reading))
        violations += [f"{number}: {reader.name}, {done.what}: {each}" for each in found]
        counts["detected_count"] += not found
        counts["used_count"] += reading.is_used
        if (number + 1) % _SAY_EVERY == 0:
            say(f"{number + 1} damaged, {len(violations)} broken")
    figures = {**counts, "seconds": time.monotonic() - started}
    return Outcome("mutations", runs, violations, figures)


def _damage(reader: Reader, path: Path, draw: random.Random, outside: Path) -> Damage:
    if isinstance(reader, EngineFolderReader):
        return damage.damage_engine(path, draw, outside)
    chosen = damage.damage_file if reader.is_file else damage.damage_directory
    return chosen(path, draw, outside)


def _broken_promises(reader: Reader, done: Damage, reading: Reading) -> Iterator[str]:
    if reading.is_used:
        yield "it was used"
    if reading.code != CODE:
        yield f"the API says {reading.code!r}: {reading.message}"
    if reader.facts and reading.fact not in reader.facts:
        yield f"the newest fact is {reading.fact!r}"
    if reader.facts and reading.fact_reason != CODE.upper():
        yield f"the fact's reason is {reading.fact_reason!r}"
    is_mended = isinstance(reader, EngineFolderReader)
    if not is_mended and not any(name in reading.message for name in done.names):
        yield f"none of {done.names} is named: {reading.message}"
