"""Files that come in parts: announced, sent part by part, joined to a file."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Protocol

from millrace_data.app import FileApp, StagedFile, next_page
from millrace_data.domain import (
    Content,
    File,
    FilePurpose,
    RequestKey,
    Upload,
    UploadPart,
    UploadState,
    utc_now,
)
from millrace_runtime import names, paging, telemetry
from millrace_runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from millrace_runtime.manifest import sha256_bytes

LIFETIME = timedelta(hours=1)
PARTS_GRACE = timedelta(minutes=10)
"""How long an ended upload's parts stay: no call that still reads them lasts longer."""


class Uploads(Protocol):
    """Rows of uploads and of their parts (``upload_store.UploadStore``)."""

    def add(self, upload: Upload, request: RequestKey) -> Upload: ...
    def get(self, tenant: str, id: str) -> Upload | None: ...
    def announce_part(self, part: UploadPart, request: RequestKey) -> UploadPart: ...
    def make_part_available(self, part: UploadPart, uri: str) -> UploadPart: ...
    def parts_page(self, upload: Upload, before_id: str, count: int) -> list[UploadPart]: ...
    def parts(self, upload: Upload) -> dict[str, UploadPart]: ...
    def complete(
        self,
        upload: Upload,
        file: File,
        uri: str,
        part_ids: Sequence[str],
        md5: str,
        traceparent: str,
    ) -> Upload: ...
    def cancel(self, tenant: str, id: str) -> Upload | None: ...
    def expire(self) -> None: ...
    def ended_with_parts(self, before: datetime) -> list[str]: ...
    def forget_parts(self, id: str) -> None: ...


class Parts(Protocol):
    """Bytes of parts (``part_bytes.PartBytes``)."""

    def staged(
        self, upload_id: str, chunks: Iterable[bytes]
    ) -> AbstractContextManager[StagedFile]: ...
    def put_in_place(self, upload_id: str, part_id: str, staged: StagedFile) -> str: ...
    def read(self, content: Content) -> Iterator[bytes]: ...
    def remove_part(self, upload_id: str, part_id: str) -> None: ...
    def remove(self, upload_id: str) -> None: ...
    def sweep(self, older_than_seconds: float) -> None: ...


