# A saga that cannot be worked on is set aside, shown, and can be ended; the
# others go on.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;

my $c = SagaTest->coordinator;
$c->alice(<<'SQL');
CREATE TYPE app.colour AS ENUM ('red', 'green');
SELECT saga.define('coloured', input => 'c app.colour', steps => ARRAY[
  saga.step('a', action => 'SELECT :c', compensation => 'SELECT 1'),
  saga.step('b', action => 'SELECT pg_sleep(60)')]);
SELECT saga.define('plain', steps => ARRAY[
  saga.step('a', action => 'SELECT 1'), saga.step('b', action => 'SELECT pg_sleep(60)')]);
SELECT saga.define('quick', steps => ARRAY[saga.step('a', action => 'SELECT 1')]);
SQL
my $typed = $c->start('coloured', '{"c": "red"}');
my $damaged = $c->start('plain');
ok($c->until("SELECT count(*) = 2 FROM saga.log WHERE kind = 'done'"), 'both are under way');

# what they need goes while the coordinator is away
$c->sql('DROP TYPE app.colour CASCADE');
$c->sql("UPDATE saga.log_record SET seq = seq + 5 WHERE saga_id = '$damaged' AND seq > 1");
$c->sql("SELECT pg_terminate_backend(pid) FROM saga.stat_workers WHERE kind = 'coordinator'");

ok($c->until("SELECT count(*) = 2 FROM saga.stuck WHERE reason = 'error'"), 'both are shown as stuck');
is($c->sql("SELECT sqlstate, verbs FROM saga.stuck WHERE id = '$typed'"), 'SGD01|{terminate}',
    'with the reason and the verb that helps');
is($c->sql("SELECT sqlstate FROM saga.stuck WHERE id = '$damaged'"), 'XX001', 'a damaged log is said to be one');
is($c->run('quick'), 'completed|||', 'other sagas run on');
is($c->sql("SELECT count(*) FROM saga.check_log('$damaged')"), '1', 'check_log() names the damaged one');

is($c->sql("SELECT saga.terminate('$_', force => true, reason => 'cannot go on')"), 'queued', 'terminate by force')
    for $typed, $damaged;
is($c->ended($_), 'terminated|operator||', 'ends it') for $typed, $damaged;
is($c->sql('SELECT count(*) FROM saga.stuck'), '0', 'and nothing is stuck');
is($c->sql("SELECT kind, actor, note FROM saga.log WHERE saga_id = '$typed' ORDER BY seq DESC LIMIT 1"),
    'ended|postgres|cannot go on', 'the log says who and why');
done_testing();
