# Sagas from end to end: local and remote steps, all the ways to fail, waiting,
# keys, typed input.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;

my $c = SagaTest->coordinator('coordinator');
my $p = SagaTest->participant('participant');
for my $db (qw(a b c))
{
    $p->service($db);
    $c->server($db => $p);
}

# ---- local steps ----

my $version = $c->alice(<<'SQL');
SELECT saga.define('local_only',
  input => 'n integer',
  steps => ARRAY[
    saga.step('one', action => 'SELECT act(''one'', (:n)::text)',
              compensation => 'SELECT act(''undo one'')'),
    saga.step('two', action => 'SELECT act(''two'', (:one)::text)',
              compensation => 'SELECT act(''undo two'')')],
  on_completed => 'SELECT act(''completed'')',
  on_compensated => 'SELECT act(''compensated'')')
SQL
is($version, 1, 'the first version of a definition');

my $id = $c->start('local_only', '{"n": 7}');
is($c->ended($id), 'completed|||', 'a saga of local steps completes');
is($c->effects, 'one/7 two/1 completed', 'each step once, with input and the result before it');
is($c->sql("SELECT string_agg(step || ' ' || state, ', ' ORDER BY step) FROM saga.steps WHERE saga_id = '$id'"),
    'one done, two done', 'the steps are seen as done');
is($c->sql("SELECT state || ' ' || done FROM saga.status('$id')"), 'completed true', 'status() agrees');
is($c->sql(<<SQL), 't', 'the log has no holes and begins at 1');
SELECT count(*) > 3 AND min(seq) = 1 AND max(seq) = count(*) FROM saga.log WHERE saga_id = '$id'
SQL
is($c->sql("SELECT count(*) FROM saga.instances WHERE id = '$id' AND ended_at >= started_at"), '1',
    'the instance is seen');

# ---- atomic with the caller's transaction ----

my $count_rows = <<'SQL';
SELECT string_agg(format('%s=%s', c.relname, (xpath('/row/n/text()',
         query_to_xml(format('SELECT count(*) AS n FROM %s', c.oid::regclass), false, true, '')))[1]),
       ' ' ORDER BY c.relname)
  FROM pg_class c
 WHERE c.relnamespace = 'saga'::regnamespace AND c.relkind = 'r'
SQL
my $before = $c->sql($count_rows);
my $rolled_back = $c->alice(<<'SQL');
BEGIN;
SELECT saga.start('local_only', input => '{"n": 1}', key => 'gone');
SELECT saga.start('local_only', input => '{"n": 2}');
ROLLBACK;
SQL
my @gone = split /\n/, $rolled_back;
is(scalar @gone, 2, 'start() gives ids in a transaction');
is($c->sql($count_rows), $before, 'a rollback leaves no row in any table');

$c->alice(<<'SQL');
BEGIN;
SAVEPOINT s;
SELECT saga.start('local_only', input => '{"n": 3}', key => 'sub');
ROLLBACK TO s;
COMMIT;
SQL
is($c->sql($count_rows), $before, 'nor does that of a subtransaction');

# a saga started after these in the queue ends: nothing waits for the gone ones
is($c->run('local_only', '{"n": 9}'), 'completed|||', 'later sagas run on');
is($c->sql("SELECT count(*) FROM saga.instances WHERE id IN ('$gone[0]', '$gone[1]')"), '0',
    'and the others never were');

# ---- remote steps ----

$c->alice(<<'SQL');
SELECT saga.define('three',
  input => 'last text, n integer',
  steps => ARRAY[
    saga.step('a', server => 'a', action => 'SELECT app.act(''a'', (:n)::text)',
              compensation => 'SELECT app.act(''undo a'')'),
    saga.step('b', server => 'b', action => 'SELECT app.act(''b'', (:a)::text)',
              compensation => 'SELECT app.act(''undo b'', (:b)::text)'),
    saga.step('c', server => 'c', action => 'SELECT app.refuse(:last)')],
  on_compensated => 'SELECT act(''compensated three'', :cause)');
SELECT saga.define('three_good',
  input => 'n integer',
  steps => ARRAY[
    saga.parallel(
      saga.step('a', server => 'a', action => 'SELECT app.act(''a'', (:n)::text)',
                compensation => 'SELECT app.act(''undo a'')'),
      saga.step('b', server => 'b', action => 'SELECT app.act(''b'', (:n)::text)',
                compensation => 'SELECT app.act(''undo b'')')),
    saga.step('c', server => 'c', pivot => true,
              action => 'SELECT app.act(''c'', (:a)::text || ''+'' || (:b)::text)')])
