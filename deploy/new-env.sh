#!/bin/sh
# Write .env for docker-compose.yml: deploy/env.example with fresh secrets. Never touches a .env that is there.
set -eu
cd "$(dirname "$0")/.."
umask 077    # secrets are for their owner
set -C       # > refuses to overwrite

hex() {  # hex BYTES
    od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
}

if [ -e .env ]; then
    echo "there is a .env already; remove it first if Label Studio's volume is new as well" >&2
    exit 1
fi
password=$(hex 9)
sed -e "s/^LABEL_STUDIO_API_KEY=\$/LABEL_STUDIO_API_KEY=$(hex 20)/" \
    -e "s/^LABEL_STUDIO_PASSWORD=\$/LABEL_STUDIO_PASSWORD=$password/" \
    -e "s/^ASKFIRST_WEBHOOK_SECRET=\$/ASKFIRST_WEBHOOK_SECRET=$(hex 20)/" deploy/env.example > .env
user=$(sed -n 's/^LABEL_STUDIO_USERNAME=//p' .env)
echo "wrote .env; log in to Label Studio as $user with the password $password"
