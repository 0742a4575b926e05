# Signals before, while and after a saga waits for them, twice, late, kept for
# a saga that is not there yet, and at the very end: each has one effect, and
# none that was accepted is lost.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use POSIX ();
use Test::More;
use Time::HiRes qw(usleep);

my $signals = $ENV{SAGA_SIGNALS} || 20_000;
my $c = SagaTest->coordinator('coordinator', conf => "saga.executors = 2\nlog_statement = none\n");
$c->sql(<<'SQL');
CREATE ROLE carol LOGIN;
CREATE ROLE dave LOGIN;
GRANT saga_user TO carol, dave;
SQL
$c->alice(<<'SQL');
SELECT saga.define('order', input => 'n integer',
  steps => ARRAY[
    saga.step('place', action => 'SELECT app.act(''place'', (:n)::text)', compensation => 'SELECT app.act(''undo'', (:n)::text)'),
    saga.signal_step('paid', signal => 'payment', timeout => '1 hour'),
    saga.step('ship', action => 'SELECT app.act(''ship'', concat((:n)::text, '' '', (:paid.sum)::text))', compensation => 'none')]);
SELECT saga.define('brief', input => 'n integer',
  steps => ARRAY[
    saga.signal_step('paid', signal => 'payment', timeout => '200 ms'),
    saga.step('ship', action => 'SELECT app.act(''ship'', (:n)::text)', compensation => 'none')]);
SELECT saga.define('patient', input => 'n integer',
  steps => ARRAY[
    saga.signal_step('paid', signal => 'payment', timeout => '200 ms', on_timeout => 'continue'),
    saga.step('ship', action => 'SELECT app.act(''ship'', coalesce((:paid)::text, ''nothing''))', compensation => 'none')]);
SELECT saga.define('many', input => 'n integer',
  steps => ARRAY[
    saga.loop_step('all', ARRAY[
        saga.signal_step('one', signal => 'tick'),
        saga.step('count', action => 'SELECT app.act(''tick'', (:one.i)::text)', compensation => 'none')],
      while => ':iteration < :n')]);
SELECT saga.define('any', input => 'n integer',
  steps => ARRAY[
    saga.signal_step('one', signal => '*'),
    saga.step('tell', action => 'SELECT app.act(:one.signal::text, (:one.payload)::text)', compensation => 'none')]);
SELECT saga.grant('order', 'carol', '{start,signal,see}');
SQL

# ---- one at a time ----

my $id = $c->start('order', '{"n": 1}');
ok($c->until_state($id, 'waiting'), 'a saga that waits for a signal is waiting');
is($c->sql("SELECT waiting_for, waiting_until > now() + interval '59 min' FROM saga.instances WHERE id = '$id'"),
    'signal payment|t', 'for what, and until when');
is($c->alice("SELECT saga.signal('$id', 'payment', '{\"sum\": 5}', signal_id => 'x')"), 't', 'the signal is accepted');
is($c->ended($id), 'completed|||', 'and it goes on');
is($c->effects, 'place/1 ship/1 5', 'with what the signal brought');
is($c->sql("SELECT result FROM saga.steps WHERE saga_id = '$id' AND step = 'paid'"), '{"sum": 5}', 'its result is the payload');
is($c->sql("SELECT actor || ' ' || note FROM saga.log WHERE saga_id = '$id' AND kind = 'signal'"), 'alice x', 'the log says who sent it');
is($c->alice("SELECT saga.signal('$id', 'payment')"), 'f', 'an ended saga takes none');

$c->refused('alice', "SELECT saga.signal('$id', 'no_such')", '22023', qr/waits for no signal "no_such"/, 'an unknown signal');
$c->refused('alice', "SELECT saga.signal(gen_random_uuid(), 'payment')", '42704', qr/does not exist/, 'an unknown saga');
$c->refused('dave', "SELECT saga.signal('$id', 'payment')", '42501', qr/"signal"/, 'without the right');
$c->refused('alice', "SELECT saga.signal('$id', NULL)", '22004', qr/null/, 'no signal at all');
$c->refused('alice', "SELECT saga.signal('$id', 'payment', signal_id => '')", '22023', qr/1 to 1000/, 'an empty id');
$id = $c->start('order', '{"n": 2}');
is($c->as('carol', "SELECT saga.signal('$id', 'payment')"), 't', 'with the right alone');
is($c->ended($id), 'completed|||', 'it goes on');

is($c->run('brief', '{"n": 3}'), 'compensated|declined|paid|', 'a time-out is a failure');
$c->alice('TRUNCATE app.effect');
is($c->run('patient', '{"n": 3}'), 'completed|||', 'or is not');
is($c->effects, 'ship/nothing', 'and the result is null');

