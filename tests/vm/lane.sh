#!/bin/bash
# lane.sh: run a command in a throw-away Linux VM with pure cgroup v2 (qemu; no KVM, no network, no mounts on the host).
#   lane.sh build                         make the image unless it is in the cache; prints its directory
#   lane.sh run [-i DIR]... [-o DIR] [-t SECONDS] [-u USER] -- COMMAND...
#     -i DIR      what is in it appears in /src, the command's working directory (repeatable, later ones on top)
#     -o DIR      what the command leaves in $OUT comes back there, with status, uptime and console.log
#     -t SECONDS  limit (default 600)
#     -u USER     "ci" is a plain user (uid 1000) with subuid ranges and a delegated cgroup; default root
# Exit: the command's status; 69 an image cannot be made on this host; 124 the limit; 125 the VM died: see console.log.
# The command's output streams to stdout; what the kernel says goes to console.log.
#
# Needs qemu-system-x86, mmdebstrap, e2fsprogs, busybox, tar, gzip, a Python with pip; as a plain user also uidmap.
# VM_SUITE=bookworm (kernel 6.1, Python 3.11) or trixie (6.12, 3.13). VM_WHEELS: requirements for pip, one a word.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pycontainer-vm}
suite=${VM_SUITE:-bookworm}
packages=${VM_PACKAGES:-python3,busybox-static,libseccomp2,iproute2,nftables,kmod,util-linux,uidmap,procps,attr,libcap2-bin,erofs-utils,xz-utils,gcc,libc6-dev}
wheels=${VM_WHEELS:-}
kernel=linux-image-cloud-amd64
early_modules="virtio_pci virtio_blk virtio_console" # loaded by the initramfs; everything else loads itself in the guest
case $suite in
bookworm) guest_python=3.11 ;;
trixie) guest_python=3.13 ;;
*) echo "lane.sh: VM_SUITE is bookworm or trixie, not $suite" >&2; exit 2 ;;
esac

cannot() { echo "lane.sh: $*" >&2; exit 69; }

# In the new root: fetch this suite's kernel, keep its modules, put those of the initramfs in order into /kboot/m.
# The kernel's package is only unpacked: installing it would bring initramfs-tools along.
in_target() {
    cat <<TARGET
set -e
mkdir -p /kboot/m /src /out /usr/lib/modules
cd /kboot
package=\$(apt-cache depends $kernel | sed -n 's/.*Depends: \(linux-image[^ ]*\).*/\1/p' | head -n 1)
apt-get -qq -o APT::Sandbox::User=root download "\$package"
dpkg-deb -x ./*.deb x
rm ./*.deb
mv x/boot/vmlinuz-* vmlinuz
for modules in x/lib/modules/* x/usr/lib/modules/*; do
    [ ! -d "\$modules" ] || { rm -rf "\$modules/kernel/sound" "\$modules/kernel/drivers/gpu"; mv "\$modules" /usr/lib/modules/; }
done
rm -rf x
version=\$(ls /usr/lib/modules)
depmod "\$version"
number=10
for module in $early_modules; do
    modprobe -S "\$version" --show-depends "\$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p' >list
    while read -r file; do
        name=\$(basename "\$file" .xz)
        [ -z "\$(find m -name "*-\$name")" ] || continue
        case \$file in
        *.xz) xz -dc "\$file" >"m/\$number-\$name" ;;
        *) cp "\$file" "m/\$number-\$name" ;;
        esac
        number=\$((number + 1))
    done <list
done
rm list
useradd -m -u 1000 -s /bin/bash ci
[ ! -d /site ] || { cp -a /site/. /usr/local/lib/python3*/dist-packages/; rm -rf /site; }
python3 -m compileall -q /usr/lib/python3* /usr/local/lib/python3* >/dev/null || :
TARGET
}

image_key() {
    { declare -f make_image in_target; cat "$here/early-init"; echo "$suite $packages $kernel $wheels"; } | sha256sum | cut -c1-12
}

