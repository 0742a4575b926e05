# What is refused, and how: each fault its own clear message, and nothing
# half-stored.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use FaultProxy;
use Test::More;

my $c = SagaTest->coordinator('coordinator');
my $p = SagaTest->participant('participant');
$p->service('a');
$c->server(a => $p);
my $definitions = $c->sql('SELECT count(*) FROM saga.definitions');

# ---- participants ----

$p->service('bare');
$c->server(bare => $p, barrier => 0);
$c->alice(q(SELECT saga.define('on_bare', steps => ARRAY[saga.step('s', server => 'bare', action => 'SELECT 1')])));
my $id = $c->start('on_bare');
ok($c->until_state($id, 'stuck'), 'a participant without the barrier: stuck');
like($c->sql("SELECT concat_ws(' ', reason, sqlstate, error, hint) FROM saga.stuck WHERE id = '$id'"),
    qr/prepare_participant/, 'and the hint says what to do');
is($c->alice(q(SELECT count(*) > 0 FROM saga.check_participant('bare') WHERE NOT ok)), 't', 'check_participant() says so too');
$c->alice(q(SELECT saga.prepare_participant('bare')));
is($c->alice(q(SELECT string_agg("check", ',') FROM saga.check_participant('bare') WHERE NOT ok)), 'fsync', 'until it is prepared');
$c->alice("SELECT saga.retry_step('$id', 's', reason => 'prepared')");
is($c->ended($id), 'completed|||', 'then the saga completes');

# by hand: the script that prepare_participant prints
$p->service('by_hand');
$c->server(by_hand => $p, barrier => 0);
my $script = $c->alice(q(SELECT saga.prepare_participant('by_hand', execute => false)));
like($script, qr/CREATE SCHEMA/, 'the script for the administrator');
unlike($script, qr/\Q$password\E/, 'holds no password');
$p->sql($script, 'by_hand');
$p->sql($script, 'by_hand');
is($c->alice(q(SELECT string_agg("check", ',') FROM saga.check_participant('by_hand') WHERE NOT ok)), 'fsync', 'run twice by a superuser, it serves');
$c->alice(q(SELECT saga.define('on_hand', steps => ARRAY[saga.step('s', server => 'by_hand', action => 'SELECT app.act(''x'')')])));
is($c->run('on_hand'), 'completed|||', 'and a saga runs there');

# nobody there, nothing there: check_participant is never an error
$c->sql(<<SQL);
CREATE SERVER nobody FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '1', dbname 'x');
CREATE SERVER no_db FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '@{[$p->{node}->port]}', dbname 'no_such');
CREATE SERVER no_name FOREIGN DATA WRAPPER saga_postgres OPTIONS (host 'no-such-host.invalid', dbname 'x');
CREATE SERVER no_mapping FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', dbname 'x');
CREATE SERVER wrong FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '@{[$p->{node}->port]}', dbname 'a');
CREATE SERVER no_password FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '@{[$p->{node}->port]}', dbname 'a');
GRANT USAGE ON FOREIGN SERVER nobody, no_db, no_name, no_mapping, wrong, no_password TO alice;
CREATE USER MAPPING FOR alice SERVER nobody OPTIONS (user 'svc', password '$password');
CREATE USER MAPPING FOR alice SERVER no_db OPTIONS (user 'svc', password '$password');
CREATE USER MAPPING FOR alice SERVER no_name OPTIONS (user 'svc', password '$password');
CREATE USER MAPPING FOR alice SERVER wrong OPTIONS (user 'svc', password 'canary-wrong');
CREATE USER MAPPING FOR alice SERVER no_password OPTIONS (user 'svc');
SQL
for my $server (qw(nobody no_db no_name no_mapping wrong no_password))
{
    my ($code, $err, $out) = $c->try('alice', "SELECT bool_and(ok), bool_or(NOT ok AND hint IS NOT NULL) FROM saga.check_participant('$server')");
    is("$code $out", ' f|t', "check_participant('$server') tells, with a hint") or diag($err);
    ($code, $err) = $c->try('alice', "SELECT saga.prepare_participant('$server')");
    like($code, qr/^(?:08|28|3D|42|2F|HV|55)/, "prepare_participant('$server') fails with $code");
    unlike($err, qr/canary|\Q$password\E/, 'and shows no password');
}
my ($code, $err) = $c->try('alice', q(SELECT saga.prepare_participant('no_password')));
like($err, qr/password/i, 'a missing password is named');
$c->refused('alice', q(SELECT saga.prepare_participant('no_such')), '42704', qr/no_such/, 'no such server');

