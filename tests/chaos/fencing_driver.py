"""Asks the stages for work, as their users do."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import millrace_compressor.domain as compressor
import millrace_data.domain as data
import millrace_trainer.domain as trainer
import millrace_tuner.domain as tuner
from millrace_compressor.events import FactRecorder as CompressorFacts
from millrace_compressor.schema import OUTBOX as COMPRESSOR_OUTBOX
from millrace_compressor.store import CompressionStore
from millrace_data.events import FactRecorder as DataFacts
from millrace_data.schema import OUTBOX as DATA_OUTBOX
from millrace_data.store import DatasetStore
from millrace_runtime import manifest, names
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database
from millrace_runtime.outbox import Outbox
from millrace_trainer.events import FactRecorder as TrainerFacts
from millrace_trainer.schema import OUTBOX as TRAINER_OUTBOX
from millrace_trainer.store import RunStore
from millrace_tuner import methods
from millrace_tuner.events import FactRecorder as TunerFacts
from millrace_tuner.schema import OUTBOX as TUNER_OUTBOX
from millrace_tuner.store import JobStore
from tests.chaos.fencing_stages import STEPS, TENANT


class Driver:
    """Asks the stages for work, as their users do."""

    def __init__(self, databases: Mapping[str, Database], root: Path) -> None:
        self._content = ContentStore(str(root / "data"), root / "cache")
        self._uri, self._digest = self._common()
        self._stores = (
            DatasetStore(
                databases["data"], DataFacts(Outbox(DATA_OUTBOX)), owner="driver", lease_seconds=1
            ),
            RunStore(
                databases["trainer"],
                TrainerFacts(Outbox(TRAINER_OUTBOX)),
                owner="driver",
                lease_seconds=1,
            ),
            JobStore(
                databases["tuner"],
                TunerFacts(Outbox(TUNER_OUTBOX)),
                owner="driver",
                lease_seconds=1,
            ),
            CompressionStore(
                databases["compressor"],
                CompressorFacts(Outbox(COMPRESSOR_OUTBOX)),
                owner="driver",
                lease_seconds=1,
            ),
        )
        self._asked = 0

    def ask(self) -> None:
        """One more item for each stage."""
        self._asked += 1
        datasets, runs, jobs, compressions = self._stores
        now = datetime.now(UTC)
        id = names.new_id("dataset")
        dataset = data.Dataset(
            TENANT, id, id, data.PythonStandardLibrary(), data.Recipe(), now, now
        )
        datasets.add(dataset, data.RequestKey())
        runs.add(self._run(now), trainer.RequestKey("", ""))
        jobs.add(self._job(now), tuner.RequestKey("", ""))
        compressions.add(self._order())

    def _common(self) -> tuple[str, str]:
        """One directory that serves as dataset, base and checkpoint."""
        target = self._content.working_path("common")
        temporary = manifest.temporary_sibling(target)
        (temporary / "weights").write_text("common")
        digest = manifest.commit(temporary, target, "checkpoint", {})
        return self._content.publish(target), digest

    def _run(self, now: datetime) -> trainer.Run:
        return trainer.Run(
            TENANT,
            names.new_id("run"),
            "demo",
            "tenants/acme/datasets/common",
            {},
            {"total_steps": STEPS[-1]},
            now,
            now,
            "",
            dataset=trainer.Content(self._uri, self._digest, 6),
        )

    def _job(self, now: datetime) -> tuner.Job:
        id = names.new_id("job")
        base = tuner.Content(self._uri, self._digest, 6)
        path = self._content.working_path("common") / "weights"
        file = tuner.Content(path.resolve().as_uri(), manifest.sha256_file(path), 6)
        plan = tuner.Plan(
            "demo",
            tuner.BaseVersion("tenants/acme/models/demo/versions/1", "demo", 1, base),
            tuner.FileReference("tenants/acme/files/file-1", file, 10),
            None,
            "",
            0,
            methods.Supervised(),
            methods.Hyperparameters(1, 1, 1.0),
            methods.Adapter(),
        )
        return tuner.Job(TENANT, id, plan, f"ft:demo:acme::{id}", now, now, validate_time=now)

    def _order(self) -> compressor.Order:
        content = compressor.Content(self._uri, self._digest, 6)
        name = "tenants/acme/runs/run-0/checkpoints/ckpt-0"
        checkpoint = compressor.Checkpoint(name, "demo", 1, True, content, content)
        gate = compressor.GatePolicy(max_perplexity_increase=0.02 + self._asked * 1e-9)
        return compressor.Order(TENANT, checkpoint, compressor.Target.OPENVINO_INT8, gate)
