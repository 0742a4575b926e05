# What an operator can change and begin anew; and that the verbs that
# saga.stuck names do help.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;

my $c = SagaTest->coordinator('coordinator');
my $p = SagaTest->participant('participant');
$p->service('a');
$c->server(a => $p);
$c->alice(<<'SQL');
CREATE TABLE flag (name text PRIMARY KEY);
CREATE FUNCTION need(flag text) RETURNS text LANGUAGE plpgsql SET search_path = app AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM flag f WHERE f.name = need.flag) THEN
    RAISE EXCEPTION 'no flag %', flag USING ERRCODE = 'SGB01';
  END IF;
  RETURN flag;
END $$;
CREATE FUNCTION three(v integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
  RETURN saga.define('three', input => 'n integer', steps => ARRAY[
    saga.step('a', action => 'SELECT act(''a'', (:n)::text)', compensation => 'SELECT act(''a undone'', (:n)::text)'),
    saga.step('b', action => 'SELECT need(''b'')', on_failure => 'stuck', compensation => 'SELECT act(''b undone'', (:n)::text)'),
    saga.step('c', action => format('SELECT act(''c'', (:n)::text || ''/'' || (:a)::text || ''/%s'')', v), compensation => 'SELECT 1')]);
END $$;
SELECT three(1);
SQL

sub stuck
{
    my ($definition, $input) = @_;
    my $id = $c->start($definition, $input // '{}');
    $c->until_state($id, 'stuck');
    return $id;
}

sub effects_of
{
    my ($n) = @_;
    return $c->sql(qq(SELECT string_agg(what, ', ' ORDER BY id) FROM app.effect WHERE split_part(arg, '/', 1) = '$n'));
}

# the saga that was made of another
sub copy_of
{
    my ($id) = @_;
    return $c->sql("SELECT id FROM saga.instances WHERE copy_of = '$id' ORDER BY started_at DESC LIMIT 1");
}

# ---- another version ----

my $id = stuck('three', '{"n": 1}');
is($c->alice("SELECT saga.migrate('$id', reason => 'nothing new')"), 'ignored: the saga runs version 1 already', 'migrate: the same version');
is($c->alice('SELECT three(2)'), '2', 'another version');
is($c->alice("SELECT saga.migrate('$id', version => 2, reason => 'mended')"), 'queued', 'migrate');
ok($c->until("SELECT version = 2 FROM saga.instances WHERE id = '$id'"), 'it runs version 2');
$c->alice("INSERT INTO flag VALUES ('b'); SELECT saga.retry_step('$id', 'b', reason => 'flag is there')");
is($c->ended($id), 'completed|||', 'and completes');
like($c->sql(q(SELECT arg FROM app.effect WHERE what = 'c')), qr{^1/\d+/2$}, 'with what version 2 says, and the results there were');
is($c->sql("SELECT kind, note FROM saga.log WHERE saga_id = '$id' AND kind = 'migrated'"), 'migrated|mended', 'the log says so');
is($c->alice("SELECT saga.migrate('$id', reason => 'late')"), 'ignored: the saga has ended', 'an ended one: ignored');
$c->refused('alice', "SELECT saga.migrate('$id', reason => 'late', strict => true)", '55000', qr/has ended/, 'strict: an error');
$c->alice('TRUNCATE flag');
$id = stuck('three', '{"n": 2}');
$c->refused('alice', "SELECT saga.migrate('$id', version => 77)", '42704', qr/77/, 'no such version');
$c->alice(q(SELECT saga.define('three', input => 'n integer', steps => ARRAY[
    saga.step('x', action => 'SELECT 1', compensation => 'SELECT 1'),
    saga.step('b', action => 'SELECT need(''b'')', on_failure => 'stuck', compensation => 'SELECT 1')])));
like($c->alice("SELECT saga.migrate('$id', version => 3)"), qr/^ignored: version 3 has no step "a", which has been reached$/, 'a step that is gone: refused with the reason');
$c->alice(q(SELECT saga.define('three', input => 'n integer', steps => ARRAY[
    saga.step('a', action => 'SELECT act(''a'', (:n)::text)', compensation => 'SELECT 1'),
    saga.step('new', action => 'SELECT 1', compensation => 'SELECT 1'),
    saga.step('b', action => 'SELECT need(''b'')', on_failure => 'stuck', compensation => 'SELECT 1')])));
like($c->alice("SELECT saga.migrate('$id', version => 4)"), qr/^ignored: .*"?new"?.*version 4|^ignored: record \d+ .* does not fit version 4/, 'a step that should have come first: refused');
is($c->sql("SELECT version FROM saga.instances WHERE id = '$id'"), '2', 'it stays as it is');
$c->alice("SELECT saga.cancel('$id', reason => 'enough')");
like($c->ended($id), qr/^compensated/, 'and can go back');

# ---- again ----

$c->alice('SELECT three(5)');
$c->alice("INSERT INTO flag VALUES ('b')");
$id = $c->start('three', '{"n": 3}', key => "'k3'", labels => q('{"x": 1}'));
is($c->ended($id), 'completed|||', 'a saga with a key');
is($c->alice("SELECT saga.restart('$id', reason => 'once more')"), 'queued', 'restart');
my $again = copy_of($id);
is($c->ended($again), 'completed|||', 'another saga');
is(effects_of(3), 'a, c, a, c', 'with all its effects');
is($c->sql("SELECT key, labels FROM saga.instances WHERE id = '$again'"), 'k3|{"x": 1}', 'has its options');
is($c->alice(q(SELECT saga.start('three', '{"n": 3}', key => 'k3'))), $again, 'and its key');
like($c->sql("SELECT actor || ' ' || note FROM saga.log WHERE saga_id = '$again' AND seq = 1"), qr/^alice restarted from $id: once more$/, 'the log says who made it, and why');
like($c->alice("SELECT saga.restart('$id', reason => 'and again')"), qr/^ignored: its key/, 'its key belongs to another now');
is($c->alice("SELECT saga.fork('$again', 'c', reason => 'c was wrong')"), 'queued', 'fork');
my $fork = copy_of($again);
is($c->ended($fork), 'completed|||', 'a fork');
is(effects_of(3), 'a, c, a, c, c', 'does what the step and those after it do');
is($c->sql("SELECT string_agg(kind || coalesce(' ' || step, ''), ', ' ORDER BY seq) FROM saga.log WHERE saga_id = '$fork'"), 'started, done a, done b, done c, ended', 'with the results before it');
is($c->sql("SELECT (SELECT result FROM saga.log WHERE saga_id = '$fork' AND step = 'a') = (SELECT result FROM saga.log WHERE saga_id = '$again' AND step = 'a')"), 't', 'which are the same');
$c->refused('alice', "SELECT saga.fork('$again', 'nothing')", '42704', qr/nothing/, 'no such step');
$c->alice(q(SELECT saga.define('back', steps => ARRAY[
    saga.step('a', action => 'SELECT act(''back'')', compensation => 'SELECT 1'),
    saga.step('b', action => 'SELECT need(''never'')', compensation => 'SELECT 1')])));
$id = $c->start('back');
like($c->ended($id), qr/^compensated/, 'a saga that came back');
like($c->alice("SELECT saga.fork('$id', 'b', reason => 'x')"), qr/^ignored: step "a" has been undone/, 'a fork of what was undone: refused');
is($c->alice("SELECT saga.fork('$id', 'a', reason => 'x')"), 'queued', 'from the first step it is like a restart');
like($c->ended(copy_of($id)), qr/^compensated/, 'which goes as the first did');

# ---- rerun_from ----

$c->alice('TRUNCATE flag');
$id = stuck('three', '{"n": 7}');
is($c->alice("SELECT saga.rerun_from('$id', 'a', reason => 'a was wrong')"), 'queued', 'rerun_from');
ok($c->until(q(SELECT count(*) = 2 FROM app.effect WHERE what = 'a' AND arg = '7')), 'runs the step again');
$c->until_state($id, 'stuck');
$c->alice("INSERT INTO flag VALUES ('b'); SELECT saga.retry_step(id, step, reason => 'flag is there') FROM saga.stuck WHERE id = '$id'");
is($c->ended($id), 'completed|||', 'and all that follows it');
is(effects_of(7), 'a, a, c', 'without undoing it first');

# ---- breakpoints and deadlines ----

my $lock = $c->session();
$lock->query_safe('SELECT pg_advisory_lock(5)');
$c->alice(q(SELECT saga.define('gated', input => 'n integer', steps => ARRAY[
    saga.step('gate', action => 'SELECT gate(5)', compensation => 'SELECT 1', timeout => '1 hour'),
    saga.step('after', action => 'SELECT act(''after'', (:n)::text)', compensation => 'SELECT act(''after undone'', (:n)::text)')])));
$id = $c->start('gated', '{"n": 8}');
my $other = $c->start('gated', '{"n": 9}');
is($c->alice("SELECT saga.breakpoint('$id', 'after', reason => 'let me look')"), 'queued', 'breakpoint');
is($c->alice("SELECT saga.breakpoint('$other', 'after', reason => 'let me look'), saga.breakpoint('$other', 'after', set => false, reason => 'no')"), 'queued|queued', 'set and taken back');
ok($c->until('SELECT count(*) = 0 FROM saga.inbox'), 'taken');
$lock->quit;
is($c->ended($other), 'completed|||', 'where it was taken back the saga goes on');
ok($c->until_state($id, 'paused'), 'where it was set the saga is paused');
is(effects_of(8), '', 'before the step');
$c->alice("SELECT saga.set_deadline('$id', now() + interval '1 day', reason => 'it may take longer')");
ok($c->until("SELECT deadline > now() + interval '23 hours' FROM saga.instances WHERE id = '$id'"), 'set_deadline');
$c->alice("SELECT saga.set_deadline('$id', NULL, reason => 'as long as it takes')");
ok($c->until("SELECT deadline IS NULL FROM saga.instances WHERE id = '$id'"), 'no deadline');
$c->alice("SELECT saga.resume('$id', reason => 'looked')");
is($c->ended($id), 'completed|||', 'and goes on');

# ---- options of a step ----

$c->alice(q(SELECT saga.define('patient', input => 'n integer', steps => ARRAY[
    saga.step('try', action => 'SELECT fail_first(3, ''SGB02'')', compensation => 'SELECT 1', retry => saga.retry_policy(initial_interval => '1 hour', max_interval => '1 hour')),
    saga.step('after', action => 'SELECT act(''patient'', (:n)::text)', compensation => 'SELECT 1')])));
$c->sql(q(ALTER SEQUENCE app.tries RESTART));
$id = $c->start('patient', '{"n": 10}');
ok($c->until("SELECT count(*) = 1 FROM saga.log WHERE saga_id = '$id' AND kind = 'failed'"), 'a step that waits for an hour');
is($c->alice("SELECT saga.set_step_options('$id', 'try', retry => saga.retry_policy(initial_interval => '10 ms', backoff => 1), timeout => '5 s', reason => 'be quick')"), 'queued', 'set_step_options');
$c->alice("SELECT saga.retry_step('$id', 'try', reason => 'now')");
is($c->ended($id), 'completed|||', 'tries as it is told');
is($c->sql("SELECT note, result->>'timeout' FROM saga.log WHERE saga_id = '$id' AND kind = 'options'"), 'be quick|5', 'the log says so');
$id = $c->start('patient', '{"n": 11}', start_at => q(now() + interval '1 day'));
$c->refused('alice', "SELECT saga.set_step_options('$id', 'try')", '22023', qr/none is given/, 'no option');
$c->refused('alice', "SELECT saga.set_step_options('$id', 'try', retry => '{\"stuck_on\": [\"42\"]}')", '22023', qr/stuck_on/, 'what cannot be set');
$c->refused('alice', "SELECT saga.set_step_options('$id', 'nothing', timeout => '1 s')", '42704', qr/nothing/, 'no such step');
$c->alice("SELECT saga.cancel('$id')");
$c->ended($id);

# ---- rights ----

$c->sql('CREATE ROLE carol LOGIN; GRANT saga_user TO carol');
$c->refused('carol', "SELECT saga.$_", '42501', qr/./, "not for everybody: $_")
  for "restart('$id')", "fork('$id', 'try')", "migrate('$id')", "rerun_from('$id', 'try')", "set_deadline('$id', NULL)",
      "breakpoint('$id', 'try')", "set_step_options('$id', 'try', timeout => '1 s')";

# ---- every way of being stuck, and each verb that is named for it ----

$p->sql(<<'SQL', 'a');
CREATE FUNCTION app.sometimes(what text) RETURNS text LANGUAGE plpgsql SET search_path = app AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM effect e WHERE e.what = 'flag ' || sometimes.what) THEN
    RAISE EXCEPTION 'not now' USING ERRCODE = '42P01';
  END IF;
  RETURN what;
END $$;
ALTER FUNCTION app.sometimes(text) OWNER TO svc;
SQL
$c->alice(<<'SQL');
SELECT saga.define('s_declined', input => 'f text', steps => ARRAY[
  saga.step('a', action => 'SELECT act(''x'')', compensation => 'SELECT 1'),
  saga.step('b', action => 'SELECT need(:f)', on_failure => 'stuck', compensation => 'SELECT 1')]);
SELECT saga.define('s_pivot', input => 'f text', steps => ARRAY[
  saga.step('a', action => 'SELECT act(''x'')', pivot => true),
  saga.step('b', action => 'SELECT need(:f)')]);
SELECT saga.define('s_broken', input => 'f text', steps => ARRAY[
  saga.step('a', action => 'SELECT act(''x'')', compensation => 'SELECT 1'),
  saga.step('b', server => 'a', action => 'SELECT app.sometimes(:f)', compensation => 'SELECT 1',
            retry => saga.retry_policy(initial_interval => '5 ms', backoff => 1))]);
SELECT saga.define('s_undo', input => 'f text', steps => ARRAY[
  saga.step('b', action => 'SELECT act(''x'')', compensation => 'SELECT need(:f)',
            compensation_retry => saga.retry_policy(initial_interval => '5 ms', jitter => 0)),
  saga.step('no', action => 'SELECT need(''never'')', compensation => 'SELECT 1')]);
SELECT saga.define('s_deadline', input => 'f text', deadline => '200 ms', steps => ARRAY[
  saga.step('a', action => 'SELECT act(''x'')', pivot => true),
  saga.sleep_step('b', duration => '1 s')]);
SQL
my %ends = (retry_step => qr/^(?:completed|compensated)/, skip_step => qr/^(?:completed|compensated)/, cancel => qr/^compensated/,
    terminate => qr/^terminated/, resume => qr/^completed/, set_deadline => qr/^completed/);
for my $kind (qw(declined pivot broken undo deadline))
{
    my $verbs = '';
    my @verbs = ('?');
    for (my $k = 0; $k < @verbs; $k++)
    {
        my $flag = "$kind$k";
        my $saga = stuck("s_$kind", qq({"f": "$flag"}));
        if ($k == 0)
        {
            $verbs = $c->sql("SELECT array_to_string(verbs, ' ') FROM saga.stuck WHERE id = '$saga'");
            @verbs = split / /, $verbs;
            ok(@verbs >= 2, "$kind: $verbs");
        }
        my $verb = $verbs[$k];
        if ($verb eq 'retry_step')
        {
            $c->alice("INSERT INTO flag VALUES ('$flag')");
            $p->sql("INSERT INTO app.effect (what) VALUES ('flag $flag')", 'a');
        }
        my $arguments = $verb =~ /_step$/ ? ', step' : $verb eq 'set_deadline' ? ", now() + interval '1 hour'" : '';
        is($c->alice("SELECT saga.$verb(id$arguments, reason => 'test') FROM saga.stuck WHERE id = '$saga'"), 'queued', "$kind: $verb");
        like($c->ended($saga), $ends{$verb}, "$kind: $verb brings it to an end");
    }
}
is($c->sql('SELECT count(*) FROM saga.stuck'), '0', 'none is stuck any more');
ok($c->until_all_ended, 'all have ended');
is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
done_testing();
