# Which processes are the test cluster's: found, started, ended. Part of cluster/testbed.
# shellcheck shell=bash disable=SC2154

# There are no pid files: a pid may be somebody else's by the time it is read. What a process is,
# its starting environment says, /proc/PID/environ:
#   started here           TESTBED_PART: the folder and the part of the cluster (munged, node1 ...)
#   slurmstepd             SLURM_CONF: the folder; its log, which it holds open, tells the node
#   ranks, batch scripts   SLURM_CONF and SLURMD_NODENAME

having() {  # having VARIABLE=VALUE [FILES]: the files (environ of all processes) that have the line
  local line=$1
  shift
  if [ $# -eq 0 ]; then set -- /proc/[0-9]*/environ; fi
  grep -lzxF -- "$line" "$@" 2>/dev/null
}

pids_of() { sed -E 's|^/proc/([0-9]+)/environ$|\1|'; }

daemons_of() { having "TESTBED_PART=$folder:$1" | pids_of; }  # daemons_of PART

jobs_of() {  # jobs_of NODE: slurmstepds, batch scripts and ranks
  local file pid
  for file in $(having "SLURM_CONF=$folder/slurm.conf"); do
    pid=$(pids_of <<<"$file")
    if [ -n "$(having "SLURMD_NODENAME=$1" "$file")" ] || is_stepd_of "$1" "$pid"; then
      echo "$pid"
    fi
  done
}

is_stepd_of() {  # is_stepd_of NODE PID
  [ -n "$(named slurmstepd <<<"$2")" ] &&
    [ -n "$(find "/proc/$2/fd/" -lname "$folder/log/slurmd-$1.log" 2>/dev/null)" ]
}

processes() {  # processes PART: pids of all its processes
  daemons_of "$1"
  case $1 in node*) jobs_of "$1" ;; esac
}

named() {  # named COMMAND_NAME: of the pids read, those of processes with that name
  local pid name
  while read -r pid; do
    if read -r name 2>/dev/null <"/proc/$pid/comm" && [ "$name" = "$1" ]; then echo "$pid"; fi
  done
}

no_slurmd() { [ -z "$(slurmd_of "$1")" ]; }

slurmd_of() { daemons_of "$1" | named slurmd; }

node_init() {  # node_init NODE: process 1 of its pid namespace (as seen from outside)
  local pid children
  for pid in $(daemons_of "$1" | named unshare); do
    read -r children 2>/dev/null <"/proc/$pid/task/$pid/children"
    echo "${children:-}" | tr -d ' '
  done
}

ended() {  # ended PART: no process of it is left; those that are, are sent SIGKILL
  local pids
  mapfile -t pids < <(processes "$1")
  if [ ${#pids[@]} -eq 0 ]; then return 0; fi
  kill -KILL "${pids[@]}" 2>/dev/null
  return 1
}

parts() { seq -f node%g "$nodes"; printf '%s\n' slurmctld munged network; }

running_parts() {  # those of which any process lives
  local part
  for part in $(parts); do
    if [ -n "$(processes "$part")" ]; then echo "$part"; fi
  done
}

all_processes() {  # pids of all parts and jobs; not of a guard that is taking the cluster down
  local files pid
  mapfile -t files < <(grep -lz "^TESTBED_PART=${folder//./\\.}:" /proc/[0-9]*/environ 2>/dev/null)
  if [ "${TESTBED_PART:-}" = "$folder:guard" ] && [ ${#files[@]} -gt 0 ]; then
    mapfile -t files < <(grep -LzxF "TESTBED_PART=$folder:guard" "${files[@]}" 2>/dev/null)
  fi
  printf '%s\n' "${files[@]}" | pids_of
  mapfile -t files < <(having "SLURM_CONF=$folder/slurm.conf")
  if [ ${#files[@]} -eq 0 ]; then return; fi
  grep -lzx 'SLURMD_NODENAME=node[0-9]*' "${files[@]}" 2>/dev/null | pids_of
  printf '%s\n' "${files[@]}" | pids_of | named slurmstepd
}

all_ended() {  # no process is left; those that are, are sent SIGKILL
  local pids
  mapfile -t pids < <(all_processes | grep .)
  if [ ${#pids[@]} -eq 0 ]; then return 0; fi
  kill -KILL "${pids[@]}" 2>/dev/null
  return 1
}

start_daemon() {  # start_daemon PART COMMAND...: in the background, apart from this terminal
  # 9 is the lock of the folder, which must not live as long as the daemon.
  local part=$1
  shift
  env -i PATH="$PATH" TESTBED_PART="$folder:$part" setsid "$@" \
    </dev/null >>"$folder/log/$part.out" 2>&1 9>&- &
  disown
}
