"""Unknown options and forms of other tools: errors that name the function and show the right form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pycontain import Container, Security, run
from pycontain._model.options import explains_options
from pycontain._networks import rootless_uplink
from pycontain._objects import network_spec
from pycontain._objects.options import mounts_of


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("mem_limit", "memory='512M'"),
        ("detach_", ""),
        ("remove", "`with`"),
        ("network_mode", "network='none'"),
        ("environment", "env={"),
        ("ulimits", "rlimits={"),
        ("memroy", "did you mean 'memory'"),
        ("wrokdir", "did you mean 'workdir'"),
    ],
)
@pytest.mark.parametrize("function", [Container, lambda **given: run(None, ["true"], **given)])
def test_an_unknown_option_of_a_container(function: Any, option: str, hint: str) -> None:
    caller = "Container" if function is Container else "run"
    with pytest.raises(
        TypeError, match=rf"^{caller}\(\) got an unexpected keyword argument '{option}'"
    ) as error:
        function(**{option: 1})
    assert hint in str(error.value)


def test_an_unknown_option_of_a_command() -> None:
    container = Container()
    with pytest.raises(TypeError, match=r"^exec\(\) got .* 'cwd' \(hint: workdir='/place'\)"):
        container.exec(["true"], cwd="/")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^popen\(\) got .* 'tty' \(hint: popen\(\.\.\., pty=True\)\)"):
        container.popen(["true"], tty=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^exec\(\) missing 1 required positional argument: 'args'"):
        container.exec()  # type: ignore[call-overload]


def test_an_unknown_field_of_security() -> None:
    with pytest.raises(TypeError, match=r"^Security.evolve\(\) got .* 'capability' \(hint: did you mean"):
        Security.SANDBOX.evolve(capability={"CHOWN"})  # type: ignore[call-arg]


def test_type_error_raised_inside_a_function_is_unchanged() -> None:
    @explains_options("outer")
    def function(**given: object) -> None:
        int([])  # type: ignore[call-overload]

    with pytest.raises(TypeError, match=r"^int\(\) argument"):
        function()


@pytest.mark.parametrize(
    ("volumes", "hint"),
    [
        (["/a:/b:ro"], "volumes={'/b': Bind('/a', read_only=True)}"),
        (["data:/b"], "volumes={'/b': Volume('data')}"),
        ({"/a": {"bind": "/b", "mode": "ro"}}, "volumes={'/b': Bind('/a', read_only=True)}"),
        ({"data": {"bind": "/b", "mode": "rw"}}, "volumes={'/b': Volume('data')}"),
    ],
)
def test_volumes_as_docker_py_writes_them(volumes: Any, hint: str) -> None:
    engine: Any = None
    with pytest.raises(TypeError) as error:
        mounts_of(engine, volumes, None)
    assert str(error.value).endswith(f"(hint: write {hint})")


@pytest.mark.parametrize("privileged", [True, False])
def test_ports_on_internal_networks_name_the_cause_and_the_way_out(
    privileged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootless_uplink, "problems", lambda: "/dev/net/tun does not exist")
    monkeypatch.setattr(rootless_uplink, "remedy", lambda _: "load the tun module")
    engine: Any = SimpleNamespace(_session=SimpleNamespace(features=SimpleNamespace(privileged=privileged)))
    hint = network_spec._ports_hint(engine)
    assert hint.startswith(
        "leave internal=True out" if privileged else "/dev/net/tun does not exist: load the"
    )
    assert ("network='host'" in hint) is not privileged
