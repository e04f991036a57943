#!/bin/sh
# The control API: what `pvpn status` and the other commands ask is HTTP on a Unix socket, so any program can.
#
#     sh examples/control_api.sh peer-b
set -eu

state=${PVPN_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/pvpn}
ask() { curl -sS --unix-socket "$state/control.sock" "$@"; echo; }

ask http://pvpn/readyz
ask http://pvpn/v1/peers
ask http://pvpn/v1/ping --json "{\"peer\": \"$1\"}"
