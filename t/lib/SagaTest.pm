# SagaTest: a coordinator and its participants, for the tests in t/.
#
#   my $c = SagaTest->coordinator('c', conf => "saga.executors = 2\n");
#   my $p = SagaTest->participant('p');
#   $p->service('a');                       a database with role "svc"
#   $c->server(a => $p, port => ...);       a server and a mapping for "alice"
#
# An object wraps a PostgreSQL::Test::Cluster node ({node}) and a default
# database ({db}).  On the coordinator it is "app", where the extension and
# the role "alice" are; she owns schema "app" and may define sagas.
#
# Tests wait for conditions and never for time: see until() and ended().
package SagaTest;

use strict;
use warnings;
use Carp;
use Exporter 'import';
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils ();
use Test::More;
use Time::HiRes qw(usleep time);

our @EXPORT = qw(until_true crash_server $password);
our $password = 'p-' . join '', map { ('a' .. 'z')[ rand 26 ] } 1 .. 16;

sub _node
{
    my ($name, $conf) = @_;
    my $node = PostgreSQL::Test::Cluster->new($name);
    $node->init;
    $node->append_conf('postgresql.conf', <<CONF . ($conf // ''));
restart_after_crash = on
listen_addresses = '127.0.0.1'
max_connections = 100
max_worker_processes = 24
max_prepared_transactions = 10
wal_level = logical
max_wal_senders = 5
timezone = 'UTC'
CONF
    my $hba = $node->data_dir . '/pg_hba.conf';
    open my $fh, '>', $hba or die "$hba: $!";
    print $fh "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    close $fh;
    return $node;
}

# A running server with the library preloaded and the extension in "app".
# stopped => 1: only initialised; bare => 1: no database "app".
sub coordinator
{
    my ($class, $name, %arg) = @_;
    my $node = _node($name, <<CONF . ($arg{conf} // ''));
shared_preload_libraries = 'saga'
saga.safety_poll_interval = '1s'
CONF
    my $self = bless { node => $node, db => 'app' }, $class;
    return $self if $arg{stopped};
    $node->start;
    $self->make_app unless $arg{bare};
    return $self;
}

sub make_app
{
    my ($self) = @_;
    $self->{node}->safe_psql('postgres', 'CREATE DATABASE app');
    $self->sql(<<'SQL');
CREATE EXTENSION saga;
CREATE ROLE alice LOGIN;
GRANT saga_user TO alice;
CREATE SCHEMA app AUTHORIZATION alice;
ALTER ROLE alice SET search_path = app;
SET ROLE alice;
SET search_path = app;
CREATE TABLE effect (
  id bigint GENERATED ALWAYS AS IDENTITY, what text, arg text,
  at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION act(what text, arg text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = app
AS 'INSERT INTO effect (what, arg) VALUES ($1, $2) RETURNING id';
-- waits while somebody holds the advisory lock
CREATE FUNCTION gate(key bigint) RETURNS void
LANGUAGE sql AS 'SELECT pg_advisory_xact_lock_shared($1)';
-- fails the first n times; a sequence remembers what a rollback forgets
CREATE SEQUENCE tries;
CREATE FUNCTION fail_first(n bigint, code text) RETURNS bigint
LANGUAGE plpgsql SET search_path = app AS $$
DECLARE
  try bigint := nextval('tries');
BEGIN
  IF try <= n THEN
    RAISE EXCEPTION 'try % fails', try USING ERRCODE = code;
  END IF;
  RETURN try;
END
$$;
SQL
}

sub participant
{
    my ($class, $name, %arg) = @_;
    my $node = _node($name, $arg{conf});
    $node->start;
    return bless { node => $node, db => 'postgres' }, $class;
}

# A database of this name, owned by role "svc", which the coordinator comes as.
sub service
{
    my ($self, $db) = @_;
    my $node = $self->{node};
    $node->safe_psql('postgres', <<SQL);
DO \$\$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'svc') THEN
    CREATE ROLE svc LOGIN PASSWORD '$password';
  END IF;
END
\$\$;
CREATE DATABASE $db OWNER svc;
SQL
    $node->safe_psql($db, <<'SQL');
CREATE SCHEMA app AUTHORIZATION svc;
SET ROLE svc;
SET search_path = app;
CREATE TABLE effect (
  id bigint GENERATED ALWAYS AS IDENTITY, what text, arg text,
  at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION act(what text, arg text DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = app
AS 'INSERT INTO effect (what, arg) VALUES ($1, $2) RETURNING id';
CREATE FUNCTION gate(key bigint) RETURNS void
LANGUAGE sql AS 'SELECT pg_advisory_xact_lock_shared($1)';
CREATE SEQUENCE tries;
CREATE FUNCTION fail_first(n bigint, code text) RETURNS bigint
LANGUAGE plpgsql SET search_path = app AS $$
DECLARE
  try bigint := nextval('tries');
BEGIN
  IF try <= n THEN
    RAISE EXCEPTION 'try % fails', try USING ERRCODE = code;
  END IF;
  RETURN try;
END
$$;
-- says no in the way it is told to
CREATE FUNCTION refuse(how text) RETURNS bigint
LANGUAGE plpgsql SET search_path = app AS $$
BEGIN
  IF how = 'decline' THEN
    PERFORM saga_participant.decline('not today', '{"why": 7}');
  END IF;
  RAISE EXCEPTION 'no: %', how USING ERRCODE = how;
END
$$;
SQL
    return;
}

# A server on the coordinator for a service of a participant: the mapping is
# alice's, and she installs the barrier (barrier => 0: not).
sub server
{
    my ($self, $name, $participant, %arg) = @_;
    my $port = $arg{port} // $participant->{node}->port;
    my $db = $arg{db} // $name;
    my $fdw = $arg{fdw} // 'saga_postgres';
    my $options = $arg{options} // '';
    $self->sql(<<SQL);
CREATE SERVER $name FOREIGN DATA WRAPPER $fdw
  OPTIONS (host '127.0.0.1', port '$port', dbname '$db' $options);
GRANT USAGE ON FOREIGN SERVER $name TO alice;
CREATE USER MAPPING FOR alice SERVER $name
  OPTIONS (user 'svc', password '$password');
SQL
    $self->alice("SELECT saga.prepare_participant('$name')") if $arg{barrier} // 1;
    return;
}

# ---- queries ----

# As the superuser; dies on errors.
sub sql
{
    my ($self, $sql, $db) = @_;
    return $self->{node}->safe_psql($db // $self->{db}, $sql);
}

sub alice
{
    my ($self, $sql, $db) = @_;
    return $self->as('alice', $sql, $db);
}

sub as
{
    my ($self, $role, $sql, $db) = @_;
    return $self->{node}->safe_psql($db // $self->{db}, $sql, extra_params => [ '-U', $role ]);
}

# (SQLSTATE or '', whole error text, output)
sub try
{
    my ($self, $role, $sql, $db) = @_;
    my ($rc, $out, $err) = $self->{node}->psql($db // $self->{db}, $sql,
        on_error_stop => 1,
        extra_params => [ '-v', 'VERBOSITY=verbose', $role ? ('-U', $role) : () ]);
    my ($code) = $err =~ /(?:ERROR|FATAL):  ([0-9A-Z]{5}): /;
    $code //= $rc ? '?????' : '';
    return ($code, $err, $out);
}

# Output of a query, or undef where there is no server to ask: nothing here
# dies, whatever happens to the server meanwhile.
sub ask
{
    my ($self, $sql, $db, $node) = @_;
    $node //= $self->{node};
    my ($out, $err) = ('', '');
    my $done = eval {
        IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d',
            $node->connstr($db // $self->{db}) . ' connect_timeout=10', '-c', $sql ],
            '<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(30));
    };
    chomp $out;
    return $done ? $out : undef;
}

# A statement of a role that must fail with an SQLSTATE, and a text in its
# message, detail or hint.
sub refused
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($self, $role, $sql, $code, $pattern, $name, $db) = @_;
    my ($got, $err) = $self->try($role, $sql, $db);
    my $ok = $got eq $code && $err =~ $pattern;
    ok($ok, $name) or diag("expected $code with $pattern, got: " . ($got || 'no error') . "\n$err");
    return $err;
}

# A session that stays open.
sub session
{
    my ($self, $role, $db) = @_;
    return $self->{node}->background_psql($db // $self->{db},
        on_error_die => 1, $role ? (extra_params => [ '-U', $role ]) : ());
}

# ---- sagas ----

sub start
{
    my ($self, $definition, $input, %arg) = @_;
    my $more = join '', map { ", $_ => $arg{$_}" } sort keys %arg;
    $input //= '{}';
    return $self->alice("SELECT saga.start('$definition', input => '$input'$more)");
}

# state|cause|failed_step|sqlstate of a saga, once it has ended
sub ended
{
    my ($self, $id) = @_;
    my $seconds = $PostgreSQL::Test::Utils::timeout_default;
    return $self->sql(<<SQL);
SELECT state, cause, failed_step, sqlstate
  FROM saga.wait('$id', timeout => '$seconds s') WHERE done
SQL
}

sub run
{
    my ($self, $definition, $input, %arg) = @_;
    return $self->ended($self->start($definition, $input, %arg));
}

# Wait until a query on this side gives this (default t).
sub until
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($self, $sql, $expected, $db) = @_;
    my $got;
    my $ok = until_true(sub {
        $got = $self->ask($sql, $db);
        return defined $got && $got eq ($expected // 't');
    });
    $ok or diag("never true: $sql\nlast answer: " . ($got // 'none'));
    return $ok;
}

# Wait until a saga is in a state; gives up when it has ended in another.
sub until_state
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($self, $id, $state) = @_;
    my $now = '';
    until_true(sub {
        $now = $self->sql("SELECT state FROM saga.instances WHERE id = '$id'");
        return $now =~ /^(?:$state|completed|compensated|terminated)$/;
    });
    diag("state is $now:\n" . $self->sql("SELECT * FROM saga.log WHERE saga_id = '$id' ORDER BY seq"))
      if $now ne $state;
    return $now eq $state;
}

# Wait until all sagas have ended; seconds is only the limit for giving up.
sub until_all_ended
{
    my ($self, $seconds) = @_;
    my $left;
    my $ok = until_true(
        sub {
            $left = $self->ask(<<'SQL') // '?';
SELECT count(*) FROM saga.instances
 WHERE state NOT IN ('completed', 'compensated', 'terminated')
SQL
            return $left eq '0';
        }, $seconds);
    diag("$left sagas have not ended:\n" . $self->sql(<<'SQL')) unless $ok;
SELECT state, direction, count(*), min(id::text) FROM saga.instances
 WHERE state NOT IN ('completed', 'compensated', 'terminated') GROUP BY 1, 2
SQL
    return $ok;
}

# what/arg of all effects at a service, oldest first
sub effects
{
    my ($self, $db) = @_;
    return $self->sql(q(SELECT coalesce(string_agg(concat_ws('/', what, arg), ' ' ORDER BY id), '')
                        FROM app.effect), $db);
}

# Backends of the extension: pid by kind and database.
sub worker_pids
{
    my ($self, $type, $db) = @_;
    $db //= $self->{db};
    return split /\n/, $self->ask(<<SQL, 'postgres') // '';
SELECT pid FROM pg_stat_activity
 WHERE backend_type = '$type' AND ('$type' = 'saga launcher' OR datname = '$db') ORDER BY pid
SQL
}

# kill -9 of the postmaster, and up again.  Its children end by themselves when
# they see that it is gone; a new one does not start before the last has.
sub crash_server
{
    my ($node, $meanwhile) = @_;
    my $pid = $node->{_pid};
    # undefined after a start that was given up: then it is down already
    if (defined $pid)
    {
        $node->kill9;
        $meanwhile->() if $meanwhile;
        until_true(sub { waitpid($pid, WNOHANG); return !kill 0, $pid }, 60);
    }
    # orphans in a long statement hold the shared memory until they notice
    return until_true(sub { return $node->start(fail_ok => 1) }, 180);
}

# Postmasters become children of this process when pg_ctl has ended, so that
# a killed one can be waited for even where nobody else does (in a container
# whose first process does not).  This is prctl(PR_SET_CHILD_SUBREAPER).
INIT
{
    my %prctl = ('x86_64' => 157, 'aarch64' => 167);
    my $number = $prctl{ (POSIX::uname())[4] };
    syscall($number, 36, 1, 0, 0, 0) if $number;
}

# Poll a closure.
sub until_true
{
    my ($code, $seconds) = @_;
    my $end = time + ($seconds // $PostgreSQL::Test::Utils::timeout_default);
    while (1)
    {
        return 1 if $code->();
        return 0 if time > $end;
        usleep(50_000);
    }
}

1;
