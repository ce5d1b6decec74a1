"""Writes of cgroup files from the limits of a document, for both versions, with runc's conversions between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer.errors import Unsupported
from pycontainer.oci import runtime as oci
from pycontainer.oci.runtime_rare import BlockIoThrottle, BlockIoWeight
from pycontainer.runtime.limits import Write, v1_writes, v2_writes

MIB = 1 << 20


def v1(resources: oci.Resources) -> list[Write]:
    """Return the writes of version 1 but the devices', which are tested elsewhere."""
    return [write for write in v1_writes(resources) if write[0] != "devices"]


def v2(resources: oci.Resources) -> list[Write]:
    return list(v2_writes(resources))


def throttle(rate: int) -> tuple[BlockIoThrottle, ...]:
    return (BlockIoThrottle(major=8, minor=16, rate=rate),)


MEMORY = oci.Memory(limit=64 * MIB, swap=96 * MIB, reservation=32 * MIB)
CPU = oci.Cpu(shares=1024, quota=50_000, period=100_000, burst=1000, cpus="0-1", mems="0")
IO = oci.BlockIo(
    weight=500,
    weight_device=(BlockIoWeight(major=8, minor=0, weight=10),),
    throttle_read_bps_device=throttle(1),
    throttle_write_bps_device=throttle(2),
    throttle_read_iops_device=throttle(3),
    throttle_write_iops_device=throttle(4),
)


def test_nothing_limited_is_nothing_written() -> None:
    for resources in (
        oci.Resources(),
        oci.Resources(memory=oci.Memory(), cpu=oci.Cpu(), block_io=oci.BlockIo()),
        oci.Resources(cpu=oci.Cpu(cpus="", mems="")),
    ):
        assert v1(resources) == v2(resources) == []


def test_version_1() -> None:
    resources = oci.Resources(memory=MEMORY, cpu=CPU, pids=oci.Pids(limit=17))
    assert v1(resources) == [
        ("memory", "memory.limit_in_bytes", str(64 * MIB)),
        ("memory", "memory.memsw.limit_in_bytes", str(96 * MIB)),  # never below the other, so after it
        ("memory", "memory.soft_limit_in_bytes", str(32 * MIB)),
        ("cpu", "cpu.shares", "1024"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_burst_us", "1000"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("cpuset", "cpuset.mems", "0"),
        ("pids", "pids.max", "17"),
    ]


def test_version_2() -> None:
    resources = oci.Resources(memory=MEMORY, cpu=CPU, pids=oci.Pids(limit=17))
    assert v2(resources) == [
        ("memory", "memory.max", str(64 * MIB)),
        ("memory", "memory.swap.max", str(32 * MIB)),  # swap alone
        ("memory", "memory.low", str(32 * MIB)),
        ("cpu", "cpu.max", "50000 100000"),
        ("cpu", "cpu.weight", "39"),
        ("cpu", "cpu.max.burst", "1000"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("cpuset", "cpuset.mems", "0"),
        ("pids", "pids.max", "17"),
    ]


def test_block_devices() -> None:
    resources = oci.Resources(block_io=IO)
    written = v1(resources)
    weight = written[0][1]
    assert weight in ("blkio.weight", "blkio.bfq.weight")
    assert written == [
        ("blkio", weight, "500"),
        ("blkio", f"{weight}_device", "8:0 10"),
        ("blkio", "blkio.throttle.read_bps_device", "8:16 1"),
        ("blkio", "blkio.throttle.write_bps_device", "8:16 2"),
        ("blkio", "blkio.throttle.read_iops_device", "8:16 3"),
        ("blkio", "blkio.throttle.write_iops_device", "8:16 4"),
    ]
    assert v2(resources) == [
        ("io", "io.weight", "default 4950"),
        ("io", "io.weight", "8:0 1"),
        ("io", "io.max", "8:16 rbps=1"),
        ("io", "io.max", "8:16 wbps=2"),
        ("io", "io.max", "8:16 riops=3"),
        ("io", "io.max", "8:16 wiops=4"),
    ]


@given(st.integers(2, 262144))
def test_shares_become_a_weight_of_the_kernels_range(shares: int) -> None:
    ((_, file, text),) = v2(oci.Resources(cpu=oci.Cpu(shares=shares)))
    assert file == "cpu.weight"
    assert 1 <= int(text) <= 10000
    assert int(text) == 1 + ((shares - 2) * 9999) // 262142  # runc


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000)])
def test_shares_that_people_know(shares: int, weight: int) -> None:
    assert v2(oci.Resources(cpu=oci.Cpu(shares=shares))) == [("cpu", "cpu.weight", str(weight))]


@pytest.mark.parametrize(("shares", "weight"), [(1, 1), (300_000, 10000)])
def test_shares_outside_the_range_are_clamped_as_version_1_does(shares: int, weight: int) -> None:
    assert v2(oci.Resources(cpu=oci.Cpu(shares=shares))) == [("cpu", "cpu.weight", str(weight))]


@given(st.integers(10, 1000))
def test_weights_of_devices_are_of_the_kernels_range(weight: int) -> None:
    ((_, _, text),) = v2(oci.Resources(block_io=oci.BlockIo(weight=weight)))
    word, number = text.split()
    assert word == "default"
    assert 1 <= int(number) <= 10000


@pytest.mark.parametrize(
    ("cpu", "text"),
    [
        (oci.Cpu(quota=-1), "max 100000"),
        (oci.Cpu(quota=-1, period=50_000), "max 50000"),
        (oci.Cpu(period=50_000), "max 50000"),
        (oci.Cpu(quota=7000), "7000 100000"),
    ],
)
def test_quota_and_period_are_one_file_of_version_2(cpu: oci.Cpu, text: str) -> None:
    assert v2(oci.Resources(cpu=cpu)) == [("cpu", "cpu.max", text)]


