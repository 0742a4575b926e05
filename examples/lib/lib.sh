# Shared by the examples: services, faults, and waiting for sagas to end.
# Runs in the sandbox (tools/sandbox), after $SAGA_LIB.
#
#   service_start NAME FILE [VAR=VALUE...]   a Node service (service.js)
#   service_kill NAME                        kill -9
#   service_mode NAME JSON                   how it misbehaves
#   ${service_port[NAME]}                    its port on 127.0.0.1
#   example_database                         a server with saga, database "app"
#   coordinator_kill                         kill -9 of a saga worker of "app"
#   settled SECONDS                          wait until all sagas have ended
#
# bash; set -u is assumed.

declare -A service_port=() service_pid=() service_file=() service_env=()
example_lib=$(dirname "${BASH_SOURCE[0]}")
node=$(command -v node || command -v nodejs) || {
	say "these examples need Node.js (Debian: nodejs)" >&2
	exit 1
}

trap 'kill "${service_pid[@]}" 2>/dev/null' EXIT

title() {
	printf '\n== %s\n' "$*"
}

# psql as the administrator of the example's database
app() {
	timeout 120 psql -X -q -v ON_ERROR_STOP=1 "$app" "$@"
}
ask() {
	app -At -c "$1"
}
show() {
	app -P footer=off -c "$1"
}

# ask, again and again while the server is away: workers are being killed
ask_again() {
	local n
	for ((n = 0; n < 100; n++)); do
		if ask "$1" >/dev/null 2>&1; then
			return 0
		fi
		sleep 0.3
	done
	ask "$1"
}

service_start() {
	local name=$1 try new=
	if [ $# -gt 1 ]; then
		new=yes
		service_file[$name]=$2
		shift 2
		service_env[$name]="$*"
	fi
	for try in 1 2 3 4 5 6 7 8 9 10; do
		[ -n "${service_port[$name]:-}" ] ||
			service_port[$name]=$((10240 + (RANDOM * 32768 + RANDOM) % 20000))
		env SERVICE_PORT="${service_port[$name]}" \
			SERVICE_STATE="$SAGA_WORK/$name.journal" ${service_env[$name]} \
			"$node" "${service_file[$name]}" >>"$SAGA_WORK/$name.log" 2>&1 &
		service_pid[$name]=$!
		if service_up "$name"; then
			return 0
		fi
		wait "${service_pid[$name]}" 2>/dev/null || :
		grep -q EADDRINUSE "$SAGA_WORK/$name.log" || break
		# a service that comes back keeps its port, or nobody would find it
		if [ -n "$new" ]; then
			unset "service_port[$name]"
		else
			sleep 0.5
		fi
	done
	cat "$SAGA_WORK/$name.log" >&2
	return 1
}

service_up() {
	local n
	for ((n = 0; n < 100; n++)); do
		kill -0 "${service_pid[$1]}" 2>/dev/null || return 1
		if service_get "$1" /effects >/dev/null 2>&1; then
			return 0
		fi
		sleep 0.1
	done
	return 1
}

service_get() {
	"$node" -e '
		require("http").get(process.argv[1], r => {
			r.on("error", () => process.exit(1)); r.pipe(process.stdout);
		}).on("error", () => process.exit(1))' "http://127.0.0.1:${service_port[$1]}$2"
}

# service_send NAME METHOD PATH JSON: prints the answer's body
service_send() {
	"$node" -e '
		const [url, method, body] = process.argv.slice(1);
		const r = require("http").request(url, { method }, a => {
			a.on("error", () => process.exit(1)); a.pipe(process.stdout);
			a.on("end", () => process.exitCode = a.statusCode < 300 ? 0 : 1);
		}).on("error", () => process.exit(1));
		r.end(body)' "http://127.0.0.1:${service_port[$1]}$3" "$2" "$4"
}

service_kill() {
	kill -9 "${service_pid[$1]}" 2>/dev/null
	wait "${service_pid[$1]}" 2>/dev/null || :
}

service_mode() {
	service_send "$1" PUT /mode "$2" >/dev/null
}

# The effects of a service as a table of the example's database.
service_effects() {
	service_get "$1" /effects >"$SAGA_WORK/$1.effects"
	app -v name="$1" -v effects="$(cat "$SAGA_WORK/$1.effects")" >/dev/null <<-'SQL'
		SET client_min_messages = warning;
		CREATE TABLE IF NOT EXISTS service_effect (service text, n bigint, effect jsonb);
		DELETE FROM service_effect WHERE service = :'name';
		INSERT INTO service_effect SELECT :'name', e.n, e.effect
		FROM jsonb_array_elements(:'effects'::jsonb) WITH ORDINALITY AS e (effect, n);
	SQL
}

example_database() {
	cluster_start app "shared_preload_libraries = 'saga'" "wal_level = logical" \
		"max_worker_processes = 24" "$@"
	cluster_psql app -c 'CREATE DATABASE app'
	app="host=$SAGA_SOCKETS port=${cluster_port[app]} user=postgres dbname=app"
	app -c 'CREATE EXTENSION saga'
}

coordinator_kill() {
	local pid
	pid=$(ask "SELECT pid FROM saga.stat_workers
		WHERE kind IN ('coordinator', 'executor') AND pid IS NOT NULL ORDER BY random() LIMIT 1") || return 0
	[ -z "$pid" ] || kill -9 "$pid"
	# the server takes a moment to be itself again
	for ((n = 0; n < 300; n++)); do
		sleep 0.1
		if [ "$(ask 'SELECT 1' 2>/dev/null)" = 1 ]; then
			return 0
		fi
	done
	return 1
}

settled() {
	local end=$((SECONDS + $1)) left
	while :; do
		left=$(ask "SELECT count(*) FROM saga.instances
			WHERE state NOT IN ('completed', 'compensated', 'terminated')" 2>/dev/null) || left=unknown
		[ "$left" != 0 ] || return 0
		if [ $SECONDS -gt $end ]; then
			say "$left sagas have not ended"
			show 'SELECT * FROM saga.stuck LIMIT 5'
			show "SELECT s.saga_id, s.step, s.state, s.attempts, s.sqlstate, s.error FROM saga.steps s
				JOIN saga.instances i ON i.id = s.saga_id
				WHERE i.state NOT IN ('completed', 'compensated', 'terminated') LIMIT 20"
			return 1
		fi
		sleep 0.2
	done
}

# invariants SQL: rows (invariant, violations); fails if any is not 0
invariants() {
	show "SELECT * FROM ($1) AS v(invariant, violations)"
	[ "$(ask "SELECT count(*) FROM ($1) AS v(invariant, violations) WHERE violations IS DISTINCT FROM 0")" = 0 ] || {
		say "An invariant does not hold."
		return 1
	}
}

# rounds SERVICES... -- calls "work ROUND" under each fault in turn: none, each
# service failing, each killed and started again, coordinators killed.
rounds() {
	local s
	title "no fault"
	work none
	settled 120
	for s in "$@"; do
		title "$s fails half of the time, and loses answers"
		service_mode "$s" '{"fail": 0.4, "lose": 0.2}'
		work "$s-fails"
		settled 120
		service_mode "$s" '{}'
	done
	for s in "$@"; do
		title "$s is killed, and started again"
		work "$s-killed" &
		local job=$!
		sleep 0.5
		service_kill "$s"
		wait $job
		sleep 1
		service_start "$s"
		settled 120
	done
	title "saga workers are killed"
	work coordinator-killed &
	local job=$!
	for ((s = 0; s < 3; s++)); do
		sleep 0.7
		coordinator_kill
	done
	wait $job
	settled 120
}
