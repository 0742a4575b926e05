# Countermeasures for missing isolation: semantic locks, escrow, reread values.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;

my $c = SagaTest->coordinator('coordinator', conf => "saga.executors = 3\n");

$c->alice(<<'SQL');
CREATE TABLE item (id integer PRIMARY KEY, stock integer NOT NULL);
INSERT INTO item SELECT n, 10 FROM generate_series(1, 20) n;
CREATE FUNCTION catching(k text) RETURNS text LANGUAGE plpgsql SET search_path = app AS $$
BEGIN
  PERFORM saga.semantic_lock('item', k);
  RETURN 'locked';
EXCEPTION WHEN OTHERS THEN
  RETURN 'caught';
END
$$;
-- lock, stand at a gate, lock another one
SELECT saga.define('two', input => 'k text, k2 text, g bigint, tag text', steps => ARRAY[
  saga.step('first', 'SELECT saga.semantic_lock(''item'', :k)', compensation => 'none'),
  saga.step('gate', 'SELECT gate(:g)', compensation => 'SELECT act(''undone'', :tag)'),
  saga.step('second', 'SELECT saga.semantic_lock(''item'', :k2)', compensation => 'none'),
  saga.step('done', 'SELECT act(''done'', :tag)')]);
SELECT saga.define('one', input => 'k text, tag text', steps => ARRAY[
  saga.step('first', 'SELECT act(''try'', :tag), catching(:k)', compensation => 'SELECT act(''undone'', :tag)'),
  saga.step('done', 'SELECT act(''done'', :tag)')]);
SELECT saga.define('impatient', input => 'k text, policy text, timeout interval', steps => ARRAY[
  saga.step('first', 'SELECT saga.semantic_lock(''item'', :k, policy => :policy, timeout => :timeout)')]);
SELECT saga.define('early', input => 'k text, g bigint', steps => ARRAY[
  saga.step('first', 'SELECT saga.semantic_lock(''item'', :k)'),
  saga.step('free', 'SELECT saga.semantic_unlock(''item'', :k)', returns => 'boolean'),
  saga.step('again', 'SELECT saga.semantic_unlock(''item'', :k)', returns => 'boolean'),
  saga.step('gate', 'SELECT gate(:g)')]);
SELECT saga.define('in_undo', input => 'k text', steps => ARRAY[
  saga.step('first', 'SELECT 1', compensation => 'SELECT saga.semantic_lock(''item'', :k)'),
  saga.step('fails', 'SELECT 1 / 0')])
SQL

my $gate = 0;

# Somebody who holds a gate; two($k, $k2, $gate, $tag) stands at it.
sub close_gate
{
    $gate++;
    my $session = $c->session('alice');
    $session->query_safe("SELECT pg_advisory_lock($gate)");
    return $session;
}

sub two
{
    my ($k, $k2, $g, $tag) = @_;
    return $c->start('two', qq({"k": "$k", "k2": "$k2", "g": $g, "tag": "$tag"}));
}

sub one
{
    my ($k, $tag) = @_;
    return $c->start('one', qq({"k": "$k", "tag": "$tag"}));
}

sub holds
{
    my ($k, $id) = @_;
    return $c->until("SELECT count(*) FROM saga.semantic_locks WHERE key = '$k' AND saga = '$id'", '1');
}

sub waiters
{
    my ($k, $n) = @_;
    return $c->until("SELECT coalesce(cardinality(waiters), 0) FROM saga.semantic_locks WHERE key = '$k'", $n);
}

sub nothing_left
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is($c->sql('SELECT (SELECT count(*) FROM saga.semantic_lock), (SELECT count(*) FROM saga.semantic_lock_waiter)'),
        '0|0', $_[0]);
}

# ---- the queue ----

