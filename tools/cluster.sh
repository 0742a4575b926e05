# Throw-away clusters for scripts that run in the sandbox (see lib.sh).
#
#   cluster_start NAME [SETTING...]   make one and start it, or start it again
#   cluster_stop NAME [MODE]          MODE as of pg_ctl
#   cluster_psql NAME ARGS...         psql as the superuser, database postgres
#   ${cluster_port[NAME]}             its port, on $SAGA_SOCKETS and 127.0.0.1
#
# Connections over the socket are trusted, those over TCP need a password.
# The sandbox stops and removes what is left running.
#
# bash; set -u is assumed.

declare -A cluster_port=()

cluster_start() {
	local name=$1 dir=$SAGA_WORK/$1 port try line
	shift
	if [ -d "$dir" ]; then
		pg_ctl -s -w -D "$dir" -l "$dir.log" start
		return
	fi
	initdb -D "$dir" -U postgres -A trust --no-sync --locale=C.UTF-8 \
		--encoding=UTF8 >"$dir.initdb.log" || return
	cat >"$dir/pg_hba.conf" <<-EOF
		local all all trust
		host all all 127.0.0.1/32 scram-sha-256
	EOF
	{
		say "unix_socket_directories = '$SAGA_SOCKETS'"
		say "listen_addresses = '127.0.0.1'"
		say "cluster_name = '$name'"
		say "log_line_prefix = '%m [%p] %q%a '"
		for line in "$@"; do
			say "$line"
		done
	} >>"$dir/postgresql.conf"

	# Another run may take a port between our choice and our use of it.
	for try in 1 2 3 4 5 6 7 8 9 10; do
		port=$((10240 + (RANDOM * 32768 + RANDOM) % 20000))
		say "port = $port" >>"$dir/postgresql.conf"
		if pg_ctl -s -w -D "$dir" -l "$dir.log" start 2>/dev/null; then
			cluster_port[$name]=$port
			return 0
		fi
		grep -q 'in use' "$dir.log" || break
	done
	cat "$dir.log" >&2
	return 1
}

cluster_stop() {
	pg_ctl -s -w -D "$SAGA_WORK/$1" -m "${2:-fast}" stop
}

cluster_psql() {
	local name=$1
	shift
	psql -X -q -v ON_ERROR_STOP=1 -h "$SAGA_SOCKETS" \
		-p "${cluster_port[$name]}" -U postgres -d postgres "$@"
}

say() {
	printf '%s\n' "$*"
}
