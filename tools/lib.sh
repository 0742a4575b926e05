# Shared by the scripts in tools/: packages, builds, and a sandbox.
#
# The sandbox is a directory of its own for each run, with a private copy of
# the PostgreSQL installation (so that the system's is never touched) and the
# extension installed in it.  PostgreSQL finds its files relative to its
# binary, so a tree with copied binaries, symbolic links to all else, and the
# same relative paths is a whole installation.  Commands run in the sandbox as
# an unprivileged user; at the end whatever it started is stopped, and the
# directory removed.  Failures leave their logs in tmp/log; with SAGA_KEEP=1
# the whole directory stays, and crashed processes leave their core in it.
#
# bash; set -u is assumed.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PG_MAJOR=${PG_MAJOR:-15}
PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/$PG_MAJOR/bin/pg_config}
run=
sockets=
child=
failed_run=
built=
built_with=()

say() {
	printf '%s\n' "$*"
}

die() {
	printf 'saga: %s\n' "$*" >&2
	exit 1
}

# ---- packages --------------------------------------------------------------

# Install what is missing (root), or name it and stop.
need_packages() {
	local p missing=()

	command -v dpkg-query >/dev/null || return 0
	for p in "$@"; do
		case $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) in
			installed) ;;
			*) missing+=("$p") ;;
		esac
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" -ne 0 ]; then
		die "these Debian packages are missing: ${missing[*]}
      as root: apt-get install ${missing[*]}"
	fi

	say "== installing Debian packages: ${missing[*]}"

	# The server's package would create and start a cluster, which nobody
	# has asked for.
	local no_cluster=/etc/postgresql-common/createcluster.d/saga.conf
	if ! dpkg-query -W postgresql-common >/dev/null 2>&1 && [ ! -e "$no_cluster" ]; then
		mkdir -p "${no_cluster%/*}"
		say 'create_main_cluster = false' >"$no_cluster"
	else
		no_cluster=
	fi
	export DEBIAN_FRONTEND=noninteractive
	if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; then
		apt-get -qq update
	fi
	apt-get -qq -y install --no-install-recommends "${missing[@]}" </dev/null ||
		{ apt-get -qq update &&
			apt-get -qq -y install --no-install-recommends "${missing[@]}" </dev/null; }
	local rc=$?
	[ -z "$no_cluster" ] || rm -f "$no_cluster"
	[ $rc -eq 0 ] || die "could not install the packages ${missing[*]}"
}

packages_to_build() {
	need_packages gcc libc6-dev make libpq-dev libc-ares-dev \
		libcurl4-openssl-dev "postgresql-$PG_MAJOR" "postgresql-server-dev-$PG_MAJOR"
}

packages_to_test() {
	need_packages perl libipc-run-perl openssl
	packages_to_serve
}

# For services over HTTP; Node.js may have come from elsewhere.
packages_to_serve() {
	command -v node >/dev/null || need_packages nodejs
}

# ---- where -----------------------------------------------------------------

# Objects and logs: in the checkout, else (read-only) for the user in /tmp.
scratch() {
	if mkdir -p "$top/tmp" 2>/dev/null && [ -w "$top/tmp" ]; then
		say "$top/tmp"
	else
		local dir="${TMPDIR:-/tmp}/saga-$(id -u)"
		mkdir -p -m 700 "$dir" && [ -O "$dir" ] || die "cannot write to $dir"
		say "$dir"
	fi
}

jobs_flag() {
	say "-j$(nproc 2>/dev/null || say 2)"
}

# build NAME COMPILER [SETTING]: objects in tmp/build-NAME, kept for the next
# time.  The sandbox installs from the last one.
build() {
	built=$(scratch)/build-$1
	built_with=("CC=$2" "PG_CONFIG=$PG_CONFIG" "${@:3}")
	mkdir -p "$built"
	(
		flock 9
		exec make --no-print-directory -s -C "$built" -f "$top/Makefile" \
			"$(jobs_flag)" "${built_with[@]}" all 9>&-
	) 9>"$built/.lock"
}

# ---- the sandbox -----------------------------------------------------------

# The user that runs servers: ourselves, or as root one without rights.
runner=
if [ "$(id -u)" -eq 0 ]; then
	choose_runner() {
		runner=postgres
		id "$runner" >/dev/null 2>&1 || runner=nobody
	}
else
	choose_runner() { :; }
fi

as_runner() {
	if [ -n "$runner" ]; then
		setpriv --reuid="$runner" --regid="$(id -g "$runner")" --clear-groups \
			--inh-caps=-all -- "$@"
	else
		"$@"
	fi
}

# A private installation in $1.
make_tree() {
	local root=$1 bin lib share f
	bin=$("$PG_CONFIG" --bindir) || die "cannot run $PG_CONFIG"
	lib=$("$PG_CONFIG" --pkglibdir)
	share=$("$PG_CONFIG" --sharedir)
	mkdir -p "$root$bin" "$root$lib" "$root$share/extension"
	cp -a "$bin/." "$root$bin/"
	find "$lib" -mindepth 1 -maxdepth 1 ! -name 'saga*' \
		-exec ln -s -t "$root$lib" {} +
	find "$share" -mindepth 1 -maxdepth 1 ! -name extension \
		-exec ln -s -t "$root$share" {} +
	find "$share/extension" -mindepth 1 -maxdepth 1 ! -name 'saga*' \
		-exec ln -s -t "$root$share/extension" {} +
	pgbin=$root$bin
	pgxs=$(dirname "$("$PG_CONFIG" --pgxs)")/../..
	pgxs=$(cd "$pgxs" && pwd)
	[ "$("$pgbin/pg_config" --sharedir)" = "$root$share" ] ||
		die "the copied PostgreSQL does not find its files in $root"
}