my $g = close_gate();
my $a = two('k', 'k', $gate, 'a');
ok(holds('k', $a), 'the first has the lock');
my @others;
for my $tag ('b' .. 'e')
{
    push @others, one('k', $tag);
    waiters('k', scalar @others);
}
is($c->sql("SELECT array_to_string(waiters, ' ') FROM saga.semantic_locks WHERE key = 'k'"), "@others", 'the others wait in order');
is($c->alice("SELECT count(*) FROM saga.semantic_locks"), '1', 'their owner sees it');
is($c->sql("SELECT string_agg(DISTINCT outcome || attempts::text, ' ') FROM saga.steps WHERE saga_id = '$others[0]' AND step = 'first'") // '',
    '', 'waiting eats no attempt');
is($c->sql("SELECT count(*) FROM saga.log WHERE saga_id = '$others[0]' AND kind = 'failed' AND sqlstate = 'SGB02' AND message LIKE '%$a%'") > 0, 1,
    'the log says who has it');
my $free = one('other', 'f');
is($c->ended($free), 'completed|||', 'nobody else waits for them');
is($c->alice("SELECT saga.cancel('$others[1]')"), 'queued', 'one of them is cancelled');
is($c->ended($others[1]), 'compensated|cancelled||', 'and ends at once, with nothing done');
$g->quit;
is($c->ended($_), 'completed|||', 'they all end') for $a, @others[ 0, 2, 3 ];
is($c->effects, 'try/f done/f done/a try/b done/b try/d done/d try/e done/e',
    'in the order of their coming, with no effect of the tries that waited');
nothing_left('locks go with their sagas');

# ---- the ends ----

$g = close_gate();
$a = two('k', 'k', $gate, 'g');
holds('k', $a);
my $b = one('k', 'h');
waiters('k', 1);
$c->alice("SELECT saga.cancel('$a')");
$g->quit;
is($c->ended($a), 'compensated|cancelled||', 'a holder is undone');
is($c->ended($b), 'completed|||', 'who waited goes on');

$g = close_gate();
$a = two('k', 'k', $gate, 'i');
holds('k', $a);
$b = one('k', 'j');
waiters('k', 1);
$c->alice("SELECT saga.terminate('$a')");
$g->quit;
is($c->ended($a), 'terminated|operator||', 'a holder is terminated');
is($c->ended($b), 'completed|||', 'who waited goes on');
nothing_left('nothing is left of them');

# ---- policies, unlock, rights ----

$g = close_gate();
$a = two('k', 'k', $gate, 'k');
holds('k', $a);
is($c->run('impatient', '{"k": "k", "policy": "fail", "timeout": null}'), 'compensated|declined|first|SGB01', 'fail: declined');
$b = $c->start('impatient', '{"k": "k", "policy": "wait", "timeout": "200 ms"}');
is($c->ended($b), 'compensated|declined|first|SGB01', 'a wait with a time-out: declined');
like($c->sql("SELECT message FROM saga.log WHERE saga_id = '$b' AND outcome = 'declined'"), qr/still has/, 'which says so');
$b = $c->start('impatient', '{"k": "k", "policy": "maybe", "timeout": null}');
is($c->ended($b), 'compensated|declined|first|22023', 'no other policy');
$g->quit;
is($c->ended($a), 'completed|||', 'the holder ends');
nothing_left('no place in the queue is left');

$g = close_gate();
$a = $c->start('early', qq({"k": "k", "g": $gate}));
$b = one('k', 'l');
is($c->ended($b), 'completed|||', 'an unlocked one is had before its holder ends');
$g->quit;
is($c->ended($a), 'completed|||', 'the holder ends');
is($c->sql("SELECT string_agg(result::text, ' ' ORDER BY position) FROM saga.steps WHERE saga_id = '$a' AND step IN ('free', 'again')"),
    'true false', 'unlock tells what it found');

