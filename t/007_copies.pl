# A copy must not act for the original: clones, promoted standbys, restored
# dumps; and nothing is sent that a crash or a lost standby could take back.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;
use Time::HiRes qw(time);

my $ended = "('completed', 'compensated', 'terminated')";

# A coordinator that can be copied: by base backup, and by streaming.
my $c = SagaTest->coordinator('original', stopped => 1, conf => <<'CONF');
saga.executors = 1
wal_writer_delay = '10s'
checkpoint_timeout = '1h'
CONF
open my $hba, '>>', $c->{node}->data_dir . '/pg_hba.conf' or die;
print $hba "local replication all trust\n";
close $hba;
$c->{node}->start;
$c->make_app;

my $p = SagaTest->participant('participant', conf => "log_connections = on\n");
for my $db (qw(a b))
{
    $p->service($db);
    $c->server($db => $p);
}
$c->alice(<<'SQL');
SELECT saga.define('gated', input => 'tag text, g bigint', max_running => 3,
  steps => ARRAY[
    saga.step('local', action => 'SELECT act(''local'', :tag)'),
    saga.step('pay', server => 'a', action => 'SELECT app.act(''pay'', :tag) FROM app.gate(:g)',
              retry => saga.retry_policy(initial_interval => '50 ms', max_interval => '200 ms', max_attempts => 0)),
    saga.step('ship', server => 'b', action => 'SELECT app.act(''ship'', :tag)',
              retry => saga.retry_policy(initial_interval => '50 ms', max_interval => '200 ms', max_attempts => 0))]);
SELECT saga.define('plain', input => 'tag text',
  steps => ARRAY[
    saga.step('local', action => 'SELECT act(''local'', :tag)'),
    saga.step('pay', server => 'a', action => 'SELECT app.act(''pay'', :tag)')]);
SELECT saga.define('local_only', input => 'tag text',
  steps => ARRAY[saga.step('local', action => 'SELECT act(''local'', :tag)'),
                 saga.step('more', action => 'SELECT act(''more'', :tag)')]);
SELECT saga.define('local_end',
  steps => ARRAY[saga.step('no', action => 'SELECT 1/0', on_failure => 'continue',
                           retry => saga.retry_policy(decline_on => '{22012}')),
                 saga.step('local', action => 'SELECT act(''local'')')],
  on_completed => 'SELECT act(''end'')')
SQL

# Sagas by tag: three at the gate, and those that wait for one of them to end.
my $gate;
my $gates = 0;

sub at_the_gate
{
    my ($who, $prefix, $n) = @_;
    $gates++;
    $gate = $p->session(undef, 'a');
    $gate->query_safe("SELECT pg_advisory_lock($gates)");
    my @ids = map { $who->start('gated', qq({"tag": "$prefix-$_", "g": $gates})) } 1 .. $n;
    $p->until(q(SELECT count(*) = 3 FROM pg_locks
                 WHERE locktype = 'advisory' AND mode = 'ShareLock' AND NOT granted), 't', 'a');
    return @ids;
}

sub open_gate
{
    $gate->quit;
    return;
}

sub copy_of
{
    my ($from, $name, %arg) = @_;
    $from->{node}->backup("for_$name");
    my $node = PostgreSQL::Test::Cluster->new($name);
    $node->init_from_backup($from->{node}, "for_$name", has_streaming => $arg{streaming});
    $node->append_conf('postgresql.conf', $arg{conf}) if $arg{conf};
    $node->start;
    return bless { node => $node, db => 'app' }, 'SagaTest';
}

sub activity
{
    my ($who, $pattern, $db) = @_;
    my ($now, $seconds) = ('', 30);
    until_true(sub {
        (undef, $now) = $who->{node}->psql($db // 'app',
            "SELECT activity FROM saga.stat_workers WHERE kind = 'coordinator'");
        return $now =~ $pattern;
    }, $seconds) or diag("activity is: $now");
    return $now;
}

# What a coordinator writes, and how often it has looked at whether it may.
sub contents
{
    my ($who, $db) = @_;
    return $who->sql(<<'SQL', $db);
SELECT (SELECT md5(string_agg(i::text, ',' ORDER BY id)) FROM saga.instance i),
       (SELECT md5(string_agg(l::text, ',' ORDER BY saga_id, seq)) FROM saga.log_record l),
       (SELECT md5(string_agg(o::text, ',' ORDER BY saga_id, node)) FROM saga.local_outcome o),
       (SELECT md5(string_agg(e::text, ',' ORDER BY id)) FROM app.effect e)
SQL
}

