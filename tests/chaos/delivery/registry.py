"""The registry: each artifact that passed becomes one version, and the newest checkpoint serves.

Versions are numbered as their artifacts arrive, so a version is named here by what it was made
of. Artifacts of one model arrive in any order, also because the compressor finishes them so. How
many of them serve for a while before the newest does depends on the moment at which Triton is
looked at, and may differ where it was looked at in the middle of a history. What serves in the
end may not, and it is never replaced by what was made before it.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from google.protobuf.message import Message

from millrace.compressor.v1 import events_pb2 as compressor_events
from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.data.v1 import events_pb2 as data_events
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import events_pb2 as registry_events
from millrace.trainer.v1 import events_pb2 as trainer_events
from millrace.tuner.v1 import events_pb2 as tuner_events
from millrace_registry.app import RegistryApp
from millrace_registry.control import Controller
from millrace_registry.control_store import ControlStore
from millrace_registry.events import FactRecorder, subscriptions
from millrace_registry.lineage_store import Lineage
from millrace_registry.repository import ModelRepository
from millrace_registry.schema import (
    ALIASES,
    DEPLOYMENTS,
    EDGES,
    METADATA,
    MODELS,
    NODES,
    OUTBOX,
    ROLLOUTS,
    VERSIONS,
)
from millrace_registry.store import Catalogue
from millrace_registry.triton import Loaded, NotScored
from millrace_registry.triton_config import EngineSettings
from millrace_registry.upstream import ArtifactReconciler
from millrace_runtime.bus import Subscription
from millrace_runtime.manifest import ManifestMismatch
from millrace_runtime.outbox import Outbox
from millrace_runtime.parity import Scores
from tests.chaos.delivery.faults import Neighbours
from tests.chaos.delivery.world import Facts, Happening, State, World, fact_line, happening, renamed

_LEASE_SECONDS = 10
_DIGEST = "sha256:" + "d" * 64
_TARGET = compressor_pb2.TARGET_OPENVINO_INT8
_LOOKS = 15
_LOOKS_AT_A_TIME = 3
_MAXIMUM_CHECKPOINTS = 6
# Two runs of one model at a time, one of another tenant's model of that name, a tuning job.
_PARENTS = {
    "A": ("tenants/acme/runs/A", "demo"),
    "B": ("tenants/acme/runs/B", "demo"),
    "D": ("tenants/beta/runs/A", "demo"),
    "J": ("tenants/acme/jobs/J", "ft:demo:acme:docs:k3x9"),
}
_VERSION_NAME = re.compile(r"tenants/([^/\"]+)/models/([^/\"]+)/versions/(\d+)")


class Contents:
    """The shared store (``content.ContentStore``): some artifacts are damaged."""

    def __init__(self, sound: Path) -> None:
        self._sound = sound

    def directory(self, uri: str, digest: str) -> Path:
        if "damaged" in uri:
            raise ManifestMismatch(f"{uri} is not {digest}")
        return self._sound


class Triton:
    """Loads what is listed in its model's folder and answers at once (``control.ModelControl``)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._loaded: dict[str, list[int]] = {}

    def index(self) -> Mapping[tuple[str, int], Loaded]:
        ready = Loaded("READY", "")
        return {(model, n): ready for model, numbers in self._loaded.items() for n in numbers}

    def load(self, model: str) -> None:
        listed = re.findall(r"versions: (\d+)", (self._root / model / "config.pbtxt").read_text())
        self._loaded[model] = [int(number) for number in listed]

    def unload(self, model: str) -> None:
        self._loaded.pop(model, None)

    def ask(self, model: str, version: int, prompt: str) -> str:
        return "" if version in self._loaded.get(model, ()) else "it is not loaded"

    def score(self, model: str, version: int, token_ids: Sequence[int]) -> Scores:
        raise NotScored("no version here has anything to compare with")

    def score_last(self, model: str, version: int, token_ids: Sequence[int]) -> float | None:
        raise NotScored("no version here has anything to compare with")

    def answer(self, model: str, version: int, token_ids: Sequence[int], limit: int) -> int:
        raise NotScored("no version here has anything to compare with")


