"""The confinement of a process by a security module of the kernel: AppArmor profiles and SELinux contexts.

The label is asked for in advance and taken on at execve; see proc_pid_attr(5), apparmor(7) and selinux(8).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pycontainer.errors import Unsupported

if TYPE_CHECKING:
    from pycontainer.oci import runtime as oci
    from pycontainer.runtime.program import Program

__all__ = ["add_labels"]

_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
_SELINUX = Path("/sys/fs/selinux/enforce")


def add_labels(program: Program, process: oci.Process) -> None:
    """Append the steps that set the labels of the program that will be executed.

    They are written through the keeper's procfs, before the container's root is entered: nothing that an image or a
    mount has put there takes part (CVE-2019-16884).

    Raises:
        Unsupported: this kernel does not use the security module.
    """
    if process.apparmor_profile:
        if not _has_apparmor():
            msg = (
                f"process.apparmorProfile: AppArmor is not in use on this host ({_APPARMOR}); "
                "boot with apparmor=1 security=apparmor, or remove the profile from the document"
            )
            raise Unsupported(msg)
        label = f"set the AppArmor profile {process.apparmor_profile}"
        program.write(label, "/proc/self/attr/apparmor/exec", f"exec {process.apparmor_profile}".encode(), proc=True)
    if process.selinux_label:
        if not _SELINUX.exists():
            msg = (
                f"process.selinuxLabel: SELinux is not in use on this host ({_SELINUX.parent}); "
                "boot with security=selinux, or remove the label from the document"
            )
            raise Unsupported(msg)
        label = f"set the SELinux context {process.selinux_label}"
        program.write(label, "/proc/self/attr/exec", process.selinux_label.encode(), proc=True)


def _has_apparmor() -> bool:
    try:
        return _APPARMOR.read_text().startswith("Y")
    except OSError:  # not in this kernel
        return False