# a server that does not ask for the password of an ordinary user
$p->{node}->append_conf('pg_hba.conf', '');
{
    my $hba = $p->{node}->data_dir . '/pg_hba.conf';
    open my $fh, '>', $hba or die $!;
    print $fh "local all all trust\nhost a all 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    close $fh;
    $p->{node}->reload;
    $c->sql(qq(CREATE SERVER trusting FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '@{[$p->{node}->port]}', dbname 'a');
        GRANT USAGE ON FOREIGN SERVER trusting TO alice;
        CREATE USER MAPPING FOR alice SERVER trusting OPTIONS (user 'svc', password '$password')));
    ($code, $err) = $c->try('alice', q(SELECT saga.prepare_participant('trusting')));
    is($code, '2F003', 'a password that is not asked for is refused, as postgres_fdw does');
    like($err, qr/password/i, 'and says so');
    open $fh, '>', $hba or die $!;
    print $fh "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    close $fh;
    $p->{node}->reload;
}

# options
for my $bad (
    [ "host 'x', passfile '/etc/passwd'" => 'passfile' ], [ "host 'x', sslkey '/etc/x'" => 'sslkey' ],
    [ "host 'x', service 'y'" => 'service' ], [ "nonsense 'x'" => 'nonsense' ],
    [ "host 'x', pool_size '0'" => 'pool_size' ], [ "host 'x', pool_size 'many'" => 'pool_size' ],
    [ "host 'x', statement_timeout 'soon'" => 'statement_timeout' ],
    [ "host 'x', password 'p'" => 'password' ], [ "host 'x', application_name 'y', options '-c x'" => '' ])
{
    $c->sql('GRANT USAGE ON FOREIGN DATA WRAPPER saga_postgres TO alice');
    ($code, $err) = $c->try('alice', "CREATE SERVER bad FOREIGN DATA WRAPPER saga_postgres OPTIONS ($bad->[0])");
    like($code, qr/^(?:HV00D|HV024|42501)$/, "OPTIONS ($bad->[0]): $code");
    like($err, qr/$bad->[1]/, 'names the option');
    $c->try(undef, 'DROP SERVER IF EXISTS bad');
}
$c->sql('REVOKE USAGE ON FOREIGN DATA WRAPPER saga_postgres FROM alice');

# ---- definitions that are too large ----

my $stored = $c->sql('SELECT count(*) FROM saga.definitions');
my $many = join ', ', map { "saga.step('s$_', action => 'SELECT 1')" } 1 .. 200;
is($c->alice("SELECT saga.define('two_hundred', steps => ARRAY[$many])"), 1, '200 steps');
is($c->run('two_hundred'), 'completed|||', 'run');
($code, $err) = $c->try('alice', q(SELECT saga.define('many',
    steps => (SELECT array_agg(saga.step('s' || n, action => 'SELECT 1')) FROM generate_series(1, 10000) n))));
ok($code eq '' || $code eq 'SGL01' || $code eq 'SGD01', "10,000 steps: defined or refused ($code)") or diag($err);
if ($code eq '')
{
    is($c->run('many'), 'completed|||', '10,000 steps run');
}
else
{
    like($err, qr/\d/, 'with the limit named');
}
$c->refused('alice', q(SELECT saga.define('long', steps => ARRAY[saga.step(repeat('x', 500), action => 'SELECT 1')])),
    'SGD01', qr/xxx/, 'a long name');
