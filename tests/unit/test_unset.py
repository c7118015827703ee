"""Empty and unset values never permit more than the default.

Each line names an option, an empty value, and what comes of it: an error, or the default.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycontain import (
    Bind,
    CgroupLimits,
    Container,
    Egress,
    Endpoint,
    Engine,
    Image,
    LimitError,
    Network,
    Security,
    Tmpfs,
    Volume,
    run,
)
from pycontain._images import write
from pycontain._model.ports import published
from pycontain._model.user import asked_user
from pycontain._objects.exec import Invocation
from pycontain._objects.network import aliases_of
from pycontain._registry import credentials, endpoint
from pycontain._rootfs import host
from pycontain._runtime.spec import DEFAULT_MEMORY, DEFAULT_PIDS, limits_of
from pycontain._security.policy import encode, landlock_rights
from pycontain._state.paths import Roots, home_directory
from pycontain.errors import ImageError, PathError, PullError, UnsupportedError

REFUSALS = (ValueError, TypeError, LookupError, ImageError, UnsupportedError)

CONTAINER: dict[str, tuple[object, ...]] = {
    "image": ("", b"", (), 0),
    "command": ("", [], ()),
    "name": ("",),
    "env": ("", [], 0, False),
    "workdir": ("",),
    "user": ("", False),
    "hostname": ("",),
    "memory": ("", 0, 0.0, False),
    "cpus": ("", 0, False),
    "pids": ("", 0, False),
    "disk": ("", 0, False),
    "limits": ("", {}, [], 0),
    "rlimits": ("", [], 0, False),
    "network": ("", None, [], (), 0),
    "ports": ("", [], {80: ""}, {80: 0}, {80: ":8080"}, {80: ("", 8080)}, {"": 80}, {0: 80}),
    "volumes": ("", [], {"/x": ""}, {"": "/tmp"}, {"/x": None}, {"/x": {}}, {"/x": 0}),
    "mounts": ("", [], {"/x": ""}, {"": "/tmp"}, {"/x": None}),
    "tmpfs": ("", {"/x": ""}, {"/x": 0}, {"": None}, [""]),
    "read_only": ("", None, 0, "false"),
    "init": ("", None, 0, "false"),
    "security": ("", None, {}, 0),
    "runtime": ("", {}),
    "lifetime": ("", False),
    "labels": ("", [], 0, False),
    "extra_hosts": ("", 0, False, [""], {"": "10.0.0.1"}, {"a": ""}),
    "dns": ("", 0, False, [""]),
    "dns_search": ("", 0, False, [""]),
    "entrypoint": ("",),
    "shm_size": ("", 0, False),
    "sysctls": ("", [], 0, {"": 1}, {"net.ipv4.ip_forward": ""}, {"net.ipv4.ip_forward": None}),
    "group_add": ("", [""], [None], False),
    "stop_timeout": ("", False),
    "engine": ("", {}, 0, False),
}
"""Every option that `Container` has, and the empty values that it refuses."""

DEFAULTS: dict[str, tuple[object, ...]] = {
    "command": (None,),
    "name": (None,),
    "env": (None, {}),
    "workdir": (None,),
    "user": (None,),
    "hostname": (None,),
    "memory": (None,),
    "cpus": (None,),
    "pids": (None,),
    "disk": (None,),
    "limits": (None, CgroupLimits()),
    "rlimits": (None, {}),
    "ports": (None, {}),
    "volumes": (None, {}),
    "mounts": (None, {}),
    "tmpfs": (None, {}, [], ()),
    "labels": (None, {}),
    "lifetime": (None,),
    "extra_hosts": (None, {}, []),
    "dns": (None, []),
    "dns_search": (None,),
    "entrypoint": (None,),
    "shm_size": (None,),
    "sysctls": (None, {}),
    "group_add": (None, [], ()),
    "stop_timeout": (None,),
    "engine": (None,),
}
"""The empty values that are the default."""


def _options() -> set[str]:
    import inspect

    return set(inspect.signature(Container).parameters)


def test_the_table_has_every_option() -> None:
    assert _options() - CONTAINER.keys() == set()


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option, values in CONTAINER.items() for value in values],
    ids=lambda one: repr(one)[:40],
)
def test_empty_options_of_a_container_are_refused(option: str, value: object) -> None:
    with pytest.raises(REFUSALS):
        Container(**{option: value})  # type: ignore[arg-type]
    if option in ("image", "command", "init", "lifetime"):
        return
    with pytest.raises(REFUSALS):
        run(None, ["true"], **{option: value})  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in DEFAULTS.items() for value in values]
)
def test_unset_options_of_a_container_are_the_default(option: str, value: object) -> None:
    default, made = Container(name="x", hostname="h").spec, None
    options = {"name": "x", "hostname": "h", option: value}
    made = Container(**options).spec  # type: ignore[arg-type]
    for field in ("command", "env", "workdir", "user", "limits", "asked", "rlimits", "disk", "mounts"):
        assert getattr(made, field) == getattr(default, field), field
    assert made.name == ("x" if option != "name" else f"pyc-{made.id[:12]}")
    assert made.hostname == ("h" if option != "hostname" else made.id[:12])
    assert (made.network_spec, made.labels, made.lifetime) == (
        default.network_spec,
        default.labels,
        default.lifetime,
    )


EXEC: dict[str, tuple[object, ...]] = {
    "args": ("", [], ()),
    "env": ("", [], 0),
    "workdir": ("",),
    "user": ("", False),
    "limits": ("", {}, 0),
}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in EXEC.items() for value in values]
)
def test_empty_options_of_a_command_are_refused(option: str, value: object) -> None:
    options: dict[str, Any] = {
        "args": ["true"],
        "shell": False,
        "env": None,
        "workdir": None,
        "user": None,
        "limits": None,
    }
    with pytest.raises((ValueError, TypeError)):
        Invocation.of(**{**options, option: value})


SECURITY: dict[str, tuple[object, ...]] = {
    "name": ("", None),
    "capabilities": ("", None, [""]),
    "no_new_privs": ("", None, 0),
    "seccomp": ("", {}, 0, False),
    "landlock": ("", None, 0),
    "masked_paths": ("", None, [""]),
    "readonly_paths": ("", None, [""]),
    "rlimits": ("", None, []),
    "restrict_suid_sgid": ("", None, 0),
    "optional": ("", None, [""]),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in SECURITY.items() for value in values]
)
def test_empty_fields_of_security_are_refused(field: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        Security.SANDBOX.evolve(**{field: value})  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError)):
        Security(**{field: value})  # type: ignore[arg-type]


def test_security_without_arguments_has_the_sandbox_filter() -> None:
    assert Security(name="sandbox") == Security.SANDBOX


def test_security_without_rlimits_still_starts_no_core_handler_on_the_host() -> None:
    def encoded(security: Security) -> bytes:
        return encode(security, {}, landlock_abi=0, supervise=False, by_agent=True)

    core = Security.SANDBOX.evolve(rlimits={"core": (1, 1)})
    assert encoded(Security.SANDBOX.evolve(rlimits={})) == encoded(core)
    assert landlock_rights(0)[0] == 0


OTHERS: list[Callable[[], object]] = [
    lambda: Bind(""),
    lambda: Bind("/tmp", read_only=None),  # type: ignore[arg-type]
    lambda: Bind("/tmp", read_only=""),  # type: ignore[arg-type]
    lambda: Bind("/tmp", idmap=0),  # type: ignore[arg-type]
    lambda: Bind("/tmp", propagation=""),  # type: ignore[arg-type]
    lambda: Bind("/tmp", propagation=None),  # type: ignore[arg-type]
    lambda: Tmpfs(""),
    lambda: Tmpfs(0),
    lambda: Tmpfs(mode=None),  # type: ignore[arg-type]
    lambda: Tmpfs(mode=""),  # type: ignore[arg-type]
    lambda: CgroupLimits(memory=""),
    lambda: CgroupLimits(memory=0),
    lambda: CgroupLimits(memory_high=""),
    lambda: CgroupLimits(memory_high=0),
    lambda: CgroupLimits(swap=""),
    lambda: CgroupLimits(cpus=0),
    lambda: CgroupLimits(cpu_weight=0),
    lambda: CgroupLimits(cpuset_cpus=""),
    lambda: CgroupLimits(cpuset_mems=""),
    lambda: CgroupLimits(pids=0),
    lambda: CgroupLimits(io_weight=0),
    lambda: CgroupLimits(io_max=""),  # type: ignore[arg-type]
    lambda: CgroupLimits(io_max={"/dev/x": {}}),
    lambda: CgroupLimits(hugetlb=[]),  # type: ignore[arg-type]
    lambda: Volume(""),
    lambda: Volume(size=""),
    lambda: Volume(size=0),
    lambda: Volume(labels=""),  # type: ignore[arg-type]
    lambda: Volume(engine=""),  # type: ignore[arg-type]
    lambda: Volume.get(""),
    lambda: Network(""),
    lambda: Network(subnet=""),
    lambda: Network(ipv6=""),
    lambda: Network(ipv6=None),  # type: ignore[arg-type]
    lambda: Network(internal=""),  # type: ignore[arg-type]
    lambda: Network(internal=None),  # type: ignore[arg-type]
    lambda: Network(host_access="0"),  # type: ignore[arg-type]
    lambda: Network(labels=[]),  # type: ignore[arg-type]
    lambda: Container(network=Endpoint("")),
    lambda: aliases_of(""),
    lambda: aliases_of([""]),
    lambda: Egress.allow(""),
    lambda: Egress.allow(" "),
    lambda: Egress.allow(":443"),
    lambda: Egress.allow("/tcp"),
    lambda: Egress.allow("example.org:"),
    lambda: Egress.allow("example.org:0"),
    lambda: Egress.allow("*."),
    lambda: Egress.allow("*"),
    lambda: Egress.allow("10.0.0.1/"),
    lambda: Egress.allow(None),  # type: ignore[arg-type]
    lambda: Image.get(""),
    lambda: Image.pull(""),
    lambda: Image.pull("example.org/x", platform=""),
    lambda: Image.pull("example.org/x", auth=()),  # type: ignore[arg-type]
    lambda: Image.pull("example.org/x", auth=""),  # type: ignore[arg-type]
    lambda: Image.pull("example.org/x", auth=("", "")),
    lambda: Image.pull("example.org/x", auth=(None, None)),  # type: ignore[arg-type]
    lambda: Image.pull("example.org/x", insecure=""),  # type: ignore[arg-type]
    lambda: Image.pull("example.org/x", insecure="false"),  # type: ignore[arg-type]
    lambda: Image.load(""),
    lambda: Image.from_archive(""),
    lambda: Image.from_archive("/dev/null", ""),
    lambda: Image.from_oci_layout(""),
    lambda: Image.from_oci_layout("/", ""),
    lambda: Image.from_rootfs(""),
    lambda: Image.from_rootfs("/tmp", copy=""),  # type: ignore[arg-type]
    lambda: Image.from_rootfs("/tmp", tag=""),
    lambda: Image.host(engine=""),  # type: ignore[arg-type]
    lambda: Engine(""),
    lambda: Engine(b""),  # type: ignore[arg-type]
    lambda: asked_user(""),
    lambda: published({80: ":8080"}),
]


@pytest.mark.parametrize("call", OTHERS, ids=range(len(OTHERS)))
def test_empty_values_elsewhere_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(REFUSALS) as error:
        call()
    assert not isinstance(error.value, PullError), "no registry is asked"


def test_an_egress_without_names_allows_nothing() -> None:
    assert Egress.allow().targets == []


def test_limits_without_values_are_the_defaults() -> None:
    limits, asked = limits_of(None, None, None, None)
    assert (limits.memory, limits.pids, asked) == (DEFAULT_MEMORY, DEFAULT_PIDS, frozenset())


@pytest.mark.parametrize("value", [-1, "unlimited", "Infinity", float("inf")])
def test_a_limit_is_lifted_in_words(value: Any) -> None:
    limits, asked = limits_of(None, value, value, value)
    assert (limits.memory, limits.cpus, limits.pids, asked) == (None, None, None, frozenset())
    limits, asked = limits_of(CgroupLimits(memory=value, pids=value), None, 1, None)
    assert (limits.memory, limits.cpus, limits.pids, sorted(asked)) == (None, 1.0, None, ["cpus"])


def test_a_lifted_limit_is_given_once() -> None:
    with pytest.raises(ValueError, match="memory must be given once"):
        limits_of(CgroupLimits(memory=-1), "1G", None, None)
    with pytest.raises(LimitError):
        limits_of(None, -2, None, None)


# The environment


@pytest.fixture(params=["", "unset"])
def value(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "unset" else ""


def _set(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "name", ["PYCONTAIN_INSECURE_REGISTRIES", "PYCONTAIN_TRUSTED_REALMS", "PYCONTAIN_MIRRORS"]
)
def test_lists_of_registries(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    _set(monkeypatch, name, value)
    assert not endpoint.RegistryEndpoint.of("example.org").insecure
    assert endpoint.trusted_realms() == []
    assert endpoint.mirrors("example.org") == []


@pytest.mark.parametrize("name", ["PYCONTAIN_INSECURE_REGISTRIES", "PYCONTAIN_TRUSTED_REALMS"])
def test_lists_of_blanks_name_no_registry(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, " , ,")
    assert not endpoint.RegistryEndpoint.of("example.org").insecure
    assert endpoint.trusted_realms() == []


def test_roots(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    for name in ("PYCONTAIN_ROOT", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "HOME"):
        _set(monkeypatch, name, value)
    import pwd

    home = pwd.getpwuid(os.geteuid()).pw_dir
    assert home_directory() == home
    if os.geteuid():
        assert Roots.of(None).data == f"{home}/.local/share/pycontain"
    else:
        assert Roots.of(None) == Roots("/var/lib/pycontain", "/run/pycontain")


def test_relative_xdg_directories_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCONTAIN_ROOT", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, ".")
    monkeypatch.setenv("HOME", "/h")
    assert Roots.of(None).data == "/h/.local/share/pycontain"
    assert Roots.of(None).run == "/h/.local/share/pycontain/run/pycontain"


def test_a_user_without_a_home_is_asked_for_a_root(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYCONTAIN_ROOT", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 987654)
    with pytest.raises(PathError, match="set HOME, or PYCONTAIN_ROOT"):
        Roots.of(None)


def test_files_of_credentials(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    names = ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "HOME")
    for name in names:
        _set(monkeypatch, name, value)
    home = home_directory()
    assert list(credentials._files()) == [
        f"{home}/.config/containers/auth.json",
        f"{home}/.docker/config.json",
    ]


def test_the_home_of_the_user_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    import pwd
    import sys

    entry = pwd.struct_passwd(("u", "x", os.getuid(), os.getgid(), "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr("pwd.getpwuid", lambda _: entry)
    _set(monkeypatch, "HOME", value)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert str(tmp_path) not in {path for path, _ in host.trees()}


def test_the_time_of_the_source(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    _set(monkeypatch, "SOURCE_DATE_EPOCH", value)
    assert write.source_date() is None


def test_an_empty_search_path_is_not_the_current_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    from pycontain._volumes import filesystem

    tool = tmp_path / "mkfs.ext4"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    _set(monkeypatch, "PATH", value)
    found: list[str | None] = []
    real = shutil.which

    def which(name: str, path: str) -> None:
        found.append(real(name, path=path))

    monkeypatch.setattr("shutil.which", which)
    with pytest.raises(Exception, match="mkfs"):
        filesystem.make(str(tmp_path / "image"), 8 << 20)
    assert found != [], "asked"
    assert found[0] is None or os.path.isabs(found[0])
