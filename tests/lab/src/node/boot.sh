# Runs in a node's guest after its kernel is up: pod network, containerd, images, kubelet.
set -eu
. /lab/node/environment

printf '%032x\n' "$NODE_INDEX" >/etc/machine-id
# A machine whose boot ID is not drawn anew at each boot: some hypervisors restore it.
if [ -e /lab/node/boot_id ]; then
    mount --bind /lab/node/boot_id /proc/sys/kernel/random/boot_id
fi
printf '127.0.0.1 localhost\n%s %s\n' "$NODE_IP" "$NODE_NAME" >/etc/hosts
# kubelet reads the clock rate from a line that this architecture does not print.
awk '{print} /^model name/ {print "cpu MHz\t\t: 2000.000"}' /proc/cpuinfo >/run/cpuinfo
mount --bind /run/cpuinfo /proc/cpuinfo
for controller in cpu io memory pids; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
done

# As Calico does in IPIP mode: one tunnel device with an address of the node's own, and routes through it.
ip addr add "$TUNNEL_IP/32" dev tunl0
sh /lab/node/routes.sh calico

mkdir -p /etc/cni /etc/containerd
rm -rf /etc/cni/net.d
mkdir /etc/cni/net.d
ln -s /lab/node/10-pods.conf /etc/cni/net.d/
cp /lab/node/containerd.toml /etc/containerd/config.toml
setsid containerd </dev/null >>/lab/node/containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for image in /lab/images/*.tar; do
    ctr -n k8s.io images import "$image" >/dev/null
done
sh /lab/node/kubelet.sh
