"""Python imports this by itself in every process that has this folder on its PYTHONPATH."""

import os
import sys
from pathlib import Path

from tests.chaos import crash_points

_directory = os.environ.get(crash_points.DIRECTORY_VARIABLE)
_process = crash_points.process_of(sys.orig_argv)
if _directory and _process:
    crash_points.install(Path(_directory), _process)
