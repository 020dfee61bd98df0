"""The share of the processors that a control group allows decides how many threads there are by default."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiers import quick_first
from tinyvit.kernels.cpu.quota import quota

GROUPS = {1: "6:cpuset:/elsewhere\n5:memory:/elsewhere\n4:cpu,cpuacct:{group}\n", 2: "0::{group}\n"}
MOUNTS = {
    1: "33 31 0:29 {root} {mount} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n",
    2: "31 23 0:28 {root} {mount} rw,relatime - cgroup2 cgroup rw\n",
}
OTHERS = "23 1 0:20 / / rw - overlay overlay rw,lowerdir=/a:/b\n40 23 0:37 / /sys rw - cgroup cgroup rw,memory\n"


def described(folder: Path, version: int, group: str, limits: dict[str, str], root: str = "/") -> Path:
    """Make files as Linux has them for a process in `group`, with the limits "MOST PERIOD" of each group."""
    mount, proc = folder / "mount of\\groups", folder / "proc"
    proc.mkdir()
    written = str(mount).replace("\\", "\\134").replace(" ", "\\040")
    (proc / "cgroup").write_text(GROUPS[version].format(group=group))
    (proc / "mountinfo").write_text(OTHERS + MOUNTS[version].format(root=root, mount=written))
    for name, limit in limits.items():
        place = mount / name.strip("/")
        place.mkdir(parents=True, exist_ok=True)
        if version == 2:
            (place / "cpu.max").write_text(f"{limit}\n")
        else:
            most, period = limit.replace("max", "-1").split()
            (place / "cpu.cfs_quota_us").write_text(f"{most}\n")
            (place / "cpu.cfs_period_us").write_text(f"{period}\n")
    return proc


@pytest.mark.parametrize("version", [1, 2])
@given(quotas=st.lists(st.none() | st.integers(1_000, 400_000), min_size=1, max_size=4), beside=st.integers(1, 999))
def test_the_least_quota_of_a_group_and_of_those_around_it_holds(
    tmp_path_factory: pytest.TempPathFactory, version: int, quotas: list[int | None], beside: int
) -> None:
    names = ["/" + "/".join(f"level {i}" for i in range(depth)) for depth in range(len(quotas))]
    limits = {name: f"{most or 'max'} 100000" for name, most in zip(names, quotas, strict=True)}
    limits |= {f"{names[-1]}/inside": f"{beside} 100000", "/beside": f"{beside} 100000"}
    proc = described(tmp_path_factory.mktemp("quota"), version, names[-1], limits)
    assert quota(proc) == min((most / 100_000 for most in quotas if most), default=float("inf"))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("group", ["/", "/docker/4f1c", "/../outside"])
def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path, version: int, group: str) -> None:
    assert quota(described(tmp_path, version, group, {"/": "150000 100000"}, root="/docker/4f1c")) == 1.5


@pytest.mark.parametrize("content", ["", "max", "max 100000", "1 0", "many 100000", "0 100000", "1 2 3"])
def test_what_is_no_quota_limits_nothing(tmp_path: Path, content: str) -> None:
    proc = described(tmp_path, 2, "/a", {"/a": "100000 100000"})
    (tmp_path / "mount of\\groups" / "a" / "cpu.max").write_text(content)
    assert quota(proc) == float("inf")
    assert quota(tmp_path / "absent") == float("inf")
    (proc / "mountinfo").write_text("\n \nno separator\n1 2 3 / - cgroup2\n31 23 0:28 - cgroup2 cgroup rw\n")
    assert quota(proc) == float("inf")


COUNTS = """
import os, sys
from pathlib import Path
from tinyvit.kernels.cpu import quota
original, os.sched_getaffinity = quota.quota, lambda pid: set(range(4))
quota.quota = lambda: original(Path(sys.argv[1]))
quota.usable_processors.cache_clear()
from tinyvit.backend import limit_threads, product_threads
from tinyvit.kernels.cpu.threads import thread_count
before = product_threads()
limit_threads(quota.usable_processors(), quota.wanted_threads())
print(thread_count(), product_threads() if thread_count() < 4 else before == product_threads())
"""


CASES = [("299999", 2), ("50000", 1), ("100000", 1), ("max", 4), ("900000", 4)]


@pytest.mark.parametrize(("limit", "count"), quick_first(CASES))
def test_kernels_and_products_use_the_threads_that_the_quota_keeps_busy(tmp_path: Path, limit: str, count: int) -> None:
    proc = described(tmp_path, 2, "/a", {"/a": f"{limit} 100000"})
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "4"}
    environment.pop("TINYVIT_THREADS", None)
    command = [sys.executable, "-c", COUNTS, str(proc)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    products = "True" if count == 4 else str(count)
    assert done.stdout.split() == [str(count), products], done.stderr