make_image() { # DIR: vmlinuz, initrd.gz and root.ext4 appear in it
    local work=$1 hooks=()
    if [ -n "$wheels" ]; then
        # shellcheck disable=SC2086 # words
        "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-compile --target "$work/site" \
            --only-binary=:all: --implementation cp --python-version "$guest_python" $wheels >&2 || cannot "pip cannot get $wheels"
        rm -rf "$work/site/bin"
        hooks+=("--customize-hook=copy-in $work/site /")
    fi
    export VM_TARGET; VM_TARGET=$(in_target)
    mmdebstrap --quiet --variant=minbase --include="$packages" --format=tar \
        --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "${hooks[@]}" --customize-hook='chroot "$1" sh -c "$VM_TARGET"' \
        "$suite" "$work/root.tar" >&2 || cannot "mmdebstrap cannot make $suite"
    # A plain user does this in a user namespace with all of their ids, so that the owners in the image are right.
    local -a as_root=()
    [ "$(id -u)" = 0 ] || as_root=(unshare --map-auto --map-root-user)
    "${as_root[@]}" bash -euo pipefail -c '
        cd "$1"
        mkdir -p tree early/bin
        tar xf root.tar -C tree --exclude="./dev/*"
        mv tree/kboot/vmlinuz .
        mv tree/kboot/m early/m
        cp tree/bin/busybox early/bin/
        install -m 755 "$2" early/init
        (cd early; find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >initrd.gz
        truncate -s 3G root.ext4
        mkfs.ext4 -q -F -L root -O ^has_journal,^metadata_csum -E lazy_itable_init=1 -m 0 -d tree root.ext4
        chmod 644 vmlinuz initrd.gz root.ext4
        rm -rf tree early root.tar site' - "$work" "$here/early-init"
}

build() { # sets $image
    local tool part
    for tool in mmdebstrap mkfs.ext4 busybox qemu-system-x86_64; do
        command -v "$tool" >/dev/null || cannot "$tool is not installed"
    done
    image=$cache/$suite-$(image_key)
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    if [ ! -d "$image" ]; then
        part=$(mktemp -d "$cache/building.XXXXXX")
        chmod 755 "$part"
        # shellcheck disable=SC2064 # now
        trap "rm -rf '$part'" EXIT
        make_image "$part"
        mv "$part" "$image"
        trap - EXIT
    fi
    touch "$image"
    find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +14 -exec rm -rf {} + # what no key has named for two weeks
    exec 9>&-
}

pack_input() { # DIR USER COMMAND INPUT...: writes DIR/in.img
    local dir=$1 user=$2 command=$3 input
    shift 3
    mkdir -p "$dir/in/vm" "$dir/in/src"
    printf '%s\n' "$command" >"$dir/in/vm/command"
    printf '%s\n' "$user" >"$dir/in/vm/user"
    install -m 755 "$here/guest-init" "$dir/in/vm/guest-init"
    tar cf "$dir/in.img" --owner=0 --group=0 -C "$dir/in" vm src
    for input in "$@"; do
        tar rf "$dir/in.img" --owner=0 --group=0 -C "$input" --exclude=./.git --transform='s,^\.,src,' .
    done
    truncate -s %1M "$dir/in.img"
}

boot() { # DIR SECONDS: returns qemu's status, or 124 or 137 when the limit came first
    local dir=$1 limit=$2
    truncate -s 256M "$dir/out.img"
    # Standard input that never ends: at its end qemu would hang up the port, and the guest's writes would block for ever.
    mkfifo "$dir/stdin"
    exec 8<>"$dir/stdin"
    timeout -k 5 "$limit" qemu-system-x86_64 -M q35 -accel "${VM_ACCEL:-tcg,thread=multi,tb-size=512}" -cpu "${VM_CPU:-max}" \
        -smp 2 -m "${VM_MEMORY:-1024}" -nodefaults -no-user-config -display none -no-reboot -nic none \
        -kernel "$image/vmlinuz" -initrd "$image/initrd.gz" \
        -append "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr noreplace-smp random.trust_cpu=on tsc=reliable ${VM_APPEND:-}" \
        -drive "file=$image/root.ext4,if=virtio,format=raw,snapshot=on,cache=unsafe" \
        -drive "file=$dir/in.img,if=virtio,format=raw,readonly=on" \
        -drive "file=$dir/out.img,if=virtio,format=raw,cache=unsafe" \
        -device virtio-rng-pci -device virtio-serial-pci \
        -chardev stdio,id=o,signal=off -device virtserialport,chardev=o,name=out \
        -serial "file:$dir/console.log" <&8
}

run() {
    local inputs=() output="" limit=600 user=root command status=0
    while [ $# -gt 0 ]; do
        case $1 in
        -i) inputs+=("$2"); shift 2 ;;
        -o) output=$2; shift 2 ;;
        -t) limit=$2; shift 2 ;;
        -u) user=$2; shift 2 ;;
        --) shift; break ;;
        *) break ;;
        esac
    done
    command=$1
    [ $# = 1 ] || printf -v command '%q ' "$@"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    pack_input "$work" "$user" "$command" "${inputs[@]}"
    boot "$work" "$limit" || status=$?
    mkdir "$work/out"
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        status=124
    elif tar xf "$work/out.img" -C "$work/out" 2>"$work/tar.log"; then
        status=$(cat "$work/out/status")
    else
        status=125
        tail -n 20 "$work/console.log" "$work/tar.log" >&2
    fi
    if [ -n "$output" ]; then
        mkdir -p "$output"
        cp -r "$work/out/." "$work/console.log" "$output/"
    fi
    exit "$status"
}

case ${1:-} in
build) build; echo "$image" ;;
run) shift; build; run "$@" ;;
*) sed -n '2,14s/^# \?//p' "$0"; exit 2 ;;
esac
