#!/bin/sh
# A browser with a fresh profile that reaches peers (and everything else) through the proxy of a running pvpn.
#
#     sh examples/browser.sh http://peer-b:8000/        PROXY=127.0.0.1:1081 sh examples/browser.sh ...
#
# Names are left to the proxy, so peers' names work and no request for them goes to DNS. A browser takes the first
# word that is no address for a search: write http:// before a peer's name.
set -eu

proxy=${PROXY:-127.0.0.1:1080}
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT

for browser in ${BROWSER:-chromium chromium-browser google-chrome firefox}; do
    command -v "$browser" >/dev/null || continue
    case $browser in
        *firefox*)
            cat >"$profile/user.js" <<EOF
user_pref("network.proxy.type", 1);
user_pref("network.proxy.socks", "${proxy%:*}");
user_pref("network.proxy.socks_port", ${proxy##*:});
user_pref("network.proxy.socks_version", 5);
user_pref("network.proxy.socks_remote_dns", true);
EOF
            "$browser" --no-remote --profile "$profile" "$@"
            ;;
        *)
            "$browser" --user-data-dir="$profile" --no-first-run --proxy-server="socks5://$proxy" "$@"
            ;;
    esac
    exit
done
echo "no browser here: set BROWSER to one that is like Chromium or Firefox" >&2
exit 1
