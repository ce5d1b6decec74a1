"""The examination as values, and what is told without any rights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer import doctor
from pycontainer.doctor import facts
from pycontainer.doctor.groups import CONTROLLERS
from pycontainer.doctor.kernel import PROBED

CHECKS = st.builds(
    doctor.Check,
    name=st.text(),
    status=st.sampled_from(["ok", "warning", "missing"]),
    found=st.text(),
    costs=st.text(),
    remedy=st.text(),
)


@given(st.lists(CHECKS))
def test_a_report_is_ok_when_nothing_is_missing(checks: list[doctor.Check]) -> None:
    report = doctor.Report(tuple(checks))
    assert report.ok == ("missing" not in {check.status for check in checks})
    assert json.loads(json.dumps(report.to_dict()))["ok"] == report.ok
    assert [doctor.Check(**each) for each in report.to_dict()["checks"]] == checks


def test_what_is_not_well_says_what_it_costs_and_what_to_do(tmp_path: Path) -> None:
    for check in doctor.check(tmp_path / "store").checks:
        assert check.found
        if check.status == "ok":
            assert (check.costs, check.remedy) == ("", ""), check
        else:
            assert check.costs, check
            assert check.remedy, check


def test_names_of_checks_are_unique(tmp_path: Path) -> None:
    names = [check.name for check in doctor.check(tmp_path).checks]
    assert len(names) == len(set(names))


def test_every_lack_is_described() -> None:
    assert {wanted.probe for wanted in PROBED} <= set(doctor.PROBES)
    for wanted in PROBED:
        assert wanted.good
        assert wanted.costs
        assert wanted.remedy


def test_an_unknown_probe_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no probe is called 'overlai'.*overlay-volatile"):
        doctor.probe("overlai")


def test_an_unknown_subject_of_a_hint_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no check is called 'memry'.*memory"):
        doctor.hint("memry")


@pytest.mark.parametrize("subject", [*CONTROLLERS, "overlay", "rights", "store", "swap", "devices", "user namespace"])
def test_a_hint_says_nothing_or_what_to_do(subject: str, tmp_path: Path) -> None:
    hint = doctor.hint(subject, tmp_path)
    assert hint == "" or ";" in hint


def test_facts_are_json(tmp_path: Path) -> None:
    info = doctor.info(tmp_path / "not/yet/there")
    assert json.loads(json.dumps(info.to_dict())) == info.to_dict()
    assert info.kernel == os.uname().release
    assert info.memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert info.store.root == str(tmp_path / "not/yet/there")
    assert info.store.free <= info.store.size


def test_the_store_is_not_made_by_looking(tmp_path: Path) -> None:
    doctor.check(tmp_path / "store")
    doctor.info(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_the_file_system_of_a_place_is_what_findmnt_says() -> None:
    for place in ("/", "/proc", "/dev/shm", "/tmp", "/usr/bin"):
        done = subprocess.run(
            ["findmnt", "-n", "-o", "FSTYPE,TARGET", "--target", place], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            kind, target = done.stdout.split()[-2:]
            store = facts.store(Path(place))
            assert (store.filesystem, store.mount_point) == (kind, target)


def test_settings_are_what_sysctl_says() -> None:
    assert facts.sysctl("kernel.ostype") == "Linux"
    assert facts.sysctl("kernel.there_is_no_such") == ""


def test_examining_takes_no_import_of_the_command_line() -> None:
    code = "import sys; from pycontainer import doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"click", "rich"} & set(done.stdout.split())
