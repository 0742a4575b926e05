# Sagas that the clock starts.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use Test::More;

my $c = SagaTest->coordinator('coordinator');

# ---- cron expressions ----

# the next n times after one, as UTC
sub next_times
{
    my ($cron, $zone, $after, $n) = @_;
    return $c->sql(<<SQL);
WITH RECURSIVE t(n, at) AS (
  SELECT 1, saga.cron_next('$cron', '$zone', '$after')
  UNION ALL SELECT n + 1, saga.cron_next('$cron', '$zone', at) FROM t WHERE n < $n)
SELECT string_agg(to_char(at AT TIME ZONE 'UTC', 'MM-DD HH24:MI'), ', ' ORDER BY n) FROM t
SQL
}

my @times = (
    [ '*/20 * * * *', 'UTC', '2026-01-01 00:05+00', '01-01 00:20, 01-01 00:40, 01-01 01:00' ],
    [ '5-7,50 9 * * *', 'UTC', '2026-01-01 09:05+00', '01-01 09:06, 01-01 09:07, 01-01 09:50, 01-02 09:05' ],
    [ '0 0 * * mon-fri', 'UTC', '2026-01-01 00:00+00', '01-02 00:00, 01-05 00:00' ],
    [ '0 0 * * fri-sun', 'UTC', '2026-01-01 00:00+00', '01-02 00:00, 01-03 00:00, 01-04 00:00, 01-09 00:00' ],
    [ '0 0 * * 7', 'UTC', '2026-01-01 00:00+00', '01-04 00:00, 01-11 00:00' ],
    [ '0 0 * JAN-mar Sun', 'UTC', '2026-03-29 00:00+00', '01-03 00:00' ],
    # either of two days that are given, both where one begins with a star
    [ '0 0 13 * fri', 'UTC', '2026-02-01 00:00+00', '02-06 00:00, 02-13 00:00, 02-20 00:00' ],
    [ '0 0 */2 * fri', 'UTC', '2026-02-01 00:00+00', '02-13 00:00, 02-27 00:00' ],
    [ '30 12 29 2 *', 'UTC', '2026-02-01 00:00+00', '02-29 12:30' ],
    [ '0 0 31 * *', 'UTC', '2026-01-31 00:00+00', '03-31 00:00, 05-31 00:00' ],
    [ '10/25 3 1 1 *', 'UTC', '2026-01-01 00:00+00', '01-01 03:10, 01-01 03:35' ],
    [ '@hourly', 'UTC', '2026-01-01 00:59+00', '01-01 01:00' ],
    [ '@daily', 'UTC', '2026-01-01 00:59+00', '01-02 00:00' ],
    [ '@weekly', 'UTC', '2026-01-01 00:59+00', '01-04 00:00' ],
    [ '@monthly', 'UTC', '2026-01-01 00:59+00', '02-01 00:00' ],
    [ '@yearly', 'UTC', '2026-01-01 00:59+00', '01-01 00:00' ],
    # clocks forward: 02:30 does not exist on March 29, 03:00 is the next time
    [ '30 2 * * *', 'Europe/Berlin', '2026-03-27 12:00+00', '03-28 01:30, 03-29 01:00, 03-30 00:30' ],
    [ '*/15 2 * * *', 'Europe/Berlin', '2026-03-28 12:00+00', '03-29 01:00, 03-30 00:00' ],
    # clocks back: 02:30 comes twice on October 25, and is run once
    [ '30 2 * * *', 'Europe/Berlin', '2026-10-24 12:00+00', '10-25 00:30, 10-26 01:30' ],
    # what is about every hour, is so when clocks change, too
    [ '30 * * * *', 'Europe/Berlin', '2026-03-29 00:00+00', '03-29 00:30, 03-29 01:30, 03-29 02:30' ],
    [ '30 * * * *', 'Europe/Berlin', '2026-10-24 23:45+00', '10-25 00:30, 10-25 01:30, 10-25 02:30' ],
    # half an hour, and a change at midnight
    [ '15 2 * * *', 'Australia/Lord_Howe', '2026-10-03 00:00+00', '10-03 15:30, 10-04 15:15' ],
    [ '0 0 * * *', 'America/Santiago', '2026-09-05 05:00+00', '09-06 04:00, 09-07 03:00' ]);
