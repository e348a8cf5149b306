#!/bin/sh
# The root of the image: root.sh ARCHITECTURE FOLDER
#
# The C library, what goes with it and the certificates of public authorities, as the packages of the Debian release of this machine
# have them: the binary needs that C library or a later one. ARCHITECTURE is Debian's name, amd64 or arm64; another than this machine's is
# fetched with lists of its own and changes nothing here.
set -eu
architecture=$1 folder=$2
packages="libc6 libgcc-s1 ca-certificates"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if [ "$architecture" = "$(dpkg --print-architecture)" ]; then
  get() { apt-get download -q -o APT::Sandbox::User=root $packages; }
  get || { apt-get update -q && get; }
else
  mkdir -p state/lists/partial cache/archives/partial
  apt() {
    apt-get -q -o Dir::State="$work/state" -o Dir::State::status=/dev/null -o Dir::Cache="$work/cache" \
      -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" -o APT::Sandbox::User=root "$@"
  }
  apt update
  apt download $packages
fi

mkdir -p "$folder/usr/lib" "$folder/usr/lib64" "$folder/etc/ssl/certs" "$folder/var/lib/dpkg/status.d"
for empty in dev proc sys tmp; do mkdir -p "$folder/$empty"; done
chmod 1777 "$folder/tmp"
ln -s usr/lib "$folder/lib"
ln -s usr/lib64 "$folder/lib64"
for package in $packages; do
  dpkg-deb -x "$package"_*.deb unpacked
  # What scanners read.
  dpkg-deb -f "$package"_*.deb > "$folder/var/lib/dpkg/status.d/$package"
  mkdir -p "$folder/usr/share/doc/$package"
  cp "unpacked/usr/share/doc/$package/copyright" "$folder/usr/share/doc/$package/" 2>/dev/null ||
    cp unpacked/usr/share/doc/*/copyright "$folder/usr/share/doc/$package/"
done
# Below /usr in later releases, beside it in earlier ones.
for place in lib lib64 usr/lib usr/lib64; do
  [ -d "unpacked/$place" ] || continue
  ( cd "unpacked/$place"
    find . \( -name 'ld-linux*.so.*' -o -name libc.so.6 -o -name libm.so.6 -o -name libgcc_s.so.1 \) \
      -exec cp -P --parents {} "$folder/usr/${place#usr/}" \; )
done
# As update-ca-certificates joins them.
cat unpacked/usr/share/ca-certificates/mozilla/*.crt > "$folder/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0:root:/:/nologin\nsixfold:x:65532:65532:sixfold:/var/lib/sixfold:/nologin\n' > "$folder/etc/passwd"
printf 'root:x:0:\nsixfold:x:65532:\n' > "$folder/etc/group"
printf 'hosts: files dns\n' > "$folder/etc/nsswitch.conf"
