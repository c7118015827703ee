"""Container, the central class of the public API."""

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
from pycontain._objects.network_spec import Networks, network_spec_of
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
    from pycontain._objects.engine import Engine
    from pycontain._objects.signatures import ExecOptions, PopenOptions
    from pycontain._objects.snapshot import Snapshot
    from pycontain._objects.zygote import Zygote
    from pycontain._runtime.cancel import CancelToken

T = TypeVar("T")


class Container(RootFilesystem):
    """A container: processes in their own namespaces, with a private root file system and limits.

    As a context manager it is started on entry and removed on exit; `start` and `remove` do the same.
    All options are checked by the constructor, before anything is created.

    Args:
        image: An `Image`, a `Snapshot`, or the name of an image, which is pulled if the store does not have
            it; `Image.host()` by default.
        command: Command of the container, appended to the image's entrypoint; `Image.DEFAULT` for the
            command of the image.  Without one, the container idles until `exec`.
        name: Name of the container.
        env: Environment variables, added to those of the image.
        workdir: Working directory, in place of the image's.
        user: 'name', 'uid', 'name:group' or 'uid:gid', in place of the image's.
        hostname: Host name; the short id by default.
        memory: Bytes, or text such as '256M'; 512M by default.  Short for `limits.memory`.
        cpus: Processors, such as 1.5.  Short for `limits.cpus`.
        pids: Maximum number of tasks, 128 by default.  Short for `limits.pids`.
        disk: Bytes that the root file system may occupy, or text such as '1G'; 2G by default, 'unlimited' for
            no limit.  Above it, all processes are killed.
        limits: Further resource limits.
        rlimits: Resource limit name to a value or (soft, hard), such as {'nofile': (1024, 4096)}.
        network: 'none', 'host', 'bridge', a `Network` or its name, an `Endpoint`, an `Egress`, a sequence of
            these, a `Container` whose network is shared, or 'container:NAME'.
        ports: Container port, or text such as '53/udp', to host port; None for a free host port.
        extra_hosts: Names to addresses for /etc/hosts, or to 'host-gateway'.
        dns: Nameservers, in place of the host's.
        dns_search: Search domains, in place of the host's.
        volumes: Container path to a `Volume`, `Bind`, `Tmpfs` or path of the host.
        mounts: The same as `volumes`.
        tmpfs: Container paths of tmpfs mounts, or container path to size.
        read_only: Make the root file system read-only.
        init: Run an agent as PID 1, which `exec` needs; False makes the command PID 1.
        security: System calls, capabilities and other restrictions.
        runtime: Must be None; it exists for calls written for docker-py.
        lifetime: Seconds, or a timedelta, after which the container is ended.
        entrypoint: Entrypoint, in place of the image's entrypoint and command; () for none.
        shm_size: Size of /dev/shm, 64M by default.
        sysctls: Parameters of the container's namespaces, such as {'net.ipv4.ip_forward': 1}.
        group_add: Names or ids of supplementary groups of every command.
        stop_timeout: Seconds between the stop signal and SIGKILL, 10 by default.
        labels: Labels, added to those of the image.
        engine: The engine to use; the default one of this process without it.

    Raises:
        ValueError: An option is malformed, or options contradict each other.
        TypeError: An option has the wrong type.
        LimitError: A limit is malformed or too small.
        NotFound: An image, user, network or path does not exist.
        UnsupportedError: The host cannot provide what an option needs.
        PullError: The image cannot be pulled.
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
        network_spec, shown_network = network_spec_of(self._engine, network, published, names)
        points = specs.mount_points(mounts_of(self._engine, volumes, mounts), tmpfs)
        base = image_of(self._engine, image)
        self._session.leases.lease_image(base, self)
        for layer in base.directories:
            check_layer(layer)
        if who is not None:
            check_known(base, points, who, self._session.ids_inside)
        check_groups(self._session.ids_inside, base, points, group_add)
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
            network_spec=network_spec,
            security=security,
            lifetime=lifetime,
            shm_size=shm_size,
            sysctls=sysctls,
            group_add=group_add,
            stop_timeout=stop_timeout,
            labels={**base.labels, **checked_labels(labels)},
        )
        self._session.enforceable(chosen, asked, security.optional)
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
        """Run a command, wait for its end and return its result, as subprocess.run does.

        Processes that the command leaves running continue, and their output to its pipes is discarded.

        When an asyncio task waits for the calling thread (`asyncio.to_thread`), cancelling the task cancels
        the command.  In a thread other than the main one, an unhandled Ctrl-C cancels it.

        Args:
            args: The command as a sequence, or one string with `shell=True`.
            input: Text or bytes for standard input.
            stdin: Standard input instead of `input`: a file, a descriptor, or DEVNULL.
            timeout: Seconds after which every process of the command is killed.
            check: Raise CommandFailed for a status other than 0.
            text: Return output as text instead of bytes.
            encoding: Encoding of text.
            errors: Handling of encoding errors, as in `bytes.decode`.
            env: Environment variables, added to those of the container.
            workdir: Working directory; the container's by default.
            user: 'name', 'uid', 'name:group' or 'uid:gid'; the container's by default.
            stdout: PIPE to capture, a file, a descriptor, or DEVNULL.
            stderr: As `stdout`, or STDOUT to combine both.
            max_output: Bytes per stream above which the command is killed, with reason 'output'; None for no
                maximum.
            limits: Resource limits of this command.
            shell: Run the string `args` by /bin/sh.
            kill_orphans: Kill processes that the command left running when it ends.
            cancel: A token by which another thread ends the command, with reason 'cancelled'.

        Raises:
            CommandTimeout: The timeout passed.
            CommandFailed: With `check=True`, the command did not return 0, or its output was cut.
            CommandNotFound: The command does not exist in the image.
            CommandNotExecutable: The command cannot be executed.
            WorkdirError: The working directory does not exist or cannot be entered.
            NotFound: The user does not exist.
            ContainerEnded: The container ended while the command ran.
            StateError: The container is not running.
            ValueError: An argument is malformed.
            TypeError: An argument has the wrong type.
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

    @overload
    def popen(
        self, args: Args, *, text: Literal[True] = True, **options: Unpack[PopenOptions]
    ) -> Process[str]: ...

    @overload
    def popen(
        self, args: Args, *, text: Literal[False], **options: Unpack[PopenOptions]
    ) -> Process[bytes]: ...

    @overload
    def popen(self, args: Args, *, text: bool, **options: Unpack[PopenOptions]) -> Process[Any]: ...

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
        kill_orphans: bool = False,
        cancel: CancelToken | None = None,
    ) -> Process[Any]:
        """Start a command and return a `Process`, which resembles subprocess.Popen.

        With BUFFER, the default, a command whose output is not read never blocks: the last `max_output` bytes
        of each stream are kept for `process.stdout` and `process.stderr`, and `process.dropped` counts the
        rest.  With PIPE nothing is dropped, the command blocks while the pipe is full, and the streams have
        descriptors.

        Args:
            args: The command as a sequence, or one string with `shell=True`.
            stdin: PIPE, a file, a descriptor, or DEVNULL.
            stdout: BUFFER, PIPE, a file, a descriptor, or DEVNULL.
            stderr: As `stdout`, or STDOUT to combine both.
            pty: Give the command a terminal instead of pipes.
            text: Open the streams as text instead of bytes.
            encoding: Encoding of text.
            errors: Handling of encoding errors, as in `bytes.decode`.
            env: Environment variables, added to those of the container.
            workdir: Working directory; the container's by default.
            user: 'name', 'uid', 'name:group' or 'uid:gid'; the container's by default.
            limits: Resource limits of this command.
            shell: Run the string `args` by /bin/sh.
            rows: Height of the terminal.
            columns: Width of the terminal.
            timeout: Seconds after which every process of the command is killed, with reason 'timeout'.
            max_output: Bytes per stream that are kept, and above which `communicate` kills the command with
                reason 'output'; None for no maximum.
            kill_orphans: Kill processes that the command left running, when `wait` or `poll` reports its end.
            cancel: A token by which another thread ends the command, with reason 'cancelled'.

        Raises:
            CommandNotFound: As `exec`; so are the other errors.
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
            kill_orphans=kill_orphans,
            cancel=cancel,
        )

    def cancel(self) -> None:
        """Kill all commands and calls that run in the container, with reason 'cancelled'.

        The container continues.  Any thread may call this.  It returns at once; `exec` returns in its own
        thread when all processes of its command are gone.

        Raises:
            StateError: The container is not running.
        """
        cancel_all(self._live())

    @property
    def addresses(self) -> Mapping[str, str]:
        """IPv4 address of the container on each of its networks, by the name of the network."""
        networks = self._live().networks
        return {} if networks is None else networks.addresses

    @property
    def address(self) -> str | None:
        """IPv4 address of the container on its first network, or None."""
        return next(iter(self.addresses.values()), None)

    def port(self, inner: int | str) -> int:
        """Return the host port of a published container port.

        Args:
            inner: Container port, or text such as '53/udp'.

        Raises:
            NotFound: The port is not published.
            StateError: The container is not running.
            ValueError: The port is malformed.
        """
        wanted = port_of(inner)
        networks = self._live().networks
        for one in networks.bound if networks is not None else ():
            if (one.wanted.inner, one.wanted.protocol) == wanted:
                return one.port
        raise NotFound(f"container {self.name} does not publish port {inner}")

    def zygote(
        self,
        imports: Sequence[str] = (),
        *,
        python: str | None = None,
        initializer: Callable[[], object] | None = None,
        timeout: float | timedelta | None = None,
    ) -> Zygote:
        """Return a Python interpreter in the container that imports modules once and is forked for each call.

        Args:
            imports: Names of the modules.
            python: Path of the interpreter; 'python3' of the image, or the running one in `Image.host()`.
            initializer: Called in the process of each call, before the function.
            timeout: Seconds until the interpreter has imported; none by default.

        Raises:
            CallError: An import failed, or took longer than `timeout`.
            StateError: The container is not running.
        """
        from pycontain._objects.zygote import make

        made = make(self, imports, python, timeout=timeout, initializer=initializer)
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
        """Call a function in the container and return its result.

        The function runs in a fork of an interpreter that the container keeps.  See `Zygote.run` for the
        functions and results that can be sent, and for the errors.

        Args:
            function: The function.
            *args: Positional arguments of the function.
            timeout: Seconds until all processes of the call are killed.
            limits: Resource limits of this call.
            max_output: Maximum number of bytes of standard output, of standard error and of the encoded
                result.
            types: Further classes of which the result may have instances.
            **keywords: Keyword arguments of the function.
        """
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
        """Start the container, unless it is running already, as a fork is."""
        return self if self.status in ("running", "paused") else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Container {self.name} {self.status} image={self.spec.image.name}>"