sandbox_open() {
	local base
	choose_runner
	trap 'sandbox_close' EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM

	base=$(scratch)
	[ -z "$runner" ] || as_runner test -x "$base" -a -x "$top" || base=/tmp
	run=$(mktemp -d "$base/run.XXXXXX") || die "cannot make a directory in $base"
	sockets=$(mktemp -d /tmp/saga.XXXXXX)
	chmod 755 "$run"
	mkdir "$run/pgsql" "$run/src" "$run/work"
	[ -z "$runner" ] || chown "$runner:" "$run/work" "$sockets"

	make_tree "$run/pgsql"
	make --no-print-directory -s -C "$built" -f "$top/Makefile" \
		"${built_with[@]}" "DESTDIR=$run/pgsql" install ||
		die "could not install into the sandbox"

	# What runs in there may not be able to read the checkout.
	tar -C "$top" --exclude=./.git --exclude=./tmp -cf - . |
		tar -C "$run/src" --no-same-owner -xf -
	chmod -R a+rX "$run/src" "$run/pgsql"
}

# Become a command in the sandbox.
sandbox_become() {
	local drop=()
	[ -z "$runner" ] || drop=(setpriv --reuid="$runner"
		--regid="$(id -g "$runner")" --clear-groups --inh-caps=-all --)
	cd "$run/src" || exit 1
	[ -z "${SAGA_KEEP:-}" ] || ulimit -c unlimited
	exec env -i PATH="$pgbin:/usr/local/bin:/usr/bin:/bin" \
		HOME="$run/work" LANG=C.UTF-8 LC_MESSAGES=C TZ=UTC \
		TERM="${TERM:-dumb}" ${CI:+CI="$CI"} ${TESTS:+TESTS="$TESTS"} \
		${SAGA_SEED:+SAGA_SEED="$SAGA_SEED"} ${SAGA_KILLS:+SAGA_KILLS="$SAGA_KILLS"} \
		${SAGA_QUERIES:+SAGA_QUERIES="$SAGA_QUERIES"} ${SAGA_QUERY:+SAGA_QUERY="$SAGA_QUERY"} \
		${SAGA_TRANSACTIONS:+SAGA_TRANSACTIONS="$SAGA_TRANSACTIONS"} ${SAGA_SCALE:+SAGA_SCALE="$SAGA_SCALE"} \
		${SAGA_ORDERS:+SAGA_ORDERS="$SAGA_ORDERS"} ${ORDERS:+ORDERS="$ORDERS"} ${EXAMPLE_COUNT:+EXAMPLE_COUNT="$EXAMPLE_COUNT"} \
		${PG_TEST_TIMEOUT_DEFAULT:+PG_TEST_TIMEOUT_DEFAULT="$PG_TEST_TIMEOUT_DEFAULT"} \
		TMPDIR="$sockets" SAGA_WORK="$run/work" SAGA_SOCKETS="$sockets" SAGA_PGXS="$pgxs" \
		SAGA_LIB="$run/src/tools/cluster.sh" \
		"${session[@]}" "${drop[@]}" "$@"
}

# Run a command in the sandbox, as the leader of a session of its own, so
# that all of it can be ended together.
sandbox_exec() {
	local rc session=(setsid)
	failed_run=yes
	sandbox_become "$@" </dev/null &
	child=$!
	wait "$child"
	rc=$?
	child=
	[ $rc -ne 0 ] || failed_run=
	return $rc
}

# The same with the terminal.
sandbox_interactive() {
	local session=()
	(sandbox_become "$@")
}

sandbox_close() {
	local rc=$? f dir n
	trap '' HUP INT TERM
	trap - EXIT
	cd / || :
	if [ -n "$child" ]; then
		kill -TERM -- "-$child" 2>/dev/null
		for ((n = 0; n < 100; n++)); do
			kill -0 -- "-$child" 2>/dev/null || break
			sleep 0.1
		done
		kill -KILL -- "-$child" 2>/dev/null
		wait "$child" 2>/dev/null
	fi
	if [ -n "$run" ]; then
		while IFS= read -r f; do
			as_runner "$pgbin/pg_ctl" -s -D "${f%/*}" -m immediate stop >/dev/null 2>&1
		done < <(find "$run/work" -name postmaster.pid 2>/dev/null)
		if [ -n "$failed_run" ]; then
			dir=$(scratch)/log
			rm -rf "$dir"
			mkdir -p "$dir"
			(cd "$run/work" &&
				find . -type f \( -name '*.log' -o -name 'regress_log_*' -o \
					-name 'regression.*' -o -path '*/results/*' \) \
					-exec cp --parents -t "$dir" {} +)
			say "logs of this run are in $dir" >&2
		fi
		if [ -n "${SAGA_KEEP:-}" ]; then
			say "kept: $run" >&2
		else
			rm -rf "$run" "$sockets"
		fi
	fi
	exit "$rc"
}