@pytest.mark.parametrize(
    ("memory", "writes"),
    [
        (oci.Memory(limit=-1), {"memory.max": "max"}),
        (oci.Memory(limit=-1, swap=-1), {"memory.max": "max", "memory.swap.max": "max"}),
        (oci.Memory(limit=64 * MIB, swap=-1), {"memory.max": str(64 * MIB), "memory.swap.max": "max"}),
        (oci.Memory(limit=64 * MIB, swap=64 * MIB), {"memory.max": str(64 * MIB), "memory.swap.max": "0"}),
        (oci.Memory(reservation=-1), {"memory.low": "max"}),
    ],
)
def test_no_limit_of_memory(memory: oci.Memory, writes: dict[str, str]) -> None:
    assert {file: value for _, file, value in v2(oci.Resources(memory=memory))} == writes


@pytest.mark.parametrize(
    "memory",
    [oci.Memory(swap=MIB), oci.Memory(limit=-1, swap=MIB), oci.Memory(limit=2 * MIB, swap=MIB)],
)
def test_swap_without_or_below_memory(memory: oci.Memory) -> None:
    with pytest.raises(ValueError, match="memory and swap together"):
        v2(oci.Resources(memory=memory))


def test_no_limit_of_processes() -> None:
    resources = oci.Resources(pids=oci.Pids(limit=-1))
    assert v1(resources) == v2(resources) == [("pids", "pids.max", "max")]


def test_huge_pages_and_rdma() -> None:
    resources = oci.Resources(
        hugepage_limits=(oci.HugepageLimit(page_size="2MB", limit=4096),),
        rdma={"mlx5_1": oci.Rdma(hca_handles=3, hca_objects=10000), "mlx4_0": oci.Rdma(hca_objects=5)},
    )
    rdma = [("rdma", "rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"), ("rdma", "rdma.max", "mlx4_0 hca_object=5")]
    assert v1(resources) == [("hugetlb", "hugetlb.2MB.limit_in_bytes", "4096"), *rdma]
    assert v2(resources) == [("hugetlb", "hugetlb.2MB.max", "4096"), *rdma]


def test_network_classes() -> None:
    network = oci.Network(class_id=7, priorities=(oci.InterfacePriority(name="lo", priority=3),))
    assert v1(oci.Resources(network=network)) == [
        ("net_cls", "net_cls.classid", "7"),
        ("net_prio", "net_prio.ifpriomap", "lo 3"),
    ]


def test_unified_goes_last_and_as_it_is() -> None:
    resources = oci.Resources(pids=oci.Pids(limit=5), unified={"memory.high": "1000", "cpu.weight.nice": "-5"})
    assert v2(resources) == [
        ("pids", "pids.max", "5"),
        ("memory", "memory.high", "1000"),
        ("cpu", "cpu.weight.nice", "-5"),
    ]


def test_unified_names_a_file() -> None:
    with pytest.raises(ValueError, match="is not the name of a cgroup file"):
        v2(oci.Resources(unified={"../memory.high": "1"}))


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (oci.Resources(unified={"memory.high": "1"}), "unified needs cgroup v2"),
        (oci.Resources(memory=oci.Memory(kernel=MIB)), "memory.kernel was removed from Linux 5.16"),
        (oci.Resources(block_io=oci.BlockIo(leaf_weight=10)), "leafWeight was removed from Linux 5.0"),
    ],
)
def test_what_version_1_cannot(resources: oci.Resources, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        v1(resources)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (oci.Resources(memory=oci.Memory(kernel=MIB)), "memory.kernel"),
        (oci.Resources(memory=oci.Memory(kernel_tcp=MIB)), "kernelTCP"),
        (oci.Resources(memory=oci.Memory(swappiness=0)), "swappiness"),
        (oci.Resources(memory=oci.Memory(disable_oom_killer=True)), "disableOOMKiller"),
        (oci.Resources(cpu=oci.Cpu(realtime_period=1)), "realtimePeriod"),
        (oci.Resources(cpu=oci.Cpu(realtime_runtime=1)), "realtimeRuntime"),
        (oci.Resources(block_io=oci.BlockIo(leaf_weight=10)), "leafWeight"),
        (oci.Resources(network=oci.Network(class_id=1)), "network"),
    ],
)
def test_what_version_2_cannot(resources: oci.Resources, words: str) -> None:
    with pytest.raises(Unsupported, match=f"{words}.* not exist in cgroup v2; leave"):
        v2(resources)


ZEROS = [
    oci.Resources(memory=oci.Memory(limit=0)),
    oci.Resources(memory=oci.Memory(limit=0, swap=0, reservation=0)),
    oci.Resources(cpu=oci.Cpu(shares=0)),
    oci.Resources(cpu=oci.Cpu(quota=0, period=0)),
    oci.Resources(block_io=oci.BlockIo(weight=0)),
]


@pytest.mark.parametrize("resources", ZEROS)
def test_zero_is_not_said_as_with_runc(resources: oci.Resources) -> None:
    assert v1(resources) == v2(resources) == []


def test_zero_processes_are_no_limit_as_the_class_says() -> None:
    resources = oci.Resources(pids=oci.Pids(limit=0))
    assert {value for _, _, value in (*v1(resources), *v2(resources))} <= {"max"}


def test_a_device_with_a_leafs_weight_alone_is_refused() -> None:
    device = BlockIoWeight(major=8, minor=0, leaf_weight=10)
    for writes in (v1, v2):
        with pytest.raises(Unsupported, match="leafWeight"):
            writes(oci.Resources(block_io=oci.BlockIo(weight_device=(device,))))
