# The barrier: lost answers, late actions, a participant that comes and goes.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use FaultProxy;
use Test::More;

my $c = SagaTest->coordinator('coordinator');
my $p = SagaTest->participant('participant');
$p->service($_) for qw(a b);
my $proxy = FaultProxy->new(port => $p->{node}->port);
$c->server(a => $p, port => $proxy->port);
$c->server(b => $p);
$c->alice(<<'SQL');
SELECT saga.define('pay', input => 'tag text',
  steps => ARRAY[
    saga.step('first', server => 'b', action => 'SELECT app.act(''first'', :tag)',
              compensation => 'SELECT app.act(''undo first'', :tag)'),
    saga.step('pay', server => 'a', timeout => '20 s',
              retry => saga.retry_policy(initial_interval => '10 ms'),
              action => 'SELECT app.act(''pay'', :tag)',
              compensation => 'SELECT app.act(''refund'')'),
    saga.step('last', action => 'SELECT act(''last'', (:pay)::text)')]);
SELECT saga.define('impatient', input => 'tag text',
  steps => ARRAY[
    saga.step('first', server => 'b', action => 'SELECT app.act(''first'', :tag)',
              compensation => 'SELECT app.act(''undo first'', :tag)'),
    saga.step('pay', server => 'a', timeout => '500 ms',
              retry => saga.retry_policy(max_attempts => 1),
              action => 'SELECT app.act(''pay'', :tag)',
              compensation => 'SELECT app.act(''refund'')')]);
SELECT saga.define('fails_late', input => 'tag text, back text',
  steps => ARRAY[
    saga.step('pay', server => 'a', action => 'SELECT app.act(''pay'', :tag)',
              compensation => 'SELECT app.act(''refund'', :back)'),
    saga.step('no', server => 'b', action => 'SELECT app.refuse(''SGB01'')')])
SQL

sub clear
{
    $p->sql('TRUNCATE app.effect RESTART IDENTITY', $_) for qw(a b);
    return;
}

is($c->run('pay', '{"tag": "plain"}'), 'completed|||', 'through the proxy');
is($p->effects('a'), 'pay/plain', 'with its effect');

# ---- the answer to an action is lost, after the participant committed ----

clear();
$proxy->swallow('lost-answer', "COMMIT\0");
my $id = $c->start('pay', '{"tag": "lost-answer"}');
is($c->ended($id), 'completed|||', 'an answer lost after the commit: the saga completes');
is($proxy->status->{swallowed}, 1, 'the answer really was lost');
is($p->effects('a'), 'pay/lost-answer', 'one effect');
is($c->sql("SELECT result FROM saga.steps WHERE saga_id = '$id' AND step = 'pay'"), '1',
    'and the result is that of the one');
ok($c->sql("SELECT unknown > 0 FROM saga.stat_participants WHERE name = 'a'") eq 't',
    'it was counted as unknown');

# ---- more than once, and many at a time ----

clear();
$proxy->swallow('lost-many', "COMMIT\0", 5);
my @ids = split /\n/, $c->alice(<<'SQL');
SELECT id FROM saga.start_many('pay',
  (SELECT jsonb_agg(jsonb_build_object('tag', 'lost-many-' || n)) FROM generate_series(1, 40) n))
SQL
is(scalar(grep { $c->ended($_) ne 'completed|||' } @ids), 0, 'forty sagas, up to five cuts');
cmp_ok($proxy->status->{swallowed}, '>', 1, 'answers were lost');
is($p->sql('SELECT count(*), count(DISTINCT arg) FROM app.effect', 'a'), '40|40', 'forty effects');
$proxy->pass;

# ---- the same for a compensation ----

clear();
my $before = $proxy->status->{swallowed};
$proxy->swallow('back-lost', "COMMIT\0");
$id = $c->start('fails_late', '{"tag": "lost-undo", "back": "back-lost"}');
is($c->ended($id), 'compensated|declined|no|SGB01', 'the answer to a compensation lost');
is($proxy->status->{swallowed}, $before + 1, 'it was lost');
is($p->effects('a'), 'pay/lost-undo refund/back-lost', 'one refund');
$proxy->pass;

# ---- connections cut off in any state ----

clear();
@ids = split /\n/, $c->alice(<<'SQL');
SELECT id FROM saga.start_many('pay',
  (SELECT jsonb_agg(jsonb_build_object('tag', 'cut-' || n)) FROM generate_series(1, 300) n))
SQL
for my $i (1 .. 20)
{
    $proxy->reset;
    last if $c->sql("SELECT count(*) FROM saga.instances WHERE state NOT IN ('completed', 'compensated')") eq '0';
}
ok($c->until_all_ended, 'all connections cut off, again and again: all end');
is($c->sql(q(SELECT count(*) FROM saga.instances WHERE state <> 'completed' AND input->>'tag' LIKE 'cut-%')), '0',
    'completed');
is($p->sql('SELECT count(*), count(DISTINCT arg) FROM app.effect', 'a'), '300|300', 'each effect once');

# ---- an action held back until after its compensation ----

clear();
$proxy->hold('held-back');
$id = $c->start('impatient', '{"tag": "held-back"}');
is($c->ended($id), 'compensated|declined|pay|' . $c->sql("SELECT sqlstate FROM saga.status('$id')"),
    'an action that is not answered in time: compensated');
is($proxy->status->{held} >= 1, 1, 'the action has not arrived');
is($p->effects('b'), 'first/held-back undo first/held-back', 'the step before it is undone');
is($p->effects('a'), '', 'nothing happened at the participant, and nothing was undone');
is($p->sql(qq(SELECT status FROM saga_participant.barrier WHERE saga = '$id' AND op = 'a'), 'a'), 'refused',
    'its key is refused there');
$proxy->release;
ok(until_true(sub { $proxy->status->{late} =~ /C(SG\w{3})\0/ }), 'now it arrives, and is answered with an error');
my ($code) = $proxy->status->{late} =~ /C(SG\w{3})\0/;
is($code, 'SGB03', 'of the barrier');
is($p->effects('a'), '', 'it has no effect');

# ---- an action that was done though nobody heard of it, then undone ----

clear();
$proxy->swallow('done-unheard', "COMMIT\0");
$id = $c->start('impatient', '{"tag": "done-unheard"}');
my $end = $c->ended($id);
is($p->effects('a'), $end =~ /^completed/ ? 'pay/done-unheard' : 'pay/done-unheard refund',
    'an unknown outcome at the last attempt: done and undone, or heard of after all');
$proxy->pass;

# ---- a participant that is down ----

clear();
$p->{node}->stop('immediate');
@ids = map { $c->start('pay', qq({"tag": "down-$_"})) } 1 .. 20;
ok($c->until("SELECT transient > 0 OR unknown > 0 FROM saga.stat_participants WHERE name = 'b'"),
    'a participant that is down is noticed');
ok($c->until("SELECT circuit <> 'closed' FROM saga.stat_participants WHERE name = 'b'"), 'its circuit opens');
is($c->sql("SELECT count(*) FROM saga.instances WHERE state IN ('completed', 'compensated') AND input->>'tag' LIKE 'down-%'"),
    '0', 'no saga ends');
$c->alice(q(SELECT saga.define('local', steps => ARRAY[saga.step('s', action => 'SELECT 1')])));
is($c->run('local'), 'completed|||', 'other sagas run on');
$p->{node}->start;
is(scalar(grep { $c->ended($_) ne 'completed|||' } @ids), 0, 'when it is back, all complete');
is($p->sql('SELECT count(*), count(DISTINCT arg) FROM app.effect', 'a'), '20|20', 'each effect once');
ok($c->until("SELECT bool_and(circuit = 'closed') FROM saga.stat_participants WHERE name IN ('a', 'b')"),
    'the circuit closes');

# ---- an old coordinator is refused ----

$p->sql(q(UPDATE saga_participant.epoch SET counter = counter + 1000), 'b');
$p->sql(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'svc'), 'b');
clear();
$id = $c->start('pay', '{"tag": "stale"}');
ok($c->until("SELECT EXISTS (SELECT FROM saga.stat_workers WHERE kind = 'coordinator' AND activity LIKE 'held: a later copy%')"),
    'a coordinator that a participant refuses for its epoch holds all sagas');
is($p->effects('b'), '', 'nothing happens there');
is($c->sql("SELECT state FROM saga.instances WHERE id = '$id'"), 'running', 'and the saga stays as it is');
is($c->sql("SELECT saga.take_over('the other copy is gone')"), 'queued', 'take_over() is accepted');
is($c->ended($id), 'completed|||', 'then it goes on, past what the participant had seen');

is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
done_testing();
