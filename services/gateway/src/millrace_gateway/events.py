"""What the gateway does about facts: nothing. It tells them to their tenant, who may read them
(``history.py``) or have them posted (``webhooks/``, which takes every kind there is)."""

from collections.abc import Sequence

from millrace_runtime.bus import Subscription

SUBSCRIPTIONS: Sequence[Subscription] = ()