SQL
is($c->run('three_good', '{"n": 5}'), 'completed|||', 'three databases');
is(join('; ', map { $p->effects($_) } qw(a b c)), 'a/5; b/5; c/1+1', 'each has its effect, with results passed on');

for my $how (
    [ SGB01 => 'SGB01' ], [ P0001 => 'P0001' ], [ '23514' => '23514' ],
    [ '22003' => '22003' ], [ decline => 'SGB01' ])
{
    my ($last, $code) = @$how;
    $p->sql('TRUNCATE app.effect RESTART IDENTITY', $_) for qw(a b c);
    my $saga = $c->start('three', qq({"last": "$last", "n": 1}));
    is($c->ended($saga), "compensated|declined|c|$code", "declined by $last: compensated");
    is(join('; ', map { $p->effects($_) } qw(a b c)), 'a/1 undo a; b/1 undo b/1; ',
        'both undone, and the one that declined not');
    ok($p->sql("SELECT at FROM app.effect WHERE what = 'undo a'", 'a') gt
          $p->sql("SELECT at FROM app.effect WHERE what = 'undo b'", 'b'), 'in reverse order');
    like($c->sql("SELECT error FROM saga.status('$saga')"), $last eq 'decline' ? qr/not today/ : qr/no: $last/,
        'the reason is kept');
}
is($c->sql("SELECT count(*), min(arg) FROM app.effect WHERE what = 'compensated three'"), '5|declined',
    'on_compensated ran once each');

# ---- trying again ----

$c->alice(<<'SQL');
SELECT saga.define('tries',
  steps => ARRAY[
    saga.step('local', action => 'SELECT fail_first(2, ''SGB02'')',
              retry => saga.retry_policy(initial_interval => '10 ms')),
    saga.step('remote', server => 'a', action => 'SELECT app.fail_first(2, ''40001'')',
              retry => saga.retry_policy(initial_interval => '10 ms'))]);
SELECT saga.define('gives_up',
  steps => ARRAY[
    saga.step('first', server => 'b', action => 'SELECT app.act(''gives up'')',
              compensation => 'SELECT app.act(''given up'')'),
    saga.step('never', server => 'a', action => 'SELECT app.fail_first(1000000, ''SGB02'')',
              retry => saga.retry_policy(max_attempts => 3, initial_interval => '10 ms'))]);
SELECT saga.define('goes_on',
  steps => ARRAY[
    saga.step('maybe', server => 'c', action => 'SELECT app.refuse(''SGB01'')', on_failure => 'continue'),
    saga.step('after', action => 'SELECT act(''after'', (:maybe.failed)::text)')])
SQL
$id = $c->start('tries');
is($c->ended($id), 'completed|||', 'transient answers are tried again');
is($c->sql("SELECT string_agg(step || attempts, ' ' ORDER BY step) FROM saga.steps WHERE saga_id = '$id'"),
    'local3 remote3', 'until the third try');
$p->sql('TRUNCATE app.effect', 'b');
is($c->run('gives_up'), 'compensated|declined|never|SGB02', 'attempts come to an end');
is($p->effects('b'), 'gives up given up', 'and what was done is undone');
is($c->run('goes_on'), 'completed|||', "on_failure => 'continue'");
like($c->effects, qr{after/true$}, 'shows that the step failed');

# ---- result shapes ----

$c->alice(<<'SQL');
SELECT saga.define('shapes',
  steps => ARRAY[
    saga.step('scalar', server => 'a', action => 'SELECT 42'),
    saga.step('object', server => 'a', action => 'SELECT 1 AS x, ''y'' AS y'),
    saga.step('nothing', server => 'a', action => 'SELECT 1 WHERE false'),
    saga.step('dml', server => 'a', action => 'UPDATE app.effect SET what = what WHERE id < 0'),
    saga.step('many', server => 'a', result => 'rows', action => 'SELECT n FROM generate_series(1, 2) n'),
    saga.step('pairs', server => 'a', result => 'rows', action => 'SELECT n, -n AS m FROM generate_series(1, 2) n'),
    saga.step('first', action => 'SELECT n FROM generate_series(1, 3) n ORDER BY n', result => 'first'),
    saga.step('none', action => 'SELECT n FROM generate_series(1, 3) n', result => 'none')]);
