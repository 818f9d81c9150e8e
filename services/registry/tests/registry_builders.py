"""What the registry's tests start from: stores on a real database, and a Triton that is played."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import select

import millrace_registry
from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace_registry.app import RegistryApp
from millrace_registry.control import Controller
from millrace_registry.control_store import ControlStore
from millrace_registry.domain import Content, Route, Version
from millrace_registry.events import FactRecorder
from millrace_registry.lineage_store import Lineage
from millrace_registry.provenance import Provenance
from millrace_registry.recall_store import Recalls, WatchedLineage
from millrace_registry.repository import ModelRepository
from millrace_registry.room import Room
from millrace_registry.schema import HOLDS, OUTBOX, TRAFFIC
from millrace_registry.store import Catalogue
from millrace_registry.triton import Loaded, LoadFailed, NotScored, TritonUnavailable
from millrace_registry.triton_config import EngineSettings
from millrace_runtime import cloudevent, manifest
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database, migrate
from millrace_runtime.outbox import Outbox
from millrace_runtime.parity import Report, Scores
from millrace_runtime.signing import Trust

MIGRATIONS = Path(millrace_registry.__file__).parent / "migrations"
TARGET = compressor_pb2.Target.Name(compressor_pb2.TARGET_OPENVINO_INT8)
Key = tuple[str, int]


class FakeTriton:
    """Loads what the repository's folder lists, as Triton does; answers unless told not to."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.away = False
        self.loaded: dict[Key, Loaded] = {}
        self.broken: dict[Key, str] = {}
        self.silent: set[Key] = set()
        self.asked: list[Key] = []
        self.shifts: dict[Key, float] = {}
        self.unscored: set[Key] = set()
        self.answer_tokens: dict[Key, int] = {}
        self.scored: list[Key] = []
        self.loads = 0
        self.on_index: Callable[[], None] = lambda: None

    def index(self) -> Mapping[Key, Loaded]:
        self._answer()
        self.on_index()
        return dict(self.loaded)

    def load(self, model: str) -> None:
        self._answer()
        self.loads += 1
        listed = self._listed(model)
        for key in list(self.loaded):
            if key[0] == model and key[1] not in listed:
                self.loaded[key] = Loaded("UNAVAILABLE", "unloaded")
                self.silent.discard(key)
        failed = [number for number in listed if (model, number) in self.broken]
        for number in listed:
            reason = self.broken.get((model, number))
            state = Loaded("UNAVAILABLE", reason) if reason else Loaded("READY", "")
            self.loaded[model, number] = state
        if failed:
            raise LoadFailed("a version failed to load")

    def unload(self, model: str) -> None:
        self._answer()
        for key in list(self.loaded):
            if key[0] == model:
                self.loaded[key] = Loaded("UNAVAILABLE", "unloaded")
                self.silent.discard(key)

    def ask(self, model: str, version: int, prompt: str) -> str:
        self.asked.append((model, version))
        ready = self.loaded.get((model, version), Loaded("", "")).state == "READY"
        return "" if ready and (model, version) not in self.silent else "it does not answer"

    def score(self, model: str, version: int, token_ids: Sequence[int]) -> Scores:
        if (model, version) in self.silent | self.unscored:
            raise NotScored("it does not answer")
        self.scored.append((model, version))
        return [-1.0 - self.shifts.get((model, version), 0.0)] * (len(token_ids) - 1)

    def score_last(self, model: str, version: int, token_ids: Sequence[int]) -> float | None:
        return self.score(model, version, token_ids)[-1]

    def answer(self, model: str, version: int, token_ids: Sequence[int], limit: int) -> int:
        if (model, version) in self.silent | self.unscored:
            raise NotScored("it does not answer")
        return min(limit, self.answer_tokens.get((model, version), limit))

    def ready(self) -> set[Key]:
        return {key for key, loaded in self.loaded.items() if loaded.state == "READY"}

    def restart(self) -> None:
        self.loaded.clear()

    def _answer(self) -> None:
        if self.away:
            raise TritonUnavailable("nobody listens")

    def _listed(self, model: str) -> list[int]:
        text = (self._root / model / "config.pbtxt").read_text()
        lines = [line.strip() for line in text.splitlines()]
        return [int(line.split()[1]) for line in lines if line.startswith("versions:")]


