#!/bin/sh
# Make the seeds of the layer fuzzer in directory $1: one archive for each tar format, and one of hostile members.
# Each starts with the byte that chooses the target's options.
set -eu
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/tree/dir/sub"
cd "$work/tree"
echo content >file
ln file dir/hard
ln -s ../file dir/symlink
mkfifo dir/fifo
chmod 4755 file
long=long$(printf '%0120d' 7)
echo x >"dir/sub/$long"
ln -s "$long$long" dir/long-link
: >.wh.gone
: >dir/.wh..wh..opq
truncate -s 300000 sparse
printf data | dd of=sparse bs=1 seek=131072 conv=notrunc 2>/dev/null
printf tail | dd of=sparse bs=1 seek=299000 conv=notrunc 2>/dev/null
setfattr -n user.test -v value file 2>/dev/null || true
seed() { { printf "$1"; tar -b 1 "$3" "$4" "$5" -cf - --sort=name .; } >"$out/$2"; }
seed '\000' ustar --format=ustar --exclude=sparse '--exclude=*long*'
seed '\000' gnu --format=gnu --sparse --no-xattrs
seed '\200' pax --format=posix --sparse --xattrs
seed '\001' pax-0.1 --format=posix --sparse-version=0.1 --xattrs
seed '\002' pax-0.0 --format=posix --sparse-version=0.0 --xattrs
seed '\000' v7 --format=v7 --exclude=fifo '--exclude=*long*'
cd ..
mkdir -p plain
ln -s .. plain/up
echo inside >plain/inside
{ printf '\000'; tar -b 1 -cf - -P --transform='s,plain/inside,plain/up/up/canary,' plain/up plain/inside; } >"$out/climbing"
{ printf '\000'; tar -b 1 -cf - -P --transform='s,^plain,../plain,' plain; } >"$out/dots"
{ printf '\040'; tail -c +2 "$out/pax"; } >"$out/half-pax"
{ printf '\140'; tail -c +2 "$out/pax"; tail -c +2 "$out/pax"; } >"$out/two"
# Two layers, both padded to one size: files in what is a link below, in what is a link to itself, whiteouts, hard links.
mkdir -p low/usr/lib low/d high
ln -s usr/lib low/lib
ln -s loop low/loop
echo x >low/d/file
ln low/d/file low/kept
mkdir -p high/lib high/d high/new
echo y >high/lib/file
: >high/.wh.kept
: >high/d/.wh.file
: >high/new/.wh..wh..opq
tar -b 20 -C low -cf low.tar .
tar -b 20 -C high --no-recursion -cf high.tar lib/file .wh.kept d/.wh.file new/.wh..wh..opq
tar -b 20 -C high --no-recursion --transform='s,lib/,loop/,' -cf loop.tar lib/file
{ printf '\140'; cat low.tar high.tar; } >"$out/linked"
{ printf '\140'; cat low.tar loop.tar; } >"$out/loop"
