# This node's routes to the other nodes' pods. Runs at boot and may run again at any time: what changes is replaced in
# place, so nothing is lost meanwhile.
#
#   sh routes.sh [LAYOUT] [MTU of the tunnels]
#
# calico  As Felix programs them in IPIP mode: by protocol 80, one for each block of 64 addresses, with the tunnel's MTU.
#         Its own blocks are blackholes, beneath the /32 routes to its pods.
# cidr    One for each node, with the device's MTU: as other plugins do that use tunl0.
set -eu
. /lab/node/environment
layout=${1:-calico} mtu=${2:-$TUNNEL_MTU}
wanted=

# Names in one word what `ip route show` begins with.
route() {
    to=$1
    [ "$to" != blackhole ] || to=$2
    wanted="$wanted $to"
    ip route replace "$@" proto 80
}

blocks() {
    for first in 0 64 128 192; do echo "${1%.*}.$first/26"; done
}

ip link set tunl0 mtu "$mtu" up
for peer in $PEERS; do
    cidr=${peer%,*} node=${peer#*,}
    case $layout in
    calico) for block in $(blocks "$cidr"); do route "$block" via "$node" dev tunl0 onlink mtu "$mtu"; done ;;
    cidr) route "$cidr" via "$node" dev tunl0 onlink ;;
    *) echo "no layout of routes is called $layout" >&2 && exit 1 ;;
    esac
done
if [ "$layout" = calico ]; then
    for block in $(blocks "$TUNNEL_IP"); do route blackhole "$block"; done
fi
# What another layout had.
for to in $(ip -o -4 route show proto 80 | sed 's/^blackhole //' | cut -d ' ' -f 1); do
    case " $wanted " in
    *" $to "*) ;;
    *) ip route del "$to" proto 80 ;;
    esac
done
