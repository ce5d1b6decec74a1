"""The defaults make a container by the specification, and one at least as closed as Docker's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pycontainer.oci import defaults, runtime
from pycontainer.runtime import capabilities


def default_spec() -> runtime.Spec:
    return runtime.Spec(
        root=runtime.Root(path="rootfs"),
        process=runtime.Process(args=("sh",), cwd="/", capabilities=defaults.CAPABILITY_SETS),
        mounts=defaults.MOUNTS,
        hostname="c1",
        linux=runtime.Linux(
            namespaces=defaults.NAMESPACES,
            devices=defaults.DEVICES,
            resources=runtime.Resources(devices=defaults.DEVICE_RULES),
            masked_paths=defaults.MASKED_PATHS,
            readonly_paths=defaults.READONLY_PATHS,
        ),
    )


def test_the_defaults_are_a_container_by_the_specification() -> None:
    assert runtime.parse(runtime.to_json(default_spec())) == default_spec()


def test_mounts_come_after_the_ones_they_are_on() -> None:
    seen: list[str] = []
    for mount in defaults.MOUNTS:
        assert mount.destination not in seen
        assert not any(other.startswith(f"{mount.destination}/") for other in seen)
        seen.append(mount.destination)


def test_no_mount_takes_programs_of_another_user() -> None:
    for mount in defaults.MOUNTS:
        assert "nosuid" in mount.options, mount


@pytest.mark.parametrize("device", defaults.DEVICES, ids=lambda device: device.path)
def test_devices_have_the_numbers_of_this_kernel(device: runtime.LinuxDevice) -> None:

    status = Path(device.path).stat()
    assert stat.S_ISCHR(status.st_mode)
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (device.major, device.minor)


def test_every_device_may_be_opened_and_nothing_is_denied_after_being_allowed() -> None:
    first, *others = defaults.DEVICE_RULES
    assert first == runtime.DeviceRule(allow=False)
    assert all(rule.allow for rule in others)
    allowed = {(rule.major, rule.minor) for rule in others if "r" in rule.access}
    assert {(device.major, device.minor) for device in defaults.DEVICES} < allowed
    assert all(rule.major is not None for rule in others if rule.access != "m")


def test_capabilities_are_the_ones_that_the_runtime_resolves() -> None:
    assert len(defaults.CAPABILITIES) == 14
    assert set(defaults.CAPABILITIES) == set(capabilities.DEFAULT)
