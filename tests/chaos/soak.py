"""Version swaps and facts in great number: does anything grow that should not?

One run, its training replayed, gives a checkpoint every few seconds; each becomes a version that
replaces the one before on a real Triton, while a client asks questions and uploads files (a fact
each). Meanwhile the memory, file descriptors and write-ahead logs of every process are sampled.
What rises after the first third is a leak, unless it is as small as allocators' noise.
"""

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.chaos import chaos_mesh, lifecycle_end, replay
from tests.chaos.chaos_mesh import ChaosMesh
from tests.chaos.outcome import Outcome, Say

FACTS_PER_SWAP = 50
_MODEL = "soak"
_MEBIBYTE = 1 << 20
_SAMPLE_SECONDS = 2.0
_SWAP_SECONDS = 30.0
_WARM_UP_SHARE = 1 / 3
# What an allocator keeps for itself comes and goes by about so much.
_NOISE_SHARE = 0.15
_NOISE_MEBIBYTES = 16.0
_NOISE_DESCRIPTORS = 8.0
_LARGEST_WAL_MEBIBYTES = 64.0


@dataclass(frozen=True)
class Sample:
    """One process, with those it has started, at one moment."""

    process: str
    swaps: int
    memory_mebibytes: float
    descriptors: int


@dataclass(frozen=True)
class Trend:
    """What became of a quantity after the warm-up: its mean, and its rise from end to end."""

    mean: float
    rise: float


class Client:
    """Asks and uploads until told to stop; counts what failed."""

    def __init__(self, chaos: ChaosMesh, uploads: int) -> None:
        self._mesh = chaos.mesh
        self._uploads = uploads
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.uploaded = self.asked = 0
        self.failures: list[str] = []

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._ask()
            for _ in range(10):
                if self.uploaded < self._uploads:
                    self._upload()

    def _ask(self) -> None:
        body = {"model": _MODEL, "prompt": "def ", "max_tokens": 4}
        response = self._mesh.rest.post("/completions", json=body)
        self.asked += 1
        if response.status_code != httpx.codes.OK:
            self.failures.append(f"a question failed: {response.text[:300]}")

    def _upload(self) -> None:
        line = f'{{"text": "{self.uploaded}"}}\n'
        files = {"file": ("line.jsonl", line.encode()), "purpose": (None, "user_data")}
        response = self._mesh.rest.post("/files", files=files)
        self.uploaded += 1
        if response.status_code != httpx.codes.OK:
            self.failures.append(f"an upload failed: {response.text[:300]}")


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """Make ``runs`` version swaps and fifty times as many facts; nothing is drawn by ``seed``."""
    del seed
    kept = directory / "replay"
    kept.mkdir(parents=True)
    with chaos_mesh.running(directory, {replay.DIRECTORY_VARIABLE: str(kept)}) as chaos:
        lifecycle_end.execute(chaos, "first", {})
        _deploy(chaos)
        _train(chaos, 1)
        chaos.mesh.until(lambda: _swaps(chaos) >= 1, "the first version serves")
        _train(chaos, runs)
        with Client(chaos, runs * FACTS_PER_SWAP) as client:
            samples, largest_wal = _watch(chaos, client, runs, say)
        violations = [*client.failures[:5], *rising(samples), *_too_large(largest_wal)]
        figures = {
            "version swaps": _swaps(chaos),
            "uploads": client.uploaded,
            "questions": client.asked,
            "largest_wal_mebibytes": largest_wal,
            **slopes(samples),
        }
        return Outcome("soak", _swaps(chaos), violations, figures)


def rising(samples: Sequence[Sample]) -> list[str]:
    """A sentence for each process whose memory or descriptors rise beyond noise."""
    found = []
    for process, own in _by_process(samples).items():
        memory = trend([(s.swaps, s.memory_mebibytes) for s in own])
        if memory.rise > max(_NOISE_MEBIBYTES, _NOISE_SHARE * memory.mean):
            found.append(f"{process} grew by {memory.rise:.0f} MiB (mean {memory.mean:.0f} MiB)")
        descriptors = trend([(s.swaps, float(s.descriptors)) for s in own])
        if descriptors.rise > max(_NOISE_DESCRIPTORS, _NOISE_SHARE * descriptors.mean):
            found.append(f"{process} opened {descriptors.rise:.0f} more file descriptors")
    return found


