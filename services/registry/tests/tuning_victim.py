"""A registry that searches for settings until it is killed: ``python tuning_victim.py FOLDER``."""

import signal
import sys
import threading
from pathlib import Path

from registry_builders import World
from tuning_builders import Parts, PlayedJob

from millrace_runtime import owner
from millrace_runtime.database import open_database
from millrace_testkit.clock import FakeClock


def main(folder: Path) -> None:
    clock = FakeClock()
    clock.advance(3600)  # its lease has not run out when another looks
    world = World(open_database(f"sqlite:///{folder}/service.db"), folder, clock)
    job = PlayedJob()

    def waits_for_its_end() -> None:
        sys.stdout.write("measured\n")
        sys.stdout.flush()
        signal.pause()

    job.breaks_before = (2, waits_for_its_end)
    parts = Parts(world, folder, job, owner=owner.this_process())
    lease = parts.store.claim()
    assert lease is not None
    parts.tuner.perform(lease, threading.Event())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