$c->refused('alice', "SELECT saga.semantic_lock('item', 'k')", '55000', qr/local actions of sagas only/, 'not outside a saga');
$c->refused('alice', "SELECT saga.escrow('stock', '', -1)", '55000', qr/local actions of sagas only/, 'nor an escrow');
$c->refused('alice', q(SELECT saga.reread('item', '{"id": 1}')), '55000', qr/local actions of sagas only/, 'nor a reread');
$a = $c->start('in_undo', '{"k": "k"}');
$c->until_state($a, 'stuck');
is($c->sql("SELECT sqlstate, error ~ 'in a compensation' FROM saga.stuck WHERE id = '$a'"), '55000|t', 'no new lock in a compensation');
$c->alice("SELECT saga.terminate('$a')");
$c->ended($a);
$c->sql(<<'SQL');
CREATE TABLE public.private (id integer);
SET ROLE alice;
SELECT saga.define('foreign', steps => ARRAY[saga.step('s', 'SELECT saga.semantic_lock(''public.private'', ''1'')',
  retry => saga.retry_policy(decline_on => '{42501}'))])
SQL
is($c->run('foreign'), 'compensated|declined|s|42501', 'no lock on a table one has no right on');

# ---- abort ----

$c->alice(<<'SQL');
SELECT saga.define('aborts', input => 'detail jsonb', steps => ARRAY[saga.step('s', 'SELECT saga.abort(''no'', :detail)')])
SQL
$a = $c->start('aborts', '{"detail": {"why": 1}}');
is($c->ended($a), 'compensated|declined|s|SGB01', 'abort: declined');
is($c->sql("SELECT message FROM saga.log WHERE saga_id = '$a' AND outcome = 'declined'"), 'no ({"why": 1})', 'with reason and detail');
is($c->run('aborts', '{"detail": null}'), 'compensated|declined|s|SGB01', 'or without a detail');

# ---- deadlock ----

for my $first (0, 1)
{
    my @gates = (close_gate(), close_gate());
    my @ids = (two('x', 'y', $gate - 1, "old $first"), two('y', 'x', $gate, "young $first"));
    holds('x', $ids[0]);
    holds('y', $ids[1]);
    $gates[$first]->quit;
    waiters($first ? 'x' : 'y', 1);
    $gates[ 1 - $first ]->quit;
    is($c->ended($ids[0]), 'completed|||', "of two that wait for each other the older goes on");
    is($c->ended($ids[1]), 'compensated|declined|second|SGB01', 'and the younger is declined');
    like($c->sql("SELECT string_agg(message, ' ') FROM saga.log WHERE saga_id = '$ids[1]' AND outcome = 'declined'"), qr/deadlock/, 'as a deadlock');
}
nothing_left('nothing is left of them');

# ---- escrow ----

$c->alice(<<'SQL');
SELECT saga.create_escrow('stock', 'book', 10, maximum => 20);
SELECT saga.create_escrow('hits', minimum => NULL);
SELECT saga.define('sell', input => 'n numeric, g bigint', steps => ARRAY[
  saga.step('take', 'SELECT saga.escrow(''stock'', ''book'', -:n)'),
  saga.step('more', 'SELECT saga.escrow(''hits'', '''', 1) + saga.escrow(''hits'', '''', 1)'),
  saga.step('gate', 'SELECT gate(:g)'),
  saga.step('end', 'SELECT 1 / (:n - 3)')])
SQL

sub counter
{
    return $c->alice("SELECT concat_ws(' ', value, reserved_down, reserved_up) FROM saga.escrow_counters WHERE counter = '$_[0]'");
}

