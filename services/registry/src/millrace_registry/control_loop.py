"""The thread in which the controller looks at Triton."""

import logging
import threading

from millrace_registry.control import Controller
from millrace_registry.control_store import ControlStore
from millrace_registry.triton import TritonUnavailable
from millrace_runtime.leases import LeaseLost

LOG = logging.getLogger(__name__)


class ControlLoop:
    """Looks every ``period_seconds``, and at once when rung (``hosting.Background``).

    A look may take long: loading a model takes as long as it takes. So the lease is kept alive
    beside it, or another registry would take over amid every load.
    """

    name = "controller"

    def __init__(self, controller: Controller, store: ControlStore, period_seconds: float) -> None:
        self._controller = controller
        self._store = store
        self._period_seconds = period_seconds
        self._doorbell = threading.Event()
        self.draining = threading.Event()

    def ring(self) -> None:
        """Say that there may be something to do. Callable from any thread."""
        self._doorbell.set()

    def drain(self) -> None:
        self.draining.set()
        self._doorbell.set()

    def run(self) -> None:
        threading.Thread(target=self._keep, name="controller-lease", daemon=True).start()
        while not self.draining.is_set():
            self._doorbell.clear()
            try:
                self._controller.look()
            except LeaseLost as error:
                LOG.info("%s", error)
            except TritonUnavailable as error:
                LOG.info("Triton went away amid a look: %s", error)
            except Exception:  # the next look may succeed; the loop must live to take it
                LOG.exception("a look at Triton failed")
            self._doorbell.wait(self._period_seconds)
        self._controller.stop()
        self._store.give_up()

    def _keep(self) -> None:
        while not self.draining.wait(self._store.renewal_seconds):
            try:
                self._store.require()
            except LeaseLost:
                continue  # every write of the look is refused, and the next look asks again
            except Exception:  # a busy database is no reason to stop before the lease ends
                LOG.exception("could not renew the lease")
