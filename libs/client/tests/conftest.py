import sys
from pathlib import Path

# Tests are imported by file; what they share lies beside them.
sys.path.insert(0, str(Path(__file__).parent))
