"""``make chaos``: the long runs. Exit status 1 when a promise was broken."""

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import (
    crash,
    delivery,
    disconnects,
    fencing,
    full_disk,
    mutations,
    nats_faults,
    outcome,
    power_loss,
    replicas,
    soak,
    training,
    upgrades,
)
from tests.chaos.disks import DisksNotAllowed
from tests.chaos.outcome import Harness, Outcome

REPORT = Path(".millrace/chaos.json")


def harnesses() -> dict[str, tuple[Harness, int]]:
    """Each harness by name, with the runs that it makes when nobody says how many."""
    return {
        "crash": (crash.run, 40),
        "crash-replayed": (crash.run_replayed, 1000),
        "nats": (nats_faults.run, 18),
        "delivery": (delivery.run, 20_000),
        "fencing": (fencing.run, 500),
        "replicas": (replicas.run, 25),
        "training": (training.run, 48),
        "mutations": (mutations.run, 1000),
        "full-disk": (full_disk.run, 300),
        "power-loss": (power_loss.run, 30),
        "upgrades": (upgrades.run, 120),
        "soak": (soak.run, 200),
        "disconnects": (disconnects.run, 1000),
    }


def main() -> int:
    known = harnesses()
    parser = argparse.ArgumentParser(
        prog="make chaos",
        description="Break everything, and see that nothing is lost and nothing happens twice.",
    )
    parser.add_argument("--runs", type=int, help="disturbances of each harness")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--only", default="", help=f"some of: {', '.join(known)}")
    arguments = parser.parse_args()
    chosen = [name.strip() for name in arguments.only.split(",") if name.strip()] or list(known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        parser.error(f"there is no harness {unknown[0]!r}; there are: {', '.join(known)}")
    print(f"seed {arguments.seed}: SEED={arguments.seed} draws the same again", flush=True)
    outcomes = [_run(name, *known[name], arguments) for name in chosen]
    outcome.write(outcomes, arguments.seed, REPORT)
    print(f"written to {REPORT}")
    return 1 if any(each.is_broken for each in outcomes) else 0


def _run(name: str, run: Harness, usual_runs: int, arguments: argparse.Namespace) -> Outcome:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"millrace-chaos-{name}-") as directory:
        try:
            found = run(
                arguments.runs or usual_runs,
                arguments.seed,
                Path(directory),
                lambda line: print(f"  {name}: {line}", flush=True),
            )
        except DisksNotAllowed as error:
            found = Outcome(name, 0, skipped_because=str(error))
    seconds = time.monotonic() - started
    print(f"{name}: {found.verdict}, {found.runs} runs in {seconds:.0f} s", flush=True)
    for what, value in found.figures.items():
        shown = f"{value:,.3f}" if isinstance(value, float) else str(value)
        print(f"    {what:<36} {shown}")
    for violation in found.violations[:20]:
        print(f"    ! {violation}")
    return found


if __name__ == "__main__":
    sys.exit(main())