$g = close_gate();
my @ids = map { $c->start('sell', qq({"n": $_, "g": $gate})) } 4, 3;
$c->until("SELECT count(*) FROM saga.escrow_reservations WHERE counter = 'stock'", '2');
is(counter('stock'), '10 -7 0', 'what sagas that run may take is reserved, the value is as it was');
my $sold = $c->start('sell', qq({"n": 4, "g": 0}));
is($c->ended($sold), 'compensated|declined|take|SGB01', 'what could be gone is refused');
is($c->run('sell', '{"n": 2.5, "g": 0}'), 'completed|||', 'what must be there is given, while the others still run');
is(counter('stock'), '7.5 -7 0', 'and final at once');
$c->refused('alice', "SELECT saga.set_escrow('stock', 'book', value => 6)", 'SGB01', qr/could fall below/, 'setting heeds what is reserved');
$c->refused('alice', "SELECT saga.set_escrow('stock', 'book', add => 20)", 'SGB01', qr/could rise above/, 'and the maximum');
is($c->alice("SELECT saga.set_escrow('stock', 'book', add => 1, maximum => 30)"), '8.5', 'it can be added to meanwhile');
$c->refused('alice', "SELECT saga.drop_escrow('stock', 'book')", '55006', qr/reservations/, 'it cannot be dropped meanwhile');
$g->quit;
is($c->ended($ids[0]), 'completed|||', 'one completes');
is($c->ended($ids[1]), 'compensated|declined|end|22012', 'one is undone');
is(counter('stock'), '4.5 0 0', 'and gives back what it had reserved, with no compensation written');
is(counter('hits'), '4 0 0', 'several calls of one step add up');
$c->refused('alice', "SELECT saga.create_escrow('stock', 'book')", '42710', qr/already exists/, 'a counter is made once');
$c->refused('alice', "SELECT saga.create_escrow('low', value => -1)", '22003', qr/within its bounds/, 'within its bounds');
$c->refused('alice', "SELECT saga.set_escrow('none')", '42704', qr/does not exist/, 'a counter that is not there');
$c->sql('CREATE ROLE bob LOGIN; GRANT saga_user TO bob');
$c->refused('bob', "SELECT saga.set_escrow('stock', 'book', add => 1)", '42501', qr/belongs to role "alice"/, 'nobody else may');
$c->refused('bob', "SELECT saga.create_escrow('stock', 'cd')", '42501', qr/another role/, 'nor add a key to it');
is($c->as('bob', 'SELECT count(*) FROM saga.escrow_counters'), '0', 'nor see it');

# what a sub-saga has reserved is its parent's to decide about
$c->alice(<<'SQL');
SELECT saga.create_escrow('seats', value => 100);
SELECT saga.define('child', steps => ARRAY[saga.step('take', 'SELECT saga.escrow(''seats'', '''', -10)')]);
SELECT saga.define('parent', input => 'n integer', steps => ARRAY[
  saga.step('take', 'SELECT saga.escrow(''seats'', '''', -1)'),
  saga.call_step('call', 'child'),
  saga.step('see', 'SELECT concat_ws('' '', value, reserved_down) FROM saga.escrow_counters WHERE counter = ''seats''',
            compensation => 'none', returns => 'text'),
  saga.step('end', 'SELECT 1 / :n')]);
SELECT saga.define('greedy_child', steps => ARRAY[saga.step('s', 'SELECT saga.semantic_lock(''item'', ''p'')')]);
SELECT saga.define('greedy', steps => ARRAY[
  saga.step('s', 'SELECT saga.semantic_lock(''item'', ''p'')'), saga.call_step('call', 'greedy_child')])
SQL
for (0, 1)
{
    $a = $c->start('parent', qq({"n": $_}));
    is($c->ended($a), $_ ? 'completed|||' : 'compensated|declined|end|22012', 'a saga with a sub-saga');
    is($c->sql("SELECT result FROM saga.steps WHERE saga_id = '$a' AND step = 'see'"), '"100 -11"',
        'what the completed sub-saga has reserved is not final');
    is(counter('seats'), $_ ? '89 0 0' : '100 0 0', 'before its parent ends');
}
$a = $c->start('greedy');
like($c->ended($a), qr/^compensated\|declined\|call\|/, 'a sub-saga that wants what its parent has is declined');
nothing_left('nothing is left of them');

# steps that are begun anew reserve anew
$c->alice(<<'SQL');
SELECT saga.create_escrow('anew', value => 100);
SELECT saga.define('anew', steps => ARRAY[
  saga.savepoint_step('back', max_tries => 3),
  saga.step('plain', 'SELECT saga.escrow(''anew'', '''', -5)'),
  saga.step('undone', 'SELECT saga.escrow(''anew'', '''', -7)', 'SELECT 1'),
  saga.step('see', 'SELECT act(''reserved'', reserved_down::text) FROM saga.escrow_counters WHERE counter = ''anew''', 'none'),
  saga.step('fails', 'SELECT fail_first(2, ''SGB01'')', on_failure => 'goto:back')])
