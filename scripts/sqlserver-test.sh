#!/usr/bin/env bash
# Starts a SQL Server with Docker, runs the tests that need one, and removes it.
#
#     make test-sqlserver
#     IMAGE=mcr.microsoft.com/mssql/server:2019-latest scripts/sqlserver-test.sh
#
# The server listens on 127.0.0.1 alone. Its image is some 1.5 GB and needs 2 GB
# of memory; by running this you accept the licence of SQL Server, Developer
# Edition.
set -euo pipefail
cd "$(dirname "$0")/.."

image=${IMAGE:-mcr.microsoft.com/mssql/server:2022-latest}
command -v docker >/dev/null || {
    echo 'docker is needed; without it, set TEST_SQLSERVER_URL to a server that is there and run make test' >&2
    exit 1
}

# In the environment, where no list of processes shows it. SQL Server asks for
# letters of both cases and digits.
MSSQL_SA_PASSWORD=Aa1$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export MSSQL_SA_PASSWORD ACCEPT_EULA=Y

container=$(docker run --detach --rm --env ACCEPT_EULA --env MSSQL_SA_PASSWORD --publish 127.0.0.1::1433 "$image")
trap 'docker rm --force "$container" >/dev/null' EXIT

for _ in {1..90}; do
    # shellcheck disable=SC2016 # the container's shell knows it
    if docker exec "$container" bash -c '/opt/mssql-tools18/bin/sqlcmd -C -S 127.0.0.1 -U sa -P "$MSSQL_SA_PASSWORD" -Q "SELECT 1"' &>/dev/null; then
        ready=1
        break
    fi
    sleep 1
done
[[ -n ${ready-} ]] || {
    echo 'SQL Server does not answer; its log ends:' >&2
    docker logs --tail 20 "$container" >&2
    exit 1
}

address=$(docker port "$container" 1433/tcp | head -n 1)
export TEST_SQLSERVER_URL="sqlserver://sa:$MSSQL_SA_PASSWORD@$address?database=master&encrypt=disable"
go test -count=1 -timeout=15m ./functions/internal/sqlserver
go test -count=1 -timeout=5m ./functions/purge-tokens -run SQLServer
