"""The registry as a reader of artifacts, with a Triton that looks at what it is told to load."""

import random
import shutil
import sys
from pathlib import Path
from typing import Any

from millrace.registry.v1 import events_pb2
from millrace_registry.convert import version_to_proto
from millrace_registry.domain import VersionState
from millrace_registry.repository import is_engine_folder
from millrace_runtime import manifest
from millrace_runtime.database import open_database
from millrace_testkit.clock import FakeClock
from tests.chaos.content_readers import SERVICES, Reading

sys.path.append(str(SERVICES / "registry" / "tests"))  # the service's own builders

import registry_builders

CHAMPION, NEWER = 1, 2
_MODEL = "acme.demo"


class WaryTriton(registry_builders.FakeTriton):
    """Notes every version that it would load from bytes that are not those registered."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.digests: dict[int, str] = {}
        self.wrong: list[str] = []

    def load(self, model: str) -> None:
        for number in self._listed(model):
            self._look_at(number, self._root / model / str(number))
        super().load(model)

    def _look_at(self, number: int, folder: Path) -> None:
        artifact = (folder / "artifact").resolve()
        try:
            manifest.verify(artifact, self.digests[number])
        except (manifest.ManifestError, OSError) as error:
            self.wrong.append(f"version {number}: {error}")
        if not is_engine_folder(folder, artifact):
            self.wrong.append(f"version {number}: its folder is not as it was written")


class RegistryReader:
    """A champion serves and a newer version is damaged, at one of three moments.

    ``placed``  before it was placed in Triton's repository
    ``served``  it served, and Triton restarted
    ``beside``  it served, and another version comes: Triton reads again what has changed
    """

    facts = ("version.quarantined", "rollout.reversed")
    is_file = False

    def __init__(self, folder: Path, moment: str) -> None:
        self.name = f"registry {moment}"
        self._moment = moment
        self._live, self._template = folder / "live", folder / "template"
        self._clock = FakeClock()
        self._triton = WaryTriton(self._live / "triton")
        self._begin()
        self._serve(CHAMPION)
        if moment == "placed":
            self._finish(NEWER)
        else:
            self._serve(NEWER)
        if moment == "beside":
            self._finish(NEWER + 1)
        self._end()
        self._loaded = dict(self._triton.loaded)
        shutil.move(self._live, self._template)

    def prepare(self, draw: random.Random) -> Path:
        """The same world again, its registry started anew."""
        shutil.copytree(self._template, self._live, symlinks=True)
        self._clock.advance(60)  # the lease of the registry before it has run out
        self._triton.loaded = {} if self._moment == "served" else dict(self._loaded)
        self._triton.wrong = []
        self._begin()
        return Path(self._world.content.working_path(f"artifacts/demo-{NEWER}"))

    def _begin(self) -> None:
        self._live.mkdir(exist_ok=True)
        database = open_database(f"sqlite:///{self._live}/registry.db")
        self._world = registry_builders.World(
            database, self._live, self._clock, triton=self._triton
        )

    def _end(self) -> None:
        self._world.database.close()

    def _serve(self, number: int) -> None:
        self._finish(number)
        self._world.look(20)

    def _finish(self, number: int) -> None:
        artifact = self._world.artifact(f"demo-{number}")
        self._triton.digests[number] = artifact.digest
        self._world.finish_again(number)

    def read(self) -> Reading:
        self._world.look(20 if self._moment == "beside" else 5)
        version = version_to_proto(self._world.version(NEWER))
        facts = self._world.facts()
        message: Any = self._world.messages(events_pb2.VersionQuarantined)
        used = bool(self._triton.wrong) or (_MODEL, NEWER) in self._triton.ready()
        serving = [number for number, share in self._world.shares().items() if share > 0]
        successor = NEWER + 1 if self._moment == "beside" else CHAMPION
        if serving != [successor]:
            used = True  # it was to be another version that serves
        is_quarantined = self._world.version(NEWER).state == VersionState.QUARANTINED
        self._end()
        shutil.rmtree(self._live)
        return Reading(
            used,
            "content_damaged" if is_quarantined else "",
            version.state_reason,
            "version.quarantined" if "version.quarantined" in facts else "",
            "CONTENT_DAMAGED" if message and message[0].reason == version.state_reason else "",
        )


class EngineFolderReader(RegistryReader):
    """Triton's own repository is damaged: the engine beside the artifact, or the link to it.

    Nothing is lost by that, so it is mended: the next load is of what was registered.
    """

    facts = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "served")
        self.name = "registry engine"

    def prepare(self, draw: random.Random) -> Path:
        super().prepare(draw)
        return Path(self._world.folder / "triton" / _MODEL / str(NEWER))

    def read(self) -> Reading:
        self._world.look(3)
        is_served = self._world.shares() == {NEWER: 1.0}
        wrong = list(self._triton.wrong)
        self._end()
        shutil.rmtree(self._live)
        return Reading(bool(wrong) or not is_served, "content_damaged", "mended")
