"""Roll out versions, good and bad, under load; count what was reversed, and what should have been.

python -m tests.rollouts [--bad 200] [--good 200] [--models 4] [--kinds errors,slow] [--seed 1]
    [--minutes 0]

Ends with 1 when a bad version was promoted, more than 1 % of them were not reversed within 5 s of
enough evidence, one was promoted on no data, more than 2 % of the good ones were reversed, or a
client's request failed.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.rollouts import behaviour, fleet
from tests.rollouts.report import report
from tests.rollouts.trial import Trial

_JSON = Path(".millrace/rollouts.json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.rollouts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bad", type=int, default=200, help="bad versions (200)")
    parser.add_argument("--good", type=int, default=200, help="versions as the old one (200)")
    parser.add_argument("--models", type=int, default=4, help="models side by side (4)")
    parser.add_argument("--clients", type=int, default=4, help="of each model (4)")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="after which none begins; 0: all do (0)"
    )
    parser.add_argument(
        "--think-seconds", type=float, default=0.05, help="of a client after an answer (0.05)"
    )
    parser.add_argument(
        "--kinds", default=",".join(behaviour.KINDS), help=f"of: {', '.join(behaviour.KINDS)}"
    )
    parser.add_argument("--seed", type=int, default=1, help="draws the versions (1)")
    parser.add_argument("--json", type=Path, default=_JSON, help=f"written at the end ({_JSON})")
    given = parser.parse_args()
    given.kinds = [kind.strip() for kind in given.kinds.split(",")]
    unknown = set(given.kinds) - set(behaviour.KINDS)
    if unknown:
        parser.error(f"--kinds: there is no {', '.join(sorted(unknown))}")
    return given


def main() -> int:
    given = _arguments()
    planned = behaviour.plan(given.bad, given.good, given.kinds, given.seed)
    with tempfile.TemporaryDirectory(prefix="rollouts-") as folder:
        with fleet.running(Path(folder)) as running:
            trial = Trial(running, planned, given.models, lambda line: print(line, flush=True))
            tried, clients = trial.run(given.clients, given.think_seconds, 60 * given.minutes)
    made = report(tried, clients.asked.total(), clients.failed, clients.failures)
    print(f"\n{made.table()}")
    made.write(given.json, tried)
    faults = made.faults()
    for fault in faults:
        print(f"BROKEN: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
