"""Python's garbage collector in a process that serves: it must not stop everybody for long.

A full collection looks at every object: with the libraries that the gateway imports 180,000, for
100 ms. Nothing of them is ever garbage.
"""

import gc

# A request makes thousands of objects, most of which live as long as it does. Collected after
# every 700, as is Python's default, they would be looked at again and again, and grow old.
_YOUNG_OBJECTS = 20_000


def spare_what_is_there() -> None:
    """Never look again at what there is now; call it once everything is imported.

    https://docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
