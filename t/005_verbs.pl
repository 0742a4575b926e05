# What an operator can do, and who may.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;

my $c = SagaTest->coordinator('coordinator');
my $p = SagaTest->participant('participant');
$p->service('a');
$c->server(a => $p);
$c->sql(<<'SQL');
CREATE ROLE carol LOGIN;
CREATE ROLE dave LOGIN;
CREATE ROLE olga LOGIN;
CREATE ROLE mona LOGIN;
GRANT saga_user TO carol, dave;
GRANT saga_operator TO olga;
GRANT saga_monitor TO mona;
SQL

# Stands at define(), and goes after it.
$p->sql('CREATE FUNCTION app.not_there(n integer) RETURNS integer LANGUAGE sql AS $$SELECT 1$$', 'a');

# A saga that stands at a gate: before (local or remote), done, gate, after.
$c->alice(<<'SQL');
SELECT saga.define('gated', input => 'g bigint',
  steps => ARRAY[
    saga.step('done', server => 'a', action => 'SELECT app.act(''done'', (:g)::text)',
              compensation => 'SELECT app.act(''undone'', (:g)::text)'),
    saga.step('gate', server => 'a', action => 'SELECT app.gate(:g)',
              compensation => 'SELECT app.act(''gate undone'', (:g)::text)'),
    saga.step('after', server => 'a', action => 'SELECT app.act(''after'', (:g)::text)')]);
SELECT saga.define('pivot_gated', input => 'g bigint',
  steps => ARRAY[
    saga.step('done', server => 'a', action => 'SELECT app.act(''done'', (:g)::text)',
              compensation => 'SELECT app.act(''undone'', (:g)::text)'),
    saga.step('gate', server => 'a', pivot => true, action => 'SELECT app.gate(:g)'),
    saga.step('after', server => 'a', action => 'SELECT app.act(''after'', (:g)::text)')]);
SELECT saga.define('breaks', input => 'n integer',
  steps => ARRAY[
    saga.step('done', server => 'a', action => 'SELECT app.act(''done'', (:n)::text)',
              compensation => 'SELECT app.act(''undone'', (:n)::text)'),
    saga.step('broken', server => 'a', action => 'SELECT app.not_there(:n)',
              retry => saga.retry_policy(initial_interval => '10 ms'),
              compensation => 'SELECT app.act(''broken undone'', (:n)::text)'),
    saga.step('after', action => 'SELECT act(''after'', coalesce((:broken)::text, ''null''))')])
SQL
my $gate = 0;
my $lock;

sub at_gate
{
    my ($definition) = @_;
    $gate++;
    $lock = $p->session(undef, 'a');
    $lock->query_safe("SELECT pg_advisory_lock($gate)");
    my $id = $c->start($definition // 'gated', qq({"g": $gate}));
    $p->until(q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted), 't', 'a')
      or BAIL_OUT('a saga does not reach its gate');
    return $id;
}

sub open_gate
{
    $lock->quit;
    return;
}

sub effects_of
{
    my ($n) = @_;
    return $p->sql(qq(SELECT string_agg(what, ', ' ORDER BY id) FROM app.effect WHERE arg = '$n'), 'a');
}

# ---- cancel ----

my $id = at_gate();
is($c->alice("SELECT saga.cancel('$id', reason => 'changed my mind')"), 'queued', 'cancel');
open_gate();
like($c->ended($id), qr/^compensated\|cancelled\|/, 'a cancelled saga is undone');
like(effects_of($gate), qr/^done, (?:gate undone, )?undone$/, 'what was done, and nothing more was done');
is($c->sql("SELECT count(*) FROM saga.log WHERE saga_id = '$id' AND actor = 'alice' AND note = 'changed my mind'") > 0, 1,
    'the log says who and why');
like($c->alice("SELECT saga.cancel('$id', reason => 'again')"), qr/^ignored: /, 'an ended saga: ignored');
$c->refused('alice', "SELECT saga.cancel('$id', reason => 'again', strict => true)", '55000', qr/./, 'strict: an error');

$id = at_gate('pivot_gated');
my $answer = $c->alice("SELECT saga.cancel('$id', reason => 'too late')");
open_gate();
is($c->ended($id), 'completed|||', "after the pivot's intent a cancel has no effect");
is(effects_of($gate), 'done, after', 'and all goes forward');

# ---- pause and resume ----

