"""The gateway with one metric more, ``tasks``: how many of asyncio's its loop has."""

import asyncio

from prometheus_client import Gauge

from millrace_gateway import __main__ as gateway

_TASKS = Gauge("tasks", "Tasks of the event loop that answers.")

if __name__ == "__main__":
    # /metrics is answered in the loop itself.
    _TASKS.set_function(lambda: len(asyncio.all_tasks()))
    gateway.main()
