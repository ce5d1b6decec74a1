"""What this host can do, found out by doing it: for ``pycontainer info`` and ``doctor``, and the hints of errors.

>>> from pycontainer import doctor
>>> doctor.info().architecture in ("x86_64", "aarch64")
True
>>> {check.status for check in doctor.check().checks} <= {"ok", "warning", "missing"}
True
>>> doctor.probe("namespace-mount").available in (True, False)
True
"""

from pycontainer.doctor.checks import check, hint
from pycontainer.doctor.facts import Cgroups, HostInfo, Security, StoreInfo, SubordinateIds, info
from pycontainer.doctor.probes import PROBES, Outcome, probe
from pycontainer.doctor.report import Check, Report

__all__ = [
    "PROBES",
    "Cgroups",
    "Check",
    "HostInfo",
    "Outcome",
    "Report",
    "Security",
    "StoreInfo",
    "SubordinateIds",
    "check",
    "hint",
    "info",
    "probe",
]