$id = at_gate();
is($c->alice("SELECT saga.pause('$id', reason => 'hold on')"), 'queued', 'pause');
ok($c->until_state($id, 'paused'), 'paused');
open_gate();
my $probe = $c->run('gated', '{"g": 0}');
is($probe, 'completed|||', 'others go on');
is(effects_of($gate), 'done', 'a paused saga does nothing new');
is($c->alice("SELECT saga.resume('$id', reason => 'go on')"), 'queued', 'resume');
is($c->ended($id), 'completed|||', 'and it completes');
is(effects_of($gate), 'done, after', 'each effect once');

# paused over a restart of the server
$id = at_gate();
$c->alice("SELECT saga.pause('$id', reason => 'hold on')");
ok($c->until_state($id, 'paused'), 'paused');
$c->{node}->restart;
open_gate();
is($c->run('gated', '{"g": 0}'), 'completed|||', 'after a restart others run');
is($c->sql("SELECT state FROM saga.instances WHERE id = '$id'"), 'paused', 'and the paused one is still paused');
$c->alice("SELECT saga.resume('$id', reason => 'go on')");
is($c->ended($id), 'completed|||', 'until it is resumed');

# ---- stuck: retry, skip, cancel, terminate ----

sub stuck
{
    my ($n) = @_;
    my $saga = $c->start('breaks', qq({"n": $n}));
    $c->until_state($saga, 'stuck');
    return $saga;
}
my @stuck;
$p->sql('DROP FUNCTION app.not_there(integer)', 'a');
@stuck = map { stuck(100 + $_) } 1 .. 4;
is(scalar @stuck, 4, 'a function that is not there: stuck');
is($c->sql("SELECT count(*) FROM saga.stuck WHERE step = 'broken' AND sqlstate = '42883'"), '4', 'with the reason');
is($c->sql(q(SELECT count(*) FROM saga.stuck WHERE hint IS NOT NULL AND verbs::text ~ 'retry_step')), '4',
    'a hint, and the verbs that help');
is($c->sql("SELECT string_agg(DISTINCT state, ',') FROM saga.instances WHERE id = ANY('{@{[join ',', @stuck]}}')"), 'stuck',
    'good work is not undone by itself');
is(effects_of(101), 'done', 'nothing is undone');

is($c->alice("SELECT saga.skip_step('$stuck[0]', 'broken', result => '5', reason => 'done by hand')"), 'queued', 'skip_step');
is($c->ended($stuck[0]), 'completed|||', 'goes on');
like($c->effects, qr{after/5}, 'with the result given');
is($c->alice("SELECT saga.cancel('$stuck[1]', reason => 'give up')"), 'queued', 'cancel of a stuck saga');
like($c->ended($stuck[1]), qr/^compensated\|cancelled\|/, 'undoes it');
is(effects_of(102), 'done, undone', 'but not what was never done');
is($c->alice("SELECT saga.terminate('$stuck[2]', reason => 'leave it')"), 'queued', 'terminate');
like($c->ended($stuck[2]), qr/^terminated\|/, 'ends it as it is');
is(effects_of(103), 'done', 'without undoing');
$p->sql('CREATE FUNCTION app.not_there(n integer) RETURNS integer LANGUAGE sql AS $$SELECT 77$$', 'a');
is($c->alice("SELECT string_agg(saga.retry_step(id, step, reason => 'mended'), ',') FROM saga.stuck WHERE sqlstate LIKE '42%'"),
    'queued', 'retry_step over the view');
is($c->ended($stuck[3]), 'completed|||', 'completes it');
is($c->sql('SELECT count(*) FROM saga.stuck'), '0', 'none is stuck any more');
$c->refused('alice', "SELECT saga.retry_step('$stuck[3]', 'no_such_step', reason => 'x')", '42704', qr/no_such_step/, 'no such step');
$c->refused('alice', q(SELECT saga.cancel('00000000-0000-0000-0000-000000000000', reason => 'x')), '42704', qr/./, 'no such saga');

# ---- deadlines ----

$c->alice(<<'SQL');
SELECT saga.define('deadline', input => 'g bigint', deadline => '300 ms',
  steps => ARRAY[
    saga.step('done', server => 'a', action => 'SELECT app.act(''done'', (:g)::text)',
              compensation => 'SELECT app.act(''undone'', (:g)::text)'),
    saga.step('gate', server => 'a', action => 'SELECT app.gate(:g)',
              compensation => 'SELECT app.act(''gate undone'', (:g)::text)'),
    saga.step('after', server => 'a', action => 'SELECT app.act(''after'', (:g)::text)')]);