SELECT saga.define('too_many',
  steps => ARRAY[saga.step('many', server => 'a', action => 'SELECT n FROM generate_series(1, 3) n')])
SQL
$id = $c->start('shapes');
is($c->ended($id), 'completed|||', 'results of all shapes');
is($c->sql("SELECT string_agg(step || '=' || coalesce(result::text, '-'), ' ' ORDER BY step) FROM saga.steps WHERE saga_id = '$id'"),
    'dml={"rows": 0} first=1 many=[1, 2] none=- nothing=- object={"x": 1, "y": "y"} pairs=[{"m": -1, "n": 1}, {"m": -2, "n": 2}] scalar=42',
    'are stored as said');
$id = $c->start('too_many');
ok($c->until_state($id, 'stuck'), 'several rows where one is expected: stuck');
is($c->sql("SELECT sqlstate FROM saga.stuck WHERE id = '$id'"), 'SGR01', 'with SGR01');
is($c->alice("SELECT saga.terminate('$id', reason => 'test')"), 'queued', 'terminate');
like($c->ended($id), qr/^terminated/, 'ends it');

# ---- waiting ----

$c->alice(<<'SQL');
SELECT saga.define('gated', input => 'gate bigint',
  steps => ARRAY[saga.step('g', action => 'SELECT gate(:gate)'),
                 saga.step('h', server => 'a', action => 'SELECT app.gate(:gate)')]);
SQL
my $lock = $c->session;
$lock->query_safe('SELECT pg_advisory_lock(11)');
$id = $c->start('gated', '{"gate": 11}');
is($c->alice("SELECT done, state IN ('pending', 'running') FROM saga.wait('$id', timeout => '100 ms')"), 'f|t',
    'wait() at its time-out says so');
is($c->run('local_only', '{"n": 1}'), 'completed|||', 'a step that waits for a lock delays no other saga');
$lock->query_safe('SELECT pg_advisory_unlock(11)');
is($c->ended($id), 'completed|||', 'and goes on when the lock is free');
$lock->quit;

$c->refused('alice', <<'SQL', '55000', qr/Commit first/, 'wait() in the starting transaction');
BEGIN;
SELECT saga.start('local_only', input => '{"n": 1}') AS id \gset
SELECT saga.wait(:'id');
SQL
$c->refused('alice', q(SELECT saga.wait(saga.start('local_only', input => '{"n": 1}'))), '55000', qr/./,
    'wait() in the starting statement');
$c->refused('alice', "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT saga.wait('$id')", '25001', qr/./,
    'wait() in REPEATABLE READ');

# ---- keys ----

my $one = $c->start('local_only', '{"n": 1}', key => "'k1'");
is($c->start('local_only', '{"n": 1}', key => "'k1'"), $one, 'the same key gives the same saga');
$c->ended($one);
is($c->start('local_only', '{"n": 1}', key => "'k1'"), $one, 'also when it has ended');
$c->refused('alice', q(SELECT saga.start('local_only', input => '{"n": 2}', key => 'k1')), 'SGK01', qr/k1/,
    'with another input: SGK01');
isnt($c->start('local_only', '{"n": 1}', key => "'k2'"), $one, 'another key, another saga');
isnt($c->start('local_only', '{"n": 1}', key => "'k1'", on_conflict => "'restart_if_ended'"), $one,
    'restart_if_ended makes a new one');
my ($code) = $c->try('alice', q(SELECT saga.start('local_only', input => '{"n": 1}', key => 'k2', on_conflict => 'error')));
isnt($code, '', "on_conflict => 'error' is an error");

# ---- typed input ----

