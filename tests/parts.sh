#!/usr/bin/env bash
# Installs what the tests on real containerd need, once; a second run returns at once.
#
# Debian 12 as root. Three generations of containerd: 1.6 is the machine's own package, 1.7 and 2.1
# come from the packages of later releases, unpacked under target/parts (they need libc alone) without
# touching the machine's apt sources. SPEGEL_PARTS names another directory, to share it between worktrees.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
parts=${SPEGEL_PARTS:-${CARGO_TARGET_DIR:-$here/target}/parts}
log=$parts/install.log
mkdir -p "$parts"

fail() {
    echo "parts.sh: $1; the end of $log says:" >&2
    tail -n 15 "$log" >&2
    exit 1
}

# command:package, for everything the harness calls by name
needed=(containerd:containerd runc:runc ctr:containerd docker-registry:docker-registry skopeo:skopeo
    protoc:protobuf-compiler ip:iproute2 tc:iproute2 nft:nftables curl:curl ps:procps)
missing=()
for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ((${#missing[@]})); then
    # A package that starts its service would leave a containerd of its own running beside the tests'.
    policy=/usr/sbin/policy-rc.d
    made_policy=
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made_policy=yes
    fi
    trap '[[ -z ${made_policy:-} ]] || rm -f "$policy"' EXIT
    export DEBIAN_FRONTEND=noninteractive
    apt-get update >"$log" 2>&1 || fail "apt-get update failed"
    apt-get install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1 || fail "apt-get install ${missing[*]} failed"
fi

# fetch GENERATION SUITE: unpacks the suite's containerd under $parts/containerd-GENERATION
fetch() {
    local root=$parts/containerd-$1 work=$parts/apt-$2
    [[ -x $root/usr/bin/containerd && -x $root/usr/bin/ctr ]] && return
    mkdir -p "$work"/{sources,lists/partial,cache/archives/partial}
    cat >"$work/sources/$2.sources" <<SOURCES
Types: deb
URIs: http://deb.debian.org/debian
Suites: $2
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
    local options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources"
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
        -o Acquire::Languages=none)
    apt-get "${options[@]}" update >>"$log" 2>&1 || fail "apt-get update for $2 failed"
    (cd "$work" && rm -f containerd_*.deb && apt-get "${options[@]}" download containerd) >>"$log" 2>&1 ||
        fail "download of containerd from $2 failed"
    rm -rf "$root.partial"
    dpkg -x "$work"/containerd_*.deb "$root.partial" >>"$log" 2>&1 || fail "unpacking containerd $1 failed"
    rm -rf "$root" && mv "$root.partial" "$root"
    rm -rf "$work"
}
fetch 1.7 trixie
fetch 2.1 forky
