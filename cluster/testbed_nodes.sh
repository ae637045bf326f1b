# Network and nodes of the test cluster. Part of cluster/testbed.
# shellcheck shell=bash disable=SC2154

control() {  # control COMMAND...: where the controller is, and all clients have to be
  if [ "$mode" = namespaces ]; then
    nsenter --target "$(daemons_of network)" --net -- "$@"
  else
    "$@"
  fi
}

client() { SLURM_CONF=$folder/slurm.conf control timeout 5 "$@" 2>/dev/null; }

network_is_ready() { [ -n "$(daemons_of network | named sleep)" ]; }

start_network() {  # the controller's network: a namespace that lives as long as its processes
  start_daemon network unshare --net sleep infinity
  wait_until network_is_ready || return 1
  control ip link set lo up && control ip link add bridge0 type bridge &&
    control ip address add "$network.254/24" dev bridge0 && control ip link set bridge0 up
}

start_node_namespaces() {  # start_node_namespaces I
  local node=node$1 init hardware
  # Killing process 1 ends every process of its pid namespace: a power failure.
  # shellcheck disable=SC2016
  start_daemon "$node" unshare --net --uts --mount --pid --fork --kill-child --mount-proc \
    bash -c 'hostname "$0" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$1" /etc/hosts &&
      ip link set lo up && touch "$2" && { sleep infinity & wait; }' \
    "$node" "$folder/hosts" "$folder/$node.ready"
  wait_until test -e "$folder/$node.ready" || return 1
  rm -f "$folder/$node.ready"
  init=$(node_init "$node")
  control ip link delete "link$1" 2>/dev/null  # of a node that has just died
  # Its network card keeps its address when it comes back: the others remember that.
  hardware=$(printf '02:00:00:00:00:%02x' "$1")
  control ip link add "link$1" type veth peer name eth0 address "$hardware" netns "$init" &&
    control ip link set "link$1" master bridge0 up &&
    nsenter --target "$init" --net -- ip address add "$network.$1/24" dev eth0 &&
    nsenter --target "$init" --net -- ip link set eth0 up
}

start_node() {  # start_node I: what of it does not run
  local node=node$1 enter=()
  if [ "$mode" = namespaces ]; then
    if [ -z "$(node_init "$node")" ]; then start_node_namespaces "$1" || return 1; fi
    # Not `ip netns exec`, which would mount another /sys.
    enter=(nsenter --target "$(node_init "$node")" --mount --uts --net --pid)
  fi
  # With a relative path it would register, but never start a batch script.
  start_daemon "$node" "${enter[@]}" slurmd -D -N "$node" -f "$folder/slurm.conf"
}

node_answers() {  # node_answers NODE: Slurm would put jobs on it
  [ -n "$(slurmd_of "$1")" ] &&
    client sinfo -h -n "$1" -o %T | grep -qE '^(idle|mixed|allocated|completing)$'
}

kill_node() {  # kill_node I
  local node=node$1
  if [ "$mode" = namespaces ]; then
    # A dead machine says goodbye to nobody: first the network, so that no connection is closed.
    control ip link set "link$1" down 2>/dev/null
  fi
  wait_until ended "$node"
}
