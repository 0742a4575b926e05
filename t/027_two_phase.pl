# Two-phase commit over real servers: commit, abort, and whoever dies between.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use FaultProxy;
use Test::More;

my $soon = 60;        # seconds in which all is settled once both sides are up

my $c = SagaTest->coordinator('coordinator');
my %bank = map { $_ => SagaTest->participant("server_$_") } qw(a b);
my %proxy;
for my $name (sort keys %bank)
{
    $bank{$name}->service($name);
    $bank{$name}->sql(<<'SQL', $name);
SET ROLE svc;
CREATE TABLE app.account (
  id integer PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
INSERT INTO app.account SELECT n, 1000 FROM generate_series(1, 20) n;
SQL
    $proxy{$name} = FaultProxy->new(port => $bank{$name}{node}->port);
    $c->server($name => $bank{$name}, port => $proxy{$name}->port);
}

# The same steps under either protocol: ':gate' is a lock that the deciding
# transaction waits for, ':pause' how long the second bank sleeps.
sub transfer
{
    my ($name, %arg) = @_;
    my $timeout = $arg{timeout} // '20 s';
    my $retry = $arg{retry} // 'NULL';
    my $options = $arg{options} // q(protocols => '{saga,two_phase}');
    return <<SQL;
SELECT saga.define('$name', input => 'source int, target int, amount bigint, gate bigint, pause float8, tag text',
  $options, steps => ARRAY[
  saga.step('debit', server => 'a', timeout => '$timeout', retry => $retry,
    action => 'UPDATE app.account SET balance = balance - :amount WHERE id = :source',
    compensation => 'UPDATE app.account SET balance = balance + :amount WHERE id = :source'),
  saga.step('credit', server => 'b', timeout => '$timeout', retry => $retry,
    action => 'UPDATE app.account SET balance = balance + :amount WHERE id = :target AND :tag IS NOT NULL
               AND (SELECT pg_sleep(:pause)) IS NOT NULL',
    compensation => 'UPDATE app.account SET balance = balance - :amount WHERE id = :target'),
  saga.step('journal', timeout => '$timeout', compensation => 'DELETE FROM transfer WHERE id = (:result)::bigint',
    action => 'INSERT INTO transfer (amount) SELECT :amount FROM gate(:gate) RETURNING id'),
  saga.step('note', timeout => '$timeout', compensation => 'none',
    action => 'UPDATE transfer SET note = :tag WHERE id = (:journal)::bigint AND :amount <> 13')])
SQL
}
$c->alice(<<'SQL' . transfer('transfer'));
CREATE TABLE transfer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount bigint, note text);
SQL
$c->alice(transfer('hasty', timeout => '700 ms', retry => 'saga.retry_policy(max_attempts => 2, initial_interval => $$100 ms$$)'));

