"""What the gateway does about facts: nothing. It shows them to their tenant (``history.py``)."""

from collections.abc import Sequence

from millrace_runtime.bus import Subscription

SUBSCRIPTIONS: Sequence[Subscription] = ()