SQL
is($c->run('anew'), 'completed|||', 'a saga that goes back twice');
is($c->sql("SELECT string_agg(arg, ' ') FROM app.effect WHERE what = 'reserved'"), '-12 -12 -12', 'has reserved once each time');
is(counter('anew'), '88 0 0', 'and so much is taken in the end');

# many at a time: never below zero, nothing lost
$c->alice("SELECT saga.create_escrow('hot', value => 60)");
$c->alice(<<'SQL');
SELECT saga.define('hot', input => 'n integer', steps => ARRAY[
  saga.step('take', 'SELECT saga.escrow(''hot'', '''', -1)', compensation => 'SELECT act(''gave'', (:n)::text)'),
  saga.step('maybe', 'SELECT 1 / (:n % 4)')])
SQL
$c->alice("SELECT saga.start('hot', jsonb_build_object('n', n)) FROM generate_series(1, 100) n");
$c->until_all_ended;
my ($completed, $value) = split /\|/, $c->sql(<<'SQL');
SELECT (SELECT count(*) FROM saga.instances WHERE name = 'hot' AND state = 'completed'),
       (SELECT value FROM saga.escrow_counters WHERE counter = 'hot')
SQL
is($completed + $value, 60, "the value is what the $completed completed have left");
is(counter('hot'), "$value 0 0", 'and nothing is reserved');
is($c->alice("SELECT saga.drop_escrow('stock', 'book')"), '', 'a counter is dropped');

# ---- reread ----

$c->alice(<<'SQL');
SELECT saga.define('reread', input => 'id integer, g bigint, write boolean', steps => ARRAY[
  saga.step('look', 'SELECT saga.reread(''item'', jsonb_build_object(''id'', :id))', returns => 'boolean'),
  saga.step('own', 'UPDATE item SET stock = stock - 1 WHERE id = :id AND :write', compensation => 'none'),
  saga.step('renew', 'SELECT saga.reread(''item'', jsonb_build_object(''id'', :id), renew => :write)'),
  saga.step('gate', 'SELECT gate(:g)'),
  saga.step('look_again', 'SELECT saga.reread(''item'', jsonb_build_object(''id'', :id))', returns => 'boolean')])
SQL
is($c->run('reread', '{"id": 1, "g": 0, "write": true}'), 'completed|||', 'a row that is as it was, but for what the saga did');
is($c->run('reread', '{"id": 99, "g": 0, "write": false}'), 'completed|||', 'no row, and still none');
for my $change ('UPDATE app.item SET stock = stock + 1 WHERE id = 2', 'DELETE FROM app.item WHERE id = 2', 'INSERT INTO app.item VALUES (2, 1)')
{
    $g = close_gate();
    $a = $c->start('reread', qq({"id": 2, "g": $gate, "write": false}));
    $c->until("SELECT count(*) FROM saga.log WHERE saga_id = '$a' AND step = 'renew' AND kind = 'done'", '1');
    $c->alice($change);
    $g->quit;
    is($c->ended($a), 'compensated|declined|look_again|SGB01', "declined after: $change");
}
is($c->sql('SELECT count(*) FROM saga.reread_value'), '0', 'nothing of it is left');
is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'all logs fold to their states');

# ---- a crash ----

$g = close_gate();
$a = two('k', 'k', $gate, 'm');
holds('k', $a);
$b = one('k', 'n');
waiters('k', 1);
$ids[0] = $c->start('sell', qq({"n": 1, "g": $gate}));
eval { $g->quit };
$g = undef;
crash_server($c->{node}) or BAIL_OUT('no server');
is($c->ended($a), 'completed|||', 'a holder goes on after a crash');
is($c->ended($b), 'completed|||', 'who waited has the lock then');
nothing_left('nothing is left of them');

done_testing();
