# Files of the test cluster: slurm.conf, environment of jobs, settings. Part of cluster/testbed.
# shellcheck shell=bash disable=SC2154

is_on_loopback() {  # whether this machine's name is one of 127.0.0.1
  [ "$(getent ahostsv4 "$(hostname)" | sed -n '1s/ .*//p')" = 127.0.0.1 ]
}

slurm_conf() {
  local user control_address node_lines communication=""
  user=$(id -un)
  if [ "$mode" = namespaces ]; then
    control_address=$network.254
    node_lines="NodeName=node[1-$nodes] NodeAddr=$network.[1-$nodes]"
  else
    # Makes Slurm listen on the address of this machine's name alone; no other address can be told.
    if is_on_loopback; then
      communication="CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
    fi
    control_address=127.0.0.1
    node_lines="NodeName=node[1-$nodes] NodeHostname=localhost NodeAddr=127.0.0.1"
    node_lines+=" Port=[$((port + 1))-$((port + nodes))]"
  fi
  cat <<CONF
ClusterName=testbed
SlurmctldHost=$(hostname -s)($control_address)
SlurmctldPort=$port
$communication
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: 6 s like this, 121 s by default.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
# One per node: slurmstepd makes a folder in it that is named by the job and step alone.
TmpFS=$folder/tmp/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=pmix
# With a width beyond the nodes of a step, PMIx's fence returns early, and MPI_Init may crash.
TreeWidth=2
KillOnBadExit=1
JobRequeue=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# The nodes are as large as this file says, not as this machine.
SlurmdParameters=config_overrides
# Start a job as soon as it is submitted, and put up with a node as soon as it is back.
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
SlurmdTimeout=$slurmd_timeout
SlurmctldTimeout=5
MessageTimeout=5
TCPTimeout=2
KillWait=2
BatchStartTimeout=5
# Without accounting, scontrol is the only memory of jobs that have ended.
MinJobAge=3600
$node_lines CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

environment() {  # what jobs need; to be sourced before sbatch and srun
  # Inside a job of another cluster: its variables would reach ours.
  cat <<'SHELL'
for name in $(env | sed -n 's/^\(SLURM[A-Z_]*\)=.*/\1/p'); do unset "$name"; done
SHELL
  echo "export SLURM_CONF=$folder/slurm.conf"
  # More ranks than cores: a rank that waits leaves the core to the others; none is bound to one.
  echo "export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none"
  echo "export OMPI_MCA_orte_tmpdir_base=$folder/tmp"
  if [ "$mode" = local ]; then
    # All nodes have this machine's name and /dev/shm, where shared-memory transport would mix them.
    echo "export OMPI_MCA_btl=tcp,self"
    echo "export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo"
  fi
  if [ "$(id -u)" -eq 0 ]; then
    echo "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
  fi
}

settings() { printf '%s=%s\n' mode "$mode" nodes "$nodes" port "$port"; }

write_files() {
  local node
  for node in $(seq -f node%g "$nodes"); do
    mkdir -p "$folder/spool/$node" "$folder/tmp/$node" || return 1
  done
  mkdir -p "$folder/state" "$folder/log" || return 1
  slurm_conf >"$folder/slurm.conf"
  # Lets slurmd start where /sys/fs/cgroup is not mounted; nothing here uses cgroups.
  echo "CgroupPlugin=cgroup/v1" >"$folder/cgroup.conf"
  environment >"$folder/env.sh"
  { echo "127.0.0.1 localhost"; seq "$nodes" | sed "s/.*/$network.& node&/"; } >"$folder/hosts"
  head -c 128 /dev/urandom >"$folder/munge.key"
}
