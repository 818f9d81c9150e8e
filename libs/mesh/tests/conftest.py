import random
from pathlib import Path

import pytest

from millrace_client.home import Home
from millrace_mesh.layout import Layout, LayoutError, require_free_ports


@pytest.fixture
def free_base_port() -> int:
    """A base port from which all of a mesh's ports are free now."""
    while True:
        base = random.randrange(20_000, 30_000)
        try:
            require_free_ports(Layout(Home(Path("unused")), base))
        except LayoutError:
            continue
        return base
