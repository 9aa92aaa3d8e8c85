#!/bin/sh
# Fetches ONNX Runtime, the library that runs the neural models, unless it is there.
#
#   scripts/onnxruntime.sh [DIR] [x64|arm64]   into DIR (.deps/onnxruntime-VERSION beside this script's folder), for this machine
#
# It comes from the npm package onnxruntime-node, which carries the library for Linux; npm is not needed, and none of the package's
# scripts run. The registry is npm's own setting: npm_config_registry, or `registry` in ~/.npmrc, or registry.npmjs.org.
set -eu

version=1.30.0
# Of the package's file: the registry's "integrity" in hexadecimal.
sha512=b7086cd42d82fc1164cf5c9ce4e634288536194aba0d444eee10f86f1e50d90cb79c0309c115d6f31537355733136f5503d96894b3987a9a03f1f8d318e7c8ab
limit=900 # seconds for the download, 113 MB

say() { printf '%s\n' "onnxruntime: $*"; }
fail() {
	printf '%s\n' "onnxruntime: $*" "onnxruntime: without it, set ENLARGER_NEURAL=off: every tool then uses its classical method" >&2
	exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

dir=${1:-$(dirname "$0")/../.deps/onnxruntime-$version}
library=$dir/libonnxruntime.so.1
[ ! -s "$library" ] || exit 0

arch=${2:-$(uname -m)}
[ "$(uname -s)" = Linux ] || fail "the package has the library for Linux only; this is $(uname -s)"
case $arch in
x64 | amd64 | x86_64) arch=x64 ;;
arm64 | aarch64) arch=arm64 ;;
*) fail "the package has no library for $arch, only for x64 and arm64" ;;
esac
have tar || fail "tar is not installed"
have sha512sum || fail "sha512sum is not installed"

# The user's npm settings, as npm reads them: the environment before the file.
registry=${npm_config_registry:-${NPM_CONFIG_REGISTRY:-}}
npmrc=${npm_config_userconfig:-${NPM_CONFIG_USERCONFIG:-${HOME:-}/.npmrc}}
if [ -z "$registry" ] && [ -r "$npmrc" ]; then
	registry=$(sed -n 's/^[[:space:]]*registry[[:space:]]*=[[:space:]]*["'\'']\{0,1\}\([^"'\'']*[^"'\''[:space:]]\).*/\1/p' "$npmrc" | tail -n 1)
fi
registry=${registry:-https://registry.npmjs.org}
url=${registry%/}/onnxruntime-node/-/onnxruntime-node-$version.tgz

mkdir -p "$dir"
work=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
package=$work/package.tgz

# fetch tries the plain way first, and npm where that is refused: only npm knows how to log in to a private registry.
fetch() {
	if have curl && curl -fsSL --retry 2 --max-time $limit -o "$package" "$url"; then return 0; fi
	if have wget && ! have curl && wget -q -t 2 -T 60 -O "$package" "$url"; then return 0; fi
	have npm || return 1
	say "trying with npm"
	(cd "$work" && npm pack --ignore-scripts --silent "onnxruntime-node@$version" >/dev/null) || return 1
	mv "$work/onnxruntime-node-$version.tgz" "$package"
}

say "fetching ONNX Runtime $version ($url, 113 MB) into $dir"
fetch || fail "the download failed. It needs curl, wget or npm, and a way to $registry; set npm_config_registry to use a mirror"
echo "$sha512  $package" | sha512sum -c - >/dev/null 2>&1 || fail "what came from $url is not onnxruntime-node $version: its SHA-512 is another"
tar -xzf "$package" -C "$work" "package/bin/napi-v6/linux/$arch/libonnxruntime.so.1" || fail "the package has no library for $arch"
chmod 644 "$work/package/bin/napi-v6/linux/$arch/libonnxruntime.so.1"
mv "$work/package/bin/napi-v6/linux/$arch/libonnxruntime.so.1" "$library"
say "done"