for (@times)
{
    my ($cron, $zone, $after, $expected) = @$_;
    is(next_times($cron, $zone, $after, scalar(() = $expected =~ /,/g) + 1), $expected, "$cron in $zone");
}
is($c->sql(q(SELECT saga.cron_next('0 0 30 2 *') IS NULL)), 't', 'a day that never comes');

my @bad = (
    [ '60 * * * *', qr/minute "60" is not between 0 and 59/ ],
    [ '* 24 * * *', qr/hour "24" is not between/ ],
    [ '* * 0 * *', qr/day of month "0"/ ],
    [ '* * * 13 *', qr/month "13"/ ],
    [ '* * * * 8', qr/day of week "8"/ ],
    [ '* * * * foo', qr/day of week "foo" is not understood/ ],
    [ '* * * jan5 *', qr/month "jan5"/ ],
    [ '5-3 * * * *', qr/minute "5-3" ends before/ ],
    [ '* * * * fri-mon', qr/day of week "fri-mon" ends before/ ],
    [ '*/0 * * * *', qr/step of the minute/ ],
    [ '1,,2 * * * *', qr/minute "1,,2" has an empty item/ ],
    [ '1- * * * *', qr/minute "1-"/ ],
    [ '* * * *', qr/has 4 fields/ ],
    [ '* * * * * *', qr/has 6 fields/ ],
    [ '', qr/has 0 fields/ ],
    [ '@reboot', qr/no such nickname/ ]);
$c->refused('alice', "SELECT saga.cron_next('$_->[0]')", '22023', $_->[1], "refused: '$_->[0]'") for @bad;
$c->refused('alice', q(SELECT saga.cron_next('@daily', 'Mars/Phobos')), '22023', qr/Mars/, 'no such time zone');

# ---- what schedule() takes ----

$c->alice(<<'SQL');
SELECT saga.define('tick', input => 'n integer', steps => ARRAY[saga.step('s', action => 'SELECT act(''tick'', (:n)::text)')]);
SELECT saga.define('day', input => 'day timestamptz', steps => ARRAY[
  saga.step('s', action => 'SELECT act(''day'', to_char(:day AT TIME ZONE ''UTC'', ''YYYY-MM-DD HH24:MI''))')]);
SELECT saga.define('slow', input => 'g bigint', steps => ARRAY[saga.step('s', action => 'SELECT gate(:g)', timeout => '1 hour')])
SQL
for (
    [ q('a', 'tick'), '22023', qr/either cron or every/ ],
    [ q('a', 'tick', cron => '@daily', every => '1 h'), '22023', qr/either cron or every/ ],
    [ q('a', 'tick', every => '10 ms', input => '{"n": 1}'), '22023', qr/one second/ ],
    [ q('a', 'tick', every => '-1 h', input => '{"n": 1}'), '22023', qr/one second/ ],
    [ q('a', 'tick', every => '1 h'), '22023', qr/n/ ],
    [ q('a', 'tick', every => '1 h', input => '[]'), '22023', qr/./ ],
    [ q('a', 'no_such', every => '1 h'), '42704', qr/no_such/ ],
    [ q('a', 'tick', every => '1 h', input => '{"n": 1}', catch_up => 'some'), '22023', qr/catch_up/ ],
    [ q('a', 'tick', every => '1 h', input => '{"n": 1}', overlap => 'some'), '22023', qr/overlap/ ],
    [ q('a', 'tick', cron => '0 0 30 2 *', input => '{"n": 1}'), '22023', qr/never/ ],
    [ q('', 'tick', every => '1 h', input => '{"n": 1}'), '22023', qr/name/ ],
    [ q(NULL, 'tick', every => '1 h', input => '{"n": 1}'), '22004', qr/name/ ],
    [ q('a', 'tick', every => '1 h', input => '{"n": 1}', timezone => 'Nowhere'), '22023', qr/Nowhere/ ])
{
    $c->refused('alice', "SELECT saga.schedule($_->[0])", $_->[1], $_->[2], "refused: $_->[0]");
}
$c->refused('alice', q(SELECT saga.unschedule('a')), '42704', qr/"a"/, 'no such schedule');
$c->sql('CREATE ROLE carol LOGIN; GRANT saga_user TO carol');
$c->refused('carol', q(SELECT saga.schedule('a', 'tick', every => '1 h', input => '{"n": 1}')), '42501', qr/tick/, 'who may not start');