$c->refused('alice', q(SELECT saga.define('none', steps => '{}')), 'SGD01', qr/./, 'no steps');
for my $null (q(saga.define('null', steps => NULL)),
    q(saga.define(NULL, steps => ARRAY[saga.step('s', action => 'SELECT 1')])),
    q(saga.define('null', steps => ARRAY[NULL::saga.node])),
    q(saga.define('null', steps => ARRAY[saga.step(NULL, action => 'SELECT 1')])),
    q(saga.define('null', steps => ARRAY[saga.step('s', action => NULL)])))
{
    ($code, $err) = $c->try('alice', "SELECT $null");
    like($code, qr/^(?:22004|22023|SGD01)$/, "NULL: $null");
}

# several faults, one error
$err = $c->refused('alice', <<'SQL', 'SGD01', qr/./, 'several faults in one error');
SELECT saga.define('faulty', input => 'n integer', steps => ARRAY[
    saga.step('a', action => 'SELECT :unknown'),
    saga.step('a', action => 'SELECT 1'),
    saga.step('c', server => 'no_such_server', action => 'SELECT 1'),
    saga.step('d', after => '{nowhere}', action => 'SELECT 1'),
    saga.step('e', action => 'SELECT 1; SELECT 2')])
SQL
like($err, qr/$_/, "names $_") for qw(unknown no_such_server nowhere "e" hint);
$c->refused('alice', <<'SQL', 'SGD01', qr/p|q/, 'a cycle');
SELECT saga.define('cycle', steps => ARRAY[
    saga.step('p', after => '{q}', action => 'SELECT 1'),
    saga.step('q', after => '{p}', action => 'SELECT 1')])
SQL
$c->refused('alice', <<'SQL', 'SGD01', qr/app\.no_function/, 'what does not parse at the participant');
SELECT saga.define('unparsed', steps => ARRAY[saga.step('s', server => 'a', action => 'SELECT app.no_function()')])
SQL
$p->{node}->stop;
($code, $err) = $c->try('alice', q(SELECT saga.define('unreachable', steps => ARRAY[saga.step('s', server => 'a', action => 'SELECT 1')])));
is($code, '', 'a participant that cannot be reached is no error') or diag($err);
like($err, qr/WARNING/, 'but a warning');
$p->{node}->start;
is($c->sql('SELECT count(*) FROM saga.definitions') - $stored, $c->sql(q(SELECT count(*) FROM saga.definitions WHERE name IN ('two_hundred', 'many', 'unreachable'))),
    'nothing of what was refused is stored');

# ---- input and results ----

$c->alice(<<'SQL');
SELECT saga.define('echo', input => 't text', steps => ARRAY[
    saga.step('e', server => 'a', action => 'SELECT :t')]);
SELECT saga.define('large', input => 'n integer', steps => ARRAY[
    saga.step('l', server => 'a', action => 'SELECT repeat(''x'', :n)')]);
SELECT saga.define('untyped', steps => ARRAY[saga.step('s', action => 'SELECT 1')])
SQL
$c->refused('alice', q(SELECT saga.start('echo', input => jsonb_build_object('t', repeat('x', 2000000)))), 'SGL01', qr/max_payload/,
    'an input that is too large');
