# The workers: they come back whatever happens to them, and are where they
# should be and nowhere else.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

my $c = SagaTest->coordinator('coordinator', conf => "saga.executors = 2\n");
my $node = $c->{node};
my $p = SagaTest->participant('participant');
$p->service('a');
$c->server(a => $p);
$c->alice(<<'SQL');
SELECT saga.define('simple', input => 'n integer', steps => ARRAY[
    saga.step('local', action => 'SELECT act(''local'', (:n)::text)'),
    saga.step('remote', server => 'a', action => 'SELECT app.act(''remote'', (:n)::text)')]);
SELECT saga.define('gated', input => 'n integer, g bigint', steps => ARRAY[
    saga.step('local', action => 'SELECT act(''local'', (:n)::text)'),
    saga.step('gate', server => 'a', action => 'SELECT app.gate(:g)'),
    saga.step('remote', server => 'a', action => 'SELECT app.act(''remote'', (:n)::text)')])
SQL

my $n = 0;
my %asked;
sub works
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($name) = @_;
    $n++;
    is($c->run('simple', qq({"n": $n})), 'completed|||', "a saga runs $name");
}

# A saga that is at its participant, and stays there until let go.
my $lock;
sub start_gated
{
    $n++;
    $lock = $p->session(undef, 'a');
    $lock->query_safe("SELECT pg_advisory_lock($n)");
    my $id = $c->start('gated', qq({"n": $n, "g": $n}));
    $p->until(q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted), 't', 'a');
    return $id;
}

sub let_go
{
    $lock->quit;
    return;
}

# Workers of a kind are there, and none of them is one of these pids.
sub back
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($type, $number, @old) = @_;
    my %old = map { $_ => 1 } @old;
    ok(until_true(sub {
        my @now = $c->worker_pids($type);
        return @now == $number && !grep { $old{$_} } @now;
    }), "$number $type back");
}

works('at first');
my %number = ('saga launcher' => 1, 'saga coordinator' => 0, 'saga executor' => 2);
$number{'saga coordinator'} = $c->sql('SHOW saga.coordinators');
is(scalar $c->worker_pids($_), $number{$_}, "$number{$_} $_") for sort keys %number;
is($c->sql(q(SELECT count(*) FROM saga.stat_workers)) >= 3, 1, 'the workers are seen in stat_workers');

# ---- terminated ----

for my $type (sort keys %number)
{
    my $id = start_gated();
    my @old = $c->worker_pids($type);
    $c->sql("SELECT pg_terminate_backend($_)") for @old;
    back($type, $number{$type}, @old);
    let_go();
    is($c->ended($id), 'completed|||', "a saga under way when each $type was terminated completes");
    works("after each $type was terminated");
}

# ---- killed: the server starts all its backends anew ----

for my $type (sort keys %number)
{
    my $id = start_gated();
    my @old = $c->worker_pids($type);
    kill 9, $old[0];
    back($type, $number{$type}, @old);
    let_go();
    $c->until('SELECT true');
    is($c->ended($id), 'completed|||', "a saga under way when a $type was killed completes");
    works("after a $type was killed");
}

# ---- the server ----

{
    my $id = start_gated();
    $node->stop('immediate');
    let_go();
    $node->start;
    is($c->ended($id), 'completed|||', 'a saga under way at an immediate stop completes');
    works('after an immediate stop');

    $id = start_gated();
    $node->stop('fast');
    $node->start;
    let_go();
    is($c->ended($id), 'completed|||', 'and one at a fast stop');

    $id = start_gated();
    ok(crash_server($node, \&let_go), 'the server comes back after kill -9');
    is($c->ended($id), 'completed|||', 'and one at kill -9 of the postmaster');
}
is($p->sql(q(SELECT count(*), count(DISTINCT arg) FROM app.effect), 'a'), "$n|$n", 'every remote effect once');
is($c->sql(q(SELECT count(*), count(DISTINCT arg) FROM app.effect)), "$n|$n", 'every local effect once');
is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');

# ---- CREATE and DROP EXTENSION, over and over ----

