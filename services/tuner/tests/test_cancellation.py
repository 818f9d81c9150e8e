import os
import signal
from collections.abc import Iterator

import pytest

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs.cancellation import Cancellation


@pytest.fixture(autouse=True)
def restored_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_remembered_until_it_can_be_granted() -> None:
    cancellation = Cancellation()
    cancellation.listen()
    cancellation.raise_if_requested()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(JobError) as caught:
        cancellation.raise_if_requested()
    assert caught.value.reason == "CANCELLED"
