"""``python -m millrace_mesh``: the supervisor alone, as ``millrace up`` runs it."""

import argparse
import sys

from millrace_mesh import supervisor
from millrace_mesh.layout import LayoutError, layout_from_environ
from millrace_mesh.nats import NotDurable
from millrace_mesh.state import AlreadyRunning


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m millrace_mesh",
        description="Run the mesh of $MILLRACE_HOME (default ./.millrace), with its ports from "
        "$MILLRACE_BASE_PORT (default 8080), until SIGTERM or SIGINT.",
    )
    parser.add_argument("--quiet", action="store_true", help="log to files alone")
    arguments = parser.parse_args()
    try:
        supervisor.run(layout_from_environ(), quiet=arguments.quiet)
    except (AlreadyRunning, LayoutError, NotDurable, FileNotFoundError) as error:
        print(f"millrace: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