sub input
{
    my (%arg) = (source => 1, target => 2, amount => 10, gate => 0, pause => 0, tag => 'x', @_);
    return '{' . join(', ', map { qq("$_": ) . ($arg{$_} =~ /^[0-9.]+$/ ? $arg{$_} : qq("$arg{$_}")) }
          sort keys %arg) . '}';
}
sub two_phase { return $c->start($_[0], input(@_[1 .. $#_]), protocol => q('two_phase')) }
sub total
{
    return $bank{a}->sql('SELECT sum(balance) FROM app.account', 'a') +
      $bank{b}->sql('SELECT sum(balance) FROM app.account', 'b');
}
sub balances
{
    return $bank{a}->sql('SELECT balance FROM app.account WHERE id = 1', 'a') . ' ' .
      $bank{b}->sql('SELECT balance FROM app.account WHERE id = 2', 'b');
}
sub prepared { return $bank{ $_[0] }->sql("SELECT count(*) FROM pg_prepared_xacts WHERE database = '$_[0]'", $_[0]) }
sub none_prepared { return prepared('a') + prepared('b') == 0 }
sub trace
{
    return $c->sql("SELECT * FROM saga.log WHERE saga_id = '$_[0]' ORDER BY seq");
}
# ended as expected, and nothing stands prepared
sub ended_ok
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($id, $expected, $name) = @_;
    my $got = $c->ended($id);
    my $ok = ref $expected ? $got =~ $expected : $got eq $expected;
    ok($ok && none_prepared(), $name) or diag("got $got\n" . trace($id));
    return;
}

# ---- the same definition under both protocols ----

is($c->run('transfer', input()), 'completed|||', 'run as a saga');
is(balances(), '990 1010', 'money moved');
my $id = two_phase('transfer');
ended_ok($id, 'completed|||', 'run by two-phase commit');
is(balances(), '980 1020', 'money moved again');
is($c->sql('SELECT id, amount, note FROM app.transfer ORDER BY id'), "1|10|x\n2|10|x",
    'local steps ran, and the second saw the result of the first');
is($c->sql("SELECT string_agg(step || ' ' || state, ', ' ORDER BY position) FROM saga.steps WHERE saga_id = '$id'"),
    'prepare_a done, prepare_b done, decide done, commit_a done, commit_b done', 'its steps');
is($c->sql("SELECT protocol FROM saga.instances WHERE id = '$id'"), 'two_phase', 'its protocol is shown');
is($c->sql('SELECT count(*) FROM saga.in_doubt'), '0', 'nothing is in doubt');

# ---- whoever says no ----

ended_ok(two_phase('transfer', amount => 5000), 'compensated|declined|prepare_a|23514',
    'declined by one participant');
is(balances(), '980 1020', 'nothing moved');
like($c->sql("SELECT error FROM saga.instances WHERE error LIKE 'step%'"), qr/^step "debit": new row/,
    'the error names the step');
$c->sql('ALTER TABLE app.transfer ADD CONSTRAINT no_13 CHECK (amount <> 13)');
ended_ok(two_phase('transfer', amount => 13), 'compensated|declined|decide|23514', 'declined by a local step');
is(balances(), '980 1020', 'nothing moved');
is($c->sql('SELECT count(*) FROM app.transfer'), '2', 'and nothing was kept of the local steps');

# ---- a participant that is too slow ----

my $began = time;
ended_ok(two_phase('hasty', pause => 30), qr/^compensated\|declined\|prepare_b\|57014/, 'a vote that takes too long');
cmp_ok(time - $began, '<', 20, 'is not waited for');
is(balances(), '980 1020', 'nothing moved');

# ---- an answer that is lost ----

$proxy{b}->swallow('lost-vote', "PREPARE TRANSACTION\0");
ended_ok(two_phase('transfer', tag => 'lost-vote'), 'completed|||', 'the answer to PREPARE is lost: asked again');
is($proxy{b}->status->{swallowed}, 1, 'it really was lost');
is(balances(), '970 1030', 'done once');
$proxy{b}->pass;
$proxy{a}->swallow('COMMIT PREPARED', "COMMIT PREPARED\0");
ended_ok(two_phase('transfer'), 'completed|||', 'the answer to COMMIT PREPARED is lost: asked again');
is($proxy{a}->status->{swallowed}, 1, 'it really was lost');
is(balances(), '960 1040', 'done once');
$proxy{a}->pass;

# ---- a PREPARE that arrives after the abort ----

$proxy{b}->hold('late-vote');
$id = two_phase('hasty', tag => 'late-vote');
ended_ok($id, qr/^compensated\|declined\|prepare_b/, 'a vote that does not come: aborted');
$proxy{b}->release;
ok(until_true(sub { $proxy{b}->status->{late} =~ /CSGB03\0/ }), 'the PREPARE that comes later is refused');
is(prepared('b'), '0', 'and nothing stands there');
is(balances(), '960 1040', 'nothing moved');

# ---- the coordinator dies before the decision ----

sub at_the_gate
{
    my (%arg) = @_;
    my $gate = $c->session;
    $gate->query_safe('SELECT pg_advisory_lock(7)');
    my $saga = two_phase('transfer', gate => 7, %arg);
    ok(until_true(sub { prepared('a') == 1 && prepared('b') == 1 }), 'both have voted');
    ok($c->until("SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"),
        'the decision is being made');
    return ($saga, $gate);
}

($id, my $gate) = at_the_gate();
is($c->sql("SELECT server, saga_id = '$id', decision, waits_for FROM saga.in_doubt ORDER BY server"),
    "a|t||the decision\nb|t||the decision", 'saga.in_doubt shows the branches');
is($c->sql('SELECT gid FROM saga.in_doubt WHERE server = $$a$$'),
    $bank{a}->sql('SELECT gid FROM pg_prepared_xacts'), 'by the names they have there');
is($c->alice("SELECT saga.skip_step('$id', 'decide')"),
    'ignored: under two-phase commit nobody can vote or decide in place of another', 'no decision can be skipped');
crash_server($c->{node}, sub {
    ok(prepared('a') == 1 && prepared('b') == 1, 'both stand prepared while the coordinator is down');
});
ended_ok($id, 'completed|||', 'the coordinator crashed before the decision: it is made after the restart');
is(balances(), '950 1050', 'money moved');

# ---- ... and after it ----

$proxy{$_}->hold('COMMIT PREPARED') for qw(a b);
$id = two_phase('transfer');
ok($c->until("SELECT count(*) = 2 FROM saga.in_doubt WHERE decision = 'commit'"), 'decided, and not yet told');
$proxy{$_}->reset for qw(a b);
crash_server($c->{node}, sub { $proxy{$_}->pass for qw(a b) });
ended_ok($id, 'completed|||', 'the coordinator crashed after the decision: it is carried out after the restart');
is(balances(), '940 1060', 'money moved');

# ---- the coordinator process alone ends ----

($id, $gate) = at_the_gate();
my ($pid) = $c->worker_pids('saga coordinator');
$c->sql("SELECT pg_terminate_backend($pid)");
ok(until_true(sub { my ($now) = $c->worker_pids('saga coordinator'); defined $now && $now != $pid }),
    'another coordinator process');
$gate->query_safe('SELECT pg_advisory_unlock(7)');
ended_ok($id, 'completed|||', 'it goes on');
is(balances(), '930 1070', 'money moved once');
$gate->quit;

# ---- a participant dies after voting yes ----

($id, $gate) = at_the_gate();
$bank{b}{node}->stop('immediate');
$gate->query_safe('SELECT pg_advisory_unlock(7)');
$gate->quit;
ok($c->until("SELECT decision FROM saga.in_doubt WHERE server = 'b'", 'commit'), 'decided, one participant is down');
ok($c->until("SELECT count(*) FROM saga.in_doubt", '1'), 'the other one has committed');
$bank{b}{node}->start;
ended_ok($id, 'completed|||', 'it is back: committed');
is(balances(), '920 1080', 'money moved');

# ---- ... or before ----

$bank{b}{node}->stop('immediate');
$id = two_phase('transfer');
ended_or_undoing($id);
$bank{b}{node}->start;
ended_ok($id, qr/^compensated\|declined\|prepare_b/, 'a participant that is down: aborted');
is(balances(), '920 1080', 'nothing moved');
# a saga waits until the circuit has closed again; a vote would not
is($c->run('transfer', input(source => 15, target => 15)), 'completed|||', 'it is back');
sub ended_or_undoing
{
    my ($saga) = @_;
    ok($c->until("SELECT direction FROM saga.instances WHERE id = '$saga'", 'undo'), 'no vote: aborted');
    return ok(until_true(sub { prepared('a') == 0 }), 'the other one is free again');
}

# ---- cancel ----

($id, $gate) = at_the_gate();
is($c->alice("SELECT saga.cancel('$id')"), 'queued', 'cancel while the decision is being made');
$gate->query_safe('SELECT pg_advisory_unlock(7)');
ended_ok($id, 'completed|||', 'comes too late');
is(balances(), '910 1090', 'money moved');
$gate->quit;

# ---- against the decision ----

($id, $gate) = at_the_gate();
my $gid = $bank{b}->sql('SELECT gid FROM pg_prepared_xacts');
$bank{b}->sql("ROLLBACK PREPARED '$gid'", 'b');
$gate->query_safe('SELECT pg_advisory_unlock(7)');
$gate->quit;
ok($c->until_state($id, 'stuck'), 'rolled back by hand, decided otherwise: stuck');
like($c->sql("SELECT reason, sqlstate, error FROM saga.stuck WHERE id = '$id'"),
    qr/^broken\|42704\|prepared transaction "\Q$gid\E" is gone, and was not committed/, 'with the reason');
$bank{b}->sql('UPDATE app.account SET balance = balance + 10 WHERE id = 2', 'b');
is($c->alice("SELECT saga.skip_step('$id', 'commit_b', reason => 'done by hand')"), 'queued', 'mended by hand');
ended_ok($id, 'completed|||', 'and skipped');
is(balances(), '900 1100', 'money moved');

# ---- orphans, and what is not ours ----

my $prefix = $c->sql(<<'SQL');
SELECT format('saga_%s_%s_', system_identifier, (SELECT oid FROM pg_database WHERE datname = 'app'))
  FROM pg_control_system()
SQL
my $done = $c->sql("SELECT id FROM saga.instances WHERE state = 'completed' AND protocol = 'two_phase' LIMIT 1");
my @foreign = ('not-ours', 'saga_1_2_01890000-0000-7000-8000-000000000000_a_0',
    $c->sql("SELECT format('saga_%s_1_', system_identifier) FROM pg_control_system()") .
      '01890000-0000-7000-8000-000000000000_a_0');
my $n = 10;
for my $name ($prefix . '01890000-0000-7000-8000-000000000000_a_0', "${prefix}${done}_a_9", @foreign)
{
    $n++;
    $bank{a}->as('svc', "BEGIN; UPDATE app.account SET balance = balance + 1 WHERE id = $n; PREPARE TRANSACTION '$name'", 'a');
}
# another role's, by whatever name
$bank{a}->sql(<<SQL, 'a');
BEGIN; UPDATE app.account SET balance = balance + 1 WHERE id = 20;
PREPARE TRANSACTION '${prefix}01890000-0000-7000-8000-000000000009_a_0'
SQL
ok(until_true(sub { prepared('a') == 4 }), 'orphans are found and ended');
is($bank{a}->sql("SELECT string_agg(balance::text, ' ' ORDER BY id) FROM app.account WHERE id IN (11, 12)", 'a'),
    '1000 1001', 'rolled back where nothing was decided, committed where it was');
ok($c->until('SELECT count(*) FROM saga.in_doubt', '0'), 'nothing is in doubt');
$c->sql('SELECT pg_reload_conf()');
is($bank{a}->sql("SELECT string_agg(gid, ' ' ORDER BY gid) FROM pg_prepared_xacts", 'a'),
    join(' ', sort @foreign, "${prefix}01890000-0000-7000-8000-000000000009_a_0"), 'foreign ones are left alone');
for my $name ($bank{a}->sql('SELECT gid FROM pg_prepared_xacts', 'a') =~ /\S+/g)
{
    $bank{a}->sql("ROLLBACK PREPARED '$name'", 'a');
}
$bank{a}->sql('UPDATE app.account SET balance = 1000 WHERE id = 12', 'a');

# ---- a terminated saga leaves nothing behind ----

($id, $gate) = at_the_gate();
is($c->alice("SELECT saga.terminate('$id', force => true)"), 'queued', 'terminated by force before the decision');
$gate->query_safe('SELECT pg_advisory_unlock(7)');
$gate->quit;
ok($c->until_state($id, 'terminated'), 'it ends');
ok(until_true(\&none_prepared), 'and what stood prepared is ended');

# ---- an old primary ends nothing ----

my $epoch = $bank{a}->sql(q(SELECT concat_ws(', ', quote_literal(coordinator), timeline, counter - 1, quote_literal(nonce))
                              FROM saga_participant.epoch), 'a');
$bank{a}->refused('svc', "SELECT saga_participant.fence($epoch, true)", 'SGB04', qr/is not the current one/,
    'an old coordinator may not end a prepared transaction', 'a');
$bank{a}->refused('svc', "SELECT saga_participant.vote($epoch, '$id', 'prepare_a', 'infinity', 'g')", 'SGB04',
    qr/is not the current one/, '... nor have one prepared', 'a');

# ---- many that wait for the same rows: those that end have connections ----

my @hot = split /\n/, $c->alice(<<'SQL');
SELECT saga.start('transfer', protocol => 'two_phase', input =>
    jsonb_build_object('source', 3, 'target', 4, 'amount', 1, 'gate', 0, 'pause', 0, 'tag', 'hot'))
  FROM generate_series(1, 60) n
SQL
$began = time;
is(scalar(grep { $c->ended($_) ne 'completed|||' } @hot), 0, 'sixty transfers between the same two accounts');
cmp_ok(time - $began, '<', 30, 'none waits for a connection that waits for a lock');

# ---- many, and everything fails ----

my $before = total();
my @ids;
for my $round (1 .. 4)
{
    push @ids, split /\n/, $c->alice(<<SQL);
SELECT saga.start('transfer', protocol => (ARRAY['saga', 'two_phase'])[1 + n % 2], input =>
    jsonb_build_object('source', 1 + n % 20, 'target', 1 + n * 7 % 20, 'amount', CASE WHEN n % 9 = 0 THEN 100000 ELSE n END,
                       'gate', 0, 'pause', 0.002 * (n % 5), 'tag', 'many'))
  FROM generate_series(1, 40) n
SQL
    if ($round == 1) { $bank{b}{node}->stop('immediate'); $bank{b}{node}->start }
    if ($round == 2) { crash_server($c->{node}) }
    if ($round == 3) { $proxy{a}->reset; crash_server($bank{a}{node}) }
    if ($round == 4) { $proxy{$_}->reset for qw(a b) }
}
ok($c->until_all_ended($soon), 'under faults of all kinds, all end within a minute');
is(total(), $before, 'no money is made or lost');
ok(none_prepared(), 'nothing stands prepared');
is($c->sql('SELECT count(*) FROM saga.in_doubt'), '0', 'nothing is in doubt');
is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'all logs fold to their rows');
cmp_ok($c->sql(q(SELECT count(*) FROM saga.instances WHERE protocol = 'two_phase' AND state = 'completed' AND input->>'tag' = 'many')),
    '>', 10, 'many have completed') or diag($c->sql(<<'SQL'));
SELECT state, cause, failed_step, sqlstate, count(*), min(error) FROM saga.instances
 WHERE protocol = 'two_phase' AND input->>'tag' = 'many' GROUP BY 1, 2, 3, 4
SQL

# the coordinator looked for orphans every second, all the time
my %ended_as_orphan = map { $_ => 1 }
  PostgreSQL::Test::Utils::slurp_file($c->{node}->logfile) =~ /orphaned prepared transaction "saga_\d+_\d+_([-0-9a-f]{36})_/g;
is(join(' ', map { $ended_as_orphan{$_} ? $_ : () } split /\n/, $c->sql(<<'SQL')), '', 'no saga of its own was taken for one');
SELECT id FROM saga.instances WHERE input->>'tag' IN ('many', 'hot')
SQL
cmp_ok(scalar(keys %ended_as_orphan), '>=', 3, 'those that were had no live saga');

# ---- the example ----

my %connstr;
for ([ office => $c->{node} ], [ north => $bank{a}{node} ], [ south => $bank{b}{node} ])
{
    my ($db, $node) = @$_;
    $node->safe_psql('postgres', "CREATE DATABASE $db");
    $connstr{$db} = $node->connstr($db) . ' user=' . (getpwuid $<)[0];
}
my @connstr = @connstr{qw(office north south)};
is(system('examples/transfer/setup', @connstr), 0, 'the transfer example is set up');
my $transfers = <<'SQL';
SELECT count(saga.start('transfer', protocol => (ARRAY['saga', 'two_phase'])[1 + n % 2], input =>
    jsonb_build_object('source', n, 'target', CASE WHEN n % 20 = 0 THEN 1000 ELSE n END, 'amount', n)))
  FROM generate_series(1, 60) n
SQL
$c->as('office', $transfers, 'office');
$bank{b}{node}->stop('immediate');
$c->as('office', $transfers, 'office');
$bank{b}{node}->start;
ok($c->until("SELECT count(*) FROM saga.instances WHERE ended_at IS NULL", '0', 'office'), 'its transfers have ended');
my $report = `examples/transfer/check @{[map { "'$_'" } @connstr]} 2>&1`;
is($?, 0, 'and the banks agree') or diag($report);

# ---- what cannot be run so ----

my $no = 'SGD01';
sub refused_definition
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($steps, $pattern, $name) = @_;
    $c->refused('alice', "SELECT saga.define('no', protocol => 'two_phase', steps => ARRAY[$steps])", $no, $pattern, $name);
    return;
}
my $one = q(saga.step('one', server => 'a', action => 'SELECT 1 AS x'));
refused_definition(qq($one, saga.step('two', server => 'b', action => 'SELECT app.act(\$\$x\$\$, (:one)::text)')),
    qr/the result of step \\"one\\" is not known/, 'a remote result is referred to by a remote step');
refused_definition(qq($one, saga.step('two', action => 'SELECT (:one)::text')),
    qr/the result of step \\"one\\" is not known/, '... by a local step');
refused_definition(q(saga.step('one', action => 'SELECT 1'), saga.step('two', server => 'a', action => 'SELECT (:one)::text')),
    qr/step \\"one\\" runs after this one/, 'a local result is referred to by a remote step');
refused_definition(qq($one, saga.step('two', server => 'b', action => 'SELECT 1', after => '{one}')),
    qr/cannot wait for step \\"one\\" of another server/, 'an order between servers');
refused_definition(q(saga.step('one', server => 'a', action => 'SELECT 1', on_failure => 'continue')),
    qr/on_failure has no other meaning/, 'a failure that is no failure');
$c->refused('alice', "SELECT saga.start('transfer', '{}', protocol => 'three_phase')", '22023', qr/invalid value for protocol/,
    'an unknown protocol');
$c->alice(q(SELECT saga.define('plain', steps => ARRAY[saga.step('one', server => 'a', action => 'SELECT 1')])));
$c->refused('alice', q(SELECT saga.start('plain', '{}', protocol => 'two_phase')), '22023', qr/cannot be run by protocol/,
    'a definition that does not allow it');
is($c->alice(q(SELECT saga.define('only', protocol => 'two_phase', steps => ARRAY[
       saga.step('one', server => 'a', action => 'SELECT app.act(''only'')'),
       saga.step('more', server => 'a', action => 'SELECT app.act(''more'')')]))), '1', 'two-phase commit by default');
is($c->run('only'), 'completed|||', 'two steps at one server');
is($bank{a}->effects('a'), 'only more', 'in their order');
$c->refused('alice', q(SELECT saga.start('only', '{}', protocol => 'saga')), '22023', qr/cannot be run by protocol/,
    'and nothing else');

# ---- a participant that does not allow it ----

$bank{a}{node}->append_conf('postgresql.conf', "max_prepared_transactions = 0\n");
$bank{a}{node}->restart;
is($c->run('only'), 'compensated|declined|prepare_a|55000', 'no prepared transactions there: declined, with the reason');
like($c->sql('SELECT error FROM saga.instances ORDER BY started_at DESC LIMIT 1'), qr/max_prepared_transactions/,
    'which says what to set');
refused_definition($one, qr/its max_prepared_transactions is 0/, 'and refused at define');
is($c->alice(q(SELECT found, ok FROM saga.check_participant('a') WHERE "check" = 'max_prepared_transactions')), '0|f',
    'and check_participant shows it');

done_testing();
