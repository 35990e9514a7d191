#!/bin/bash
# weight_loading.sh PROGRAM [RATE] [MODEL]: how long loading takes when all hosts read from one file server behind a link of
# RATE (100mbit). Compares every host reading the whole checkpoint with latentmesh, whose ranks read each byte once and
# pass it on. 3 hosts and a file server (sshfs without ssh) as network namespaces; wants root, sshfs, socat, sftp-server.
set -u
export PROGRAM=$1
rate=${2:-100mbit}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
model=$(readlink -f "${3:-$root/launch/demo}")
. "$root/tests/cluster/hosts.sh"
sftp=/usr/lib/openssh/sftp-server
[ -x $sftp ] && command -v sshfs > /dev/null && command -v socat > /dev/null || hosts_skip "sshfs, socat or sftp-server is not installed"
hosts_create 4
server=node3

mount_on() {
  mkdir -p "$hosts_files/mnt-$1"
  # ip netns exec would mount where nobody else looks.
  nsenter --net="/run/netns/$hosts_prefix-$1" sshfs -o directport=7777,ro,kernel_cache 10.77.0.4:"$model" "$hosts_files/mnt-$1" || hosts_skip "sshfs does not mount here"
  hosts_cleanup=("umount -l $hosts_files/mnt-$1" "${hosts_cleanup[@]}")
}
remount() {
  local node
  for node in node0 node1 node2; do
    umount "$hosts_files/mnt-$node" 2> /dev/null
    mount_on $node
  done
}
sent() { ip netns exec "$hosts_prefix-$server" cat /sys/class/net/eth0/statistics/tx_bytes; }
now() { date +%s%N; }
report() { awk -v name="$1" -v ns="$2" -v bytes="$3" -v size="$size" \
  'BEGIN { printf "%-34s %7.2f s  %8.2f MB from the server (%.2f times the checkpoint)\n", name, ns / 1e9, bytes / 1e6, bytes / size }'; }

# ip netns exec shows each host its own /sys, so that the counters are the namespace's.
hosts_on $server socat TCP-LISTEN:7777,fork,reuseaddr EXEC:$sftp 2> /dev/null &
sleep 0.5
hosts_limit $server "$rate"
cat > "$hosts_files/on_own_mount" <<SCRIPT
#!/bin/bash
exec "$PROGRAM" "\$@" --model "$hosts_files/mnt-\$(hostname)"
SCRIPT
chmod +x "$hosts_files/on_own_mount"
size=$(cat "$model"/*.safetensors | wc -c)
echo "checkpoint $size bytes, server link $rate, 3 hosts"

for round in 1 2 3; do
  remount
  before=$(sent) start=$(now)
  jobs=()
  for node in node0 node1 node2; do
    hosts_on $node bash -c "cat $hosts_files/mnt-$node/*.safetensors > /dev/null" &
    jobs+=($!)
  done
  wait "${jobs[@]}"
  report "every host reads all" $(($(now) - start)) $(($(sent) - before))

  remount
  before=$(sent)
  PROGRAM=$hosts_files/on_own_mount hosts_mpirun 3 1 generate --dp 3 --threads 1 --prompt-ids 1 --max-tokens 1 --temperature 0 \
    > "$hosts_files/out" 2> "$hosts_files/err" || { cat "$hosts_files/err"; exit 1; }
  seconds=$(sed -n 's/.*loaded .* in \([0-9.]*\) s.*/\1/p' "$hosts_files/err")
  report "latentmesh, until loaded" "$(awk -v s="$seconds" 'BEGIN { printf "%d", s * 1e9 }')" $(($(sent) - before))
done