# ---- it runs ----

sub runs
{
    my ($schedule) = @_;
    return $c->sql(<<SQL);
SELECT string_agg(to_char((labels->>'scheduled_for')::timestamptz, 'DD HH24:MI'), ', ' ORDER BY started_at, id)
  FROM saga.instances WHERE labels \@> '{"schedule": "$schedule"}'
SQL
}

$c->alice(q(SELECT saga.schedule('second', 'tick', every => '1 second', input => '{"n": 5}')));
ok($c->until(q(SELECT count(*) >= 3 FROM saga.instances WHERE labels @> '{"schedule": "second"}' AND state = 'completed')), 'a saga each second');
is($c->alice(q(SELECT name || ' ' || (next_run > now() - interval '5 s') || ' ' || (runs >= 3) || ' ' || missed || ' ' || (last_run < next_run) || ' ' || (last_saga IS NOT NULL) FROM saga.schedules)),
    'second true true 0 true true', 'saga.schedules shows it');
is($c->sql(q(SELECT count(*) = count(DISTINCT labels->>'scheduled_for') AND bool_and(started_by = 'alice') FROM saga.instances WHERE labels ? 'schedule')), 't',
    'each time once, by who made the schedule');
is($c->sql(q(SELECT bool_and(started_at >= (labels->>'scheduled_for')::timestamptz) FROM saga.instances WHERE labels ? 'schedule')), 't', 'none too early');
is($c->as('carol', 'SELECT count(*) FROM saga.schedules'), '0', "others' schedules are not seen");
$c->refused('carol', q(SELECT saga.unschedule('second')), '42501', qr/second/, 'nor dropped');
$c->alice(q(SELECT saga.grant('tick', 'carol', privileges => '{start}')));
$c->refused('carol', q(SELECT saga.schedule('second', 'tick', every => '1 h', input => '{"n": 1}')), '42501', qr/second/, 'nor replaced');
my $next = $c->alice(q(SELECT saga.schedule('later', 'tick', cron => '@daily', input => '{"n": 1}')));
$c->sql(q(UPDATE saga.schedule SET next_at = next_at + interval '1 day' WHERE name = 'later'));
isnt($c->alice(q(SELECT saga.schedule('later', 'tick', cron => '@daily', input => '{"n": 2}'))), $next, 'the same times again: they stay');
is($c->alice(q(SELECT saga.schedule('later', 'tick', cron => '@monthly', input => '{"n": 2}') > now())), 't', 'other times: they begin anew');
$c->alice(q(SELECT saga.unschedule('second'), saga.unschedule('later')));
my $ran = $c->sql(q(SELECT count(*) FROM saga.instances WHERE labels ? 'schedule'));
is($c->run('tick', '{"n": 0}'), 'completed|||', 'others run');

# a transaction that is rolled back schedules nothing
$c->alice(q(BEGIN; SELECT saga.schedule('never', 'tick', every => '1 second', input => '{"n": 5}'); ROLLBACK));
is($c->sql('SELECT count(*) FROM saga.schedules'), '0', 'no commit, no schedule');

# ---- what was missed ----