$c->refused('alice', q(SELECT saga.start('untyped', input => 'null')), '22023', qr/./, 'a null input');
($code, $err) = $c->try('alice', q(SELECT saga.start('untyped', input => NULL)));
like($code, qr/^(?:|22004|22023)$/, 'a NULL input');
for my $text (q(it's), q(\\), q($1), q('; DROP TABLE app.effect; --), "\xe2\x98\x83", q(:t), q(%s), '')
{
    my $quoted = $text =~ s/'/''/gr;
    $id = $c->alice("SELECT saga.start('echo', input => jsonb_build_object('t', '$quoted'))");
    is($c->ended($id), 'completed|||', 'an odd text is bound, not pasted');
    is($c->sql("SELECT result = to_jsonb('$quoted'::text) FROM saga.steps WHERE saga_id = '$id'"), 't', 'and comes back');
}
$id = $c->start('large', '{"n": 500000}');
is($c->ended($id), 'completed|||', 'a result of half a megabyte');
$id = $c->start('large', '{"n": 2000000}');
ok($c->until_state($id, 'stuck'), 'a result that is too large: stuck');
is($c->sql("SELECT sqlstate FROM saga.stuck WHERE id = '$id'"), 'SGL01', 'with SGL01');
$c->alice("SELECT saga.terminate('$id', reason => 'test')");
$c->ended($id);

# a database whose encoding has what ours has not, and the other way round
$p->sql(q(CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C' OWNER svc), 'postgres');
$p->sql('CREATE SCHEMA app AUTHORIZATION svc', 'latin');
$c->server(latin => $p);
$c->alice(q(SELECT saga.define('latin', input => 't text', steps => ARRAY[saga.step('l', server => 'latin', action => 'SELECT upper(:t)')])));
$id = $c->alice("SELECT saga.start('latin', input => jsonb_build_object('t', U&'\\00e9'))");
is($c->ended($id), 'completed|||', 'a participant with another encoding');
$id = $c->alice("SELECT saga.start('latin', input => jsonb_build_object('t', U&'\\2603'))");
like($c->ended($id), qr/^compensated\|declined\|l\|22P05/, 'and a text that it cannot hold is declined');

# names that need quoting
$c->alice(<<'SQL');
SELECT saga.define('a"b''; DROP', steps => ARRAY[saga.step('odd', server => 'a', action => 'SELECT app.act(''odd'')')]);
SELECT saga.define('ünïcödé', steps => ARRAY[saga.step('s', action => 'SELECT 1')])
SQL
$c->refused('alice', q(SELECT saga.define('odd_step', steps => ARRAY[saga.step('s "x"''; --', action => 'SELECT 1')])),
    'SGD01', qr/letters/, 'a name of a step that no parameter could have');
$id = $c->alice(q(SELECT saga.start('a"b''; DROP')));
is($c->ended($id), 'completed|||', 'names that need quoting');
is($c->run('ünïcödé'), 'completed|||', 'names beyond ASCII');

# a session that set everything in an odd way
$c->sql(<<'SQL');
ALTER DATABASE app SET default_transaction_read_only = on;
ALTER DATABASE app SET statement_timeout = '1ms';
ALTER DATABASE app SET lock_timeout = '1ms';
ALTER DATABASE app SET DateStyle = 'SQL, DMY';
ALTER DATABASE app SET standard_conforming_strings = off;
ALTER DATABASE app SET default_transaction_isolation = 'serializable';
ALTER DATABASE app SET search_path = 'nowhere';
ALTER DATABASE app SET client_encoding = 'LATIN1';
ALTER DATABASE app SET session_replication_role = 'replica';
SQL
$c->{node}->restart;
$id = $c->sql(q(
SET statement_timeout = 0; SET lock_timeout = 0; SET default_transaction_read_only = off; SET default_transaction_isolation = 'read committed';
SET SESSION AUTHORIZATION alice; SELECT saga.start('echo', input => '{"t": "odd"}')));
is($c->sql(qq(SET statement_timeout = 0; SET lock_timeout = 0; SET default_transaction_isolation = 'read committed';
    SELECT state FROM saga.wait('$id', timeout => '60 s'))), 'completed', "the database's settings do not reach the workers");

is($c->sql(q(SET statement_timeout = 0; SET lock_timeout = 0; SELECT count(*) FROM saga.check_log())), '0', 'every log folds to its state');
$c->{node}->stop;
unlike(PostgreSQL::Test::Utils::slurp_file($c->{node}->logfile), qr/PANIC|TRAP|terminated by signal/, 'no crash');
done_testing();
