"""How figures read: durations, sizes, times, numbers."""

import time
from collections.abc import Mapping
from typing import Any

_SIZE_UNITS = ("B", "kB", "MB", "GB", "TB")


def duration(seconds: float | None) -> str:
    """Three figures at most: ``850 µs``, ``12 ms``, ``3.4 s``, ``2 min 05 s``, ``3 h 04 min``."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(size_bytes: float | None) -> str:
    """Decimal units: ``512 B``, ``5.8 MB``."""
    if size_bytes is None:
        return "-"
    index = 0
    while size_bytes >= 1000 and index < len(_SIZE_UNITS) - 1:
        size_bytes, index = size_bytes / 1000, index + 1
    return f"{size_bytes:.0f} B" if index == 0 else f"{size_bytes:.1f} {_SIZE_UNITS[index]}"


def ago(moment: float | None, now: float | None = None) -> str:
    """How long ago a time in seconds since the epoch was."""
    if not moment:
        return "-"
    return f"{duration(max(0.0, (time.time() if now is None else now) - moment))} ago"


def clock(moment: float) -> str:
    """Local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(moment))


def number(value: float | None, digits: int = 3) -> str:
    """A measurement, to so many significant digits, with separated thousands."""
    if value is None:
        return "-"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def bar(completed: int, total: int, width: int = 24) -> str:
    """``━━━━━━──────``: how much of the whole is done."""
    filled = width * completed // total if total else 0
    return "━" * filled + "─" * (width - filled)


def progress(document: Mapping[str, Any] | None) -> str:
    """``train 120/400 (30 %)``."""
    if not document:
        return "-"
    completed, total = document.get("completed", 0), document.get("total", 0)
    text = f"{document.get('phase', '')} {completed:,}"
    return f"{text}/{total:,} ({completed / total:.0%})" if total else text