$c->alice(<<'SQL');
SELECT saga.define('typed',
  input => 'id bigint, price numeric(8,2), tags text[], at timestamptz, extra jsonb, yes boolean',
  steps => ARRAY[
    saga.step('t', server => 'a', action =>
      'SELECT pg_typeof(:id) AS id, (:price)::text AS price, array_length(:tags, 1) AS tags,
              pg_typeof(:at) AS at, :extra -> ''k'' AS extra, :yes AS yes')])
SQL
my $good = '{"id": 1, "price": 2.5, "tags": ["x", "y"], "at": "2026-01-02T03:04:05Z", "extra": {"k": [1]}, "yes": true}';
$id = $c->start('typed', $good);
is($c->ended($id), 'completed|||', 'typed input');
is($c->sql("SELECT result FROM saga.steps WHERE saga_id = '$id'"),
    '{"at": "timestamp with time zone", "id": "bigint", "yes": true, "tags": 2, "extra": [1], "price": "2.50"}',
    'is bound with its types');
$c->refused('alice', "SELECT saga.start('typed', input => '$good'::jsonb - 'price')", '22023', qr/price/, 'a missing field');
$c->refused('alice', "SELECT saga.start('typed', input => '$good'::jsonb || '{\"more\": 1}')", '22023', qr/more/, 'a surplus field');
$c->refused('alice', "SELECT saga.start('typed', input => '$good'::jsonb || '{\"id\": \"x\"}')", '22023', qr/id/, 'a wrong field');
$c->refused('alice', "SELECT saga.start('typed', input => '[1]')", '22023', qr/./, 'not an object');
$c->refused('alice', "SELECT saga.start('nothing_such')", '42704', qr/nothing_such/, 'no such definition');

# ---- many ----

is($c->alice(<<'SQL'), '1|t 2|t 3|t', 'start_many()');
SELECT string_agg(ordinal || '|' || left(created::text, 1), ' ' ORDER BY ordinal)
  FROM saga.start_many('local_only', '[{"n": 101}, {"n": 102}, {"n": 103}]'::jsonb)
SQL
is($c->alice(<<'SQL'), '1|t 2|f 3|t', 'start_many() with keys that repeat');
SELECT string_agg(ordinal || '|' || left(created::text, 1), ' ' ORDER BY ordinal)
  FROM saga.start_many('local_only', '[{"n": 201}, {"n": 201}, {"n": 202}]'::jsonb, key_field => 'n')
SQL
ok($c->until_all_ended, 'all end');
is($c->sql("SELECT count(*) FROM app.effect WHERE what = 'one' AND arg IN ('101','102','103','201','202')"), '5',
    'each once');

# ---- versions ----

is($c->alice(<<'SQL'), "1\n2\n2\n3", 'unchanged content is the same version, changed content a new one');
SELECT saga.define('v', steps => ARRAY[saga.step('s', action => 'SELECT 1')]);
SELECT saga.define('v', steps => ARRAY[saga.step('s', action => 'SELECT 2')]);
SELECT saga.define('v', steps => ARRAY[saga.step('s', action => 'SELECT 2')]);
SELECT saga.define('v', steps => ARRAY[saga.step('s', action => 'SELECT 1')]);
SQL

# ---- servers made for others, options ----

SKIP:
{
    skip 'no postgres_fdw', 2 if $c->sql("SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'") eq '0';
    $c->sql('CREATE EXTENSION postgres_fdw');
    $c->server(pgfdw => $p, db => 'b', fdw => 'postgres_fdw');
    $c->alice("SELECT saga.define('by_fdw', steps => ARRAY[saga.step('s', server => 'pgfdw', action => 'SELECT app.act(''fdw'')')])");
    is($c->run('by_fdw'), 'completed|||', 'a server of postgres_fdw is a participant');
    like($p->effects('b'), qr/fdw$/, 'with its effect');
}
$c->server(path => $p, db => 'c', options => ", search_path 'app', pool_size '2', statement_timeout '5s'");
$c->alice("SELECT saga.define('by_path', steps => ARRAY[saga.step('s', server => 'path', action => 'SELECT act(''path'')')])");
is($c->run('by_path'), 'completed|||', 'the search_path of a server');
is($c->alice("SELECT string_agg(\"check\", ',') FROM saga.check_participant('path') WHERE NOT ok"), 'fsync',
    'check_participant() is content, but for the test server being fast and loose');

# ---- at the end ----

is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
for my $db (qw(a b c))
{
    is($p->sql('SELECT count(*) FROM saga_participant.barrier', $db) > 0, 1, "the barrier of $db was used");
}
$c->{node}->stop;
$p->{node}->stop;
unlike(PostgreSQL::Test::Utils::slurp_file($_->{node}->logfile), qr/PANIC|TRAP|signal 6|signal 11/, 'no crash')
  for $c, $p;
unlike(PostgreSQL::Test::Utils::slurp_file($c->{node}->logfile) =~ s/^.*(?:CREATE USER MAPPING|OPTIONS \(user).*$//mgr,
    qr/\Q$password\E/, 'no password in the log beyond the statement that set it');

done_testing();
