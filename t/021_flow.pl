# Conditions, branches, for_each, loops, sleeps, save-points and outputs, while
# workers and the server are killed: what happens is what the definition says,
# each local effect exactly once.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;
use Time::HiRes qw(usleep);

my $sagas = $ENV{SAGA_FLOWS} || 150;
my $kills = $ENV{SAGA_KILLS} || 9;
my $seed = $ENV{SAGA_SEED} || (time ^ ($$ << 8)) & 0x7fffffff;
srand($seed);
diag("SAGA_SEED=$seed");

my $c = SagaTest->coordinator('coordinator', conf => "saga.executors = 2\nlog_statement = none\n");
my $p = SagaTest->participant('participant');
$p->service('a');
$c->server(a => $p);
$c->alice(<<'SQL');
CREATE FUNCTION app.last(n integer) RETURNS bigint LANGUAGE plpgsql SET search_path = app AS $$
BEGIN
  IF n % 10 = 9 THEN
    RAISE EXCEPTION 'nine' USING ERRCODE = 'SGB01';
  END IF;
  RETURN app.act('last', n::text);
END
$$;
SELECT saga.define('flow', input => 'n integer, items jsonb',
  steps => ARRAY[
    saga.step('first', action => 'SELECT app.act(''first'', (:n)::text)',
              compensation => 'SELECT app.act(''first undone'', (:n)::text)'),
    saga.step('even', condition => ':n % 2 = 0', action => 'SELECT app.act(''even'', (:n)::text)',
              compensation => 'SELECT app.act(''even undone'', (:n)::text)'),
    saga.branch_step('size',
      saga.when(':n % 3 = 0', ARRAY[
        saga.step('three', action => 'SELECT app.act(''three'', (:n)::text)', compensation => 'none')]),
      saga.when(':n % 3 = 1', ARRAY[
        saga.step('one', server => 'a', action => 'SELECT app.act(''one'', (:n)::text)',
                  compensation => 'SELECT app.act(''one undone'', (:n)::text)')]),
      saga.otherwise(ARRAY[
        saga.sleep_step('nap', '20 ms'),
        saga.step('two', action => 'SELECT app.act(''two'', (:n)::text)', compensation => 'none')])),
    saga.step('each', for_each => ':items', max_parallel => 2, server => 'a',
              action => 'SELECT app.act(''each'', concat((:n)::text, ''/'', (:item_index)::text, ''/'', (:item.sku)::text))',
              compensation => 'SELECT app.act(''each undone'', concat((:n)::text, ''/'', (:item_index)::text))'),
    saga.loop_step('rounds', ARRAY[
        saga.step('round', action => 'SELECT app.act(''round'', concat((:n)::text, ''/'', (:iteration)::text))',
                  compensation => 'none')],
      while => ':iteration < :n % 4', max => 10),
    saga.sleep_step('rest', '50 ms'),
    saga.step('last', action => 'SELECT app.last(:n)', compensation => 'none')],
  output => '{"each": :each, "even": :even.failed}')
SQL

# ---- by themselves ----

my $id = $c->start('flow', '{"n": 4, "items": [{"sku": "p"}, {"sku": "q"}, {"sku": "r"}]}');
is($c->ended($id), 'completed|||', 'all kinds of nodes');
is($c->sql(q(SELECT string_agg(concat_ws('/', what, arg), ' ' ORDER BY id) FROM app.effect)),
    'first/4 even/4 last/4', 'local effects');
is($p->sql(q(SELECT string_agg(concat_ws('/', what, arg), ' ' ORDER BY what, arg) FROM app.effect), 'a'),
    'each/4/0/p each/4/1/q each/4/2/r one/4', 'remote effects, of each element and of the case taken');
is($c->sql("SELECT string_agg(concat_ws('=', step, state), ' ' ORDER BY position, step) FROM saga.steps WHERE saga_id = '$id'"),
    'first=done even=done size=done three=not run one=done nap=not run two=not run '
      . 'each=done each[0]=done each[1]=done each[2]=done rounds=done round=not run rest=done last=done',
    'saga.steps has the runs');