SELECT saga.define('deadline_pivot', input => 'g bigint', deadline => '300 ms',
  steps => ARRAY[
    saga.step('pivot', server => 'a', pivot => true, action => 'SELECT app.act(''pivot'', (:g)::text)'),
    saga.step('gate', server => 'a', action => 'SELECT app.gate(:g)'),
    saga.step('after', server => 'a', action => 'SELECT app.act(''after'', (:g)::text)')])
SQL
$id = at_gate('deadline');
ok($c->until("SELECT direction = 'undo' FROM saga.instances WHERE id = '$id'"), 'a deadline passes');
open_gate();
like($c->ended($id), qr/^compensated\|deadline\|/, 'and the saga is undone');
like(effects_of($gate), qr/^done, (?:gate undone, )?undone$/, 'all of it');
$id = at_gate('deadline_pivot');
ok($c->until_state($id, 'stuck'), 'after the pivot a deadline makes stuck, no undo');
open_gate();
$c->alice("SELECT saga.resume('$id', reason => 'late, but wanted')");
is($c->ended($id), 'completed|||', 'and an operator lets it finish');
is(effects_of($gate), 'pivot, after', 'each effect once');

# ---- an undo that fails is tried without end, and shown ----

$p->sql(<<'SQL', 'a');
CREATE FUNCTION app.undo_fails() RETURNS void LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the till is locked'; END $$;
ALTER FUNCTION app.undo_fails() OWNER TO svc;
SQL
$c->alice(<<'SQL');
SELECT saga.define('undo_fails', steps => ARRAY[
    saga.step('s', server => 'a', action => 'SELECT app.act(''s'')', compensation => 'SELECT app.undo_fails()',
              compensation_retry => saga.retry_policy(initial_interval => '5 ms', backoff => 1)),
    saga.step('no', server => 'a', action => 'SELECT app.refuse(''SGB01'')')])
SQL
$id = $c->start('undo_fails');
ok($c->until("SELECT count(*) = 1 FROM saga.stuck WHERE id = '$id' AND step = 's'"), 'an undo that declines again and again is shown as stuck');
$p->sql('CREATE OR REPLACE FUNCTION app.undo_fails() RETURNS void LANGUAGE sql AS $$SELECT app.act(\'undone at last\')$$', 'a');
$c->alice("SELECT saga.retry_step('$id', 's', reason => 'unlocked')");
like($c->ended($id), qr/^compensated\|declined\|no\|SGB01/, 'and ends once it works');

# ---- who may ----

$c->alice(q(SELECT saga.define('local', steps => ARRAY[saga.step('s', action => 'SELECT act(''by alice'', current_user::text)')])));
$c->refused('carol', q(SELECT saga.start('local')), '42501', qr/./, 'start() without the right');
my $secret = $c->start('local', '{}', key => "'secret'");
$c->ended($secret);
is($c->as('carol', 'SELECT count(*) FROM saga.instances'), '0', "others' sagas are not seen");
is($c->as('carol', 'SELECT count(*) FROM saga.log'), '0', 'nor their log');
is($c->as('carol', 'SELECT count(*) FROM saga.steps'), '0', 'nor their steps');
is($c->as('carol', 'SELECT count(*) FROM saga.definitions'), '0', 'nor the definitions');
isnt(($c->try('carol', "SELECT saga.cancel('$secret', reason => 'x')"))[0], '', 'nor can they be cancelled');
unlike(($c->try('carol', "SELECT state FROM saga.status('$secret')"))[2], qr/completed/, 'nor asked for');
for my $table (split /\n/, $c->sql(q(SELECT c.oid::regclass FROM pg_class c WHERE relnamespace = 'saga'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1)))
{
    my ($select) = $c->try('carol', "SELECT 1 FROM $table LIMIT 1");
    my ($delete) = $c->try('carol', "DELETE FROM $table");
    is("$select $delete", '42501 42501', "$table is closed");
}
$c->alice(q(SELECT saga.grant('local', 'carol', privileges => '{start}')));
my $carols = $c->as('carol', q(SELECT saga.start('local')));
is($c->as('carol', "SELECT state FROM saga.wait('$carols', timeout => '60 s')"), 'completed', "with 'start' granted");
like($c->effects, qr{by alice/alice$}, "actions run as the definition's owner");
is($c->as('carol', 'SELECT count(*) FROM saga.instances'), '1', 'one sees what one started');
is($c->as('carol', 'SELECT id FROM saga.instances'), $carols, 'and only that');
$c->alice(q(SELECT saga.grant('local', 'dave', privileges => '{see}')));
is($c->as('dave', 'SELECT count(*) FROM saga.instances'), '2', "with 'see' granted");
$c->refused('dave', q(SELECT saga.start('local')), '42501', qr/./, "but not 'start'");
$id = at_gate();
$c->alice(q(SELECT saga.grant('gated', 'dave', privileges => '{see}')));
$c->refused('dave', "SELECT saga.cancel('$id', reason => 'x')", '42501', qr/./, 'and not to operate');
$c->alice(q(SELECT saga.grant('gated', 'dave', privileges => '{operate}')));
is($c->as('dave', "SELECT saga.cancel('$id', reason => 'daves wish')"), 'queued', "with 'operate' granted");
open_gate();
like($c->ended($id), qr/^compensated\|cancelled/, 'it is done');
$c->alice(q(SELECT saga.revoke('local', 'carol', privileges => '{start}')));
$c->refused('carol', q(SELECT saga.start('local')), '42501', qr/./, 'revoked');
$id = at_gate();
is($c->as('olga', "SELECT saga.cancel('$id', reason => 'operator')"), 'queued', 'saga_operator may operate on all');
open_gate();
like($c->ended($id), qr/^compensated/, 'and it is done');
is($c->as('mona', 'SELECT count(*) > 5 FROM saga.instances'), 't', 'saga_monitor sees all');
$id = at_gate();
$c->refused('mona', "SELECT saga.cancel('$id', reason => 'x')", '42501', qr/./, 'and changes nothing');
open_gate();
$c->ended($id);

