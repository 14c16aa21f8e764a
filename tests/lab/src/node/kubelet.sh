# Starts kubelet in a node's guest, at boot and after it was stopped on purpose.
set -eu
. /lab/node/environment

# The flags are words.
# shellcheck disable=SC2086
setsid "$KUBELET" \
    --kubeconfig=/lab/node/kubelet.kubeconfig \
    --hostname-override="$NODE_NAME" \
    --node-ip="$NODE_IP" \
    --register-with-taints="$(cat /lab/node/taints 2>/dev/null)" \
    $KUBELET_FLAGS \
    </dev/null >>/lab/node/kubelet.log 2>&1 &