$id = $c->start('any', '{"n": 1}');
is($c->alice("SELECT saga.signal('$id', 'whatever', '7')"), 't', 'who waits for any signal');
is($c->ended($id), 'completed|||', 'takes any');
is($c->effects, 'ship/nothing whatever/7', 'and knows which one it was');

# ---- before the saga begins, and before it is there ----

$id = $c->start('order', '{"n": 4}', start_at => q(now() + interval '1 s'));
is($c->alice("SELECT saga.signal('$id', 'payment', '{\"sum\": 4}')"), 't', 'before it begins');
is($c->sql("SELECT state FROM saga.instances WHERE id = '$id'"), 'pending', 'which does not make it begin');
is($c->ended($id), 'completed|||', 'it is kept');

is($c->alice(<<'SQL'), "t\nt\nt", 'in the transaction that starts it, and twice');
BEGIN;
SELECT saga.start('order', '{"n": 5}', key => 'five') \gset
SELECT saga.signal_key('order', 'five', 'payment', '{"sum": 51}');
SELECT saga.signal_key('order', 'five', 'payment', '{"sum": 52}');
SELECT saga.signal(:'start', 'payment', '{"sum": 53}');
COMMIT;
SQL
is($c->ended($c->sql("SELECT id FROM saga.instances WHERE key = 'five'")), 'completed|||', 'the first one is taken');
is($c->sql("SELECT arg FROM app.effect WHERE what = 'ship' AND arg LIKE '5 %'"), '5 51', 'once');

$c->refused('alice', "SELECT saga.signal_key('order', 'six', 'payment')", '42704', qr/was started with key "six"/, 'no saga of this key');
$c->refused('alice', "SELECT saga.signal_key('order', 'six', 'payment', if_absent => 'cry')", '22023', qr/'error' or 'keep'/, 'a wrong option');
$c->refused('alice', "SELECT saga.signal_key('nothing', 'six', 'payment')", '42704', qr/nothing/, 'an unknown definition');
is($c->alice("SELECT saga.signal_key('order', 'six', 'payment', '{\"sum\": 6}', 'id6', 'keep')"), 't', 'kept for a key');
is($c->alice("SELECT saga.signal_key('order', 'six', 'payment', '{\"sum\": 66}', 'id6', 'keep')"), 't', 'again: the same');
is($c->sql('SELECT count(*) FROM saga.kept_signal'), 1, 'kept once');
is($c->run('order', '{"n": 6}', key => "'six'"), 'completed|||', 'the saga of the key gets it');
is($c->sql("SELECT arg FROM app.effect WHERE what = 'ship' AND arg LIKE '6 %'"), '6 6', 'and what it brought');
is($c->sql('SELECT count(*) FROM saga.kept_signal'), 0, 'nothing is left');

# a signal and a start that do not see each other
for my $order (0, 1)
{
    my $key = "race$order";
    my $one = $c->session('alice');
    $one->query_safe('BEGIN');
    my @sql = ("SELECT saga.start('order', '{\"n\": 7}', key => '$key')",
        "SELECT saga.signal_key('order', '$key', 'payment', if_absent => 'keep')");
    $one->query_safe($sql[$order]);
    my $pid = fork // die;
    if (!$pid)
    {
        $c->ask("SET ROLE alice; $sql[1 - $order]");
        POSIX::_exit(0);
    }
    $c->until(q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)) or BAIL_OUT('nobody waits');
    $one->query_safe('COMMIT');
    $one->quit;
    waitpid $pid, 0;
    is($c->ended($c->sql("SELECT id FROM saga.instances WHERE key = '$key'")), 'completed|||', 'a signal and a start at the same time');
}

# ---- at the very end ----

# The signal is not committed when all else is over: the saga does not end
# before it is known.
$c->alice(<<'SQL');
SELECT saga.define('ends', input => 'n integer',
  steps => ARRAY[
    saga.signal_step('go', signal => 'go'),
    saga.parallel(
      saga.signal_step('more', signal => 'more', timeout => '10 ms', on_timeout => 'continue'),
      saga.step('gate', action => 'SELECT app.gate(:n)', compensation => 'none'))]);
SELECT saga.define('ends_with', input => 'n integer',
  steps => ARRAY[
    saga.signal_step('go', signal => 'go'),
    saga.step('gate', action => 'SELECT app.gate(:n)', compensation => 'none')],
  on_completed => 'SELECT app.act(''end'')')