sub looks_again
{
    my ($who, $db) = @_;
    my $scans = "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_all_tables WHERE relid = 'saga.identity'::regclass";
    my $before = $who->sql($scans, $db);
    return $who->until("SELECT ($scans) >= $before + 3", 't', $db);
}

sub connections { return scalar(() = slurp_file($p->{node}->logfile) =~ /connection authorized: user=svc/g) }

sub once
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($prefix, $n, $name) = @_;
    is(join(' ', map { $p->sql("SELECT count(*) || '/' || count(DISTINCT arg) FROM app.effect WHERE arg LIKE '$prefix-%'", $_) } qw(a b)),
        "$n/$n $n/$n", $name);
    return;
}

is($c->run('plain', '{"tag": "first"}'), 'completed|||', 'the original works');
is($c->sql("SELECT saga.take_over('why not')"), 'ignored: sagas are not held', 'it holds nothing');

# ---- a clone of a running server ----

my @ids = at_the_gate($c, 'clone', 6);
is($c->sql('SELECT held FROM saga.identity'), '', 'nothing is held there');
is($c->sql("SELECT state, count(*) FROM saga.instances WHERE state NOT IN $ended GROUP BY 1 ORDER BY 1"),
    "pending|3\nrunning|3", 'three sagas in flight, three pending');
