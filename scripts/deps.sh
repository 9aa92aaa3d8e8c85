#!/bin/sh
# Installs what enlarger needs and is not there yet.
#
#   scripts/deps.sh run    what `make run` needs: ffmpeg, a C compiler (WebP is a C library), libjpeg-turbo, curl, certificates, ONNX Runtime
#   scripts/deps.sh test   all of that, and the servers that tests start for themselves: PostgreSQL and Redis
#
# Says what it installs and why, does nothing when nothing is missing, and never downloads a Go toolchain.
# The versions are those of Debian 12, which is what enlarger is measured on; on another release its own versions are taken.
set -eu

purpose=${1:-test}
case $purpose in run | test) ;; *) echo "usage: $0 run|test" >&2; exit 2 ;; esac

say() { printf '%s\n' "deps: $*"; }
fail() { printf '%s\n' "deps: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# initdb is not on Debian's PATH, so that several versions of PostgreSQL can live side by side.
have_postgres() {
	if have initdb && have postgres; then return 0; fi
	for bin in /usr/lib/postgresql/*/bin; do
		if [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ]; then return 0; fi
	done
	return 1
}

# ldconfig is not on everyone's PATH either.
ldconfig_has() { PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -q -F "$1"; }

have go || fail "Go is not installed. enlarger needs Go 1.26 or newer: https://go.dev/doc/install"

# neural fetches the library that runs the neural models, unless the caller has one of his own or wants none.
neural() {
	[ "${ENLARGER_NEURAL:-auto}" != off ] || return 0
	[ -z "${ENLARGER_ONNXRUNTIME:-}" ] || return 0
	"$(dirname "$0")/onnxruntime.sh"
}

# A line a piece: package, the version wanted on Debian 12, why.
missing=
need() { missing="$missing$1|$2|$3
"; }
{ have ffmpeg && have ffprobe; } || need ffmpeg '7:5.1.*' "decodes and encodes video, measures every source"
{ have gcc && have cc; } || need gcc '4:12.2.*' "compiles the WebP codec, which is a C library"
[ -e /usr/include/stdlib.h ] || need libc6-dev '2.36-*' "the C library's headers, for the same"
[ -s /etc/ssl/certs/ca-certificates.crt ] || need ca-certificates '20230311*' "lets the server fetch https:// sources"
ldconfig_has libturbojpeg.so.0 || need libturbojpeg0 '1:2.1.*' "decodes and encodes JPEG several times faster than Go"
have curl || need curl '7.88.*' "talks to the API in the demonstration"
if [ "$purpose" = test ]; then
	have_postgres || need postgresql-15 '15.*' "tests start a private PostgreSQL"
	have redis-server || need redis-server '5:7.0.*' "tests start a private Redis"
fi
if [ -z "$missing" ]; then
	neural
	exit
fi

ID='' VERSION_ID=''
# shellcheck disable=SC1091 # the file is the system's
[ ! -r /etc/os-release ] || . /etc/os-release
pinned=no
[ "$ID/$VERSION_ID" != debian/12 ] || pinned=yes

packages=
say "to install:"
while IFS='|' read -r package version why; do
	[ -n "$package" ] || continue
	if [ $pinned = no ]; then
		# Other releases number PostgreSQL differently; the plain name is their current one.
		[ "$package" != postgresql-15 ] || package=postgresql
	fi
	say "  $package - $why"
	if [ $pinned = yes ]; then packages="$packages $package=$version"; else packages="$packages $package"; fi
done <<LIST
$missing
LIST

have apt-get || fail "this system has no apt-get. Install the packages above (ffmpeg 5.1 or newer) with its own package manager, then run this again."
[ $pinned = yes ] || say "this is not Debian 12: taking the versions of this system, with which enlarger is not measured"

root=
if [ "$(id -u)" != 0 ]; then
	if have sudo; then
		root=sudo
	else
		fail "not root and no sudo. As root, run: apt-get update && apt-get install --no-install-recommends$packages"
	fi
fi

# As root: install without starting or enabling a server and without making a database cluster, for the tests start their own.
# Two files say so to Debian's packages while they install; both are removed at the end, and an existing one is left alone.
say "running apt-get${root:+ through sudo}"
# The stars in the versions are apt's, not the shell's.
set -f
# shellcheck disable=SC2086 # each package is a word
$root sh -s -- $packages <<'AS_ROOT' || fail "apt-get failed. By hand, as root: apt-get update && apt-get install --no-install-recommends$packages"
set -eu
policy=/usr/sbin/policy-rc.d
cluster=/etc/postgresql-common/createcluster.d/enlarger-deps.conf
made=
cleanup() {
	for file in $made; do rm -f "$file"; done
	rmdir "${cluster%/*}" 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 1' INT TERM
if [ ! -e $policy ]; then
	made="$made $policy"
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
fi
mkdir -p "${cluster%/*}"
made="$made $cluster"
echo 'create_main_cluster = false' >$cluster
redis=absent
[ ! -e /usr/bin/redis-server ] || redis=present
export DEBIAN_FRONTEND=noninteractive
# Lists that are there may be stale, so a first failure is worth one update.
quick() { apt-get install -y -q --no-install-recommends -o Dpkg::Use-Pty=0 "$@" </dev/null; }
ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 && quick "$@" || { apt-get update -q </dev/null && quick "$@"; }
if [ $redis = absent ] && [ -e /usr/bin/redis-server ]; then
	update-rc.d redis-server disable >/dev/null 2>&1 || true
fi
AS_ROOT
say "done"
neural
