"""The container: what users hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from attrs import evolve

from pycontain._model.labels import checked_labels
from pycontain._model.limits import CgroupLimits
from pycontain._model.names import ExtraHosts, NameOptions
from pycontain._model.options import explains_options
from pycontain._model.ports import Ports, port_of
from pycontain._model.ports import published as parse_ports
from pycontain._model.process import ExecResult
from pycontain._model.sizes import parse_cap, parse_duration
from pycontain._model.user import asked_user
from pycontain._objects.exec import Exec, Invocation
from pycontain._objects.image import Default, Image, engine_of
from pycontain._objects.linkage import Networks, linkage_of
from pycontain._objects.options import (
    Mounts,
    check_layer,
    check_values,
    declared_volumes,
    image_of,
    mounts_of,
    whole_command,
)
from pycontain._objects.process import Process, check_terminal, check_text
from pycontain._objects.rootfs import RootFilesystem
from pycontain._runtime import spec as specs
from pycontain._runtime.cancel import cancel_all
from pycontain._runtime.streams import BUFFER, DEVNULL, PIPE, Stream
from pycontain._runtime.users import check_groups, check_known
from pycontain._security.policy import Rlimits, Security
from pycontain.errors import Args, NotFound, UnsupportedError

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._objects.signatures import ExecOptions
    from pycontain._objects.snapshot import Snapshot
    from pycontain._objects.zygote import Zygote
    from pycontain._runtime.cancel import CancelToken

T = TypeVar("T")


class Container(RootFilesystem):
    """A container: private namespaces, a root file system of its own, limits, and no way out.

    image: an `Image`, a `Snapshot`, or the name of an image, which is pulled where the store has none;
    `Image.host()` without one.  command: what it runs, after the image's entrypoint; `Image.DEFAULT` for
    what the image itself runs; without one it idles until `exec`.  memory, cpus, pids: short for fields
    of `limits`; 512M and 128 where none is given.  disk: bytes that the root file
    system may take of the disk, 2G without one, 'unlimited' for none; beyond it every process is killed.
    rlimits: name to value or (soft, hard).  network: 'none', 'host', 'bridge', a `Network` or its name, an
    `Endpoint`, an `Egress`, several of these, or 'container:NAME'.  ports: a port inside, or '53/udp', to one
    of the host, None for a free one.  extra_hosts: names to addresses, or to 'host-gateway', for /etc/hosts.
    dns, dns_search: nameservers and search domains in place of the host's.  volumes, mounts: place inside
    to `Volume`, `Bind`, `Tmpfs` or a path.  tmpfs: places, or place to size.  read_only: no writes but to
    tmpfs.  init: False makes the command PID 1 itself.  lifetime: seconds after which it is ended.
    entrypoint: in place of the image's and of its command; () for none.  shm_size: of /dev/shm, 64M without
    one.  sysctls: parameters of its own namespaces, such as {'net.ipv4.ip_forward': 1}.  group_add: further
    groups of every command, by name or id.  stop_timeout: seconds from the stop
    signal to SIGKILL, 10 without one.

    Used as a context manager it starts at the top and is removed at the end; `start` and `remove`
    do the same.  Everything is checked here, before anything is created: ValueError, LimitError,
    NotFound, UnsupportedError.
    """

    @explains_options("Container")
    def __init__(
        self,
        image: Image | Snapshot | str | None = None,
        command: Args | Default | None = None,
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | os.PathLike[str] | None = None,
        user: str | int | None = None,
        hostname: str | None = None,
        memory: int | str | None = None,
        cpus: float | str | None = None,
        pids: int | str | None = None,
        disk: int | str | None = None,
        limits: CgroupLimits | None = None,
        rlimits: Rlimits | None = None,
        network: Networks = "none",
        ports: Ports | None = None,
        extra_hosts: ExtraHosts | None = None,
        dns: str | Sequence[str] | None = None,
        dns_search: str | Sequence[str] | None = None,
        volumes: Mounts | None = None,
        mounts: Mounts | None = None,
        tmpfs: specs.TmpfsOption | None = None,
        read_only: bool = False,
        init: bool = True,
        security: Security = Security.SANDBOX,
        runtime: str | None = None,
        lifetime: float | timedelta | None = None,
        entrypoint: Args | None = None,
        shm_size: int | str | None = None,
        sysctls: Mapping[str, str | int] | None = None,
        group_add: Iterable[str | int] | str | int | None = None,
        stop_timeout: float | timedelta | None = None,
        labels: Mapping[str, str] | None = None,
        engine: Engine | None = None,
    ) -> None:
        if runtime is not None:
            raise UnsupportedError(
                f"the runtime {runtime!r}", hint="leave it out, since pycontain starts containers itself"
            )
        check_values(name=name, workdir=workdir, hostname=hostname, rlimits=rlimits, security=security)
        check_values(read_only=read_only, init=init)
        who = None if user is None else asked_user(user)
        chosen, asked = specs.limits_of(limits, memory, cpus, pids)
        new = specs.new_id()
        published = parse_ports(ports)
        names = NameOptions.of(extra_hosts, dns, dns_search)
        self._adopt(engine_of(engine))
        linkage, shown_network = linkage_of(self._engine, network, published, names)
        points = specs.mount_points(mounts_of(self._engine, volumes, mounts), tmpfs)
        base = image_of(self._engine, image)
        self._engine.leases.lease_image(base, self)
        for layer in base.directories:
            check_layer(layer)
        if who is not None:
            check_known(base, points, who, self._engine.ids_inside)
        check_groups(self._engine, base, points, group_add)
        spec = specs.ContainerSpec(
            id=new,
            image=base,
            command=whole_command(base, command, entrypoint),
            name=specs.default_name(new) if name is None else name,
            env=env,
            workdir=(base.workdir or "/") if workdir is None else workdir,
            user=base.user if who is None else who,
            hostname=new[:12] if hostname is None else hostname,
            limits=chosen,
            asked=asked,
            rlimits=rlimits or {},
            disk=specs.disk_of(disk),
            mounts=points,
            read_only=read_only,
            init=init,
            network=shown_network,
            linkage=linkage,
            security=security,
            lifetime=lifetime,
            shm_size=shm_size,
            sysctls=sysctls,
            group_add=group_add,
            stop_timeout=stop_timeout,
            labels={**base.labels, **checked_labels(labels)},
        )
        self._engine.enforceable(chosen, asked, security.optional)
        if read_only and base.volumes:
            declared, self._anonymous = declared_volumes(self._engine, base, points)
            spec = evolve(spec, mounts={**declared, **points})
        self._begin(spec)

    @overload
    def exec(
        self, args: Args, *, text: Literal[True] = True, **options: Unpack[ExecOptions]
    ) -> ExecResult[str]: ...

    @overload
    def exec(
        self, args: Args, *, text: Literal[False], **options: Unpack[ExecOptions]
    ) -> ExecResult[bytes]: ...

    @overload
    def exec(self, args: Args, *, text: bool, **options: Unpack[ExecOptions]) -> ExecResult[Any]: ...

    @explains_options("exec")
    def exec(
        self,
        args: Args,
        *,
        input: str | bytes | None = None,
        stdin: Stream = DEVNULL,
        timeout: float | timedelta | None = None,
        check: bool = False,
        text: bool = True,
        encoding: str = "utf-8",
        errors: str = "replace",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | int | None = None,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        max_output: int | str | None = "16M",
        limits: CgroupLimits | None = None,
        shell: bool = False,
        kill_orphans: bool = False,
        cancel: CancelToken | None = None,
    ) -> ExecResult[Any]:
        """Run a command to its end and return what became of it, as subprocess.run does.

        It returns when the command itself ends.  Processes that the command left running go on; what they
        write to its pipes is discarded.

        Args:
            args: the command; one string with shell=True.
            input: text or bytes for its standard input.
            stdin: its standard input instead of `input`: a file, a descriptor, or DEVNULL.
            timeout: seconds until every process of the command is killed.
            max_output: bytes per stream after which it is killed, with reason 'output'; None lifts the cap.
            limits: for this command only.
            user: 'name', 'uid', 'name:group' or 'uid:gid'.
            kill_orphans: kill the processes that it left running when it ends.
            cancel: a token by which another thread ends it, with reason 'cancelled'.

        In a thread that an asyncio task waits for (`asyncio.to_thread`), the command is cancelled with the
        task.  In a thread other than the main one, it is cancelled by a Ctrl-C that nothing handles.

        Raises:
            CommandTimeout: `timeout` passed.
            CommandFailed: with check=True, for every end but status 0.
            CommandNotFound, CommandNotExecutable: it could not be executed (127, 126).
            WorkdirError, NotFound: for a working directory, for a user.
            ContainerEnded: the container ended meanwhile, for the reason that it carries.
            StateError: the container does not run.
            ValueError: for malformed input.
        """
        execution = Exec(
            args,
            stdout,
            stderr,
            text,
            encoding,
            errors,
            input,
            timeout,
            max_output,
            stdin=stdin,
            kill_orphans=kill_orphans,
            cancel=cancel,
        )
        what = Invocation.of(args, shell, env, workdir, user, limits)
        return execution.run(self._awake(), what, check=check)

    @explains_options("popen")
    def popen(
        self,
        args: Args,
        *,
        stdin: Stream = DEVNULL,
        stdout: Stream = BUFFER,
        stderr: Stream = BUFFER,
        pty: bool = False,
        text: bool = True,
        encoding: str = "utf-8",
        errors: str = "replace",
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | int | None = None,
        limits: CgroupLimits | None = None,
        shell: bool = False,
        rows: int = 24,
        columns: int = 80,
        timeout: float | timedelta | None = None,
        max_output: int | str | None = "16M",
    ) -> Process:
        """Start a command and return a `Process` with Popen's verbs.

        With the default BUFFER, `process.stdout` and `process.stderr` can be read, and a command whose output
        is not read never waits for a reader: the last `max_output` bytes of each stream are kept, and
        `process.dropped` counts the rest.  With PIPE nothing is dropped, the command waits for its reader
        when the pipe is full, and the streams have descriptors to wait for.

        Args:
            pty: a terminal of its own instead of pipes, `rows` by `columns`.
            timeout: seconds until every process of the command is killed; `reason` is 'timeout' then.
            max_output: bytes per stream that are kept, and after which `communicate` kills the command with
                reason 'output'; None lifts the cap.

        Raises as `exec` does.
        """
        seconds = None if timeout is None else parse_duration(timeout)
        cap = parse_cap(max_output)
        what = Invocation.of(args, shell, env, workdir, user, limits)
        if text:
            check_text(encoding, errors)
        if pty:
            check_terminal(rows, columns)
        terminal = (rows, columns) if pty else None
        streams = (DEVNULL, DEVNULL, DEVNULL) if pty else (stdin, stdout, stderr)
        execution, ours = what.launch(self._awake(), streams, terminal)
        buffered = [not pty and stream == BUFFER for stream in streams]
        return Process(
            args,
            execution,
            ours,
            text=text,
            encoding=encoding,
            errors=errors,
            buffered=buffered,
            timeout=seconds,
            max_output=cap,
        )

    def cancel(self) -> None:
        """End every command and call that runs in it, with reason 'cancelled'; the container goes on.

        Callable from any thread.  Returns at once; `exec` returns in its own thread when all processes of its
        command are gone.
        """
        cancel_all(self._live())

    @property
    def addresses(self) -> Mapping[str, str]:
        """Its IPv4 address on each of its networks, by the network's name."""
        attached = self._live().attached
        return {} if attached is None else attached.addresses

    @property
    def address(self) -> str | None:
        """Its address on the first of its networks, or None without one."""
        return next(iter(self.addresses.values()), None)

    def port(self, inner: int | str) -> int:
        """The port of the host at which one inside is published.  Raises NotFound, StateError."""
        wanted = port_of(inner)
        attached = self._live().attached
        for one in attached.bound if attached is not None else ():
            if (one.wanted.inner, one.wanted.protocol) == wanted:
                return one.port
        raise NotFound(f"container {self.name} does not publish port {inner}")

    def zygote(self, imports: Sequence[str] = (), *, python: str | None = None) -> Zygote:
        """An interpreter inside that imports these modules once and is forked for each call."""
        from pycontain._objects.zygote import make

        made = make(self, imports, python)
        made.prepare()
        return made

    def call(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        timeout: float | timedelta | None = None,
        limits: CgroupLimits | None = None,
        max_output: int | str | None = "16M",
        types: Sequence[type] = (),
        **keywords: Any,
    ) -> T:
        """Return what the function returns, run in a fork of an interpreter inside; see `Zygote.run`."""
        from pycontain._objects.zygote import default

        return default(self).call(
            function,
            *args,
            timeout=timeout,
            limits=limits,
            max_output=max_output,
            types=types,
            **keywords,
        )

    def __enter__(self) -> Container:
        """Start it, unless it runs already, as forks do."""
        return self if self.status in ("running", "paused") else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.status} image={self.spec.image.name}>"