class World:
    """The registry's parts around one database.

    With a played Triton and a clock moved by hand (``FakeClock``), unless others are given.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        clock: Any,
        *,
        triton: Any = None,
        endpoint: str = "triton:8001",
        scoring: Executor | None = None,
        sign: Callable[[Path], None] | None = None,
        trust: Trust | None = None,
        accept_unsigned: bool = False,
        budget_bytes: int | None = None,
    ) -> None:
        migrate(database, MIGRATIONS)
        self.database = database
        self.folder = folder
        self.clock = clock
        self.artifacts: dict[str, Content] = {}
        self.content = ContentStore(str(folder / "data"), folder / "cache", sign)
        self._prove = partial(Provenance, trust=trust, accept_unsigned=accept_unsigned)
        self.triton = triton or FakeTriton(folder / "triton")
        self._endpoint = endpoint
        self._budget_bytes = budget_bytes
        self._scoring = scoring
        record = FactRecorder(Outbox(OUTBOX))
        self.catalogue = Catalogue(database, record, now=clock)
        self.lineage = Lineage(database)
        self.recalls = Recalls(database, record, now=clock)
        self.control = self.control_of("one")
        self.controller = self._controller("one", self.control)
        self.app = RegistryApp(
            self.catalogue,
            WatchedLineage(self.lineage, self.recalls, lambda: None),
            self.content,
            ring=lambda: None,
            ring_controller=lambda: None,
            provenance=self._prove(self.content),
            now=clock,
        )

    def controller_of(self, owner: str) -> Controller:
        """The controller of another registry on the same database and Triton."""
        return self._controller(owner, self.control_of(owner))

    def controller_with(self, content: ContentStore, owner: str = "one") -> Controller:
        """The controller, with another way to the content."""
        return self._controller(owner, self.control, content)

    def _controller(
        self, owner: str, control: ControlStore, content: ContentStore | None = None
    ) -> Controller:
        return Controller(
            control,
            self.triton,
            ModelRepository(self.folder / "triton", EngineSettings()),
            content or self.content,
            life=f"controller-{owner}",
            drain=timedelta(seconds=5),
            ring=lambda: None,
            scoring=self._scoring,
            provenance=self._prove(content or self.content),
            room=Room(self._budget_bytes, monotonic=lambda: self.clock().timestamp()),
            now=self.clock,
            monotonic=lambda: self.clock().timestamp(),
        )

    def control_of(self, owner: str) -> ControlStore:
        record = FactRecorder(Outbox(OUTBOX))
        return ControlStore(
            self.database,
            record,
            endpoint=self._endpoint,
            owner=owner,
            lease_seconds=10,
            now=self.clock,
        )

    def artifact(
        self,
        name: str,
        parity: Report | None = None,
        write: Callable[[Path], None] = lambda folder: None,
    ) -> Content:
        """A committed artifact with the files that the registry reads."""
        target = self.content.working_path(f"artifacts/{name}")
        temporary = manifest.temporary_sibling(target)
        (temporary / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
        tokenizer = {"eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}
        (temporary / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (temporary / "weights.bin").write_text(name)
        if parity is not None:
            parity.write(temporary)
        write(temporary)
        digest = manifest.commit(temporary, target, "artifact", {})
        self.artifacts[name] = Content(self.content.publish(target), digest, 100)
        return self.artifacts[name]

    def finish(
        self,
        number: int,
        model: str = "demo",
        tenant: str = "acme",
        is_by_hand: bool = False,
        parity: Report | None = None,
    ) -> None:
        """The compressor finishes an artifact."""
        self.artifact(f"{model}-{number}", parity)
        measured = {} if parity is None else {"parity": {"probes": len(parity.probes)}}
        self.finish_again(number, model, tenant, is_by_hand, measured)

    def finish_again(
        self,
        number: int,
        model: str = "demo",
        tenant: str = "acme",
        is_by_hand: bool = False,
        measured: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """The fact of an artifact that was written before comes (again)."""
        content = {"uri": "file:///c", "digest": "sha256:" + "c" * 64, "size_bytes": "1"}
        self.app.artifact_finished(
            tenant,
            compression=f"tenants/{tenant}/compressions/{model}-{number}",
            target=TARGET,
            artifact=self.artifacts[f"{model}-{number}"],
            checkpoint={
                "name": f"tenants/{tenant}/runs/r/checkpoints/{model}-{number}",
                "model": model,
                "step": str(number),
                "content": content,
                "evaluation": content,
            },
            measurements={"original_perplexity": 10.0, **measured},
            base_model="",
            traceparent="",
            is_by_hand=is_by_hand,
        )

    def look(self, times: int = 1, seconds: float = 0.5) -> None:
        """Let the controller look, with time passing in between."""
        for _ in range(times):
            self.controller.look()
            self.clock.advance(seconds)

    def serve(self, number: int = 1, model: str = "demo") -> None:
        """Finish an artifact and look until it serves."""
        self.finish(number, model)
        self.look(20)

    def version(self, number: int, model: str = "demo") -> Version:
        found = self.catalogue.version("acme", model, number)
        assert found is not None
        return found

    def rollout_states(self) -> list[str]:
        """Of all rollouts, oldest first."""
        found = self.catalogue.rollouts("acme", "", "", 100)
        return [rollout.state.value for rollout in reversed(found)]

    def shares(self, model: str = "demo") -> dict[int, float]:
        """What gateways are told: version -> share."""
        routes: dict[str, Route] = {route.model: route for route in self.control.routes()[1]}
        if model not in routes:
            return {}
        return {target.version: target.share for target in routes[model].targets}

    def facts(self) -> list[str]:
        """Kinds of the recorded facts, in order."""
        return [event.fact.fact for event in self.events()]

    def messages(self, kind: type[Any]) -> list[Any]:
        """The recorded facts of one kind, in order."""
        return [event.message for event in self.events() if isinstance(event.message, kind)]

    def events(self) -> list[cloudevent.Event]:
        with self.database.transaction() as connection:
            query = select(OUTBOX.c.document).order_by(OUTBOX.c.sequence)
            documents: list[Any] = list(connection.execute(query).scalars())
        return [cloudevent.from_json(document) for document in documents]

    def held_versions(self) -> set[int]:
        """Of all models, also those whose hold has ended and is not forgotten yet."""
        with self.database.transaction() as connection:
            return set(connection.execute(select(HOLDS.c.version)).scalars())

    def gateways_counted(self, model: str) -> set[str]:
        """Whose counters are kept."""
        with self.database.transaction() as connection:
            rows = connection.execute(select(TRAFFIC).where(TRAFFIC.c.model == model))
            return {row.gateway for row in rows}
