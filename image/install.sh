#!/bin/sh
# Installs a list of Debian packages without what no pod needs. Usage: image/install.sh LIST
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update
sed 's/#.*//' "$1" | xargs apt-get install -y --no-install-recommends \
  -o Dpkg::Options::=--path-exclude='/usr/share/locale/*' -o Dpkg::Options::=--path-exclude='/usr/share/man/*' \
  -o Dpkg::Options::=--path-exclude='/usr/share/doc/*' -o Dpkg::Options::=--path-include='/usr/share/doc/*/copyright'
# Static libraries, sanitizers, the link-time optimiser, the profiler: torch.compile makes shared objects without them.
# The small static ones are stubs that the linker looks for by name.
find /usr/lib -name '*.a' -size +100k ! -name 'libgcc*.a' -delete
find /usr/lib /usr/libexec \( -name 'lib*san.so*' -o -name 'lib*san_preinit.o' -o -name 'libgprofng*' -o -name gprofng \
  -o -name lto1 -o -name g++-mapper-server \) -exec rm -rf {} +
rm -rf /usr/bin/gp-* /usr/bin/gprofng* /usr/bin/*lto-dump* /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old
