"""What tests of searches for settings start from: the parts around a world, and a played job."""

import json
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry_builders import World

from millrace_registry.domain import Deployment, RequestKey, Serving
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.app import TuningApp
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.measure import Figures
from millrace_registry.tuning.order import ORDER
from millrace_registry.tuning.resource import ServingTuning, Wish
from millrace_registry.tuning.service import Endpoint, ServingTuner
from millrace_registry.tuning.store import TuningStore
from millrace_registry.tuning.trial import Kind, Trial, document_of
from millrace_runtime.manifest import sha256_bytes

WISH = Wish(Target(first_token_seconds=0.5, token_seconds=0.1), trials=2)
BEST = Serving(instance_count=2, max_batch_size=32, threads=1, cache_gibibytes=1)
OTHER = replace(BEST, max_batch_size=64)
ENDPOINT = "127.0.0.1:1"


def trial(number: int, kind: Kind, rate: float, serving: Serving = BEST) -> Trial:
    """A look that was measured; its other figures follow from its rate."""
    figures = Figures(
        single_stream_seconds_p90=0.25,
        single_stream_first_token_seconds_p90=0.05,
        offline_tokens_per_second=64 * rate,
        offline_requests_per_second=2 * rate,
        server_requests_per_second=rate,
        server_tokens_per_second=32 * rate,
        server_first_token_seconds_p99=0.4,
        server_token_seconds_p99=0.01,
    )
    return Trial(number, kind, serving, figures=figures)


def looks(*rates: float, present: Serving = Serving()) -> list[Trial]:
    """A whole search of two candidates: present, two candidates, control, confirmation."""
    kinds = (Kind.PRESENT, Kind.CANDIDATE, Kind.CANDIDATE, Kind.CONTROL, Kind.CONFIRMATION)
    settings = (present, OTHER, BEST, present, BEST)
    named = zip(kinds, rates, settings, strict=False)
    return [trial(number, kind, rate, of) for number, (kind, rate, of) in enumerate(named)]


class PlayedContent:
    """One artifact, whatever is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        shape = {"vocab_size": 500, "max_position_embeddings": 128}
        (folder / "config.json").write_text(json.dumps(shape))
        (folder / "tokenizer_config.json").write_text("{}")

    def directory(self, uri: str, digest: str) -> Path:
        return self._folder


class PlayedJob:
    """Takes the looks that are not done, and says that the second candidate is better, or is not.

    ``breaks_before``: a look that it never comes to, and what happens instead.
    """

    def __init__(self) -> None:
        self.is_better = True
        self.meanwhile: Callable[[], object] = lambda: None
        self.breaks_before: tuple[int, Callable[[], object]] = (-1, lambda: None)
        self.orders: list[Any] = []

    def run(self, order: Any, stop: threading.Event, _: object) -> Generator[Any, None, None]:
        order = ORDER.validate_json(ORDER.dump_json(order))
        self.orders.append(order)
        rates = (5.0, 4.0, 9.0, 5.0, 9.0) if self.is_better else (5.0, 4.0, 5.1, 4.5, 5.1)
        yield {"kind": "phase", "phase": "loading"}
        for look in looks(*rates, present=order.present)[len(order.done) :]:
            number, happens = self.breaks_before
            if look.number == number:
                happens()
                if not stop.is_set():
                    yield {"kind": "error", "message": "signal 9"}
                return
            yield {"kind": "trial", **document_of(look)}
        self.meanwhile()
        winner = {"winner": 2 if self.is_better else 0, "score": 9.0}
        said = {"is_better": self.is_better, "reason": "why", "noise": 0.05}
        yield {"kind": "result", **winner, **said}


class Parts:
    """Rows, use cases and the worker's part of searches, of one registry."""

    def __init__(
        self, world: World, folder: Path, job: Any, *, owner: str = "one", endpoint: str = ENDPOINT
    ) -> None:
        self._world = world
        self.job = job
        self.store = TuningStore(
            world.database, endpoint=endpoint, owner=owner, lease_seconds=10, now=world.clock
        )
        self.app = TuningApp(self.store, world.app, ring_worker=lambda: None, now=world.clock)
        content: Any = PlayedContent(folder / "artifact")
        self.tuner = ServingTuner(
            Endpoint(endpoint, None, folder / "triton", EngineSettings()),
            world.app,
            self.store,
            content,
            ring_controller=lambda: None,
            run=job.run,
        )

    def deployment(self, tenant: str = "acme") -> Deployment:
        return self._world.app.deployments(tenant, 10, "")[0][0]

    def create(self, wish: Wish = WISH, request: str = "", tenant: str = "acme") -> ServingTuning:
        key = RequestKey(request, sha256_bytes(str(wish).encode()))
        return self.app.create(tenant, self.deployment(tenant).id, wish, key)

    def work(self, stop: threading.Event | None = None) -> bool:
        """Carry out what there is; False: there is nothing."""
        lease = self.store.claim()
        if lease is None:
            return False
        self.tuner.perform(lease, stop or threading.Event())
        return True

    def get(self, tuning: ServingTuning) -> ServingTuning:
        found = self.store.get(tuning.tenant, tuning.id)
        assert found is not None
        return found

    def done(self, wish: Wish = WISH) -> ServingTuning:
        """A search that was carried out."""
        made = self.create(wish)
        assert self.work()
        return self.get(made)
