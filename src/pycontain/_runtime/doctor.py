"""What this host lacks, said with a remedy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pycontain.errors import PycontainError

if TYPE_CHECKING:
    from pycontain._engine import Engine

_SWITCHES = (
    ("/proc/sys/user/max_user_namespaces", "0", "raise user.max_user_namespaces with sysctl"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "set kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "allow this interpreter user namespaces in an AppArmor profile, or set the switch to 0",
    ),
)


def examine(engine: Engine) -> list[str]:
    """A line for each thing that is missing; starts a launcher to see that it works."""
    findings = [*_switches(engine), *_launcher(engine)]
    if engine.cgroups.layout.name == "none":
        findings.append(
            "no cgroup is delegated to this user, so memory, cpus and pids cannot be limited: "
            "run under `systemd-run --user --scope -p Delegate=yes`"
        )
    elif not engine.cgroups.layout.has("memory"):
        findings.append("the memory controller is not available here: memory cannot be limited")
    if not engine.features.landlock:
        findings.append("this kernel has no Landlock: one layer of defence less")
    if not engine.features.time_namespace:
        findings.append("this kernel has no time namespaces: boot time and uptime show")
    if not engine.features.privileged and not engine.sub_ids:
        findings.append(
            "no ranges in /etc/subuid and /etc/subgid (or no newuidmap): containers have the one id 0 only"
        )
    if not os.access("/dev/null", os.R_OK | os.W_OK):
        findings.append("/dev/null cannot be used by this user")
    return findings


def _switches(engine: Engine) -> list[str]:
    findings = []
    for path, bad, remedy in _SWITCHES:
        try:
            with open(path, encoding="ascii") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == bad and not (engine.features.privileged and "unprivileged" in path):
            findings.append(f"{path} is {value}: {remedy}")
    return findings


def _launcher(engine: Engine) -> list[str]:
    try:
        with engine.launchers.borrow():
            return []
    except PycontainError as error:
        return [f"no container can start: {error}"]