$c->sql('CREATE DATABASE loop', 'postgres');
for my $round (1 .. 25)
{
    $c->sql('CREATE EXTENSION saga', 'loop');
    # another action each time: what workers remember of the last must be gone
    my $state = $c->sql(<<SQL =~ s/ROUND/$round/gr, 'loop');
SET SESSION AUTHORIZATION alice;
SELECT saga.define('s', steps => ARRAY[saga.step('s', action => 'SELECT ROUND')]) \\g /dev/null
SELECT saga.start('s') AS id \\gset
SELECT state FROM saga.wait(:'id', timeout => '60 s') \\g /dev/null
SELECT i.state, s.result FROM saga.instances i JOIN saga.steps s ON s.saga_id = i.id WHERE i.id = :'id';
SELECT saga.start('s') FROM generate_series(1, 20) \\g /dev/null
SQL
    is($state, "completed|$round", "round $round: a saga in a new extension") if $round == 1 || $state ne "completed|$round";
    my ($code, $err) = $c->try(undef, 'SET lock_timeout = \'20s\'; DROP EXTENSION saga CASCADE', 'loop');
    is($code, '', "round $round: dropped with sagas under way") or diag($err) if $round == 25 || $code ne '';
}
ok(until_true(sub { !$c->worker_pids('saga coordinator', 'loop') && !$c->worker_pids('saga executor', 'loop') }),
    'no worker stays where the extension was');
works('elsewhere meanwhile');

# ---- databases without the extension, and dropped ones ----

$c->sql('CREATE DATABASE plain', 'postgres');
$c->sql('CREATE DATABASE other', 'postgres');
$c->sql('CREATE SCHEMA saga; CREATE TABLE saga.instance (x int)', 'plain');
$c->sql('CREATE EXTENSION saga', 'other');
ok(until_true(sub { scalar $c->worker_pids('saga coordinator', 'other') }), 'workers for a new extension');
is(scalar($c->worker_pids('saga coordinator', 'plain')) + $c->worker_pids('saga executor', 'plain'), 0,
    'and none for a database that has but a schema of that name');
my $at = -s $node->logfile;
$c->sql('DROP DATABASE other WITH (FORCE)', 'postgres');
works('after a database was dropped');
my @complaints = slurp_file($node->logfile, $at) =~ /FATAL:.*database.*does not exist/g;
ok(@complaints < 5, 'no loop of workers for a dropped database');

# ---- roles that go ----

$c->sql(<<'SQL');
CREATE ROLE bob LOGIN;
GRANT saga_user TO bob;
SQL
my $lock_bob = $c->session;
$lock_bob->query_safe('SELECT pg_advisory_lock(99)');
$c->as('bob', <<'SQL');
SELECT saga.define('bobs', steps => ARRAY[
    saga.step('gate', action => 'SELECT pg_advisory_xact_lock_shared(99)'),
    saga.step('more', action => 'SELECT 1')])
SQL
my $bobs = $c->as('bob', "SELECT saga.start('bobs')");
$c->sql('REVOKE saga_user FROM bob; DROP OWNED BY bob; DROP ROLE bob');
$lock_bob->query_safe('SELECT pg_advisory_unlock(99)');
$lock_bob->quit;
ok($c->until("SELECT state IN ('stuck', 'completed') FROM saga.instances WHERE id = '$bobs'"),
    'a saga whose owner is gone does not spin');
works('after a role was dropped');
is($c->sql('SELECT count(*) FROM saga.stuck') <= 1, 1, 'the stuck one can be seen');

# ---- a saga whose function ends the worker ----

$c->alice(q(SELECT saga.define('suicide', steps => ARRAY[
    saga.step('s', action => 'SELECT pg_terminate_backend(pg_backend_pid())')])));
my $suicide = $c->start('suicide');
works('beside a saga that ends its worker');
like($c->alice("SELECT saga.terminate('$suicide', reason => 'test', force => true)"), qr/queued|ignored/, 'it can be ended');

# ---- not enough processes ----

$node->stop;
$node->append_conf('postgresql.conf', 'max_worker_processes = 2');
$at = -s $node->logfile;
$node->start;
my $waiting = $c->start('simple', '{"n": 4711}');
ok(until_true(sub { slurp_file($node->logfile, $at) =~ /max_worker_processes/ }),
    'too few max_worker_processes: the log says what to set');
my @lines = slurp_file($node->logfile, $at) =~ /max_worker_processes/g;
ok(@lines < 10, 'and does not repeat it without end');
$node->stop;
$node->append_conf('postgresql.conf', 'max_worker_processes = 24');
$node->start;
is($c->ended($waiting), 'completed|||', 'the saga started meanwhile runs when there are enough');

# ---- not preloaded ----

$node->stop;
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->start;
is($c->alice(q(SELECT saga.define('later', steps => ARRAY[saga.step('s', action => 'SELECT 1')]))), 1,
    'not preloaded: definitions can be made');
$c->refused('alice', q(SELECT saga.start('later')), '55000', qr/shared_preload_libraries = '[^']*saga'/,
    'but start() says what to set');
$node->stop;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'saga'");
$node->start;
is($c->run('later'), 'completed|||', 'and works once it is');

$node->stop;
$p->{node}->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal (?:6|11)\b/, 'no crash but those we made');
done_testing();
