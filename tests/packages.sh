#!/bin/sh
# System packages that the tests use, installed where this user may; each is optional to the library itself.
set -eu
wanted="busybox-static user-mode-linux kmod strace uidmap libseccomp2 gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross libcap2-bin keyutils bubblewrap binutils skopeo umoci docker-registry debootstrap zstd passt slirp4netns nftables iproute2"
test "$(id -u)" = 0 || { echo "packages: not root, using what is there"; exit 0; }
command -v apt-get >/dev/null || { echo "packages: no apt-get, using what is there"; exit 0; }
missing=""
for package in $wanted; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
test -n "$missing" || exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || true
# One by one: a package that an archive lacks must not cost the others.
for package in $missing; do
  apt-get install -qq -y --no-install-recommends "$package" >/dev/null 2>&1 || echo "packages: $package is not to be had"
done
