"""What may be recorded as a fact."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from millrace.data.v1 import events_pb2
from millrace_runtime.database import Database, open_database
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.outbox import MAXIMUM_FACT_BYTES, Outbox, outbox_table

METADATA = MetaData()
OUTBOX = Outbox(outbox_table(METADATA))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{tmp_path}/outbox.db")
    METADATA.create_all(database.engine)
    yield database
    database.close()


def test_a_fact_that_nats_would_not_take_is_never_recorded(store: Database) -> None:
    large = events_pb2.DatasetReady(dataset="x" * MAXIMUM_FACT_BYTES)
    with pytest.raises(InvalidArgument, match="would be a fact of") as caught:
        with store.transaction() as connection:
            OUTBOX.record(connection, "acme", large)
    assert caught.value.reason == "FACT_TOO_LARGE"
    with store.transaction() as connection:
        assert OUTBOX.pending(connection, "any") == []
