"""Any history of uploads: what is acknowledged stays, what has ended is the end."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from data_builders import Parts
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from millrace_data.domain import Upload, UploadPart, UploadState
from millrace_data.uploads import LIFETIME, PARTS_GRACE
from millrace_runtime.database import open_database
from millrace_runtime.errors import MillraceError
from millrace_testkit.clock import FakeClock

SIZE_BYTES = 4


Result = TypeVar("Result")


def outcome(attempt: Callable[[], Result]) -> tuple[Result | None, str]:
    """What an attempt gives, or the reason that it is refused with."""
    try:
        return attempt(), ""
    except MillraceError as error:
        return None, error.reason


class UploadHistory(RuleBasedStateMachine):
    """Uploads of four bytes, with what a client was told about each."""

    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name)
        self._database = open_database(f"sqlite:///{path}/service.db")
        self._parts = Parts(self._database, path, FakeClock())
        self._states: dict[str, UploadState] = {}
        self._sent: dict[str, list[tuple[UploadPart, bytes]]] = {}
        self._completed: dict[str, tuple[str, ...]] = {}
        self._files: dict[str, bytes] = {}

    def teardown(self) -> None:
        self._database.close()
        self._folder.cleanup()

    @rule(target=uploads)
    def begin(self) -> Upload:
        upload = self._parts.begin(SIZE_BYTES)
        self._states[upload.id] = UploadState.PENDING
        self._sent[upload.id] = []
        return upload

    @rule(upload=uploads, content=st.binary(min_size=1, max_size=SIZE_BYTES))
    def add(self, upload: Upload, content: bytes) -> None:
        sent_bytes = sum(len(one) for _, one in self._sent[upload.id])
        expected = self._ended(upload)
        if not expected and sent_bytes + len(content) > 2 * SIZE_BYTES:
            expected = "UPLOAD_FULL"
        part, reason = outcome(lambda: self._parts.add(upload, content))
        assert reason == expected
        if part is not None:
            self._sent[upload.id].append((part, content))

    @rule(upload=uploads, chosen=st.data())
    def complete(self, upload: Upload, chosen: st.DataObject) -> None:
        sent = chosen.draw(st.permutations(self._sent[upload.id]))
        named = sent[: chosen.draw(st.integers(0, len(sent)))]
        content = b"".join(one for _, one in named)
        is_whole = len(content) == SIZE_BYTES
        expected = self._ended(upload) or ("" if is_whole else "SIZE_MISMATCH")
        ids = tuple(part.id for part, _ in named)
        if self._completed.get(upload.id) == ids:
            expected = ""
        done, reason = outcome(lambda: self._parts.uploads.complete("acme", upload.id, ids, ""))
        assert reason == expected
        if done is not None:
            assert done.file is not None
            self._states[upload.id] = UploadState.COMPLETED
            self._completed[upload.id] = ids
            kept = self._files.setdefault(done.file.id, content)
            assert b"".join(self._parts.files.read("acme", done.file.id)) == kept

    @rule(upload=uploads)
    def cancel(self, upload: Upload) -> None:
        is_cancelled = self._states[upload.id] is UploadState.CANCELLED
        expected = "" if is_cancelled else self._ended(upload)
        cancelled, reason = outcome(lambda: self._parts.uploads.cancel("acme", upload.id))
        assert reason == expected
        if cancelled is not None:
            self._states[upload.id] = UploadState.CANCELLED

    def _ended(self, upload: Upload) -> str:
        """The reason that anything is refused with; empty while the upload is pending."""
        state = self._states[upload.id]
        return "" if state is UploadState.PENDING else f"UPLOAD_{state}"

    @rule(minutes=st.sampled_from([1, 20, 61]), upload=uploads)
    def pass_time(self, minutes: int, upload: Upload) -> None:
        self._parts.clock.advance(60 * minutes)
        for id, state in self._states.items():
            found = self._parts.uploads.get("acme", id)
            is_late = self._parts.clock() >= found.expire_time
            if state is UploadState.PENDING and is_late:
                self._states[id] = UploadState.EXPIRED

    @rule()
    def reconcile(self) -> None:
        self._parts.uploads.reconcile()
        self._parts.files.reconcile()

    @rule()
    def everything_that_ended_is_swept(self) -> None:
        self._parts.clock.advance((LIFETIME + PARTS_GRACE).total_seconds() + 1)
        self.reconcile()
        self._parts.clock.advance(PARTS_GRACE.total_seconds() + 1)
        self.reconcile()
        for id, state in self._states.items():
            if state is UploadState.PENDING:
                self._states[id] = UploadState.EXPIRED
        assert self._parts.stored_parts() == []
        assert len(self._parts.stored_files()) == len(set(self._files.values()))

    @invariant()
    def every_state_is_as_it_was_told(self) -> None:
        for id, state in self._states.items():
            assert self._parts.uploads.get("acme", id).state is state
        completed = [s for s in self._states.values() if s is UploadState.COMPLETED]
        assert len(self._parts.facts()) == len(completed) == len(self._files)


UploadHistory.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
test_upload_histories = UploadHistory.TestCase