my $connected = connections();
my $clone = copy_of($c, 'clone');
like(activity($clone, qr/^held: /), qr/^held: this server \(/,
    'a clone holds its sagas, and says so in stat_workers');
my $frozen = contents($clone);
ok(looks_again($clone), 'also when it has looked again');
is(contents($clone), $frozen, 'nothing of them has changed');
ok(until_true(sub {
    my $lsn = $clone->sql('SELECT pg_current_wal_insert_lsn()');
    looks_again($clone);
    return $lsn eq $clone->sql('SELECT pg_current_wal_insert_lsn()');
}, 10), 'looking writes no WAL');
is(connections(), $connected, 'and no participant was connected to');
like(slurp_file($clone->{node}->logfile),
    qr/LOG:  sagas are held: this server .*\n.*HINT:  .*saga\.take_over\(\).*saga\.host_guard/,
    'the log says it with a hint');
is(scalar(() = slurp_file($clone->{node}->logfile) =~ /LOG:  sagas are held/g), 1, 'once');
is(activity($c, qr/./), 'running', 'the original does not care');

my $new = $clone->start('plain', '{"tag": "new"}');
is($clone->sql("SELECT state FROM saga.status('$new')"), 'pending', 'a saga started in the clone is accepted and waits');
$clone->refused('alice', "SELECT saga.take_over('me')", '42501', qr/./, 'take_over() by a user: 42501');
$clone->sql('GRANT EXECUTE ON FUNCTION saga.take_over(text) TO alice');
$clone->refused('alice', "SELECT saga.take_over('me')", '42501', qr/superuser/, 'also by one who was granted it');
is($clone->sql("SELECT held IS NOT NULL FROM saga.identity"), 't', 'it is still held');
is($clone->sql("SELECT saga.take_over('the original is dead')"), 'queued', 'by a superuser: queued');
$clone->{node}->poll_query_until('app', 'SELECT held IS NULL FROM saga.identity');
is($clone->sql("SELECT saga.take_over('the original is dead')"), 'ignored: sagas are not held', 'and then there is nothing to do');

# the original's calls still hold their keys: the clone waits for them
ok($p->until(q(SELECT count(*) > 0 FROM pg_locks
                WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted), 't', 'a'),
    'the clone announces itself at the participant');
open_gate();
ok($clone->until_all_ended, 'then it finishes all sagas');
is($clone->sql("SELECT count(*) FROM saga.instances WHERE state = 'completed'"), '8', 'completed, the new one, too');
like(activity($c, qr/^held: /), qr/^held: a later copy of this database calls its participants/,
    'the original, still running, is refused and holds itself');
like(slurp_file($c->{node}->logfile), qr/LOG:  this coordinator is fenced off: /, 'its log says so');
once('clone', 6, 'each effect once, over both');
is($p->sql("SELECT count(*) FROM app.effect WHERE arg = 'new'", 'a'), '1', 'that of the new saga, too');
is($p->sql('SELECT count(*) FROM saga_participant.epoch', 'a'), '1', 'it is the same coordinator to the participant');
isnt($c->sql("SELECT count(*) FROM saga.instances WHERE state NOT IN $ended"), '0', 'the original has not finished its own');
$frozen = contents($c);
$c->{node}->restart;
like(activity($c, qr/^held: /), qr/^held: a later copy/, 'nor does it after a restart');
looks_again($c);
is(contents($c), $frozen, 'they stay as they are');
is($_->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state') for $c, $clone;
$c->{node}->stop('immediate');

# ---- saga.host_guard: members of one cluster ----

my $primary = $clone;
$primary->{node}->append_conf('postgresql.conf', "saga.host_guard = 'ha1'\n");
$primary->{node}->restart;
is($primary->run('plain', '{"tag": "guarded"}'), 'completed|||', 'with saga.host_guard set');

my $stranger = copy_of($primary, 'stranger', conf => "saga.host_guard = 'ha2'\n");
like(activity($stranger, qr/^held: /), qr/^held: this server/, 'a copy with another guard holds');
$stranger->{node}->stop('immediate');

@ids = at_the_gate($primary, 'member', 6);
my $member = copy_of($primary, 'member');
ok($p->until(q(SELECT count(*) > 0 FROM pg_locks
                WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted), 't', 'a'),
    'a copy with the same guard goes on by itself');
open_gate();
ok($member->until_all_ended, 'and finishes all sagas');
like(activity($primary, qr/^held: /), qr/^held: a later copy/, 'the old one is fenced off');
once('member', 6, 'each effect once, over both');
$primary->{node}->stop('immediate');

# ---- a standby that is promoted ----

$primary = $member;
my $standby = copy_of($primary, 'standby', streaming => 1);
is($standby->sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'saga %'"), '0',
    'no worker runs on a standby');
$standby->refused('alice', q(SELECT saga.start('plain', input => '{"tag": "standby"}')), '25006', qr/./,
    'where no saga can be started');
@ids = at_the_gate($primary, 'standby', 6);
$primary->{node}->wait_for_catchup($standby->{node}, 'replay', $primary->{node}->lsn('flush'));
$standby->{node}->promote;
ok($p->until(q(SELECT count(*) > 0 FROM pg_locks
                WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted), 't', 'a'),
    'promoted while the old primary still runs, it goes on');
open_gate();
ok($standby->until_all_ended, 'and finishes all sagas');
like(activity($primary, qr/^held: /), qr/^held: a later copy/, 'the old primary is fenced off');
once('standby', 6, 'each effect once, over both');
is($p->sql('SELECT timeline FROM saga_participant.epoch', 'a'), '2', 'the participant knows the new timeline');
is($standby->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
$primary->{node}->stop('immediate');
$c = $standby;
my $node = $c->{node};

# ---- a missing synchronous standby ----

$c->alice('ALTER ROLE alice SET synchronous_commit = local');
$c->sql(q(ALTER SYSTEM SET synchronous_standby_names = 'missing'));
$node->reload;
ok(until_true(sub {
    my $waits = 0;
    $node->psql('app', q(COMMENT ON DATABASE app IS 'x'), timeout => 1, timed_out => \$waits);
    return $waits;
}), 'commits wait for a standby that is missing');
$c->sql(q(SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE wait_event = 'SyncRep'));

sub ended_soon
{
    my ($id) = @_;
    return $c->sql("SELECT done FROM saga.wait('$id', timeout => '10 s')") eq 't';
}

sub unsent
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($id, $name) = @_;
    $c->until("SELECT count(*) = 1 FROM saga.log WHERE saga_id = '$id' AND step = 'pay' AND kind = 'intent'");
    # the coordinator is not blocked, and has had many turns since
    my $n = grep { ended_soon($c->start('local_only', '{"tag": "beside"}')) } 1 .. 10;
    is(join('|', $n, $c->sql("SELECT state FROM saga.status('$id')"),
            $p->sql("SELECT count(*) FROM saga_participant.barrier WHERE saga = '$id'", 'a')),
        '10|running|0', $name);
    return;
}

my $id = $c->start('plain', '{"tag": "missing"}');
unsent($id, 'a remote step whose intent no standby has is not sent; local sagas go on to their end');
ok(ended_soon($c->start('local_end')), 'so do those with a failure and an ending action: their calls wait for the commit only');

my $session = $c->session('alice');
$session->query_safe('SET synchronous_commit = on');
$session->query_until(qr/sent/, <<'SQL');
\echo sent
SELECT saga.start('plain', input => '{"tag": "cancelled"}');
SQL
my $waiting = "SELECT pid FROM pg_stat_activity WHERE usename = 'alice' AND wait_event = 'SyncRep'";
ok($c->until("SELECT EXISTS ($waiting)"), 'start() with synchronous_commit = on waits');
$c->sql("SELECT pg_cancel_backend(pid) FROM ($waiting) w");
ok($c->until(q(SELECT count(*) = 1 FROM saga.instances WHERE input->>'tag' = 'cancelled')), 'a cancelled wait: it is there');
my $cancelled = $c->sql(q(SELECT id FROM saga.instances WHERE input->>'tag' = 'cancelled'));
unsent($cancelled, 'but that does not count as durable');

my ($coordinator) = $c->worker_pids('saga coordinator');
$c->sql("SELECT pg_terminate_backend($coordinator)");
$c->until("SELECT count(*) = 1 FROM saga.stat_workers WHERE kind = 'coordinator' AND activity = 'running' AND pid <> $coordinator");
unsent($id, 'nor does a new coordinator send it');

$session->query_until(qr/again/, <<'SQL');
\echo again
SELECT saga.start('plain', input => '{"tag": "at shutdown"}');
SQL
$c->until("SELECT EXISTS ($waiting)");
my $began = time;
$node->stop('fast');
my $took = time - $began;
cmp_ok($took, '<', 10, 'a fast shutdown with the standby missing takes less than 10 s');
eval { $session->{run}->finish };
$node->start;
unsent($id, 'nor does a new server');

$c->sql('ALTER SYSTEM RESET synchronous_standby_names');
$node->reload;
is($c->ended($_), 'completed|||', 'no standby needed any more: it is sent') for $id, $cancelled;
ok($c->until_all_ended, 'and so are all');
is($p->sql(q(SELECT count(*), count(DISTINCT arg) FROM app.effect WHERE arg IN ('missing', 'cancelled', 'at shutdown')), 'a'),
    '3|3', 'each once');

# ---- start() with synchronous_commit = off, and a crash ----

my (@lost, @wrong);
my $kept = 0;
for my $round (1 .. 6)
{
    my @started = split /\n/, $c->alice(<<SQL);
SET synchronous_commit = off;
SELECT saga.start('plain', input => jsonb_build_object('tag', 'crash-$round-' || n)) FROM generate_series(1, $round) n;
SQL
    # at once, or as soon as the participant has heard of it
    $p->until("SELECT count(*) > 0 FROM app.effect WHERE arg LIKE 'crash-$round-%'", 't', 'a') if $round % 2;
    $node->stop('immediate');
    $node->start;
    for my $n (1 .. $round)
    {
        my $saga = $started[$n - 1];
        my $exists = $c->sql("SELECT count(*) FROM saga.instance WHERE id = '$saga'");
        my $end = $exists ? $c->ended($saga) : '';
        my $effects = join ',', map { $_->[0]->sql("SELECT count(*) FROM app.effect WHERE arg = 'crash-$round-$n'", $_->[1]) }
          [ $c, 'app' ], [ $p, 'a' ];
        $kept++ if $exists;
        push @lost, $saga if !$exists;
        push @wrong, "$saga exists=$exists end=$end effects=$effects"
          if "$end $effects" ne ($exists ? 'completed||| 1,1' : ' 0,0');
    }
}
note("$kept sagas were kept, " . @lost . ' lost');
is("@wrong", '', 'started without a flush, then a crash: it exists and completes, or never was');
cmp_ok($kept, '>', 0, 'what a participant had seen was kept');

# ---- pg_dump and restore ----

my $old = $c->start('plain', '{"tag": "old"}', key => "'old key'");
$c->ended($old);
@ids = at_the_gate($c, 'dumped', 4);
my $log_of = "SELECT md5(string_agg(l::text, ',' ORDER BY seq)) FROM saga.log_record l WHERE saga_id = '$old'";
my $old_log = $c->sql($log_of);
my $instances = q(SELECT md5(string_agg(id || state, ',' ORDER BY id)) FROM saga.instance);
my $old_instances = $c->sql($instances);
my $dump = $node->basedir . '/app.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'app' ], 'pg_dump with sagas in flight');
open_gate();
ok($c->until_all_ended, 'the original goes on');
once('dumped', 4, 'with each effect once');

$c->alice(q(SELECT saga.define('later', input => 'tag text', steps => ARRAY[
    saga.step('pay', server => 'a', action => 'SELECT app.act(''pay'', :tag)')])));

for my $db (qw(one_by_one at_once))
{
    $c->sql("CREATE DATABASE $db", 'postgres');
    $connected = connections();
    if ($db eq 'at_once')
    {
        $node->command_ok([ 'pg_restore', '-1', '-d', $db, $dump ], "$db: restored into another database");
    }
    else
    {
        # the workers are there before the sagas
        $node->command_ok([ 'pg_restore', '--section=pre-data', '-d', $db, $dump ], "$db: the schema is restored");
        activity($c, qr/^(?:running|held: )/, $db);
        $node->command_ok([ 'pg_restore', '--section=data', '--section=post-data', '-d', $db, $dump ], "$db: and the data");
    }
    is($c->sql($instances, $db), $old_instances, "$db: all sagas are there, as they were");
    is($c->sql($log_of, $db), $old_log, "$db: the log of an ended one is there");
    like(activity($c, qr/^held: /, $db), qr/^held: the sagas were restored from a dump/, "$db: they are held");
    looks_again($c, $db);
    is($c->sql($instances, $db), $old_instances, "$db: nothing has changed");
    is(connections(), $connected, "$db: no participant was connected to");
    once('dumped', 4, "$db: no effect twice");
    is($c->sql(q(SELECT count(*) FROM saga.check_log()), $db), '0', "$db: every log folds to its state");
    is($c->alice(q(SELECT saga.start('plain', input => '{"tag": "old"}', key => 'old key')), $db), $old,
        "$db: a key still belongs to its saga");
    is($c->sql("SELECT saga.take_over('moved')", $db), 'queued', "$db: take_over()");
    my $there = bless { node => $node, db => $db }, 'SagaTest';
    ok($there->until_all_ended(30), "$db: then all end");
    $p->sql(q(DELETE FROM app.effect WHERE ctid NOT IN (SELECT min(ctid) FROM app.effect GROUP BY what, arg)), $_) for qw(a b);
    is($there->run('local_only', '{"tag": "restored"}'), 'completed|||', "$db: definitions work");
    is($there->alice(q(SELECT saga.define('more', steps => ARRAY[saga.step('s', action => 'SELECT 1')]))), '1',
        "$db: and new ones");
    is($there->sql('SELECT count(*) > 0 FROM saga.upkeep()'), 't', "$db: upkeep works");
    $c->sql("DROP DATABASE $db WITH (FORCE)", 'postgres');
}

# only pending sagas: they would be run by the original, too
$c->alice(q(SELECT saga.start('later', input => '{"tag": "tonight"}', start_at => now() + '1 hour')));
my $tonight = $node->basedir . '/tonight.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $tonight, 'app' ], 'pg_dump with only pending sagas');
$c->sql('CREATE DATABASE tonight', 'postgres');
$node->command_ok([ 'pg_restore', '-1', '-d', 'tonight', $tonight ], 'restored');
like(activity($c, qr/^(?:held: |running)/, 'tonight'), qr/^held: /, 'they are held: the original will run them');

# A database whose log partitions were all made by upkeep, as they are when it
# is older than three days.
$c->sql(<<'SQL');
DO $$
DECLARE
    part regclass;
BEGIN
    FOR part IN SELECT h.inhrelid::regclass FROM pg_inherits h
                  JOIN pg_depend d ON d.objid = h.inhrelid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e'
                  JOIN pg_class c ON c.oid = h.inhrelid
                 WHERE h.inhparent = 'saga.log_record'::regclass AND c.relname ~ '^log_[0-9]+$'
    LOOP
        EXECUTE format('ALTER EXTENSION saga DROP TABLE %s', part);
    END LOOP;
END
$$
SQL
my $aged = $node->basedir . '/aged.dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $aged, 'app' ], 'pg_dump when upkeep has made the partitions');
$c->sql('CREATE DATABASE aged', 'postgres');
$node->command_ok([ 'pg_restore', '-1', '-d', 'aged', $aged ], 'aged: restored');
is($c->sql($log_of, 'aged'), $old_log, 'aged: the log of an ended saga is there') if
  is($c->sql("SELECT to_regclass('saga.log_record') IS NOT NULL", 'aged'), 't', 'aged: with all tables');
$c->sql('DROP DATABASE aged WITH (FORCE)', 'postgres');

is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
done_testing();