SQL
my $gate = 100;
for my $definition (qw(ends ends_with))
{
    my $lock = $c->session();
    $gate++;
    $lock->query_safe("SELECT pg_advisory_lock($gate)");
    $id = $c->start($definition, qq({"n": $gate}));
    $c->alice("SELECT saga.signal('$id', 'go')");
    $c->until(q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)) or BAIL_OUT('no gate');
    my $sender = $c->session('alice');
    $sender->query_safe('BEGIN');
    is($sender->query_safe("SELECT saga.signal('$id', 'go', '\"late\"')"), 't', "$definition: a signal while the last step runs");
    $lock->quit;
    $c->until("SELECT count(*) = 1 FROM saga.log WHERE saga_id = '$id' AND step = 'gate' AND kind = 'done'");
    usleep(300_000);
    is($c->sql("SELECT count(*) FROM saga.instances WHERE id = '$id' AND ended_at IS NULL"), 1, 'the end waits for it');
    $sender->query_safe('COMMIT');
    $sender->quit;
    is($c->ended($id), 'completed|||', 'then it ends');
    is($c->sql("SELECT count(*) FROM saga.log WHERE saga_id = '$id' AND kind = 'signal'"), 2, 'with the signal in its log');
    is($c->alice("SELECT saga.signal('$id', 'go')"), 'f', 'and takes no more');
}
is($c->sql('SELECT count(*) FROM saga.inbox'), 0, 'nothing is left in the inbox');

# ---- a great many ----

# Half of the sagas get theirs twice; workers are killed meanwhile.  One saga
# takes a tenth of all, early ones and late ones mixed.
my $ticks = int($signals / 10);
my $orders = int($signals / 5);
my $many = $c->start('many', qq({"n": $ticks}));
$c->alice('TRUNCATE app.effect');
$c->alice("SELECT count(*) FROM generate_series(1, $orders) n, saga.start('order', jsonb_build_object('n', n), key => 'many' || n) s");
my $db = $c->{node}->connstr('app');
my @senders;
for my $part (0 .. 3)
{
    my $pid = fork // die;
    if (!$pid)
    {
        open my $psql, '|-', "psql -XAtq -U alice -d \"$db\" >/dev/null 2>&1" or POSIX::_exit(1);
        for my $n (1 .. $ticks)
        {
            print $psql "SELECT saga.signal('$many', 'tick', '{\"i\": $n}', signal_id => 't$n');\n" if $n % 4 == $part || $n % 8 == 0;
        }
        for my $n (1 .. $orders)
        {
            next if $n % 4 != $part;
            for (1 .. 1 + $n % 2)
            {
                print $psql "SELECT saga.signal_key('order', 'many$n', 'payment', '{\"sum\": $n}', 'once');\n";
            }
            print $psql "SELECT saga.signal_key('order', 'many$n', 'payment', '{\"sum\": -1}', 'twice');\n" if $n % 3 == 0;
        }
        close $psql;
        POSIX::_exit(0);
    }
    push @senders, $pid;
}
usleep(400_000);
kill 9, $c->worker_pids('saga coordinator');	# the senders lose their connections
$c->until('SELECT true') or BAIL_OUT('the server does not come back');
waitpid $_, 0 for @senders;
# what was not sent because of the crash
$c->alice("SELECT count(*) FROM generate_series(1, $ticks) n, saga.signal('$many', 'tick', jsonb_build_object('i', n), 't' || n) s");
$c->alice("SELECT count(*) FROM generate_series(1, $orders) n, saga.signal_key('order', 'many' || n, 'payment', jsonb_build_object('sum', n), 'once') s");
ok($c->until_all_ended(120), 'all sagas have ended');
is($c->sql("SELECT state FROM saga.instances WHERE id = '$many'"), 'completed', 'the one with many signals');
is($c->sql(<<SQL), '0|0', 'each signal had one effect');
SELECT count(*) FILTER (WHERE t.n IS NULL OR e.count IS NULL), count(*) FILTER (WHERE e.count > 1)
FROM generate_series(1, $ticks) t(n)
FULL JOIN (SELECT arg::integer, count(*) FROM app.effect WHERE what = 'tick' GROUP BY arg) e ON e.arg = t.n
SQL
is($c->sql("SELECT count(*), count(DISTINCT split_part(arg, ' ', 1)) FROM app.effect WHERE what = 'ship'"), "$orders|$orders", 'each order is shipped once');
is($c->sql("SELECT count(*) FROM (SELECT FROM saga.log WHERE kind = 'signal' GROUP BY saga_id, note HAVING count(*) > 1 AND note IS NOT NULL) d"),
    0, 'no signal is in a log twice');
is($c->sql('SELECT count(*) FROM saga.check_log()'), 0, 'every row equals its log');
is($c->sql('SELECT count(*) FROM saga.inbox'), 0, 'the inbox is empty');

done_testing();
