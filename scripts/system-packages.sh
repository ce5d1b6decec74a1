#!/bin/sh
# system-packages.sh GROUP...: install the Debian packages of these groups that are missing.
#
# Only what is missing is asked for, and the package lists are refreshed only when something cannot be found. The group
# "build" is needed: without it this fails and says what to do. Of the others, a package that cannot be had is named
# and left out; the tests that need it skip and say so.
set -eu

# One "probe=package" per word: the package counts as present when the command `probe` exists, or dpkg has it.
group() {
    case $1 in
    build) echo "gcc=gcc header:Python.h=python3-dev module:ensurepip=python3-venv libc:static=libc6-dev" ;;
    images) echo "mmdebstrap=mmdebstrap busybox=busybox-static" ;;
    peers) echo "skopeo=skopeo umoci=umoci podman=podman buildah=buildah crun=crun runc=runc bwrap=bubblewrap setfattr=attr setcap=libcap2-bin fsck.erofs=erofs-utils bzip2=bzip2 zstd=zstd docker=docker.io docker-registry=docker-registry dpkg:golang-github-opencontainers-image-spec-dev=golang-github-opencontainers-image-spec-dev openssl=openssl" ;;
    vm) echo "qemu-system-x86_64=qemu-system-x86 mkfs.ext4=e2fsprogs mmdebstrap=mmdebstrap cpio=cpio xz=xz-utils" ;;
    lint) echo "clang=clang" ;;
    cross) echo "aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu dpkg:libc6-dev-arm64-cross=libc6-dev-arm64-cross" ;;
    c-tests) echo "clang=clang valgrind=valgrind $(clang_runtime)" ;;
    bench) echo "docker=docker.io dpkg:golang-github-containers-common=golang-github-containers-common" ;;
    *) echo "system-packages.sh: no such group: $1" >&2; exit 2 ;;
    esac
}

# The sanitizers' runtime is a package of its own, named by the version of clang that this release has.
clang_runtime() {
    major=$(clang -dumpversion 2>/dev/null || apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -n 1)
    major=${major%%.*}
    [ -z "$major" ] || echo "dpkg:libclang-rt-$major-dev=libclang-rt-$major-dev"
}

python=${PYTHON:-python3}

present() { # PROBE PACKAGE
    case $1 in
    header:*) [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)/${1#header:}" ] && return ;;
    module:*) "$python" -c "import ${1#module:}" 2>/dev/null && return ;;
    libc:static) [ -n "$(find /usr/lib -maxdepth 2 -name libc.a 2>/dev/null | head -n 1)" ] && return ;;
    dpkg:*) ;;
    *) command -v "$1" >/dev/null 2>&1 && [ "$2" != busybox-static ] && return ;;
    esac
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$2" 2>/dev/null)" = installed ]
}

missing() { # GROUP...: the packages that are not there, each once
    for name in "$@"; do
        words=$(group "$name")
        for word in $words; do
            present "${word%%=*}" "${word#*=}" || echo "${word#*=}"
        done
    done | sort -u
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >/dev/null 2>&1 </dev/null
}

known() { # PACKAGE...: whether the package lists have them all
    for package in "$@"; do
        apt-cache policy "$package" 2>/dev/null | grep -q 'Candidate: [^(]' || return 1
    done
}

names=$*
wanted=$(missing "$@" | tr '\n' ' ')
[ -n "${wanted% }" ] || exit 0

needed() { # PACKAGES...: fail when something of "build" is still missing
    lacking=$(for name in $names; do [ "$name" != build ] || missing build; done | tr '\n' ' ')
    [ -z "$lacking" ] || { echo "These packages are needed and missing: $lacking- as root: apt-get install $lacking" >&2; exit 1; }
}

if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    needed
    echo "Not installed (needs apt-get and root): $wanted- tests that need them will skip" >&2
    exit 0
fi

echo "Installing: $wanted" >&2
# shellcheck disable=SC2086 # words
known $wanted || apt update || true
# shellcheck disable=SC2086
apt install --no-install-recommends $wanted || {
    apt update || true
    for package in $wanted; do
        apt install --no-install-recommends "$package" || echo "Cannot be had: $package - tests that need it will skip" >&2
    done
}
needed
