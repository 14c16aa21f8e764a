# Crashes process $1, and one beside it that forbids nothing, in the way that leaves a core; prints how many cores each left.
# Overwritten code is a fault of the process's own: a signal that another process sends does nothing to process 1 of a container.
crash() {
    grep ' r-xp .*/' "/proc/$1/maps" | while IFS='- ' read -r from to _; do
        pages=$(((0x$to - 0x$from) / 4096))
        # It may be gone before all of it is written.
        head -c $((pages * 4096)) /dev/zero | tr '\0' '\364' |
            dd of="/proc/$1/mem" bs=4096 seek=$((0x$from / 4096)) iflag=fullblock conv=notrunc status=none || true
    done
}
# Through a pipe, a core does not depend on what the process may write.
echo '|/usr/bin/dd of=/tmp/core.%p status=none' > /proc/sys/kernel/core_pattern
ulimit -c unlimited
sleep 2 &
control=$!
sleep 0.2
for pid in $control "$1"; do
    crash "$pid" 2> /dev/null
done
wait $control 2> /dev/null
for _ in $(seq 50); do
    [ -e "/proc/$1" ] || break
    sleep 0.1
done
sleep 0.5
for pid in $control "$1"; do
    find /tmp -name "core.$pid" -size +0 | wc -l
done
rm -f /tmp/core.*
echo core > /proc/sys/kernel/core_pattern
