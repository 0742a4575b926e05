# Sub-sagas: steps that are sagas of their own.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;

my $c = SagaTest->coordinator('coordinator', conf => "saga.coordinators = 3\nsaga.executors = 2\n");

$c->alice(<<'SQL');
CREATE FUNCTION no(why text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '%', why USING ERRCODE = 'SGB01'; END $$;
SELECT saga.define('kid', input => 'n integer', output => '{"id": :a, "n": :n}', steps => ARRAY[
  saga.step('a', action => 'SELECT act(''kid'', (:n)::text)', compensation => 'SELECT act(''kid undone'', (:n)::text)')]);
SELECT saga.define('slow kid', input => 'g bigint', output => '''late''::text', steps => ARRAY[
  saga.step('a', action => 'SELECT act(''slow'', (:g)::text)', compensation => 'SELECT act(''slow undone'', (:g)::text)'),
  saga.step('gate', action => 'SELECT gate(:g)', timeout => '1 hour', compensation => 'SELECT 1')]);
SELECT saga.define('pivot kid', input => 'n integer', steps => ARRAY[
  saga.step('a', action => 'SELECT act(''pivot kid'', (:n)::text)', pivot => true)]);
SELECT saga.define('bad kid', input => 'n integer', steps => ARRAY[
  saga.step('a', action => 'SELECT act(''bad kid'', (:n)::text)', compensation => 'SELECT act(''bad kid undone'', (:n)::text)'),
  saga.step('b', action => 'SELECT no(''not this one'')', compensation => 'SELECT 1')]);
SELECT saga.define('mum', input => 'n integer', output => ':kid.n', steps => ARRAY[
  saga.call_step('kid', 'kid', input => '{"n": :n}'),
  saga.step('after', action => 'SELECT act(''mum'', (:kid.id)::text)', compensation => 'SELECT 1')]);
SELECT saga.define('mum comes back', input => 'n integer', steps => ARRAY[
  saga.step('first', action => 'SELECT act(''first'')', compensation => 'SELECT act(''first undone'', (:n)::text)'),
  saga.call_step('kid', 'kid', input => '{"n": :n}'),
  saga.step('no', action => 'SELECT no(''enough'')', compensation => 'SELECT 1')]);
SELECT saga.define('mum of bad', input => 'n integer', steps => ARRAY[
  saga.step('first', action => 'SELECT act(''first'')', compensation => 'SELECT act(''first undone'', (:n)::text)'),
  saga.call_step('kid', 'bad kid', input => '{"n": :n}')]);
SELECT saga.define('mum of slow', input => 'g bigint', output => ':kid', steps => ARRAY[
  saga.step('first', action => 'SELECT act(''first'')', compensation => 'SELECT act(''first undone'', (:g)::text)'),
  saga.call_step('kid', 'slow kid', input => '{"g": :g}')]);
SELECT saga.define('mum of pivot', input => 'n integer', steps => ARRAY[
  saga.call_step('kid', 'pivot kid', input => '{"n": :n}'),
  saga.step('no', action => 'SELECT no(''enough'')', compensation => 'SELECT 1')]);
SELECT saga.define('grandma', input => 'n integer', output => ':mum', steps => ARRAY[
  saga.call_step('mum', 'mum', input => '{"n": :n}')]);
SELECT saga.define('grandma comes back', input => 'n integer', steps => ARRAY[
  saga.call_step('mum', 'mum', input => '{"n": :n}'),
  saga.step('no', action => 'SELECT no(''enough'')', compensation => 'SELECT 1')]);
SELECT saga.define('many', input => 'n integer', output => ':kid', steps => ARRAY[
  saga.call_step('kid', 'kid', input => '{"n": :item}', for_each => 'to_jsonb(ARRAY(SELECT generate_series(1, :n)))', max_parallel => 4)]);
SQL

sub effects_like
{
    my ($pattern) = @_;
    return $c->sql(qq(SELECT string_agg(what || coalesce(' ' || arg, ''), ', ' ORDER BY id) FROM app.effect WHERE what || coalesce(' ' || arg, '') ~ '$pattern'));
}

sub children
{
    my ($id) = @_;
    return $c->sql("SELECT string_agg(name || '/' || parent_step || '/' || state, ' ' ORDER BY id) FROM saga.instances WHERE parent_id = '$id'");
}

# ---- forward ----

my $id = $c->start('mum', '{"n": 1}', priority => 7, correlation => "'c1'", deadline => "'1 hour'");
is($c->ended($id), 'completed|||', 'a saga with a sub-saga');
is($c->sql("SELECT output FROM saga.instances WHERE id = '$id'"), '1', "the child's output is the step's result");
is(children($id), 'kid/kid/completed', 'the view shows it');
is($c->sql("SELECT k.priority, k.correlation, k.deadline = p.deadline, k.started_by FROM saga.instances k JOIN saga.instances p ON k.parent_id = p.id WHERE p.id = '$id'"),
    '7|c1|t|alice', 'it has what its parent has');
is($c->sql("SELECT left(k.id::text, 13) = left(p.id::text, 13), substr(k.id::text, 15, 1) FROM saga.instances k JOIN saga.instances p ON k.parent_id = p.id WHERE p.id = '$id'"),
    't|7', 'its id is a UUIDv7 of the time of its parent');
$id = $c->start('grandma', '{"n": 2}');
is($c->ended($id), 'completed|||', 'three generations');
is($c->sql("SELECT output FROM saga.instances WHERE id = '$id'"), '2', 'the output comes up');
$id = $c->start('many', '{"n": 20}');
is($c->ended($id), 'completed|||', 'a sub-saga for each element');
is($c->sql("SELECT count(*), count(DISTINCT parent_step), bool_and(state = 'completed') FROM saga.instances WHERE parent_id = '$id'"), '20|20|t', 'each its own');
is($c->sql("SELECT jsonb_array_length(output), output->19->>'n' FROM saga.instances WHERE id = '$id'"), '20|20', 'in their order');

# ---- back ----

is($c->run('mum comes back', '{"n": 30}'), 'compensated|declined|no|SGB01', 'a parent comes back');
is(effects_like('undone 30$'), 'kid undone 30, first undone 30', 'its child is undone first');
is($c->sql(q(SELECT state, direction, cause, ended_at IS NOT NULL FROM saga.instances WHERE name = 'kid' AND input @> '{"n": 30}')), 'compensated|undo|cancelled|t', 'after it had completed');
$id = $c->start('mum of bad', '{"n": 4}');
is($c->ended($id), 'compensated|declined|kid|SGB01', 'a child that comes back is a step that is declined');
is($c->sql("SELECT error FROM saga.instances WHERE id = '$id'"), 'not this one', 'with its error');
is(effects_like('undone 4$'), 'bad kid undone 4, first undone 4', 'and each is undone once');
$id = $c->start('grandma comes back', '{"n": 5}');
is($c->ended($id), 'compensated|declined|no|SGB01', 'three generations come back');
is(effects_like('kid undone 5$'), 'kid undone 5', 'down to the last');

# ---- while the child runs ----

my $gate = 100;
my $lock;

sub at_gate
{
    my ($definition) = @_;
    $gate++;
    $lock = $c->session();
    $lock->query_safe("SELECT pg_advisory_lock($gate)");
    my $saga = $c->start($definition, qq({"g": $gate}));
    $c->until(q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)) or BAIL_OUT('a saga does not reach its gate');
    return $saga;
}

$id = at_gate('mum of slow');
ok($c->until_state($id, 'waiting'), 'a parent waits while its child runs');
$c->alice("SELECT saga.cancel('$id', reason => 'no longer')");
$lock->quit;
is($c->ended($id), 'compensated|cancelled||', 'cancelled while its child runs');
is(effects_like("undone $gate\$"), "slow undone $gate, first undone $gate", 'the child is undone before what came before it');
is(children($id), 'slow kid/kid/compensated', 'it has ended before its parent');

$id = at_gate('mum of slow');
$c->{node}->restart;
$lock->quit;
is($c->ended($id), 'completed|||', 'over a restart');
is($c->sql("SELECT count(*) FROM saga.instances WHERE parent_id = '$id'"), '1', 'the child is there once');
$id = at_gate('mum of slow');
$c->{node}->stop('immediate');
$c->{node}->start;
is($c->ended($id), 'completed|||', 'over a crash');
is($c->sql("SELECT output FROM saga.instances WHERE id = '$id'"), '"late"', 'with its output');
is($c->sql("SELECT count(*) FROM saga.instances WHERE parent_id = '$id'"), '1', 'the child is there once');

$id = at_gate('mum of slow');
$c->alice("SELECT saga.terminate('$id', reason => 'enough', force => true)");
ok($c->until_state($id, 'terminated'), 'a parent that is terminated');
$lock->quit;
ok($c->until("SELECT state = 'terminated' FROM saga.instances WHERE parent_id = '$id'"), 'has its child terminated');

# a child that an operator terminates is for an operator
$id = at_gate('mum of slow');
my $kid = $c->sql("SELECT id FROM saga.instances WHERE parent_id = '$id'");
$c->alice("SELECT saga.terminate('$kid', reason => 'hopeless', force => true)");
$lock->quit;
ok($c->until_state($id, 'stuck'), 'a child that is terminated: its parent is stuck');
is($c->sql("SELECT step, reason, sqlstate, error ~ '^sub-saga .* was terminated', verbs FROM saga.stuck WHERE id = '$id'"),
    'kid|broken|55000|t|{rerun_from,skip_step,cancel,terminate}', 'with the verbs that help');
$c->alice("SELECT saga.rerun_from('$id', 'kid', reason => 'once more')");
is($c->ended($id), 'completed|||', 'rerun_from calls another one');
like(children($id), qr{slow kid/kid/terminated}, q(both are shown));

# one past its pivot cannot be undone: for an operator, too
$id = $c->start('mum of pivot', '{"n": 6}');
ok($c->until_state($id, 'stuck'), 'a child that cannot be undone: its parent is stuck');
is($c->sql("SELECT step, operation, sqlstate, error ~ 'pivot', verbs FROM saga.stuck WHERE id = '$id'"), 'kid|undo|55000|t|{skip_step,terminate}', 'with the reason');
$c->alice("SELECT saga.skip_step('$id', 'kid', reason => 'done by hand', force => true)");
is($c->ended($id), 'compensated|declined|no|SGB01', 'and ends when it is skipped');

# ---- rights, and what must not be ----

$c->sql('CREATE ROLE carol LOGIN; GRANT saga_user TO carol');
$c->refused('carol', q(SELECT saga.define('thief', steps => ARRAY[saga.call_step('kid', 'kid', input => '{"n": 1}')])), 'SGD01', qr/may not start/, 'a definition that its owner may not start');
$c->refused('alice', q(SELECT saga.define('kid', steps => ARRAY[saga.call_step('mum', 'mum', input => '{"n": 1}')])), 'SGD01', qr/circle/, 'no circles');
$id = $c->start('mum', '{"n": 8}');
is($c->sql(q(SELECT version FROM saga.definitions WHERE name = 'kid' AND latest)), '1', 'one version');
$c->ended($id);
$c->alice(q(SELECT saga.define('kid', input => 'n integer', output => '{"id": :a, "n": 99}', steps => ARRAY[
  saga.step('a', action => 'SELECT act(''kid two'', (:n)::text)', compensation => 'SELECT act(''kid undone'', (:n)::text)')])));
$id = $c->start('mum', '{"n": 9}');
$c->ended($id);
is($c->sql("SELECT output FROM saga.instances WHERE id = '$id'"), '99', 'a child is of the newest version when it starts');

# ---- keeping ----

$id = at_gate('mum of slow');
$c->sql(q(UPDATE saga.instance SET ended_at = ended_at - interval '60 days' WHERE parent_id IS NOT NULL AND ended_at IS NOT NULL));
my $before = $c->sql('SELECT count(*) FROM saga.instances WHERE parent_id IS NOT NULL');
$c->sql('SELECT saga.upkeep()');
is($c->sql('SELECT count(*) FROM saga.instances WHERE parent_id IS NOT NULL'), $before, 'children stay as long as their parents');
$c->refused('alice', q(SELECT saga.drop_definition('slow kid')), '55006', qr/in use/, 'a definition of a live child is in use');
$lock->quit;
is($c->ended($id), 'completed|||', 'it ends');
$c->sql(q(UPDATE saga.instance SET ended_at = ended_at - interval '60 days' WHERE parent_id IS NULL AND ended_at IS NOT NULL));
$c->sql('SELECT saga.upkeep()');
$c->sql('SELECT saga.upkeep()');
$c->sql('SELECT saga.upkeep()');
is($c->sql('SELECT count(*) FROM saga.instances WHERE parent_id IS NOT NULL AND ended_at < now() - interval \'31 days\''), '0', 'and go after them');

# ---- many, over several coordinators, with a crash in between ----

$c->alice(q(SELECT count(*) FROM saga.start_many('mum', (SELECT jsonb_agg(jsonb_build_object('n', n)) FROM generate_series(1000, 1199) n))));
$c->alice(q(SELECT count(*) FROM saga.start_many('mum comes back', (SELECT jsonb_agg(jsonb_build_object('n', n)) FROM generate_series(2000, 2199) n))));
$c->{node}->stop('immediate');
$c->{node}->start;
ok($c->until_all_ended(120), 'all end');
is($c->sql(q(SELECT string_agg(name || ' ' || state || ' ' || n, ', ' ORDER BY name, state) FROM (SELECT name, state, count(*) AS n FROM saga.instances
  WHERE (input->>'n')::integer >= 1000 GROUP BY 1, 2) s)), 'kid compensated 200, kid completed 200, mum completed 200, mum comes back compensated 200', 'as they should');
is($c->sql(q(SELECT count(*), count(DISTINCT arg) FROM app.effect WHERE what = 'kid undone' AND arg::integer >= 2000)), '200|200', 'each is undone once');
is($c->sql(q(SELECT count(*), count(DISTINCT arg) FROM app.effect WHERE what = 'kid two' AND arg::integer >= 1000)), '400|400', 'each is done once');
is($c->sql('SELECT count(*) FROM saga.inbox'), '0', 'no letter is left');
is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
done_testing();
