"""Real servers and clients on networks: PostgreSQL by name, nginx on a published port."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Container, Endpoint, Image, Network, PycontainError, Tmpfs
from tests.support import peers

_POSTGRES = "/usr/lib/postgresql/15/bin"
_PAGE = "served from a container\n"
_NGINX = """
daemon off; pid /srv/pid; error_log /dev/stderr;
events {}
http { access_log /srv/log; server { listen 80; root /srv/www; } }
"""


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Return a Debian image with both servers; PYC_SERVICES names an existing tree."""
    peers.needs("debootstrap")
    if os.geteuid() != 0:
        pytest.skip("debootstrap needs root")
    given = os.environ.get("PYC_SERVICES")
    tree = Path(given) if given else tmp_path_factory.mktemp("debian") / "tree"
    if not given:
        command = [
            "debootstrap",
            "--variant=minbase",
            "--include=postgresql,nginx-light",
            "bookworm",
            str(tree),
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"debootstrap has no mirror here: {made.stdout[-200:]!r}")
    return Image.from_rootfs(tree)


@pytest.fixture
def net() -> Iterator[Network]:
    """Provide a network with a route outside."""
    with Network("pyc-services") as one:
        yield one


def test_psql_finds_postgresql_by_name(debian: Image, net: Network) -> None:
    scratch = {"/srv": Tmpfs(size="256M", mode=0o777)}
    with (
        Container(debian, network=Endpoint(net, aliases=["db"]), tmpfs=scratch, memory="1G") as server,
        Container(debian, network=net) as client,
    ):
        server.exec([f"{_POSTGRES}/initdb", "-D", "/srv/db", "-A", "trust"], check=True, user="postgres")
        server.exec(
            "echo host all all all trust >> /srv/db/pg_hba.conf", shell=True, check=True, user="postgres"
        )
        start = f"{_POSTGRES}/pg_ctl -D /srv/db -w -l /srv/log -o '-k /srv -h 0.0.0.0' start > /dev/null"
        server.exec(start, shell=True, check=True, user="postgres")
        psql = [f"{_POSTGRES}/psql", "-h", "db", "-U", "postgres", "-tAc"]
        ask = "CREATE TABLE t AS SELECT generate_series(1, 100000) AS n; "
        ask += "SELECT sum(n), host(inet_client_addr()) FROM t"
        endpoint = client.exec([*psql, ask], check=True, user="postgres").stdout.split()[-1]
        assert endpoint == f"5000050000|{client.address}"
        net.disconnect(server)
        with pytest.raises(PycontainError):
            client.exec([*psql, "SELECT 1"], check=True, timeout=20, user="postgres")
        net.connect(server, aliases=["db"])
        assert client.exec([*psql, "SELECT 1"], check=True, user="postgres").stdout == "1\n"


def test_nginx_is_published_on_the_host(debian: Image, net: Network) -> None:
    with (
        Container(
            debian,
            network=Endpoint(net, aliases=["web"]),
            ports={80: None},
            tmpfs={"/srv": Tmpfs(mode=0o777), "/var/lib/nginx": Tmpfs(mode=0o777)},
        ) as server,
        Container(network=net) as client,
    ):
        write = f"mkdir /srv/www && printf '{_PAGE[:-1]}\\n' > /srv/www/index.html && cat > /srv/nginx.conf"
        server.exec(write, shell=True, input=_NGINX, check=True, user="www-data")
        nginx = server.popen(
            ["nginx", "-c", "/srv/nginx.conf"], user="www-data"
        )  # port 80, as an unprivileged user
        try:
            url = f"http://127.0.0.1:{server.port(80)}/"
            assert _fetched(url, nginx.poll) == _PAGE
            code = (
                "import urllib.request; print(urllib.request.urlopen('http://web/').read().decode(), end='')"
            )
            assert client.exec(["python3", "-c", code], check=True).stdout == _PAGE
            assert net.gateway in server.exec(["cat", "/srv/log"], check=True).stdout
        finally:
            nginx.kill()
            nginx.wait()
        with pytest.raises(OSError, match=r"reset|refused|closed"):
            urllib.request.urlopen(url, timeout=5)


def _fetched(url: str, ended: object) -> str:
    """Return the page, once the server listens."""
    assert callable(ended)
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            assert ended() is None
