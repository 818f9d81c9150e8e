import subprocess
import sys

PROGRAM = """
import gc
from millrace_runtime import garbage
before = len(gc.get_objects())
garbage.spare_what_is_there()
assert gc.get_freeze_count() > before / 2, gc.get_freeze_count()
assert len(gc.get_objects()) < 100
gc.collect()
assert gc.get_threshold()[0] > 700
"""


def test_a_full_collection_passes_over_what_was_imported() -> None:
    """In a process of its own: what is frozen here would be so for all tests."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
