#!/bin/bash
# Runs every fuzz target for FUZZTIME (20s by default). With a package path as argument, only that package's. Their seeds also run
# in `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${FUZZTIME:-20s}
count=0
for package in $(go list "${1:-./...}"); do
	targets=$(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true)
	for target in $targets; do
		echo "fuzz: $package $target for $fuzztime"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" "$package"
		count=$((count + 1))
	done
done
echo "fuzz: $count targets, no failure"
