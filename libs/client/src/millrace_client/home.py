"""Where a mesh on this machine keeps what it has: the paths below ``$MILLRACE_HOME``."""

import os
from dataclasses import dataclass
from pathlib import Path

HOME_VARIABLE = "MILLRACE_HOME"
DEFAULT_HOME = ".millrace"


@dataclass(frozen=True)
class Home:
    """The directory of one mesh; ``path`` is absolute."""

    path: Path

    @classmethod
    def from_environ(cls) -> "Home":
        """``$MILLRACE_HOME``, or ``.millrace`` below the working directory."""
        return cls(Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).absolute())

    @property
    def state_file(self) -> Path:
        """What the supervisor last said about the mesh, as JSON."""
        return self.path / "mesh.json"

    @property
    def lock_file(self) -> Path:
        """Locked while a supervisor runs."""
        return self.path / "mesh.lock"

    @property
    def restart_request_file(self) -> Path:
        """Which services the supervisor was last asked to restart, as JSON."""
        return self.path / "restart.json"

    @property
    def operator_key_file(self) -> Path:
        """The first key, made by the gateway at its first start."""
        return self.path / "secrets" / "operator-key"

    @property
    def secrets(self) -> Path:
        return self.path / "secrets"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def traces(self) -> Path:
        """Spans as JSON lines, a file a process."""
        return self.path / "traces"

    @property
    def databases(self) -> Path:
        return self.path / "databases"

    @property
    def data(self) -> Path:
        """Content: files, datasets, checkpoints, artifacts."""
        return self.path / "data"

    @property
    def scratch(self) -> Path:
        return self.path / "scratch"

    @property
    def nats(self) -> Path:
        return self.path / "nats"

    @property
    def triton_models(self) -> Path:
        """Triton's model repository; only the registry writes there."""
        return self.path / "triton" / "models"
