"""Workers and registries that are stopped past their lease, and go on later: nothing stale.

SIGSTOP falls at a drawn moment, also amid a transaction and between the commit of content and
that of its row. Others take the work over; then the stopped process goes on, and tries every
write it has. PostgreSQL's own record (``fencing_audit.py``) says what came of it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from millrace_runtime.database import open_database
from millrace_testkit.servers import PostgresServer, wait_until
from tests.chaos import fencing_audit
from tests.chaos.fencing_audit import DRIVER
from tests.chaos.fencing_halves import Bench, Half, RegistryHalf, StageHalf
from tests.chaos.fencing_worker import url_of
from tests.chaos.outcome import Outcome, Say

LEASE_SECONDS = 1.0
IDLE_MILLISECONDS = 700
_PAUSE_SECONDS = 0.15
_TAKEOVER_SECONDS = 20.0
_END_SECONDS = 90.0
_ROOT = Path(__file__).parents[2]

_IN_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name LIKE :prefix AND state LIKE 'idle in transaction%'
"""


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """Take ``runs`` pieces of work from stopped workers, and as many endpoints from registries."""
    with postgres() as server:
        # Reading the whole record takes as long as it takes.
        administration = open_database(url_of(server.url, "public", DRIVER, 0))
        fencing_audit.prepare(administration)
        benches = [
            Bench(server.url, administration, random.Random(seed + number), directory)
            for number in range(2)
        ]
        halves = (StageHalf(benches[0]), RegistryHalf(benches[1]))
        with ThreadPoolExecutor() as pool:
            pairs = zip(benches, halves, strict=True)
            for ended in [pool.submit(_disturb, *pair, runs, say) for pair in pairs]:
                ended.result()
        notes = fencing_audit.read(administration)
        administration.close()
    violations = [said for bench in benches for said in bench.violations]
    takeovers = benches[0].takeovers + benches[1].takeovers
    figures = {
        **{f"taken_over_{stage}_count": count for stage, count in takeovers.items()},
        **(benches[0].counts + benches[1].counts),
        "claims_count": sum(note.is_claim for note in notes),
        "committed_writes_count": len(notes),
    }
    violations += fencing_audit.stale_writes(notes)
    return Outcome("fencing", takeovers.total(), violations, figures)


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that remembers when each transaction was committed."""
    # Below /tmp itself: the postgres user may not enter private directories.
    folder = Path(f"/tmp/millrace-postgres-{uuid.uuid4().hex[:8]}")
    server = PostgresServer(folder, fencing_audit.POSTGRES_SETTINGS)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


class Fleet:
    """The processes that are stopped."""

    def __init__(self, bench: Bench, specification: Mapping[str, Any], count: int) -> None:
        self._folder = bench.directory / str(specification["kind"])
        self._folder.mkdir(parents=True, exist_ok=True)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        for number in range(count):
            name = f"{specification['kind']}-{number}"
            spec = {
                **specification,
                "name": name,
                "url": bench.url,
                "root": str(bench.directory),
                "journal": str(self._folder / f"{name}.journal"),
                "seed": bench.chance.randrange(2**31),
                "lease_seconds": LEASE_SECONDS,
                "idle_milliseconds": IDLE_MILLISECONDS,
                "longest_pause_seconds": _PAUSE_SECONDS,
            }
            self.processes[name] = self._start(name, spec)
        for process in self.processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"see {self._folder}"

    def _start(self, name: str, spec: Mapping[str, Any]) -> subprocess.Popen[str]:
        path = self._folder / f"{name}.json"
        path.write_text(json.dumps(spec))
        with (self._folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.fencing_worker", str(path)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=_ROOT,
            )

    def stop(self, name: str) -> None:
        """SIGSTOP; returns once it stands still."""
        process = self.processes[name]
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: _state(process.pid) == "T", 5, f"{name} stands still")

    def go_on(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGCONT)

    def end(self) -> list[dict[str, Any]]:
        """Drain them all; what they wrote in their journals."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        journals = [path.read_text() for path in self._folder.glob("*.journal")]
        return [json.loads(line) for journal in journals for line in journal.splitlines()]


def _disturb(bench: Bench, half: Half, runs: int, say: Say) -> None:
    """Stop, let others take over, let go on, until ``runs`` were taken over; then let all end."""
    before = bench.takeovers.total()
    with ExitStack() as stack:
        half.ask()
        fleet = Fleet(bench, half.specification, half.process_count)
        stack.callback(_hear, bench, fleet)
        stops = 0
        say(f"{half.specification['kind']}: started")
        while (done := bench.takeovers.total() - before) < runs and len(bench.violations) < 20:
            half.ask()
            time.sleep(bench.chance.uniform(0.2, 0.8))
            _stop_one(bench, half, fleet)
            stops += 1
            if stops % 20 == 0:
                say(f"{half.specification['kind']}: {done} of {runs} taken over, {stops} stops")
        bench.counts[f"{half.specification['kind']}_stops_count"] = stops
        say(f"{half.specification['kind']}: letting all end")
        _until(bench, half.is_quiet, _END_SECONDS, f"the end of {half.specification['kind']}")
    bench.violations += half.check()


def _stop_one(bench: Bench, half: Half, fleet: Fleet) -> None:
    name = half.victim(list(fleet.processes))
    fleet.stop(name)
    try:
        held = half.held_by(name)
        prefix = f"{name}/%"
        lying = int(bench.scalar(_IN_TRANSACTION, prefix=prefix))
        bench.counts["stopped_in_transaction_count"] += lying
        for item, epoch in held.items():
            what = f"{item} is taken over from {name}"
            _until(bench, lambda i=item, e=epoch: half.epoch(i) > e, _TAKEOVER_SECONDS, what)
        time.sleep(bench.chance.uniform(0, 0.3))
    finally:
        fleet.go_on(name)
    for stage, _ in held:
        bench.takeovers[stage.split("_")[0]] += 1


def _until(bench: Bench, holds: Callable[[], bool], seconds: float, what: str) -> None:
    try:
        wait_until(holds, seconds, what)
    except TimeoutError as error:
        bench.violations.append(str(error))


def _hear(bench: Bench, fleet: Fleet) -> None:
    """End the processes, and read how many of their late writes were refused."""
    for line in fleet.end():
        bench.counts["refused_writes_count"] += line["tried"] - line["accepted"]
        if line["accepted"]:
            bench.violations.append(f"{line['accepted']} late writes were accepted: {line}")


def _state(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0]


if __name__ == "__main__":
    import tempfile

    folder = tempfile.mkdtemp(prefix="fencing-")
    print(folder)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:.1f} {line}", flush=True)

    found = run(int(sys.argv[1]), int(os.environ.get("SEED", "1")), Path(folder), say)
    print(f"{time.monotonic() - began:.1f} s")
    print(json.dumps({"runs": found.runs, "figures": dict(found.figures)}, indent=1))
    print("\n".join(found.violations) or "nothing stale")
