"""How many processors this process may use: those it may run on, and the share of time that a container gets of them.

A container is often limited by a quota of its control group (cgroup): so many microseconds of processor time in each
period, on whichever processors. Threads beyond it would use the quota up early, and then all of them stand still until
the next period. The quota of a group also holds for the groups inside it.
"""

import os
import re
from functools import cache
from pathlib import Path


def wanted_threads() -> int | None:
    """Return the number in TINYVIT_THREADS, None if it is not set; ValueError if it is no number from 1 to 1024."""
    text = os.environ.get("TINYVIT_THREADS", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= 1024):
        raise ValueError(f"TINYVIT_THREADS is {text!r}; it must be a whole number from 1 to 1024")
    return int(text)


@cache
def usable_processors() -> int:
    """Return the number of processors that this process may run on, or as many of them as its quota keeps busy."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, quota())))


def quota(proc: Path = Path("/proc/self")) -> float:
    """Return how many processors this process may keep busy; infinity if no control group limits it.

    `proc` is the folder in which Linux describes the process.
    """
    try:
        groups = (proc / "cgroup").read_text("utf-8", "replace")
        mounts = (proc / "mountinfo").read_text("utf-8", "replace")
    except OSError:  # not Linux
        return float("inf")
    least = float("inf")
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(" "), (*after.split(" "), "", "", "")[:3]
        is_first_version = kind == "cgroup" and "cpu" in options.split(",")
        if len(fields) > 4 and (is_first_version or kind == "cgroup2"):
            root, place = (re.sub(r"\\(\d{3})", _decoded, text) for text in fields[3:5])
            group = _group(groups, is_first_version)
            # A container sees its own group as the root of the mount, whatever /proc calls the group.
            inside = os.path.relpath(group, root) if f"{group}/".startswith(f"{root.rstrip('/')}/") else "."
            least = min(least, _least_quota(Path(place), Path(place, inside)))
    return least


def _decoded(octal: "re.Match[str]") -> str:
    return chr(int(octal[1], 8))


def _group(groups: str, is_first_version: bool) -> str:
    """Return the path of the control group in which this process is."""
    for line in groups.splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if "cpu" in controllers.split(",") if is_first_version else not controllers:
            return path
    return "/"


def _least_quota(mount: Path, group: Path) -> float:
    """Return the least quota of a group and of the groups around it, in processors."""
    least = _quota_of(group)
    while group != mount and group != group.parent:
        group = group.parent
        least = min(least, _quota_of(group))
    return least


def _quota_of(group: Path) -> float:
    """Return the quota of one group, in processors."""
    try:
        if (group / "cpu.max").exists():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(most) / int(period) if int(most) > 0 else float("inf")
    except (OSError, ValueError, ZeroDivisionError):  # the root has no quota; "max" is none
        return float("inf")
