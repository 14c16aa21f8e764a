# Starts kubelet in a node's guest, at boot and after it was stopped on purpose.
set -eu
. /lab/node/environment

setsid "$KUBELET" \
    --kubeconfig=/lab/node/kubelet.kubeconfig \
    --client-ca-file=/lab/node/ca.crt \
    --anonymous-auth=false \
    --authorization-mode=AlwaysAllow \
    --hostname-override="$NODE_NAME" \
    --node-ip="$NODE_IP" \
    --register-with-taints="$(cat /lab/node/taints 2>/dev/null)" \
    --container-runtime=remote \
    --container-runtime-endpoint=unix:///run/containerd/containerd.sock \
    --network-plugin=cni \
    --cgroup-driver=cgroupfs \
    --cgroups-per-qos=false \
    --enforce-node-allocatable= \
    --fail-swap-on=false \
    --eviction-hard= \
    --image-gc-high-threshold=100 \
    --feature-gates=LocalStorageCapacityIsolation=false \
    --resolv-conf= \
    --sync-frequency=3s \
    --volume-plugin-dir=/var/lib/kubelet/volume-plugins \
    --read-only-port=0 \
    </dev/null >>/lab/node/kubelet.log 2>&1 &