def slopes(samples: Sequence[Sample]) -> dict[str, float]:
    """Growth of each process in KiB and in descriptors for each version swap."""
    figures = {}
    for process, own in _by_process(samples).items():
        swaps = max(1, own[-1].swaps - own[0].swaps)
        memory = trend([(s.swaps, s.memory_mebibytes) for s in own])
        descriptors = trend([(s.swaps, float(s.descriptors)) for s in own])
        figures[f"{process}_memory_mean_mebibytes"] = memory.mean
        figures[f"{process}_memory_kibibytes_per_swap"] = memory.rise * 1024 / swaps
        figures[f"{process}_descriptors_per_swap"] = descriptors.rise / swaps
    return figures


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """Least squares over ``points`` (x, y)."""
    values = [y for _, y in points]
    if len({x for x, _ in points}) < 2:
        return Trend(statistics.fmean(values), 0.0)
    slope = statistics.linear_regression([x for x, _ in points], values).slope
    return Trend(statistics.fmean(values), slope * (points[-1][0] - points[0][0]))


def _by_process(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Samples after the warm-up, in order, by process."""
    last = max((sample.swaps for sample in samples), default=0)
    kept: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.swaps >= last * _WARM_UP_SHARE:
            kept[sample.process].append(sample)
    return kept


def _deploy(chaos: ChaosMesh) -> None:
    strategy = {"type": "immediate"}
    chaos.mesh.post("/deployments", {"model": _MODEL, "strategy": strategy})


def _train(chaos: ChaosMesh, checkpoints: int) -> None:
    dataset = chaos.mesh.get("/datasets")["data"][0]["id"]
    settings = {"total_steps": checkpoints, "checkpoint_every_steps": 1, "seed": checkpoints}
    chaos.mesh.start_run(_MODEL, dataset, **settings, warmup_steps=0)


def _swaps(chaos: ChaosMesh) -> int:
    """Rollouts of the model that have settled."""
    newest = chaos.mesh.get(f"/rollouts?model={_MODEL}&limit=1")["data"]
    return int(newest[0]["to_version"]) - (newest[0]["status"] != "settled") if newest else 0


def _watch(chaos: ChaosMesh, client: Client, runs: int, say: Say) -> tuple[list[Sample], float]:
    """Sample until all swaps are made; the largest write-ahead log in MiB beside them."""
    samples: list[Sample] = []
    largest_wal, told = 0.0, 0
    deadline = time.monotonic() + 60 + runs * _SWAP_SECONDS
    while (swaps := _swaps(chaos)) < runs and time.monotonic() < deadline:
        samples += _sample(chaos, swaps)
        logs = chaos.layout.home.databases.glob("*-wal")
        largest_wal = max([largest_wal, *(path.stat().st_size / _MEBIBYTE for path in logs)])
        if swaps >= told + 10:
            told = swaps
            say(f"{swaps} swaps, {client.uploaded} uploads, {client.asked} questions")
        time.sleep(_SAMPLE_SECONDS)
    return samples, largest_wal


def _sample(chaos: ChaosMesh, swaps: int) -> list[Sample]:
    found = []
    for name in ("nats", "triton", "gateway", "registry", "compressor", "trainer", "data"):
        pid = chaos.process(name)["pid"]
        if pid is not None:
            found.append(sample_of(name, pid, swaps))
    return found


def sample_of(name: str, pid: int, swaps: int) -> Sample:
    """Jobs are left out: they end. Triton's engines are processes that it starts."""
    process = psutil.Process(pid)
    family = [process, *(process.children(recursive=True) if name == "triton" else ())]
    memory, descriptors = 0, 0
    for member in family:
        try:
            memory += member.memory_info().rss
            descriptors += member.num_fds()
        except psutil.NoSuchProcess:  # an engine that was unloaded meanwhile
            continue
    return Sample(name, swaps, memory / _MEBIBYTE, descriptors)


def _too_large(largest_wal: float) -> list[str]:
    if largest_wal <= _LARGEST_WAL_MEBIBYTES:
        return []
    return [f"a write-ahead log grew to {largest_wal:.0f} MiB"]
