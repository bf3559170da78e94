#!/usr/bin/env bash
# Starts a SQL Server with Docker, runs the tests that need one, and removes it.
#
#     make test-sqlserver
#     IMAGE=mcr.microsoft.com/mssql/server:2019-latest scripts/sqlserver-test.sh
#
# The server listens on 127.0.0.1 alone, with a certificate of an authority made for
# it: the suite runs encrypted and verified. All tests run although some fail, and
# then the server's log follows. The image is some 1.5 GB and needs 2 GB of memory;
# by running this you accept the licence of SQL Server, Developer Edition.
set -euo pipefail
cd "$(dirname "$0")/.."

image=${IMAGE:-mcr.microsoft.com/mssql/server:2022-latest}
for tool in docker openssl; do
    command -v "$tool" >/dev/null || {
        echo "$tool is needed; without it, set TEST_SQLSERVER_URL to a server that is there and run make test" >&2
        exit 1
    }
done

dir=$(mktemp -d)
container=
# shellcheck disable=SC2329 # the trap calls it
cleanup() {
    [[ -z $container ]] || docker rm --force "$container" >/dev/null
    rm -rf "$dir"
}
trap cleanup EXIT

openssl req -x509 -newkey rsa:2048 -nodes -days 2 -sha256 -subj '/CN=throwaway authority' \
    -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
openssl req -newkey rsa:2048 -nodes -subj '/CN=localhost' -keyout "$dir/server.key" -out "$dir/server.csr" 2>/dev/null
openssl x509 -req -in "$dir/server.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -set_serial 4711 -days 2 -sha256 \
    -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n') -out "$dir/server.pem" 2>/dev/null
printf '[network]\ntlscert = /tls/server.pem\ntlskey = /tls/server.key\ntlsprotocols = 1.2\nforceencryption = 0\n' >"$dir/mssql.conf"
chmod 755 "$dir"
chmod 644 "$dir"/* # the server is another user

# In the environment, where no list of processes shows it. SQL Server asks for
# letters of both cases and digits.
MSSQL_SA_PASSWORD=Aa1$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export MSSQL_SA_PASSWORD ACCEPT_EULA=Y

container=$(docker run --detach --env ACCEPT_EULA --env MSSQL_SA_PASSWORD --publish 127.0.0.1::1433 \
    --volume "$dir:/tls:ro" --volume "$dir/mssql.conf:/var/opt/mssql/mssql.conf:ro" "$image")

for _ in {1..90}; do
    # shellcheck disable=SC2016 # the container's shell knows it; older images have older tools
    if docker exec "$container" bash -c '$(ls -d /opt/mssql-tools*/bin/sqlcmd | tail -n 1) -C -S 127.0.0.1 -U sa -P "$MSSQL_SA_PASSWORD" -Q "SELECT 1"' &>/dev/null; then
        ready=1
        break
    fi
    [[ $(docker inspect --format '{{.State.Running}}' "$container") = true ]] || break
    sleep 1
done
[[ -n ${ready-} ]] || {
    echo "SQL Server does not answer, on Linux $(uname -r); images of before 2024, all of 2017 among them, don't start on 6.7 and later. Its log ends:" >&2
    docker logs --tail 40 "$container" >&2
    exit 1
}

address=$(docker port "$container" 1433/tcp | head -n 1)
url="sqlserver://sa:$MSSQL_SA_PASSWORD@$address?database=master"
failed=0
TEST_SQLSERVER_URL="$url&encrypt=true&certificate=$dir/ca.pem" \
    go test -v -count=1 -timeout=1h ./functions/internal/sqlserver || failed=1
TEST_SQLSERVER_URL="$url&encrypt=disable" \
    go test -v -count=1 -timeout=5m ./functions/purge-tokens -run SQLServer || failed=1
if ((failed)); then
    echo "the log of $image ends:" >&2
    docker logs --tail 100 "$container" >&2
fi
exit "$failed"
