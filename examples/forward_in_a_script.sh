#!/bin/bash
# A peer's service for the length of a script: pvpn picks a free local port, and the forward ends with the script.
#
#     bash examples/forward_in_a_script.sh peer-b 8000
#
# For UDP write .../udp; socat then speaks to it: echo hello | socat -t 1 - UDP:127.0.0.1:PORT
set -euo pipefail

peer=$1 port=$2

exec 3< <(exec pvpn forward "127.0.0.1:0:$peer:$port")
forward=$!
trap 'kill "$forward" 2>/dev/null || true' EXIT
if ! read -r local _ <&3; then # the line "127.0.0.1:40939 -> peer-b:8000"
    exit 1                     # pvpn has said why
fi

curl -sS "http://$local/"