# a role with no right at all
$c->sql('CREATE ROLE eve LOGIN');
$c->refused('eve', $_, '42501', qr/./, "nothing for everybody: $_")
  for q(SELECT saga.start('local')), q(SELECT * FROM saga.instances),
      q(SELECT saga.define('x', steps => ARRAY[saga.step('s', action => 'SELECT 1')]));

# the right to call out is USAGE on the server, checked when it is used
my ($code, $err) = $c->try('carol', q(SELECT saga.define('x', steps => ARRAY[saga.step('s', server => 'a', action => 'SELECT 1')])));
like($code, qr/^(?:42501|SGD01)$/, 'no USAGE on a server') or diag($err);
$id = at_gate();
$c->sql('REVOKE USAGE ON FOREIGN SERVER a FROM alice');
open_gate();
ok($c->until_state($id, 'stuck'), 'USAGE revoked under way: stuck at the next step');
$c->sql('GRANT USAGE ON FOREIGN SERVER a TO alice');
$c->alice("SELECT saga.retry_step(id, step, reason => 'granted again') FROM saga.stuck WHERE id = '$id'");
is($c->ended($id), 'completed|||', 'granted again: completes');

# a superuser's rights are not lent to local steps unless an administrator says so
$c->refused(undef, q(SELECT saga.define('super', steps => ARRAY[saga.step('s', action => 'SELECT 1')])), 'SGD01',
    qr/allow_superuser_steps/, 'local steps of a superuser are refused');
$c->sql('ALTER ROLE alice SUPERUSER');
$id = $c->start('local');
ok($c->until_state($id, 'stuck'), 'also when the owner has become one since');
$c->sql('ALTER ROLE alice NOSUPERUSER');
$c->alice("SELECT saga.retry_step('$id', 's', reason => 'an ordinary role again')");
like($c->ended($id), qr/^completed/, 'and run when it no longer is');

# ---- a command found twice, by its wake-up and by the safety poll, is one ----

$c->sql("ALTER SYSTEM SET saga.safety_poll_interval = '100ms'");
$c->sql('SELECT pg_reload_conf()');
$id = at_gate();
my $verbs = 2000;
$c->alice(join '', map { "SELECT saga.pause('$id', reason => 'p$_'); SELECT saga.resume('$id', reason => 'r$_');\n" } 1 .. $verbs);
open_gate();
is($c->ended($id), 'completed|||', 'a storm of verbs');
is($c->sql(qq(SELECT count(*) FROM saga.log WHERE saga_id = '$id' AND note IS NOT NULL GROUP BY note HAVING count(*) > 1)), '',
    'each took effect once');
is($c->sql('SELECT count(*) FROM saga.inbox'), '0', 'and none is left');

is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
done_testing();