# as if nobody had been there for the last n hours and some minutes
sub missed
{
    my ($name, $hours, %arg) = @_;
    my $more = join '', map { ", $_ => '$arg{$_}'" } sort keys %arg;
    my $definition = delete $arg{definition} // 'day';
    $c->alice(<<SQL);
SELECT saga.schedule('$name', 'day', every => '1 hour', time_field => 'day'$more)
SQL
    # the row as it would stand then; the server is stopped in between, so that
    # the coordinator has seen nothing of it
    $c->sql(<<SQL);
UPDATE saga.schedule SET anchor = anchor - interval '$hours hours 30 minutes',
       next_at = next_at - interval '$hours hours 30 minutes' WHERE name = '$name'
SQL
    return;
}
missed('all', 4);
missed('last', 4, catch_up => 'last');
missed('none', 4, catch_up => 'none');
missed('allow', 4, overlap => 'allow');
$c->{node}->restart;
ok($c->until(q(SELECT count(*) = 0 FROM saga.schedules WHERE next_run < now() OR queued > 0)), 'what was missed is settled');
ok($c->until_all_ended, 'all have ended');
sub counts
{
    return $c->sql("SELECT runs || ' run, ' || missed || ' missed' FROM saga.schedules WHERE name = '$_[0]'");
}
is(counts('all'), '4 run, 0 missed', "catch_up 'all': none is left out, although they overlap");
is(counts('last'), '1 run, 3 missed', "catch_up 'last'");
is(counts('none'), '0 run, 4 missed', "catch_up 'none'");
is(counts('allow'), '4 run, 0 missed', "catch_up 'all' and overlap 'allow'");
is($c->sql(q(SELECT count(*) FROM saga.instances a JOIN saga.instances b ON a.labels @> '{"schedule": "all"}' AND b.labels @> '{"schedule": "all"}' AND a.id < b.id AND b.started_at < a.ended_at)),
    '0', 'one after the other');
is($c->sql(q(SELECT bool_and((labels->>'scheduled_for')::timestamptz = (input->>'day')::timestamptz) FROM saga.instances WHERE labels ? 'schedule' AND name = 'day')), 't',
    'the time is in the input where it was asked for');
is($c->sql(q(SELECT count(DISTINCT arg) FROM app.effect WHERE what = 'day')), '4', 'and each time has had its effect');

# the same times again, as after a restored row: each time was run, and is not run again
$c->sql(q(UPDATE saga.schedule SET next_at = next_at - interval '3 hours' WHERE name = 'all'));
$c->{node}->restart;
ok($c->until(q(SELECT next_run > now() AND queued = 0 FROM saga.schedules WHERE name = 'all')), 'times that come back');
is(counts('all'), '4 run, 0 missed', 'are not run twice');
$c->alice(q(SELECT count(saga.unschedule(name)) FROM saga.schedules));

# ---- overlapping ----

my $lock = $c->session();
$lock->query_safe('SELECT pg_advisory_lock(77)');
$c->alice(qq(SELECT saga.schedule('$_', 'slow', every => '1 second', overlap => '$_', input => '{"g": 77}'))) for qw(skip queue allow);
ok($c->until(q(SELECT (SELECT missed >= 2 FROM saga.schedules WHERE name = 'skip') AND (SELECT queued >= 2 FROM saga.schedules WHERE name = 'queue')
  AND (SELECT runs >= 3 FROM saga.schedules WHERE name = 'allow'))), 'runs that overlap are left out, wait, or run');
