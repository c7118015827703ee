"""References, digests and platforms: parsing and refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.errors import ImageError, InvalidReference
from pycontain.oci import Descriptor, Digest, Index, Platform, Reference

SHA = "sha256:" + "0a" * 32
HEX = "f" * 64


@pytest.mark.parametrize(
    ("text", "whole", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12"),
        ("index.docker.io/x", "docker.io/library/x:latest", "x:latest"),
        ("index.docker.io/user/x", "docker.io/user/x:latest", "user/x:latest"),
        ("user/x", "docker.io/user/x:latest", "user/x:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
        ("docker.io/localhost/c", "docker.io/localhost/c:latest", "docker.io/localhost/c:latest"),
        (f"docker.io/{HEX}", f"docker.io/library/{HEX}:latest", f"library/{HEX}:latest"),
        ("localhost", "docker.io/library/localhost:latest", "localhost:latest"),
        ("localhost:80", "docker.io/library/localhost:80", "localhost:80"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x:tag", "localhost:5000/x:tag", "localhost:5000/x:tag"),
        (f"ghcr.io/a/b@{SHA}", f"ghcr.io/a/b@{SHA}", f"ghcr.io/a/b@{SHA}"),
        (f"x:1@{SHA}", f"docker.io/library/x:1@{SHA}", f"x:1@{SHA}"),
        ("a.b/c", "a.b/c:latest", "a.b/c:latest"),
        ("10.0.0.1:443/c/d", "10.0.0.1:443/c/d:latest", "10.0.0.1:443/c/d:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("UPPER/x", "UPPER/x:latest", "UPPER/x:latest"),
        ("a__b/c---d.e_f", "docker.io/a__b/c---d.e_f:latest", "a__b/c---d.e_f:latest"),
        ("x:_T.a-G", "docker.io/library/x:_T.a-G", "x:_T.a-G"),
        ("x:" + "t" * 128, "docker.io/library/x:" + "t" * 128, "x:" + "t" * 128),
    ],
)
def test_references_as_docker_reads_them(text: str, whole: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert (str(reference), reference.familiar) == (whole, familiar)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "UPPER x/UPPER a..b a.b..c/x a.b./x a/../b ../a .. . a/./b a//b /a a/ // / : @ x: x@ :tag "
            "a:b:c a:b/c: -a a- _a a_ .a a. a___b a_-b a.-b a-.b/x -a.b/x a.b:/x a.b:123456/x a.b:x/y "
            "http://a.b/c a@b x:.t x:-t [::1/x [z]/x"
        ).split(),
        "",
        " ",
        " debian",
        "debian ",
        "debian\n",
        "deb\tian",
        "a b",
        "x:a b",
        "x\0",
        HEX,
        "x:" + "t" * 129,
        f"x:@{SHA}",
        f"x@{SHA}@{SHA}",
        f"x@{SHA.upper()}",
        f"x@{SHA}0",
        "x@md5:" + "0" * 32,
        "d\u0435bian",  # a Cyrillic e
        "debian\u200b",
        "ｄebian",  # noqa: RUF001
        "x:\u0661",
        "x" * 100_000,
    ],
)
def test_invalid_references(text: str) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse(text)


@pytest.mark.parametrize("value", [None, 1, b"debian", ["debian"]])
def test_references_must_be_text(value: object) -> None:
    with pytest.raises(InvalidReference):
        Reference.parse(value)  # type: ignore[arg-type]


def test_length_limit_includes_implied_parts() -> None:
    room = 255 - len("docker.io/library/")
    assert len(Reference.parse("a" * room).name) == 255
    assert len(Reference.parse("a.b/" + "c" * 251).name) == 255
    for long in ("a" * (room + 1), "a.b/" + "c" * 252):
        with pytest.raises(InvalidReference):
            Reference.parse(long)


_PART = st.from_regex(r"[a-z0-9]{1,8}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
_HOSTS = st.one_of(
    st.sampled_from(["docker.io", "index.docker.io", "localhost", "localhost:5000", "[fe80::1]:80", "UP"]),
    st.from_regex(r"[a-zA-Z0-9]{1,9}(?:\.[a-zA-Z0-9]{1,9}){1,3}(?::[0-9]{1,5})?", fullmatch=True),
)
_NAMED = st.builds(
    lambda host, parts, tag, digest: f"{host}{'/'.join(parts)}{tag}{digest}",
    st.one_of(st.just(""), _HOSTS.map(lambda host: host + "/")),
    st.lists(
        st.one_of(st.sampled_from(["library", HEX, "localhost", "docker.io"]), _PART), min_size=1, max_size=4
    ),
    st.one_of(st.just(""), st.from_regex(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)),
    st.sampled_from(["", f"@{SHA}", "@sha512:" + "b" * 128]),
)


@given(st.one_of(_NAMED, st.text(), st.text("ab./:@-_ AZ\n", max_size=20)))
def test_reference_round_trip(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    if HEX not in text:  # with a registry an id may be a name; printing keeps the registry
        assert Reference.parse(reference.familiar) == reference
    assert Reference.parse(str(reference)) == reference
    assert reference.tag or reference.digest
    assert len(reference.name) <= 255
    assert not {"", ".", ".."} & set(reference.repository.split("/"))
    assert str(reference).isascii()
    assert str(reference).isprintable()


@given(_NAMED)
def test_pinned_reference_has_only_the_digest(text: str) -> None:
    try:
        reference = Reference.parse(text).pinned(Digest(SHA))
    except InvalidReference:
        return
    assert str(reference) == f"{reference.name}@{SHA}"
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize("text", [SHA, "sha512:" + "0b" * 64])
def test_digests(text: str) -> None:
    digest = Digest(text)
    assert digest == text
    assert f"{digest.algorithm}:{digest.hex}" == text
    assert digest.hasher().name == digest.algorithm
    assert Digest.of(b"x").matches(Digest.of(b"y").hasher()) is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        HEX,
        SHA[:-1],
        SHA + "0",
        SHA.upper(),
        "SHA256:" + HEX,
        "sha256:" + "F" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "\u0661" * 64,
        "sha256:" + "0" * 63 + "\n",
        SHA + "\n",
        " " + SHA,
        "sha256:../" + "0" * 61,
        "sha512:" + HEX,
        "sha256:" + "0" * 128,
        "sha384:" + "0" * 96,
        "md5:" + "0" * 32,
        "sha256+b64:" + HEX,
        None,
        7,
        SHA.encode(),
    ],
)
def test_invalid_digests(text: object) -> None:
    with pytest.raises(ImageError):
        Digest(text)  # type: ignore[arg-type]


@given(st.text())
def test_no_text_is_a_digest_by_accident(text: str) -> None:
    for one in (text, f"sha256:{text}", f"{SHA}{text}" if text else "", f"{text}:{HEX}"):
        with pytest.raises(ImageError):
            Digest(one)


@given(st.binary())
def test_digests_of_bytes(data: bytes) -> None:
    digest = Digest.of(data)
    hasher = digest.hasher()
    hasher.update(data)
    assert digest.matches(hasher)
    assert Digest(str(digest)) == digest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("x86-64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("Linux/ARM64/v8", "linux/arm64"),
        ("arm", "linux/arm/v7"),
        ("armhf", "linux/arm/v7"),
        ("armel", "linux/arm/v6"),
        ("linux/arm/v5", "linux/arm/v5"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/V8", "linux/arm64"),
        ("linux/amd64/1", "linux/amd64"),
        ("linux/amd64/v2", "linux/amd64/v2"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("i686", "linux/386"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_platforms(text: str, said: str) -> None:
    platform = Platform.parse(text)
    assert str(platform) == said
    assert Platform.parse(said) == platform


@pytest.mark.parametrize(
    "text", ["", "/", "linux/", "/amd64", "a/b/c/d", "linux/a b", "linux/é", "a/../b", None, 1]
)
def test_invalid_platforms(text: object) -> None:
    with pytest.raises(ImageError):
        Platform.parse(text)  # type: ignore[arg-type]


@given(st.one_of(st.text(), st.text("abv678/_-", max_size=16)))
def test_platform_round_trip(text: str) -> None:
    try:
        platform = Platform.parse(text)
    except ImageError:
        return
    assert Platform.parse(str(platform)) == platform
    assert platform.serves(platform)
    assert platform.normal() == platform


def _index(*platforms: str) -> Index:
    """Return an index of these platforms.  "-" stands for none, "?" for an attestation of buildkit."""
    entries = []
    for at, text in enumerate(platforms):
        named = {"-": None, "?": Platform("unknown", "unknown")}
        platform = named[text] if text in named else Platform.parse(text)
        notes = {"vnd.docker.reference.type": "attestation-manifest"} if text == "?" else {}
        entries.append(
            Descriptor(media_type="m", digest=Digest(SHA), size=at, platform=platform, annotations=notes)
        )
    return Index(media_type="i", manifests=tuple(entries), raw=b"")


@pytest.mark.parametrize(
    ("wanted", "there", "chosen"),
    [
        ("amd64", "arm64 amd64", 1),
        ("amd64", "amd64 amd64", 0),
        ("amd64", "linux/amd64/v2 amd64", 1),
        ("amd64", "linux/amd64/v2 linux/amd64/v3", None),
        ("linux/amd64/v3", "amd64 linux/amd64/v2 linux/amd64/v4", 1),
        ("linux/amd64/v3", "amd64", 0),
        ("arm/x", "arm64", None),
        ("linux/arm/v7", "linux/arm/v5 linux/arm/v6 arm64", 1),
        ("linux/arm/v7", "linux/arm/v5 linux/arm/v7 linux/arm/v6", 1),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/arm/v6", "linux/arm/v7 linux/arm/v5", 1),
        ("linux/arm/v8", "linux/arm/v6 linux/arm/v7", 1),
        ("arm64", "linux/arm/v7", None),
        ("arm64", "linux/arm64/v8", 0),
        ("arm64", "linux/arm64/v9", None),
        ("386", "amd64", None),
        ("amd64", "? amd64 ?", 1),
        ("amd64", "?", None),
        ("unknown/unknown", "?", None),
        ("amd64", "- arm64", 0),
        ("amd64", "- amd64", 1),
        ("amd64", "windows/amd64", None),
        ("amd64", "", None),
    ],
)
def test_the_manifest_for_a_platform(wanted: str, there: str, chosen: int | None) -> None:
    index = _index(*there.split())
    if chosen is None:
        with pytest.raises(ImageError, match="is not available for"):
            index.choose(Platform.parse(wanted))
    else:
        assert index.choose(Platform.parse(wanted)).size == chosen
