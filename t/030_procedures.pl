# Durable procedures: steps once each through kills of everything, sleeps,
# signals, what is undone, and what is refused rather than replayed wrong.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;
use Time::HiRes qw(usleep);

my $seed = $ENV{SAGA_SEED} || (time ^ ($$ << 8)) & 0x7fffffff;
my $kills = $ENV{SAGA_KILLS} || 6;
srand($seed);
diag("SAGA_SEED=$seed");

my $c = SagaTest->coordinator('coordinator', conf => "saga.executors = 2\nlog_statement = none\n");
my $p = SagaTest->participant('participant');
$p->service('a');
$c->server(a => $p);
$c->alice(<<'SQL');
CREATE TABLE app.done (n integer, what text);
CREATE FUNCTION app.order(n integer, fate text) RETURNS text LANGUAGE plpgsql SET search_path = app, pg_temp AS $$
DECLARE
  paid jsonb;
  word jsonb;
BEGIN
  INSERT INTO app.done VALUES (n, 'entered');
  paid := saga.run_step('pay', 'SELECT app.act(''pay'', :n)', jsonb_build_object('n', n::text), server => 'a',
    compensation => 'SELECT app.act(''unpay'', :n)');
  BEGIN
    PERFORM saga.sleep('30 ms');
  EXCEPTION WHEN OTHERS THEN
    -- does not catch a suspension
    RAISE EXCEPTION 'the sleep was caught';
  END;
  PERFORM saga.run_step('note', 'INSERT INTO app.done VALUES (:n, ''noted '' || :paid)',
    jsonb_build_object('n', n, 'paid', paid IS NOT NULL), compensation => 'INSERT INTO app.done VALUES (:n, ''unnoted'')');
  word := saga.await_signal('go');
  FOR i IN 1 .. 3 LOOP
    PERFORM saga.run_step('item', 'INSERT INTO app.done VALUES (:n, ''item '' || :i)', jsonb_build_object('n', n, 'i', i));
  END LOOP;
  IF fate = 'declined' THEN
    RAISE EXCEPTION 'declined after all' USING ERRCODE = 'SGB01';
  END IF;
  RETURN word->>'word';
END
$$;
CREATE PROCEDURE app.caught(n integer) LANGUAGE plpgsql AS $$
BEGIN
  BEGIN
    PERFORM saga.sleep('20 ms');
    INSERT INTO app.done VALUES (n, 'slept');
  EXCEPTION WHEN query_canceled THEN
    INSERT INTO app.done VALUES (n, 'caught');
  END;
  INSERT INTO app.done VALUES (n, 'went on');
END
$$;
CREATE FUNCTION app.fickle() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM saga.run_step('one', 'SELECT 1', jsonb_build_object('at', clock_timestamp()));
  PERFORM saga.run_step('two', 'SELECT 2');
END
$$;
CREATE FUNCTION app.changing() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM saga.await_signal('go');
  RETURN 'before';
END
$$;
SQL

sub procedure
{
    my ($call) = @_;
    return $c->alice("SELECT saga.start_procedure($call)");
}

# ---- by themselves ----

my $id = procedure(q('app."order"(integer, text)', '{"n": 1, "fate": "fine"}', key => 'one'));
is(procedure(q('app."order"(integer, text)', '{"n": 1, "fate": "fine"}', key => 'one')), $id, 'the key is the saga\'s');
$c->until("SELECT count(*) = 1 FROM saga.steps WHERE saga_id = '$id' AND state = 'awaiting'");
is($c->sql("SELECT state FROM saga.instances WHERE id = '$id'"), 'waiting', 'it waits for a signal');
is($c->alice("SELECT saga.signal('$id', 'other', '1'), saga.signal('$id', 'go', '{\"word\": \"yes\"}', 'click'), saga.signal('$id', 'go', '2', 'click')"),
    't|t|t', 'signals');
is($c->ended($id), 'completed|||', 'it ends');
is($c->sql("SELECT output FROM saga.wait('$id')"), '"yes"', 'what it returns is the output');
is($c->sql("SELECT string_agg(what, ', ' ORDER BY what) FROM app.done WHERE n = 1"),
    'entered, item 1, item 2, item 3, noted true', 'each step once, and the effects of the last entry alone');
is($p->sql(q(SELECT string_agg(what, ',' ORDER BY id) FROM app.effect), 'a'), 'pay', 'the remote step once');

$id = procedure(q('app."order"(integer, text)', '{"n": 2, "fate": "declined"}'));
$c->alice("SELECT saga.signal('$id', 'go', '{}')");
like($c->ended($id), qr/^compensated\|declined/, 'declined by its own words');
is($c->sql("SELECT string_agg(what, ', ' ORDER BY what) FROM app.done WHERE n = 2"),
    'item 1, item 2, item 3, noted true, unnoted', 'local steps are undone, where they can be');
is($p->sql(q(SELECT string_agg(what, ',' ORDER BY id) FROM app.effect WHERE arg = '2'), 'a'), 'pay,unpay', 'and the remote one');