is($c->sql(q(SELECT string_agg(name || runs, ' ' ORDER BY name) FROM saga.schedules WHERE name <> 'allow')), 'queue1 skip1', 'one at a time');
$c->alice(q(SELECT saga.unschedule('skip'), saga.unschedule('allow')));
$c->sql(q(UPDATE saga.schedule SET next_at = now() + interval '1 day'));
my $queued = $c->sql(q(SELECT queued FROM saga.schedules));
$lock->quit;
ok($c->until(q(SELECT queued = 0 AND runs = ) . ($queued + 1) . q( FROM saga.schedules)), 'what waits runs when the one before has ended');
ok($c->until_all_ended, 'all end');
is($c->sql(q(SELECT count(*) FROM saga.instances a JOIN saga.instances b ON a.labels @> '{"schedule": "queue"}' AND b.labels @> '{"schedule": "queue"}' AND a.id < b.id AND b.started_at < a.ended_at)),
    '0', 'one after the other');
$c->alice(q(SELECT saga.unschedule('queue')));

# ---- what cannot be started ----

$c->alice(q(SELECT saga.schedule('bad', 'tick', every => '1 second', input => '{"n": 1}');
SELECT saga.define('tick', input => 'n integer, m integer', steps => ARRAY[saga.step('s', action => 'SELECT act(''tick'', (:m)::text)')])));
ok($c->until(q(SELECT missed >= 2 AND error ~ '^22023: .*' FROM saga.schedules WHERE name = 'bad')), 'an input that no longer fits: the schedule says so, and goes on');
$c->alice(q(SELECT saga.schedule('bad', 'tick', every => '1 second', input => '{"n": 1, "m": 2}')));
ok($c->until(q(SELECT runs >= 1 AND error IS NULL FROM saga.schedules WHERE name = 'bad')), 'until it is mended');
$c->sql(q(SELECT saga.alter_owner('tick', 'carol'); UPDATE saga.schedule SET missed = 0));
ok($c->until(q(SELECT missed >= 1 AND error ~ '^42501' FROM saga.schedules WHERE name = 'bad')), "rights are those of the schedule's owner now");
$c->alice(q(SELECT saga.unschedule('bad')));

# a row that somebody holds is tried again, and nobody waits for it
$c->alice(q(SELECT saga.schedule('held', 'day', every => '1 second', time_field => 'day')));
$lock = $c->session();
$lock->query_safe(q(BEGIN; SELECT 1 FROM saga.schedule WHERE name = 'held' FOR UPDATE));
is($c->run('slow', '{"g": 1}'), 'completed|||', 'while a schedule is locked sagas run');
$lock->query_safe('ROLLBACK');
$lock->quit;
ok($c->until(q(SELECT runs >= 2 FROM saga.schedules WHERE name = 'held')), 'and afterwards the schedule does');

# ---- a crash between its times ----

$c->{node}->stop('immediate');
$c->{node}->start;
ok($c->until(q(SELECT runs >= 5 FROM saga.schedules WHERE name = 'held')), 'after a crash it goes on');
is($c->sql(q(SELECT count(*) = count(DISTINCT labels->>'scheduled_for') FROM saga.instances WHERE labels @> '{"schedule": "held"}')), 't', 'each time once');
is($c->sql(q(SELECT s.runs = count(i.id) FROM saga.schedules s JOIN saga.instances i ON i.labels @> '{"schedule": "held"}' WHERE s.name = 'held' GROUP BY s.runs)), 't', 'and counted');

# ---- held sagas hold their schedules ----

$c->sql(q(UPDATE saga.identity SET host = 'elsewhere', server_started = NULL));
$c->{node}->restart;
ok($c->until(q(SELECT count(*) > 0 FROM saga.stat_workers WHERE activity LIKE 'held%')), 'held');
my $before = $c->sql(q(SELECT runs FROM saga.schedules WHERE name = 'held'));
is($c->sql(q(SELECT pg_sleep(1.5); SELECT runs FROM saga.schedules WHERE name = 'held')), "\n$before", 'held sagas: nothing is started');
$c->sql(q(SELECT saga.take_over('test')));
ok($c->until(qq(SELECT runs > $before + 1 FROM saga.schedules WHERE name = 'held')), 'and goes on with them');
$c->alice(q(SELECT saga.unschedule('held')));
ok($c->until_all_ended, 'all have ended');
is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
done_testing();