like($c->sql("SELECT output FROM saga.wait('$id')"), qr/^\{"each": \[\d+, \d+, \d+\], "even": false\}$/, 'the output');
is($c->sql("SELECT count(*) FROM saga.log WHERE saga_id = '$id' AND kind = 'chosen'"), 2, 'choices are in the log');

is($c->run('flow', '{"n": 3, "items": null}'), 'completed|||', 'no elements at all');
is($c->sql(q(SELECT string_agg(concat_ws('/', what, arg), ' ' ORDER BY id) FROM app.effect WHERE arg ~ '^3')),
    'first/3 three/3 round/3/0 round/3/1 round/3/2 last/3', 'a condition that is false, a loop that goes round');
my $broken = $c->start('flow', '{"n": 5, "items": {"no": "array"}}');
ok($c->until_state($broken, 'stuck'), 'for_each over what is no array is a fault of the definition');
like($c->sql("SELECT sqlstate || ' ' || error FROM saga.stuck WHERE id = '$broken'"),
    qr/^22023 for_each did not give a JSON array/, 'and says so');
$c->alice("SELECT saga.terminate('$broken', reason => 'test')");
is($c->ended($broken), 'terminated|operator||', 'terminated');

is($c->run('flow', '{"n": 19, "items": [{"sku": "x"}]}'), 'compensated|declined|last|SGB01', 'undone');
is($c->sql(q(SELECT string_agg(concat_ws('/', what, arg), ' ' ORDER BY id) FROM app.effect WHERE arg ~ '^19')),
    'first/19 round/19/0 round/19/1 round/19/2 first undone/19', 'local effects and their undo');
is($p->sql(q(SELECT string_agg(concat_ws('/', what, arg), ' ' ORDER BY id) FROM app.effect WHERE arg ~ '^19'), 'a'),
    'one/19 each/19/0/x each undone/19/0 one undone/19', 'remote effects and their undo, newest first');

# ---- save-points ----

$c->alice(<<'SQL');
SELECT saga.define('again', input => 'n integer',
  steps => ARRAY[
    saga.step('before', action => 'SELECT app.act(''before'')', compensation => 'SELECT app.act(''before undone'')'),
    saga.savepoint_step('here', max_tries => 3),
    saga.step('work', action => 'SELECT app.act(''work'')', compensation => 'SELECT app.act(''work undone'')'),
    saga.step('luck', action => 'SELECT app.fail_first(:n, ''SGB01'')', compensation => 'none', on_failure => 'goto:here')])
SQL
sub again
{
    my ($n) = @_;
    $c->alice("TRUNCATE app.effect; SELECT setval('app.tries', 1, false)");
    return $c->run('again', qq({"n": $n}));
}
is(again(2), 'completed|||', 'back to a save-point, and through at the third try');
is($c->effects, 'before work work undone work work undone work', 'what follows the save-point, again and again');
is(again(3), 'compensated|declined|luck~2|SGB01', 'no fourth try');
is($c->effects, 'before work work undone work work undone work work undone before undone', 'all is undone');

# ---- decline_if, and expressions that fail ----

$c->alice(<<'SQL');
SELECT saga.define('picky', input => 'n integer',
  steps => ARRAY[
    saga.step('local', action => 'SELECT app.act(''local'') * 0 + :n', decline_if => ':result > 10', compensation => 'SELECT app.act(''local undone'')'),
    saga.step('remote', server => 'a', action => 'SELECT app.act(''remote'') * 0 + :n', decline_if => ':result = 7',
              compensation => 'SELECT app.act(''remote undone'')'),
    saga.step('divide', condition => '10 / (:n - 5) > 0', action => 'SELECT app.act(''divide'')', compensation => 'none')])
SQL
$c->alice('TRUNCATE app.effect');
is($c->run('picky', '{"n": 11}'), 'compensated|declined|local|SGB01', 'decline_if of a local result');
is($c->effects, '', 'its effect is rolled back');
is($c->run('picky', '{"n": 7}'), 'compensated|declined|remote|SGB01', 'decline_if of a remote result');
is($c->effects, 'local local undone', 'what came before is undone');
is($c->run('picky', '{"n": 5}'), 'compensated|declined|divide|22012', 'a condition that fails is judged like an action');
is($c->run('picky', '{"n": 6}'), 'completed|||', 'and all is well otherwise');

