"""What an examination says: a line for each thing that was looked at."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs

__all__ = ["Check", "Report", "Status"]

Status: TypeAlias = Literal["ok", "warning", "missing"]


@attrs.frozen(kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, in a few words; stable.
        status: ``"warning"``: some functions are lost or slower; ``"missing"``: containers cannot be run.
        found: what there is.
        costs: what is lost; ``""`` when nothing is.
        remedy: the command, setting or package that changes it; ``""`` when nothing needs to change.
    """

    name: str
    status: Status
    found: str
    costs: str = ""
    remedy: str = ""


@attrs.frozen
class Report:
    """The result of all checks.

    Attributes:
        checks: in the order of importance within each subject.
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether containers can be run: nothing is missing, though there may be warnings."""
        return all(check.status != "missing" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as dictionaries, lists and texts, as JSON has them."""
        return {"ok": self.ok, "checks": [attrs.asdict(check) for check in self.checks]}