class Compressor:
    """The compressor's ``ListCompressions``, newest first."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self.finished: list[compressor_events.ArtifactFinished] = []

    def ListCompressions(
        self, request: compressor_pb2.ListCompressionsRequest, **options: Any
    ) -> compressor_pb2.ListCompressionsResponse:
        self._neighbours.ask()
        found = [
            compressor_pb2.Compression(
                name=fact.compression,
                checkpoint=fact.checkpoint,
                target=fact.target,
                deployment=fact.deployment,
                artifact=fact.artifact,
                measurements=fact.measurements,
                verdict=fact.verdict,
                state=lifecycle_pb2.WORK_STATE_SUCCEEDED,
            )
            for fact in reversed(self.finished)
        ]
        return compressor_pb2.ListCompressionsResponse(compressions=found)


class RegistryWorld(World):
    """Versions, rollouts and lineage, and Triton as its controller brings it."""

    name = "registry"
    swept: ClassVar = (compressor_events.ArtifactFinished,)

    def __init__(self, folder: Path) -> None:
        super().__init__(METADATA)
        self._contents = Contents(_write_artifact(folder / "artifact"))
        self._root = folder / "triton"
        self._lives = 0
        self.clear()

    def forget(self) -> None:
        self._compressor = Compressor(self.neighbours)
        shutil.rmtree(self._root, ignore_errors=True)
        self._repository = ModelRepository(self._root, EngineSettings())
        self._triton = Triton(self._root)
        self._checkpoints: dict[str, compressor_pb2.CheckpointReference] = {}
        self._told: set[str] = set()

    def start(self) -> None:
        self._lives += 1
        record = FactRecorder(Outbox(OUTBOX, self.now))
        catalogue = self.catalogue(record)
        self._app = RegistryApp(
            catalogue,
            Lineage(self.database),
            self._contents,
            ring=lambda: None,
            ring_controller=lambda: None,
            now=self.now,
        )
        stub: Any = SimpleNamespace(ListCompressions=self._compressor.ListCompressions)
        self._reconcile = ArtifactReconciler(stub, catalogue, self._app)
        self._controller = self._new_controller(record)

    def catalogue(self, record: FactRecorder) -> Catalogue:
        return Catalogue(self.database, record, now=self.now)

    def _new_controller(self, record: FactRecorder) -> Controller:
        control = ControlStore(
            self.database,
            record,
            endpoint="triton",
            owner=f"registry-{self._lives}",
            lease_seconds=_LEASE_SECONDS,
            now=self.now,
        )
        return Controller(
            control,
            self._triton,
            self._repository,
            self._contents,
            life=f"controller-{self._lives}",
            drain=timedelta(seconds=5),
            ring=lambda: None,
            now=self.now,
            monotonic=lambda: self.clock().timestamp(),
        )

    def subscriptions(self) -> Sequence[Subscription]:
        return subscriptions(self._app)

    def possible(self) -> Sequence[Happening]:
        made = {fact.checkpoint.name for fact in self._compressor.finished}
        unmade = [n for n, found in self._checkpoints.items() if found.name not in made]
        untold = [what for what in ("dataset", "run", "job") if what not in self._told]
        return [
            *(happening(what) for what in untold),
            *(
                happening("checkpoint", key)
                for key in _PARENTS
                if len(self._checkpoints) < _MAXIMUM_CHECKPOINTS
            ),
            *(happening("artifact", n, how) for n in unmade for how in ("sound", "damaged")),
        ] or [happening("nothing")]

    def nothing(self) -> Facts:
        return ()

    def dataset(self) -> Facts:
        self._told.add("dataset")
        name = "tenants/acme/datasets/d"
        return (("acme", data_events.DatasetReady(dataset=name, content=_content("dataset"))),)

    def run(self) -> Facts:
        self._told.add("run")
        fact = trainer_events.RunStarted(
            run="tenants/acme/runs/A", dataset="tenants/acme/datasets/d", dataset_digest=_DIGEST
        )
        return (("acme", fact),)

    def job(self) -> Facts:
        self._told.add("job")
        base = "tenants/acme/models/base/versions/1"
        return (("acme", tuner_events.JobStarted(job="tenants/acme/jobs/J", base_version=base)),)

    def checkpoint(self, key: str) -> Facts:
        """The next one of a run or a job. Ids sort by time, as those of ``names.new_id`` do."""
        parent, model = _PARENTS[key]
        number = len(self._checkpoints) + 1
        name = f"{parent}/checkpoints/ckpt-{number:04d}"
        self._checkpoints[f"{key}{number}"] = compressor_pb2.CheckpointReference(
            name=name, model=model, step=number * 100, content=_content(name)
        )
        values = {"checkpoint": name, "model": model, "step": number * 100}
        fact: Message
        if key == "J":
            fact = tuner_events.CheckpointFinished(
                **values,
                job=parent,
                base_version="tenants/acme/models/base/versions/1",
                training_file="tenants/acme/files/f",
                training_file_digest=_DIGEST,
                content=_content(name),
            )
        else:
            fact = trainer_events.CheckpointFinished(**values, run=parent, content=_content(name))
        return ((_tenant(name), fact),)

    def artifact(self, checkpoint: str, how: str) -> Facts:
        reference = self._checkpoints[checkpoint]
        tenant = _tenant(reference.name)
        fact = compressor_events.ArtifactFinished(
            compression=f"tenants/{tenant}/compressions/of-{checkpoint}",
            checkpoint=reference,
            target=_TARGET,
            deployment=f"tenants/{tenant}/deployments/of-{reference.model}",
            artifact=_content(f"{how}-{checkpoint}"),
            measurements=compressor_pb2.Measurements(original_perplexity=10.0),
            verdict=compressor_pb2.Verdict(passed=True),
        )
        self._compressor.finished.append(fact)
        return ((tenant, fact),)

    def sweep(self) -> None:
        self._reconcile()

    def work(self) -> bool:
        """Triton is looked at a few times, a second apart."""
        for _ in range(_LOOKS_AT_A_TIME):
            self._look()
        return True

    def _look(self) -> None:
        self.clock.advance(1)
        self._controller.look()

    def finish(self) -> None:
        self.sweep()
        self.clock.advance(_LEASE_SECONDS + 1)
        unended = ("PENDING", "LOADING", "CANARY")
        for _ in range(_LOOKS):
            self._look()
            if not any(row["state"] in unended for row in self.rows(ROLLOUTS)):
                return
        raise AssertionError(f"a rollout does not end within {_LOOKS} looks")

    def state(self, has_worked: bool) -> State:
        versions = {(r["tenant"], r["model"], r["number"]): r for r in self.rows(VERSIONS)}
        self._check_order(versions)
        ids = {row["id"]: f"of-{row['model']}" for row in self.rows(DEPLOYMENTS)}
        for row in self.rows(ROLLOUTS):
            made = versions[row["tenant"], row["model"], row["to_version"]]
            ids[row["id"]] = f"to-{made['compression']}"
        found = {
            "models": self._numbered(MODELS, versions, "serving_version"),
            "aliases": self._numbered(ALIASES, versions, "version"),
            "versions": self._numbered(VERSIONS, versions, "number", "interface"),
            "deployments": self.lines(DEPLOYMENTS),
            "rollouts": self._rollouts(versions, has_worked),
            "nodes": self.lines(NODES),
            "edges": self.lines(EDGES),
            "facts": self._facts(has_worked),
        }
        if has_worked:  # those that served for a while are RETIRED, the others REGISTERED
            found["versions"] = [
                line.replace('"RETIRED"', '"REGISTERED"') for line in found["versions"]
            ]
        named = {
            table: [_VERSION_NAME.sub(_naming(versions), line) for line in lines]
            for table, lines in found.items()
        }
        return renamed(named, ids)

    def _numbered(
        self, table: Any, versions: Mapping[Any, Any], column: str, *ignored: str
    ) -> list[str]:
        """Rows with the version's own name in place of its number."""
        rows = self.rows(table, *ignored)
        for row in rows:
            key = (row["tenant"], row.get("model", row.get("id")), row[column])
            row[column] = versions[key]["compression"] if row[column] else ""
        return [json.dumps(row, sort_keys=True, default=str) for row in rows]

    def _rollouts(self, versions: Mapping[Any, Any], has_worked: bool) -> list[str]:
        lines = []
        for row in self.rows(ROLLOUTS):
            made = versions[row["tenant"], row["model"], row["to_version"]]
            state = row["state"]
            if has_worked and made["state"] == "RETIRED":
                state = "SUPERSEDED"
            lines.append(f"{made['compression']}: {state}")
        return lines

    def _facts(self, has_worked: bool) -> list[str]:
        """Registrations and quarantines, each once; of the others, those of what serves."""
        lines = []
        for event in self.events(OUTBOX):
            message = event.message
            if isinstance(message, registry_events.VersionRegistered):
                message.ClearField("number")
            elif isinstance(message, registry_events.RolloutSettled):
                message.ClearField("checkpoint_to_settled_seconds")
            if hasattr(message, "to_version"):
                if has_worked:
                    continue
                message.ClearField("from_version") if hasattr(message, "from_version") else None
                message.ClearField("to_version")
            lines.append(fact_line(event))
        return lines

    def _check_order(self, versions: Mapping[Any, Any]) -> None:
        """Each rollout settled once, and always to what was made later than what served."""
        settled: dict[tuple[str, str], list[str]] = {}
        ended: Counter[str] = Counter()
        for event in self.events(OUTBOX):
            if isinstance(event.message, registry_events.RolloutSettled):
                fact = event.message
                settled.setdefault((event.tenant, fact.model), []).append(fact.checkpoint)
                ended[fact.rollout] += 1
            assert not isinstance(event.message, registry_events.RolloutReversed), (
                f"a version that answers was taken out: {event.message.reason}"
            )
        assert set(ended.values()) <= {1}, "a rollout settled twice"
        for (tenant, model), checkpoints in settled.items():
            ids = [name.rpartition("/")[2] for name in checkpoints]
            assert ids == sorted(ids), f"{tenant}/{model} went back: {' then '.join(ids)}"


def _naming(versions: Mapping[Any, Any]) -> Any:
    def name(match: re.Match[str]) -> str:
        tenant, model, number = match.groups()
        made = versions.get((tenant, model, int(number)))
        return made["compression"] if made else match.group(0)

    return name


def _tenant(name: str) -> str:
    return name.split("/")[1]


def _content(name: str) -> lifecycle_pb2.Content:
    return lifecycle_pb2.Content(uri=f"file:///{name}", digest=_DIGEST, size_bytes=1)


def _write_artifact(folder: Path) -> Path:
    """The files of which the registry reads what clients must know."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
    tokenizer = {"eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder
