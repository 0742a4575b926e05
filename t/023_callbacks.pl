# Steps whose answer comes later: local actions and participants that take a
# call on, tokens, heartbeats, time-outs, queues; while workers are killed.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use POSIX ();
use Test::More;
use Time::HiRes qw(usleep);

my $c = SagaTest->coordinator('coordinator', conf => "saga.executors = 2\nlog_statement = none\n");
my $p = SagaTest->participant('participant');
$p->service('a');
$c->server(a => $p);
$c->sql('CREATE ROLE dave LOGIN; GRANT saga_user TO dave');
$p->sql(<<'SQL', 'a');
SET ROLE svc;
SET search_path = app;
-- takes the call on; the token is where the test finds it
CREATE FUNCTION take_on(what text, token text) RETURNS void LANGUAGE plpgsql SET search_path = app AS $$
BEGIN
  PERFORM act(what, token);
  PERFORM saga_participant.accepted();
END
$$
SQL
$c->alice(<<'SQL');
CREATE FUNCTION app.take_on(what text, token text) RETURNS void LANGUAGE plpgsql SET search_path = app AS $$
BEGIN
  PERFORM act(what, token);
  PERFORM saga.accepted();
END
$$;
SELECT saga.define('local', input => 'n integer',
  steps => ARRAY[
    saga.step('later', action => 'SELECT app.take_on(''later'', :callback_token)', callback => true, callback_timeout => '1 hour',
              returns => 'integer', compensation => 'SELECT app.act(''later undone'')'),
    saga.step('last', action => 'SELECT app.act(''last'', (:later + 1)::text)', compensation => 'none')]);
SELECT saga.define('remote', input => 'n integer',
  steps => ARRAY[
    saga.step('later', server => 'a', action => 'SELECT app.take_on(''later'', :callback_token)', callback => true, callback_timeout => '1 hour',
              compensation => 'SELECT app.act(''later undone'')'),
    saga.step('last', action => 'SELECT app.act(''last'', (:later.x)::text)', compensation => 'none')]);
SELECT saga.define('hurried', input => 'n integer',
  steps => ARRAY[
    saga.step('later', server => 'a', action => 'SELECT app.take_on(''later'', :callback_token)', callback => true, callback_timeout => '2 s',
              retry => saga.retry_policy(max_attempts => 2, initial_interval => '50 ms'),
              compensation => 'SELECT app.act(''later undone'')')]);
SELECT saga.define('render', input => 'n integer',
  steps => ARRAY[
    saga.step('frame', queue => 'gpu', action => '{"n": :n}', compensation => 'none'),
    saga.step('last', action => 'SELECT app.act(''last'', concat((:n)::text, '' '', (:frame.pixels)::text))', compensation => 'none')]);
SELECT saga.define('plain', input => 'n integer',
  steps => ARRAY[saga.step('a', action => 'SELECT app.take_on(''plain'', ''none'')', compensation => 'none')])
SQL

sub token
{
    my ($where) = @_;
    my $query = "SELECT arg FROM app.effect WHERE what = 'later' ORDER BY id DESC LIMIT 1";
    return $where eq 'a' ? $p->sql($query, 'a') : $c->sql($query);
}

# ---- local and remote ----

for my $definition (qw(local remote))
{
    my $where = $definition eq 'local' ? 'here' : 'a';
    my $result = $definition eq 'local' ? '5' : '{"x": 6}';
    my $id = $c->start($definition, '{"n": 1}');
    ok($c->until_state($id, 'waiting'), "$definition: taken on");
    is($c->sql("SELECT state, waiting_for FROM saga.steps WHERE saga_id = '$id' AND step = 'later'"), 'accepted|callback', 'the step waits');
    my $token = token($where);
    like($token, qr/^[A-Za-z0-9_-]{40,}$/, 'a token for URLs and headers');
    is($c->alice("SELECT saga.heartbeat('$token', '{\"done\": 10}')"), 't', 'a heartbeat');
    ok($c->until("SELECT progress = '{\"done\": 10}' FROM saga.steps WHERE saga_id = '$id' AND step = 'later'"), 'shows the progress');

    # a token is good for one call of one saga
    my $forged = $token;
    substr($forged, 30, 1) = substr($forged, 30, 1) eq 'A' ? 'B' : 'A';
    $c->refused('alice', "SELECT saga.complete_step('$forged')", 'SGT01', qr/no token/, 'a forged token');
    $c->refused('alice', "SELECT saga.complete_step('')", 'SGT01', qr/no token/, 'an empty token');
    $c->refused('alice', 'SELECT saga.complete_step(NULL)', 'SGT01', qr/null/, 'no token');
    $c->refused('alice', "SELECT saga.fail_step('$token', 'no', 'maybe')", '22023', qr/'declined'/, 'an unknown kind');

    # over a crash of the server
    crash_server($c->{node}) or BAIL_OUT('the server does not come back');
    ok($c->until_state($id, 'waiting'), 'it waits after a crash, too');

    # of two at a time, one counts
    my $first = $c->session('alice');
    $first->query_safe('BEGIN');
    is($first->query_safe("SELECT saga.complete_step('$token', '$result')"), 't', 'the first answer');
    my $pid = fork // die;
    if (!$pid)
    {
        POSIX::_exit(($c->ask("SET ROLE dave; SELECT saga.fail_step('$token', 'too late')") // '') eq 'f' ? 0 : 1);
    }
    $c->until('SELECT count(*) > 0 FROM pg_locks WHERE NOT granted') or BAIL_OUT('nobody waits');
    $first->query_safe('COMMIT');
    $first->quit;
    waitpid $pid, 0;
    is($?, 0, 'a second answer at the same time does not count');
    is($c->ended($id), 'completed|||', 'and the saga goes on');
    is($c->sql("SELECT arg FROM app.effect WHERE what = 'last' ORDER BY id DESC LIMIT 1"), '6', 'with the result');
    is($c->alice("SELECT saga.complete_step('$token', '7')"), 'f', 'a later answer does not count');
    is($c->alice("SELECT saga.heartbeat('$token')"), 'f', 'nor does a heartbeat');
    my $made = "SELECT count(*) FROM app.effect WHERE what = 'later'";
    is($where eq 'a' ? $p->sql($made, 'a') : $c->sql($made), 1, 'the call was made once');

    # declined, and cancelled
    $id = $c->start($definition, '{"n": 2}');
    ok($c->until_state($id, 'waiting'), 'taken on');
    $token = token($where);
    is($c->alice("SELECT saga.fail_step('$token', 'no paper')"), 't', 'declined later');
    is($c->ended($id), 'compensated|declined|later|SGB01', 'ends the saga');
    is($c->sql("SELECT error FROM saga.instances WHERE id = '$id'"), 'no paper', 'with the reason');
    $id = $c->start($definition, '{"n": 3}');
    ok($c->until_state($id, 'waiting'), 'taken on');
    $token = token($where);
    $c->alice("SELECT saga.cancel('$id')");
    is($c->ended($id), 'compensated|cancelled||', 'cancelled while it waits');
    is($c->alice("SELECT saga.complete_step('$token', '1')"), 'f', 'an answer after that does not count');
    my $undone = "SELECT count(*) FROM app.effect WHERE what = 'later undone'";
    is($where eq 'a' ? $p->sql($undone, 'a') : $c->sql($undone), 1, 'what may have been done is undone, what was declined is not');
}
my $id = $c->start('plain', '{"n": 1}');
ok($c->until_state($id, 'stuck'), 'accepted() in a step without callback');
is($c->sql("SELECT sqlstate FROM saga.stuck WHERE id = '$id'"), '55000', 'is an error');
$c->alice("SELECT saga.terminate('$id')");
$c->refused('alice', 'SELECT saga.accepted()', '55000', qr/local action/, 'outside of an action, too');

# ---- time-outs ----

$p->sql('TRUNCATE app.effect', 'a');
is($c->run('hurried', '{"n": 1}'), 'compensated|declined|later|', 'nobody answers: asked again, then given up');
is($p->effects('a') =~ s{/[A-Za-z0-9_-]{40,}}{}gr, 'later later undone', 'the call had its effect once, and that is undone');
$id = $c->start('hurried', '{"n": 2}');
ok($c->until_state($id, 'waiting'), 'taken on');
my $token = token('a');
for (1 .. 8)
{
    usleep(500_000);
    $c->alice("SELECT saga.heartbeat('$token')");
}
is($c->sql("SELECT state FROM saga.instances WHERE id = '$id'"), 'waiting', 'heartbeats keep it alive');
is($c->alice("SELECT saga.complete_step('$token')"), 't', 'until it is answered');
is($c->ended($id), 'completed|||', 'in the end');

# ---- queues ----

$c->refused('alice', "SELECT * FROM saga.take('gpu', 0)", '22023', qr/greater than 0/, 'none is too few');
is($c->alice("SELECT count(*) FROM saga.take('gpu')"), 0, 'nothing to take');
$id = $c->start('render', '{"n": 0}');
ok($c->until_state($id, 'waiting'), 'offered');
is($c->as('dave', "SELECT count(*) FROM saga.take('gpu')"), 0, 'not to somebody without the right to signal');
is($c->alice("SELECT step, input, attempt FROM saga.take('gpu', visibility => '300 ms')"), 'frame|{"n": 0}|1', 'taken');
is($c->alice("SELECT count(*) FROM saga.take('gpu')"), 0, 'by nobody else');
usleep(350_000);
my ($again, $attempt) = split /\|/, $c->alice("SELECT token, attempt FROM saga.take('gpu')");
is($attempt, 2, 'but again after the time of visibility');
is($c->alice("SELECT saga.complete_step('$again', '{\"pixels\": 3}')"), 't', 'answered');
is($c->ended($id), 'completed|||', 'done');
is($c->sql("SELECT arg FROM app.effect WHERE what = 'last' ORDER BY id DESC LIMIT 1"), '0 3', 'with the result');
$id = $c->start('render', '{"n": -1}');
ok($c->until_state($id, 'waiting'), 'offered');
$c->alice("SELECT saga.cancel('$id')");
is($c->ended($id), 'compensated|cancelled||', 'cancelled');
is($c->alice("SELECT count(*) FROM saga.take('gpu')"), 0, 'what is cancelled is not offered any more');

# Takers, of which one always forgets, while the coordinator is killed.
my $frames = 300;
my @takers;
$c->alice("SELECT count(*) FROM generate_series(1, $frames) n, saga.start('render', jsonb_build_object('n', n)) s");
for my $taker (0 .. 2)
{
    my $pid = fork // die;
    if (!$pid)
    {
        my $test = getppid;
        while (getppid == $test)
        {
            my $sql = $taker == 2 ? "SELECT count(*) FROM saga.take('gpu', 5, '500 ms')"
              : "SELECT count(saga.complete_step(token, jsonb_build_object('pixels', (input->>'n')::integer * 2))) FROM saga.take('gpu', 10, '500 ms')";
            my $n = $c->ask("SET ROLE alice; $sql");
            usleep(30_000) unless $n;
        }
        POSIX::_exit(0);
    }
    push @takers, $pid;
}
usleep(300_000);
kill 9, $c->worker_pids('saga coordinator');
ok($c->until_all_ended(120), "$frames steps were taken and answered");
kill 'TERM', @takers;
waitpid $_, 0 for @takers;
is($c->sql("SELECT count(*), count(DISTINCT arg), count(*) FILTER (WHERE split_part(arg, ' ', 2)::integer <> split_part(arg, ' ', 1)::integer * 2)
              FROM app.effect WHERE what = 'last' AND arg ~ '^[1-9][0-9]* '"), "$frames|$frames|0", 'each once, with its own result');
is($c->sql('SELECT count(*) FROM saga.queued_step'), 0, 'the queue is empty');
is($c->sql('SELECT count(*) FROM saga.inbox'), 0, 'the inbox is empty');
is($c->sql('SELECT count(*) FROM saga.local_outcome'), 0, 'no outcome is left over');
is($c->sql('SELECT count(*) FROM saga.step_progress'), 0, 'no progress is left over');
is($c->sql('SELECT count(*) FROM saga.check_log()'), 0, 'every row equals its log');

done_testing();