class UploadApp:
    """Uploads, from their announcement to their file."""

    def __init__(
        self,
        uploads: Uploads,
        parts: Parts,
        files: FileApp,
        maximum_bytes: int,
        *,
        ring: Callable[[], None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._uploads = uploads
        self._parts = parts
        self._files = files
        self._maximum_bytes = maximum_bytes
        self._ring = ring
        self._now = now

    def create(
        self,
        tenant: str,
        filename: str,
        purpose: FilePurpose,
        mime_type: str,
        size_bytes: int,
        file_expire_seconds: int | None,
        request: RequestKey,
    ) -> Upload:
        """Announce a file; the upload is PENDING for an hour.

        Raises:
            InvalidArgument: FILE_TOO_LARGE.
            AlreadyExists: the request id was used for another upload.
        """
        if size_bytes > self._maximum_bytes:
            raise InvalidArgument(
                f"the file is larger than {self._maximum_bytes} bytes; split it",
                reason="FILE_TOO_LARGE",
                field="size_bytes",
            )
        now = self._now()
        upload = Upload(
            tenant=tenant,
            id=names.new_id("upload"),
            filename=filename,
            purpose=purpose,
            mime_type=mime_type,
            size_bytes=size_bytes,
            create_time=now,
            expire_time=now + LIFETIME,
            file_expire_seconds=file_expire_seconds,
        )
        return self._uploads.add(upload, request).at(now)

    def get(self, tenant: str, id: str) -> Upload:
        """
        Raises:
            NotFound
        """
        upload = self._uploads.get(tenant, id)
        if upload is None:
            raise NotFound(f"there is no upload {id}")
        return upload.at(self._now())

    def add_part(
        self, tenant: str, id: str, request_id: str, chunks: Iterable[bytes]
    ) -> UploadPart:
        """Store a part, durably; nothing is kept of one that is refused.

        Raises:
            NotFound: there is no such upload.
            FailedPrecondition: it has ended, or has too many parts.
            InvalidArgument: PART_TOO_LARGE, PART_EMPTY.
            AlreadyExists: the request id was used for another part.
            OSError: the disk is full or fails.
        """
        require_pending(self.get(tenant, id))
        with self._parts.staged(id, chunks) as staged:
            content = Content("", staged.digest, staged.size_bytes)
            part = UploadPart(tenant, id, names.new_id("part"), content, self._now())
            request = RequestKey(request_id, sha256_bytes(f"{id}\0{staged.digest}".encode()))
            part = self._uploads.announce_part(part, request)
            uri = self._parts.put_in_place(id, part.id, staged)
        try:
            return self._uploads.make_part_available(part, uri)
        except FailedPrecondition:  # ended meanwhile: perhaps its other parts were removed before
            self._parts.remove_part(id, part.id)
            raise

    def parts(
        self, tenant: str, id: str, page_size: int, page_token: str
    ) -> tuple[list[UploadPart], str]:
        """Parts, newest first, and the token of the next page (empty: this is the last).

        Raises:
            NotFound: there is no such upload.
        """
        count = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        upload = self.get(tenant, id)
        return next_page(self._uploads.parts_page(upload, before, count + 1), count)

    def complete(self, tenant: str, id: str, part_ids: Sequence[str], md5: str) -> Upload:
        """Join parts to a file, checked as any other; an upload COMPLETED already is answered.

        Raises:
            NotFound: there is no such upload.
            InvalidArgument: a part is not there, SIZE_MISMATCH, MD5_MISMATCH, INVALID_FILE.
            FailedPrecondition: it has ended otherwise, or CONTENT_DAMAGED.
            OSError: the disk is full or fails.
        """
        upload = self.get(tenant, id)
        if upload.state is UploadState.PENDING:
            upload = self._join(upload, part_ids, md5.lower())
            self._ring()
        return same_completion(upload, part_ids, md5.lower())

    def _join(self, upload: Upload, part_ids: Sequence[str], md5: str) -> Upload:
        joined = Joined(map(self._parts.read, self._contents(upload, part_ids)), md5)
        file, uri = self._files.take_in(
            upload.tenant,
            upload.filename,
            upload.purpose,
            upload.id,  # as request id: whoever completes it, and however often, it is one file
            joined,
            upload.file_expire_seconds,
        )
        return self._uploads.complete(
            upload, file, uri, part_ids, joined.md5, telemetry.current_traceparent()
        )

    def _contents(self, upload: Upload, part_ids: Sequence[str]) -> list[Content]:
        """The parts' contents, which together have the size that was announced."""
        parts = self._uploads.parts(upload)
        for index, id in enumerate(part_ids):
            if id not in parts:
                raise InvalidArgument(
                    f"upload {upload.id} has no part {id}",
                    reason="PART_NOT_FOUND",
                    field=f"part_ids[{index}]",
                )
        contents = [parts[id].content for id in part_ids]
        size_bytes = sum(content.size_bytes for content in contents)
        if size_bytes != upload.size_bytes:
            raise InvalidArgument(
                f"the upload was announced with {upload.size_bytes} bytes, and these parts have "
                f"{size_bytes}",
                reason="SIZE_MISMATCH",
                field="part_ids",
            )
        return contents

    def cancel(self, tenant: str, id: str) -> Upload:
        """Give a pending upload up; cancelling twice is once.

        Raises:
            NotFound
            FailedPrecondition: it is COMPLETED or EXPIRED.
        """
        upload = self.get(tenant, id)
        if upload.state is UploadState.PENDING:
            upload = self._uploads.cancel(tenant, id) or upload
        if upload.state is not UploadState.CANCELLED:
            raise ended(upload)
        return upload

    def reconcile(self) -> None:
        """End uploads whose time has run out, and remove the parts of those that ended."""
        self._uploads.expire()
        for id in self._uploads.ended_with_parts(self._now() - PARTS_GRACE):
            self._parts.remove(id)
            self._uploads.forget_parts(id)
        self._parts.sweep((LIFETIME + 2 * PARTS_GRACE).total_seconds())


class Joined:
    """The bytes of parts one after another; ``md5`` is that of all that went by.

    Iterating raises InvalidArgument (MD5_MISMATCH) at the end unless that is what is expected.
    """

    def __init__(self, parts: Iterable[Iterable[bytes]], expected_md5: str) -> None:
        self._parts = parts
        self._expected = expected_md5
        self._digest = hashlib.md5(usedforsecurity=False)

    @property
    def md5(self) -> str:
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            for chunk in part:
                self._digest.update(chunk)
                yield chunk
        if self._expected and self._expected != self.md5:
            raise InvalidArgument(
                f"the parts together have the MD5 {self.md5}", reason="MD5_MISMATCH", field="md5"
            )


def require_pending(upload: Upload) -> None:
    """
    Raises:
        FailedPrecondition: UPLOAD_COMPLETED, UPLOAD_CANCELLED, UPLOAD_EXPIRED.
    """
    if upload.state is not UploadState.PENDING:
        raise ended(upload)


def same_completion(upload: Upload, part_ids: Sequence[str], md5: str) -> Upload:
    """``upload``, if it was completed from these parts.

    Raises:
        FailedPrecondition: it was completed from others, or not at all.
    """
    if upload.state is not UploadState.COMPLETED:
        raise ended(upload)
    if upload.part_ids != tuple(part_ids) or md5 not in ("", upload.md5):
        raise FailedPrecondition(
            f"upload {upload.id} was completed from other parts already",
            reason="UPLOAD_COMPLETED",
        )
    return upload


def ended(upload: Upload) -> FailedPrecondition:
    """What a request is told that came too late."""
    word = "has expired" if upload.state is UploadState.EXPIRED else f"is {upload.state.lower()}"
    return FailedPrecondition(
        f"upload {upload.id} {word} already; create another", reason=f"UPLOAD_{upload.state}"
    )
