#!/usr/bin/env bash
# Debian's Slurm, munge and shellcheck, for the tests of real Slurm jobs. Installs nothing where they are there already.
# Needs root and apt-get; exit code 3, with the reason, where these are missing. No daemon is started.
set -euo pipefail

missing=()
for command in slurmctld slurmd sbatch munged shellcheck; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null || missing+=("$command")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  echo "missing: ${missing[*]}: they are installed by root with apt-get, which is not possible here" >&2
  exit 3
fi

# Debian starts the daemons of a package at once, if this file does not forbid it.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge shellcheck
