#!/usr/bin/env bash
# N processes of one `vidgen` command on this machine, joined over 127.0.0.1; on CPUs one device each.
#
#   launch/local.sh N train --config FILE.py --data DIR --workdir DIR [--config.key=value ...]
#
# SIGTERM and Ctrl-C are passed on to all. When one fails, the others get SIGTERM and, GRACE seconds
# later (60), SIGKILL. Ends with the exit code of the first failure. LIMIT, in seconds, bounds the
# whole run: past it all get SIGTERM, so they save and end with 143.
set -uo pipefail

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[[ ${1:-} =~ ^[1-9][0-9]*$ && $# -ge 2 ]] || usage
count=$1 grace=${GRACE:-60} limit=${LIMIT:-0}
[[ $grace =~ ^[0-9]+$ && $limit =~ ^[0-9]+$ ]] || usage
shift

python=${PYTHON:-python3}
port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])') || exit 2

left=() kill_at=0
stop() { for pid in "${left[@]}"; do kill -s "$1" "$pid" 2>/dev/null; done; }
end() { # asks all to end; the loop below makes sure of it
  stop "$1"
  ((kill_at)) || kill_at=$((SECONDS + grace))
}
trap 'end TERM' TERM
trap 'end INT' INT

# vidgen.dist.flags: the allocator's settings must be there before a process starts.
for ((i = 0; i < count; i++)); do
  "$python" -m vidgen.dist.flags "$python" -m vidgen.cli "$@" \
    --coordinator "127.0.0.1:$port" --processes "$count" --process "$i" &
  left+=($!)
done

code=0
while ((${#left[@]})); do
  sleep 0.2
  ((limit && SECONDS >= limit && !kill_at)) && end TERM
  ((kill_at && SECONDS >= kill_at)) && stop KILL
  for i in "${!left[@]}"; do
    kill -0 "${left[i]}" 2>/dev/null && continue
    wait "${left[i]}"
    status=$?
    unset "left[i]"
    ((status == 0)) && continue
    ((code)) || code=$status
    ((kill_at)) || end TERM
  done
done
exit "$code"
