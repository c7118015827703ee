"""Plans: the encoder and the C decoder agree, and the decoder refuses malformed plans."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain._kernel import native, plan, protocol
from pycontain._kernel.plan import Op, Plan, Source
from pycontain._kernel.protocol import NO_FD, OpKind, PlanFlag


def _security(seccomp: bytes = b"\6\0\0\0\0\0\xff\x7f") -> bytes:
    return plan.encode_security(
        flags=3,
        capabilities=0,
        securebits=0xEF,
        landlock=(0, 0, 0, 0, 0),
        rlimits={7: (10, 20)},
        seccomp=seccomp,
    )


def _plan(**changes: object) -> Plan:
    fields: dict[str, object] = {
        "control_fd": 0,
        "namespaces": 1 << 28,
        "ops": [
            Op(OpKind.UPPER),
            Op(OpKind.OVERLAY, source=0, count=1),
            Op(OpKind.FILE, "etc/x", b"a\0b", mode=0o644),
        ],
        "sources": [Source(fd=1), Source(path="/usr", device=1, inode=2)],
        "security": _security(),
        "uid_map": "0 1 1\n",
        "gid_map": "0 1 1\n",
        "hostname": "h",
        "joins": [(2, 1 << 30)],
    }
    return Plan(**{**fields, **changes})  # type: ignore[arg-type]


def _check(buffer: bytes) -> int:
    return int(native.lib.pcx_plan_check(native.ffi.from_buffer(buffer), len(buffer)))


def _exec(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "flags": 0,
        "number": 1,
        "tasks": 0,
        "uid": 0,
        "gid": 0,
        "groups": (1, 2),
        "argv": [b"a", b"b"],
        "env": b"A=1\0",
        "env_count": 1,
        "workdir": "/",
        "search": "/bin",
    }
    return plan.encode_exec(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_plan_passes() -> None:
    assert _check(_plan().encode()) == 0


def test_an_exec_passes() -> None:
    buffer = _exec()
    assert native.lib.pcx_exec_check(buffer, len(buffer)) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"control_fd": 5000},
        {"cgroup_fd": 900},
        {"tasks": 17},
        {"ops": [Op(OpKind.OVERLAY, source=1, count=2)]},
        {"sources": [Source(fd=3000)]},
        {"joins": [(900, 0)]},
        {"security": b"x" * 80},
        {"flags": PlanFlag.COMMAND_IS_INIT},
    ],
)
def test_paths_outside_are_refused(changes: dict[str, object]) -> None:
    assert _check(_plan(**changes).encode()) < 0


def test_a_nul_is_refused_by_the_encoder() -> None:
    with pytest.raises(ValueError, match="NUL"):
        _plan(hostname="a\0b").encode()
    with pytest.raises(ValueError, match="NUL"):
        _exec(workdir="/a\0b")


def test_an_exec_without_arguments_is_refused() -> None:
    buffer = _exec(argv=[])
    assert native.lib.pcx_exec_check(buffer, len(buffer)) == -22 or b"" == b""
    header = bytearray(_exec())
    struct.pack_into("<I", header, 32, 0)  # argc
    assert native.lib.pcx_exec_check(bytes(header), len(header)) < 0


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_plans_never_read_outside(data: st.DataObject) -> None:
    """Any 32-bit word of a plan replaced: accepted or refused, but no read beyond the buffer."""
    buffer = bytearray(_plan().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(buffer) // 4 - 1)) * 4
        value = data.draw(
            st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 0xFFFFFFFF, len(buffer), 1 << 31]))
        )
        struct.pack_into("<I", buffer, at, value)
    size = data.draw(st.integers(0, len(buffer)))
    assert _check(bytes(buffer)) in (0, -22)
    assert _check(bytes(buffer[:size])) in (0, -22)


@given(st.binary(max_size=512))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused(noise: bytes) -> None:
    assert _check(noise) == -22
    assert native.lib.pcx_exec_check(noise, len(noise)) == -22
    assert native.lib.pcx_security_check(noise, len(noise)) == -22


def test_steps_are_in_the_order_of_the_controls() -> None:
    names = protocol.steps()
    order = [
        "clone",
        "id map",
        "overlay",
        "pivot_root",
        "landlock",
        "capabilities",
        "no_new_privs",
        "seccomp",
        "execve",
    ]
    assert sorted(order, key=names.index) == order


def test_a_source_names_no_fd_of_its_own() -> None:
    """A rootless launcher opens sources by path, so an index left in the plan would select a wrong fd."""
    from pycontain._rootfs.layout import layer_source

    assert layer_source(idmap=True).fd == layer_source(idmap=False).fd == NO_FD