$id = procedure(q('app.caught(integer)', '{"n": 3}'));
is($c->ended($id), 'completed|||', 'a procedure');
is($c->sql("SELECT string_agg(what, ', ' ORDER BY what) FROM app.done WHERE n = 3"), 'slept, went on',
    'a suspension that is caught still undoes the entry');

# ---- what must not be replayed wrong ----

$id = procedure(q('app.fickle()'));
$c->until_state($id, 'stuck');
like($c->sql("SELECT error FROM saga.stuck WHERE id = '$id'"), qr/does not ask for what it asked for before/, 'other requests than before');
$id = procedure(q('app.changing()'));
$c->until_state($id, 'waiting');
$c->alice(q(CREATE OR REPLACE FUNCTION app.changing() RETURNS text LANGUAGE plpgsql AS $$
  BEGIN PERFORM saga.await_signal('go'); RETURN 'after'; END $$));
$c->alice("SELECT saga.signal('$id', 'go')");
$c->until_state($id, 'stuck');
like($c->sql("SELECT error FROM saga.stuck WHERE id = '$id'"), qr/source of durable procedure .* has changed/, 'another source');
my $step = $c->sql("SELECT step FROM saga.stuck WHERE id = '$id'");
$c->alice(q(CREATE OR REPLACE FUNCTION app.changing() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM saga.await_signal('go');
  RETURN 'before';
END
$$));
$c->alice("SELECT saga.retry_step('$id', '$step', reason => 'restored')");
is($c->ended($id), 'completed|||', 'goes on when its source is back');
is($c->sql("SELECT output FROM saga.wait('$id')"), '"before"', 'as it was');

# ---- refused at once ----

for my $case (
    [ q(SELECT saga.run_step('a', 'SELECT 1')), '55000', 'a step outside of a procedure' ],
    [ q(SELECT saga.sleep('1 s')), '55000', 'a sleep' ],
    [ q(SELECT saga.await_signal('x')), '55000', 'a wait' ],
    [ q(SELECT saga.procedure_entry_(gen_random_uuid(), 'app.fickle()'::regprocedure, '', '{}')), '55000', 'an entry' ],
    [ q(SELECT saga.start_procedure('app."order"(integer, text)', '{"n": 1}')), '22023', 'an argument is missing' ],
    [ q(SELECT saga.start_procedure('app.fickle()', '{"n": 1}')), '22023', 'an argument too many' ],
    [ q(SELECT saga.start_procedure('pg_catalog.generate_series(integer, integer)', '{}')), '42809', 'a set' ],
    [ q(SELECT saga.start_procedure('pg_catalog.sum(integer)', '{}')), '42809', 'an aggregate' ],
    [ q(SELECT saga.start_procedure(NULL)), '22004', 'nothing' ])
{
    my ($sql, $sqlstate, $what) = @$case;
    $c->refused('alice', $sql, $sqlstate, qr/./, "refused: $what");
}

# ---- through kills ----

my $many = 40;
$c->sql('TRUNCATE app.done');
procedure(qq('app."order"(integer, text)', '{"n": $_, "fate": "@{[$_ % 4 ? 'fine' : 'declined']}"}')) for 101 .. 100 + $many;
for my $n (1 .. $kills)
{
    usleep(int(rand(600_000)));
    my @pids = $c->worker_pids($n % 2 ? 'saga executor' : 'saga coordinator');
    kill 9, $pids[ rand @pids ] if @pids;
    until_true(sub { defined $c->ask('SELECT 1') });
    # signals may be sent at any time, and again
    until_true(sub { defined $c->ask(q(SELECT count(saga.signal(id, 'go', '{"word": "w"}', 'click')) FROM saga.instances WHERE ended_at IS NULL AND name LIKE '%order%')) }) if $n >= 2;
}
ok($c->until(q(SELECT count(*) = 0 FROM saga.instances WHERE ended_at IS NULL)), 'all have ended');
is($c->sql(qq(SELECT state, count(*) FROM saga.instances WHERE (input->'args'->>'n')::int > 100 GROUP BY 1 ORDER BY 1)),
    "compensated|@{[$many / 4]}\ncompleted|@{[$many * 3 / 4]}", 'as they were meant to');
is($c->sql(q(SELECT count(*) FROM (SELECT n, what FROM app.done GROUP BY 1, 2 HAVING count(*) > 1) d)), 0, 'no local effect twice');
is($c->sql(q(SELECT count(*) FROM (SELECT n FROM app.done WHERE n > 100 GROUP BY n
    HAVING count(*) <> 5) d)), 0, 'and none lost');
is($p->sql(q(SELECT count(*) FROM (SELECT arg, what FROM app.effect GROUP BY 1, 2 HAVING count(*) > 1) d), 'a'), 0, 'no remote effect twice');
is($p->sql(q(SELECT count(*) FILTER (WHERE what = 'pay'), count(*) FILTER (WHERE what = 'unpay') FROM app.effect WHERE arg::int > 100), 'a'),
    "$many|@{[$many / 4]}", 'and none lost there');
is($c->sql('SELECT count(*) FROM saga.check_log()'), 0, 'the logs fold to the states');
$c->{node}->stop;
$p->{node}->stop;
done_testing();