# ---- under fire ----

$c->alice('TRUNCATE app.effect');
$p->sql('TRUNCATE app.effect', 'a');
my $started = 0;

sub start_some
{
    my ($n) = @_;
    for (1 .. $n)
    {
        my $number = 1000 + $started;
        last if $started == $sagas;
        # the key makes a second try harmless
        my $got = $c->ask(<<SQL);
SET ROLE alice;
SELECT saga.start('flow', input => '{"n": $number, "items": [{"sku": "s"}, {"sku": "t"}]}', key => '$number')
SQL
        $started++ if defined $got;
    }
}

for my $round (1 .. $kills)
{
    start_some(int($sagas / $kills) + 1);
    usleep(int(rand(200_000)));
    my $what = $round % 3;
    if ($what == 0)
    {
        crash_server($c->{node}) or BAIL_OUT('the server does not come back');
    }
    else
    {
        my @pids = $c->worker_pids($what == 1 ? 'saga coordinator' : 'saga executor');
        kill 9, $pids[ rand @pids ] if @pids;
    }
    $c->until('SELECT true') or BAIL_OUT('the server does not come back');
}
start_some(1) while $started < $sagas;
ok($c->until_all_ended(120), "$sagas sagas have ended");

is($c->sql('SELECT count(*) FROM saga.check_log()'), 0, 'every row equals its log');
is($c->sql(<<'SQL'), '', 'each saga ended as it must');
SELECT string_agg(concat(input->>'n', ' ', state), ', ') FROM saga.instances WHERE (input->>'n')::integer >= 1000
 AND state <> CASE WHEN (input->>'n')::integer % 10 = 9 THEN 'compensated' ELSE 'completed' END
SQL
my $last = 1000 + $sagas - 1;
is($c->sql(<<SQL), '', 'each local effect exactly once');
WITH n AS (SELECT n FROM generate_series(1000, $last) n),
must AS (
  SELECT 'first' AS what, n::text AS arg FROM n
  UNION ALL SELECT 'first undone', n::text FROM n WHERE n % 10 = 9
  UNION ALL SELECT 'even', n::text FROM n WHERE n % 2 = 0
  UNION ALL SELECT 'three', n::text FROM n WHERE n % 3 = 0
  UNION ALL SELECT 'two', n::text FROM n WHERE n % 3 = 2
  UNION ALL SELECT 'round', concat(n, '/', i) FROM n, generate_series(0, n % 4 - 1) i
  UNION ALL SELECT 'last', n::text FROM n WHERE n % 10 <> 9)
SELECT string_agg(concat_ws(' ', side, what, arg), ', ') FROM (
  (SELECT 'missing' AS side, * FROM must EXCEPT ALL SELECT 'missing', what, arg FROM app.effect)
  UNION ALL
  (SELECT 'extra', what, arg FROM app.effect EXCEPT ALL SELECT 'extra', * FROM must)) d
SQL
is($p->sql(<<SQL, 'a'), '', 'each remote effect exactly once');
WITH n AS (SELECT n FROM generate_series(1000, $last) n),
must AS (
  SELECT 'one' AS what, n::text AS arg FROM n WHERE n % 3 = 1
  UNION ALL SELECT 'one undone', n::text FROM n WHERE n % 3 = 1 AND n % 10 = 9
  UNION ALL SELECT 'each', concat(n, '/', i, '/', CASE i WHEN 0 THEN 's' ELSE 't' END) FROM n, generate_series(0, 1) i
  UNION ALL SELECT 'each undone', concat(n, '/', i) FROM n, generate_series(0, 1) i WHERE n % 10 = 9)
SELECT string_agg(concat_ws(' ', side, what, arg), ', ') FROM (
  (SELECT 'missing' AS side, * FROM must EXCEPT ALL SELECT 'missing', what, arg FROM app.effect)
  UNION ALL
  (SELECT 'extra', what, arg FROM app.effect EXCEPT ALL SELECT 'extra', * FROM must)) d
SQL
is($c->sql('SELECT count(*) FROM saga.local_outcome'), 0, 'no outcome is left over')
  or diag($c->sql('SELECT * FROM saga.local_outcome'));

done_testing();
