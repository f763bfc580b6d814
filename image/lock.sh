#!/bin/sh
# Renews the lock files. Usage: image/lock.sh path/to/uv
# image/requirements.lock is the runtime; tests/requirements.lock adds what tests and builds need.
set -eu
compile() { "$1" pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade "$2" -o "$3" $4; }
compile "$1" pyproject.toml image/requirements.lock "--extra dashboard"
compile "$1" pyproject.toml tests/requirements.lock "--extra dashboard --group dev --constraints image/requirements.lock"
printf "uv\nhatchling==1.27.0\n" | "$1" pip compile --quiet --universal --generate-hashes --no-header --no-annotate --upgrade - -o image/bootstrap.lock
printf "checkov\nhadolint-bin\ncyclonedx-python-lib[json-validation]\n" | "$1" pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade - -o tests/linters/requirements.lock
