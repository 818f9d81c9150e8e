"""What a fresh subscriber sees that replays the stream from its start."""

import json
from collections.abc import Sequence

import nats
from nats.errors import TimeoutError as NothingMore

from millrace.topology import STREAM

_LAST_WAIT_SECONDS = 2.0


async def replay(url: str) -> Sequence[str]:
    """Ids of the CloudEvents in the stream, in order, those delivered twice twice.

    It ends with the last message of the stream; when that one cannot be read, 2 s later.
    """
    client = await nats.connect(url, name="replay")
    try:
        jetstream = client.jetstream()
        last = (await jetstream.stream_info(STREAM)).state.last_seq
        subscription = await jetstream.subscribe("millrace.>", stream=STREAM, ordered_consumer=True)
        ids: list[str] = []
        sequence = 0
        while sequence < last:
            try:
                message = await subscription.next_msg(timeout=_LAST_WAIT_SECONDS)
            except NothingMore:
                break
            sequence = message.metadata.sequence.stream
            ids.append(json.loads(message.data)["id"])
        await subscription.unsubscribe()
        return ids
    finally:
        await client.close()
