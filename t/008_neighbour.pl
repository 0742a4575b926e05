# A good neighbour: what sagas leave alone in the server, and what others in it
# cannot do to them.
use strict;
use warnings;
use lib 't/lib';
use SagaTest;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

# Sessions of this test that look on are not to be bent by what is set below.
my $sane = join ' ', map { "-c $_" } qw(statement_timeout=0 lock_timeout=0 default_transaction_read_only=off
  search_path=pg_catalog DateStyle=ISO TimeZone=UTC IntervalStyle=postgres
  standard_conforming_strings=on idle_in_transaction_session_timeout=0
  extra_float_digits=1 bytea_output=hex), 'default_transaction_isolation=read\ committed';

my $c = SagaTest->coordinator('coordinator', conf => <<'CONF');
saga.executors = 1
saga.safety_poll_interval = '200ms'
autovacuum = off
checkpoint_timeout = '1h'
max_wal_size = '4GB'
CONF
my $node = $c->{node};

sub set
{
    my ($who, $name, $value) = @_;
    $who->sql(defined $value ? "ALTER SYSTEM SET $name = '$value'" : "ALTER SYSTEM RESET $name", 'postgres');
    $who->{node}->reload;
    $who->until("SELECT current_setting('$name') = '$value'", 't', 'postgres') if defined $value;
    return;
}

# Other workers than these, and ready.
sub new_workers
{
    my (@old) = @_;
    my $old = join ',', @old, 0;
    return $c->until(<<SQL);
SELECT count(*) FILTER (WHERE kind = 'coordinator' AND activity = 'running') = current_setting('saga.coordinators')::int
   AND count(*) FILTER (WHERE kind = 'executor' AND pid IS NOT NULL)
       = current_setting('saga.coordinators')::int * current_setting('saga.executors')::int
   AND count(*) FILTER (WHERE pid IN ($old)) = 0
  FROM saga.stat_workers
SQL
}

sub restart_workers
{
    my @old = split /\n/, $c->sql('SELECT pid FROM saga.stat_workers');
    $c->sql("SELECT pg_terminate_backend(pid) FROM saga.stat_workers");
    return new_workers(@old);
}

# ---- idle ----

{
    my $look = <<'SQL';
SELECT pg_current_wal_insert_lsn(), pg_snapshot_xmax(pg_current_snapshot()), seq_scan + coalesce(idx_scan, 0)
  FROM pg_stat_all_tables WHERE relid = 'saga.instance'::regclass
SQL
    my @seen;
    my $quiet = until_true(sub {
        my ($lsn, $xmax, $scans) = split /\|/, $c->sql($look);
        @seen = ($lsn, $xmax, $scans) if !@seen || $seen[0] ne $lsn || $seen[1] ne $xmax;
        return $scans >= $seen[2] + 15;
    }, 40);
    ok($quiet, 'idle: fifteen safety polls write no WAL and take no transaction id') or diag("@seen");
}

my $p = SagaTest->participant('participant');
for my $db (qw(a b))
{
    $p->service($db);
    $c->server($db => $p);
}
$c->alice(<<'SQL');
SELECT saga.define('four', input => 'tag text', steps => ARRAY[
    saga.step('one', action => 'SELECT act(''one'', :tag)'),
    saga.step('two', server => 'a', action => 'SELECT app.act(''two'', :tag)'),
    saga.step('three', server => 'b', action => 'SELECT app.act(''three'', :tag)'),
    saga.step('four', action => 'SELECT act(''four'', :tag)')]);
SELECT saga.define('pair', input => 'tag text', steps => ARRAY[
    saga.step('one', action => 'SELECT act(''one'', :tag)'),
    saga.step('two', server => 'a', action => 'SELECT app.act(''two'', :tag)')])
SQL

sub start_many
{
    my ($definition, $prefix, $n, $transactions) = @_;
    return split /\n/, $c->alice(join '', map { <<SQL } 1 .. $transactions // 1);
SELECT id FROM saga.start_many('$definition',
  (SELECT jsonb_agg(jsonb_build_object('tag', '$prefix-$_-' || n)) FROM generate_series(1, $n) n));
SQL
}

sub once
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($prefix, $n, $name) = @_;
    my $count = "SELECT count(*) || '/' || count(DISTINCT (what, arg)) FROM app.effect WHERE arg LIKE '$prefix-%'";
    is(join(' ', $c->sql($count), map { $p->sql($count, $_) } qw(a b)), $n, $name);
    return;
}

# ---- updates of the instance stay in their page ----

# 500 sagas, so many in a transaction
for my $case ([ one_by_one => 10 ], [ at_once => 250 ])
{
    my ($prefix, $size) = @$case;
    $c->sql(q(SELECT pg_stat_reset_single_table_counters('saga.instance'::regclass)));
    start_many('four', $prefix, $size, 500 / $size);
    ok($c->until_all_ended, "500 sagas of four steps, $size in a transaction");
    $c->until("SELECT pg_stat_get_tuples_updated('saga.instance'::regclass) >= 1000");
    my ($updated, $hot) = split /\|/,
      $c->sql(q(SELECT pg_stat_get_tuples_updated(i), pg_stat_get_tuples_hot_updated(i) FROM (VALUES ('saga.instance'::regclass)) v (i)));
    cmp_ok($updated - 500, '>=', 500, 'each has an update that is not its last');
    cmp_ok($hot, '>=', 0.9 * ($updated - 500), "at least 90 % of those are HOT ($hot of " . ($updated - 500) . ')');
}

# ---- an old snapshot ----

my $old = $c->session;
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM saga.instance');
start_many('four', 'snap', 500);
ok($c->until_all_ended, '500 sagas beside a session with an old snapshot');
is($old->query_safe(q(SELECT count(*) FROM saga.instance WHERE input->>'tag' LIKE 'snap-%')), '0', 'which still is that old');
$old->query_safe('COMMIT');
$old->quit;
once('snap', '1000/1000 500/500 500/500', 'each effect once');

# ---- the passwords of user mappings ----

{
    my %canary = map { $_ => "canary-$_-" . $password } qw(wrong gone);
    for my $who ($c, $p)
    {
        set($who, 'log_statement', 'none');
        set($who, 'log_min_messages', 'debug1');
    }
    my @logs = ([ $node->logfile, -s $node->logfile ], [ $p->{node}->logfile, -s $p->{node}->logfile ]);
    $c->sql(<<SQL);
CREATE SERVER wrong FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '@{[ $p->{node}->port ]}', dbname 'a');
CREATE SERVER gone FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '1', dbname 'a');
GRANT USAGE ON FOREIGN SERVER wrong, gone TO alice;
CREATE USER MAPPING FOR alice SERVER wrong OPTIONS (user 'svc', password '$canary{wrong}');
CREATE USER MAPPING FOR alice SERVER gone OPTIONS (user 'svc', password '$canary{gone}');
SQL
    restart_workers();
    my $shown = '';
    my @ids;
    for my $server (qw(a wrong gone))
    {
        my (undef, $err, $out) = $c->try('alice', <<SQL);
SELECT * FROM saga.check_participant('$server');
SELECT saga.define('canary_$server', steps => ARRAY[saga.step('s', server => '$server', action => 'SELECT 1',
  retry => saga.retry_policy(max_attempts => 2, initial_interval => '10 ms'))]);
SELECT saga.render('canary_$server', 's');
SQL
        $shown .= "$err\n$out\n";
        push @ids, $c->start("canary_$server");
        (undef, $err, $out) = $c->try('alice', "SELECT saga.prepare_participant('$server')");
        $shown .= "$err\n$out\n";
    }
    is($c->ended($ids[0]), 'completed|||', 'a saga with the right password');
    ok($c->until_state($ids[1], 'stuck'), 'one with a wrong password gets stuck');
    is($c->ended($ids[2]), 'compensated|declined|s|08001', 'one whose participant is not there ends')
      or diag($c->sql("SELECT * FROM saga.log WHERE saga_id = '$ids[2]'"));
    my @relations = split /\n/, $c->sql(q(SELECT oid::regclass FROM pg_class
        WHERE relnamespace = 'saga'::regnamespace AND relkind IN ('r', 'v')));
    cmp_ok(scalar @relations, '>', 15, 'tables and views of saga');
    $shown .= $c->sql("SELECT r::text FROM $_ r") for @relations;
    like($shown, qr/28P01/, 'what is shown tells of the wrong password');
    $shown .= $_->sql('SELECT string_agg(a::text, chr(10)) FROM pg_stat_activity a', 'postgres') for $c, $p;
    my $dump = $node->basedir . '/canary.sql';
    $node->command_ok([ 'pg_dump', '-f', $dump, 'app' ], 'pg_dump');
    my $dumped = slurp_file($dump);
    is($dumped =~ s/^CREATE USER MAPPING .*?;$//gms, 4, 'it has the mappings, as always');
    $shown .= $dumped;
    my $logged = join '', map { slurp_file(@$_) } @logs;
    like($logged, qr/DEBUG:/, 'the logs are at debug1');
    like($logged, qr/password authentication failed for user "svc"/, 'and tell of the wrong password');
    $shown .= $logged;
    is(scalar(grep { index($shown, $_) >= 0 } $password, values %canary), 0,
        'no password is in views, tables, errors, activities, logs, the rest of the dump');
    $c->alice("SELECT saga.terminate('$ids[1]', reason => 'test')");
    for my $who ($c, $p)
    {
        set($who, $_, undef) for qw(log_statement log_min_messages);
    }
}

# ---- settings of databases and roles ----

$c->alice(<<'SQL');
CREATE TABLE app.typed (t timestamptz, d date, i interval, f float8, b bytea, n numeric);
CREATE FUNCTION app.where_am_i() RETURNS text LANGUAGE sql AS $$ SELECT current_setting('search_path') $$;
SELECT saga.define('typed', input => 't timestamptz, d date, i interval, f float8, b bytea, s text', steps => ARRAY[
    saga.step('local', action => 'INSERT INTO typed (t, d, i, f, b) VALUES (:t, :d, :i, :f, :b)
                                  RETURNING t, d, i, f, b, where_am_i() AS path, :s || ''\x'' AS s'),
    saga.step('remote', server => 'a',
              action => 'SELECT (:t)::timestamptz AS t, (:d)::date AS d, (:i)::interval AS i, (:f)::float8 AS f,
                                (:b)::bytea AS b, extract(epoch FROM (:t)::timestamptz) AS e, (:s)::text || ''\x'' AS s'),
    saga.step('slow', action => 'SELECT pg_sleep(0.03)'),
    saga.step('slow_there', server => 'a', action => 'SELECT pg_sleep(0.03)'),
    saga.step('parts', action => 'SELECT extract(epoch FROM (:remote.t)::timestamptz)')])
SQL
my $typed = '{"t": "2026-03-04T05:06:07.891+02:00", "d": "2026-03-04", "i": "1 mon 2 days 03:04:05.6",'
  . ' "f": 0.1234567890123456789, "b": "\\\\xdeadbeef", "s": "it is \\\\n"}';

sub typed
{
    my $id = $c->start('typed', $typed);
    $c->ended($id);
    return $c->sql(<<SQL);
SELECT (SELECT state FROM saga.status('$id')), string_agg(step || '=' || result::text, ' ' ORDER BY step)
  FROM saga.steps WHERE saga_id = '$id' AND step IN ('local', 'remote', 'parts')
SQL
}
my $before = typed();
like($before, qr/^completed\|.*"path": "app, pg_temp"/, 'local actions see the search_path of define');

my %odd = (
    statement_timeout => '1ms', lock_timeout => '1ms', idle_in_transaction_session_timeout => '1ms',
    default_transaction_read_only => 'on', default_transaction_isolation => 'serializable',
    default_transaction_deferrable => 'on', search_path => 'evil', DateStyle => 'German',
    IntervalStyle => 'sql_standard', TimeZone => 'Asia/Kathmandu', standard_conforming_strings => 'off',
    session_replication_role => 'replica', extra_float_digits => '-15', bytea_output => 'escape',
    transform_null_equals => 'on', synchronous_commit => 'off', row_security => 'off', array_nulls => 'off',
    check_function_bodies => 'off', quote_all_identifiers => 'on', xmlbinary => 'hex');
{
    local $ENV{PGOPTIONS} = $sane;
    my ($superuser) = $c->sql('SELECT current_user');
    my @there = ('DATABASE a', 'ROLE svc');
    my @here = ('DATABASE app', "ROLE $superuser", 'ROLE alice');
    my $change = sub {
        my ($how, @of) = @_;
        return join '', map { my $name = $_; map { "ALTER $_ " . $how->($name) . ";\n" } @of } sort keys %odd;
    };
    my $bend = sub { return "SET $_[0] = '$odd{$_[0]}'" };
    $c->sql($change->($bend, @here));
    $p->sql($change->($bend, @there));
    $p->sql(q(SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'svc'));
    ok(restart_workers(), 'workers start with odd settings of database and role');
    is(typed(), $before, 'with odd settings here and there, results are the same');
    {
        # a session that has most of them
        local $ENV{PGOPTIONS} = '-c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off'
          . ' -c idle_in_transaction_session_timeout=0';
        my $id = $c->alice("SELECT saga.start('pair', input => '{\"tag\": \"odd-1\"}', key => 'odd', labels => '{\"a\": 1}', deadline => '1 hour')");
        is($c->sql("SET default_transaction_isolation = 'read committed'; SELECT state FROM saga.wait('$id', timeout => '30 s')"), 'completed',
            'a session with them starts a saga');
        is($c->alice("SELECT saga.start('pair', input => '{\"tag\": \"odd-1\"}', key => 'odd')"), $id, 'and finds it by its key');
        is($c->sql("SELECT deadline - started_at BETWEEN '59 min' AND '61 min' FROM saga.instances WHERE id = '$id'"), 't',
            'with its deadline');
        is($c->alice("SELECT count(*) FROM saga.steps WHERE saga_id = '$id' AND state = 'done'"), '2', 'the views show it');
        is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
        is($c->sql('SELECT sagas_removed FROM saga.upkeep()'), '0', 'upkeep works');
    }
    $c->refused('alice', q(SET default_transaction_read_only = on; SELECT saga.start('pair', input => '{"tag": "odd-2"}')),
        '25006', qr/saga\.start/, 'start() in a read-only transaction: 25006');
    my $unbend = sub { return "RESET $_[0]" };
    $c->sql($change->($unbend, @here));
    $p->sql($change->($unbend, @there));
    $c->sql('ALTER ROLE alice SET search_path = app');
    once('odd', '1/1 1/1 0/0', 'each effect once');
}

# ---- functions and operators planted where they are found first ----

my $plant = <<'SQL';
CREATE FUNCTION public.caught() RETURNS void LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'PLANTED' USING ERRCODE = 'XX999'; END $$;
CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); END $$;
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); END $$;
CREATE FUNCTION public.format(text, VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_format';
CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.caught(); END $$;
DO $do$
DECLARE
    op record;
BEGIN
    FOR op IN
        SELECT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, o.oprresult::regtype AS res,
               row_number() OVER () AS n
          FROM pg_catalog.pg_operator o
         WHERE o.oprname IN ('=', '<>', '<', '>', '<=', '>=', '||', '->', '->>', '+', '-', '~')
           AND o.oprleft <> 0
           AND o.oprleft::regtype::text = ANY ('{text,uuid,bigint,integer,smallint,oid,boolean,name,"\"char\"",timestamp with time zone,jsonb,interval,date}')
           AND o.oprright::regtype::text = ANY ('{text,uuid,bigint,integer,smallint,oid,boolean,name,"\"char\"",timestamp with time zone,jsonb,interval,date}')
    LOOP
        EXECUTE pg_catalog.format('CREATE FUNCTION public.planted_%s(%s, %s) RETURNS %s LANGUAGE plpgsql'
                                  ' AS ''BEGIN PERFORM public.caught(); END''', op.n, op.l, op.r, op.res);
        EXECUTE pg_catalog.format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.planted_%s)',
                                  op.oprname, op.l, op.r, op.n);
    END LOOP;
END
$do$;
SQL
{
    local $ENV{PGOPTIONS} = $sane;
    my $hostile = '-c search_path=public,pg_catalog';
    $c->sql('CREATE DATABASE planted', 'postgres');
    my $b = bless { node => $node, db => 'planted' }, 'SagaTest';
    for ([ $b, 'planted' ], [ $p, 'b' ])
    {
        my ($who, $db) = @$_;
        $who->sql($plant, $db);
        $who->sql("ALTER DATABASE $db SET search_path = public, pg_catalog", $db);
        cmp_ok($who->sql(q(SELECT count(*) FROM pg_operator WHERE oprnamespace = 'public'::regnamespace), $db), '>', 50,
            "operators are planted in $db");
    }
    $p->sql('ALTER ROLE svc SET search_path = public, pg_catalog');
    $p->sql(q(SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'svc'));
    my $used = sub { my ($code, $err) = $b->try(@_); return $code eq '' ? '' : "$code $err" };
    {
        local $ENV{PGOPTIONS} = $hostile;
        my ($code) = $b->try(undef, "SELECT 'a'::text = 'b'::text");
        is($code, 'XX999', 'and found first');
        is($used->(undef, 'CREATE EXTENSION saga'), '', 'CREATE EXTENSION uses none');
        is($used->(undef, <<SQL), '', 'nor does what an administrator does');
CREATE SCHEMA app AUTHORIZATION alice;
CREATE TABLE app.effect (id bigint GENERATED ALWAYS AS IDENTITY, what text, arg text);
ALTER TABLE app.effect OWNER TO alice;
CREATE SERVER b FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '@{[ $p->{node}->port ]}', dbname 'b');
GRANT USAGE ON FOREIGN SERVER b TO alice;
CREATE USER MAPPING FOR alice SERVER b OPTIONS (user 'svc', password '$password');
SELECT * FROM saga.upkeep();
SELECT * FROM saga.check_log();
SELECT saga.take_over('test');
SQL
        is($used->('alice', <<'SQL'), '', 'nor do the functions of a user');
SET search_path = public, pg_catalog;
SELECT saga.prepare_participant('b');
SELECT * FROM saga.check_participant('b');
SELECT saga.define('s', input => 'tag text, n bigint, at timestamptz', deadline => '1 hour', steps => ARRAY[
    saga.step('local', action => 'INSERT INTO app.effect (what, arg) VALUES (''local'', :tag) RETURNING id, arg'),
    saga.step('remote', server => 'b', action => 'INSERT INTO app.effect (what, arg) VALUES (''remote'', :tag) RETURNING id',
              compensation => 'INSERT INTO app.effect (what, arg) VALUES (''undo'', :tag)')],
  on_completed => 'INSERT INTO app.effect (what, arg) VALUES (''end'', :tag)');
SELECT saga.define('declined', steps => ARRAY[
    saga.step('remote', server => 'b', action => 'INSERT INTO app.effect (what) VALUES (''done'')',
              compensation => 'INSERT INTO app.effect (what) VALUES (''undone'')'),
    saga.step('no', server => 'b', action => 'SELECT saga_participant.decline(''no'', ''{"a": 1}'')')]);
SQL
    }
    my $id;
    {
        local $ENV{PGOPTIONS} = $hostile;
        my $input = q('{"tag": "p", "n": 7, "at": "2026-01-01T00:00:00Z"}');
        (undef, undef, $id) = $b->try('alice', "SET search_path = public, pg_catalog; SELECT saga.start('s', input => $input, key => 'k')");
        is($used->('alice', <<SQL), '', 'nor starting and looking');
SET search_path = public, pg_catalog;
SELECT saga.wait('$id', timeout => '30 s');
SELECT saga.status('$id');
SELECT saga.start('s', input => $input, key => 'k');
SELECT * FROM saga.start_many('s', '[{"tag": "q", "n": 1, "at": "2026-01-01T00:00:00Z"}, {"tag": "r", "n": 2, "at": "2026-01-01T00:00:00Z"}]', key_field => 'tag');
SELECT saga.start('declined');
SELECT saga.cancel('$id');
SELECT saga.terminate('$id', reason => 'x');
SELECT saga.pause('$id');
SELECT saga.skip_step('$id', 'local', result => '1');
SELECT saga.render('s', 'local', input => $input);
SELECT saga.grant('s', 'saga_operator', '{see}');
SELECT saga.revoke('s', 'saga_operator', '{see}');
SELECT saga.pause_definition('s');
SELECT saga.resume_definition('s');
SELECT saga.may('s', 'see');
TABLE saga.instances; TABLE saga.log; TABLE saga.steps; TABLE saga.stuck; TABLE saga.definitions; TABLE saga.participants;
TABLE saga.stat_sagas; TABLE saga.stat_participants; TABLE saga.stat_workers;
SQL
    }
    my $ends = sub { return $b->sql(q(SELECT count(*) FILTER (WHERE ended_at IS NULL), string_agg(DISTINCT state, ',' ORDER BY state) FROM saga.instance)) };
    ok(until_true(sub { $ends->() =~ /^0\|/ }, 30), 'the sagas end') or diag($b->sql('SELECT * FROM saga.log_record ORDER BY saga_id, seq'));
    is($ends->(), '0|compensated,completed', 'as they should');
    is($b->sql(q(SELECT string_agg(what || '/' || arg, ' ' ORDER BY what, arg) FROM app.effect)),
        'end/p end/q end/r local/p local/q local/r', 'with their effects here');
    is($p->sql(q(SELECT string_agg(what, ' ' ORDER BY what) FROM app.effect WHERE what IN ('remote', 'done', 'undone')), 'b'),
        'done remote remote remote undone', 'and there');
    $b->sql('DROP OWNED BY alice CASCADE');
    $c->sql('DROP DATABASE planted WITH (FORCE)', 'postgres');
    $p->sql('ALTER ROLE svc RESET search_path; ALTER DATABASE b RESET search_path');
    $p->sql(<<'SQL', 'b');
SET client_min_messages = warning;
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace LOOP
        EXECUTE 'DROP FUNCTION ' || f || ' CASCADE';
    END LOOP;
END
$$
SQL
    $p->sql(q(SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'svc'));
}
ok(restart_workers(), 'workers with plain settings again');

# ---- prepared transactions ----

$c->alice(<<'SQL');
BEGIN; SELECT saga.start('pair', input => '{"tag": "prep-1"}', key => 'prepared'); PREPARE TRANSACTION 'one';
BEGIN; SELECT saga.start('pair', input => '{"tag": "prep-2"}', key => 'never'); PREPARE TRANSACTION 'two';
SQL
is($c->run('pair', '{"tag": "prep-3"}'), 'completed|||', 'a saga beside prepared ones');
is($c->sql(q(SELECT count(*) FROM saga.instances WHERE input->>'tag' IN ('prep-1', 'prep-2'))), '0', 'which are not there yet');
$c->alice("COMMIT PREPARED 'one'");
$c->alice("ROLLBACK PREPARED 'two'");
ok($c->until(q(SELECT state = 'completed' FROM saga.instances WHERE input->>'tag' = 'prep-1')), 'COMMIT PREPARED elsewhere: it runs');
is($c->sql(q(SELECT (SELECT count(*) FROM saga.instance WHERE input->>'tag' = 'prep-2'), (SELECT count(*) FROM saga.instance_key WHERE key = 'never'))),
    '0|0', 'ROLLBACK PREPARED: nothing');
once('prep', '2/2 2/2 0/0', 'each effect once');

# ---- savepoints, and many in one transaction ----

$c->alice(<<'SQL');
BEGIN;
SAVEPOINT a;
SELECT saga.start('pair', input => '{"tag": "sub-gone"}', key => 'sub-gone');
ROLLBACK TO a;
SAVEPOINT b;
SELECT saga.start('pair', input => '{"tag": "sub-released"}');
SAVEPOINT c;
SELECT saga.start('pair', input => '{"tag": "sub-inner"}');
RELEASE b;
SAVEPOINT d;
SAVEPOINT e;
SELECT saga.start('pair', input => '{"tag": "sub-gone too"}');
RELEASE e;
ROLLBACK TO d;
SELECT saga.start('pair', input => '{"tag": "sub-top"}');
COMMIT;
SELECT saga.start('pair', input => jsonb_build_object('tag', 'thousand-' || n)) FROM generate_series(1, 1000) n;
SQL
ok($c->until_all_ended, 'savepoints, and 1000 start() in one transaction');
is($c->sql(q(SELECT string_agg(input->>'tag', ' ' ORDER BY input->>'tag') FROM saga.instance WHERE input->>'tag' LIKE 'sub-%')),
    'sub-inner sub-released sub-top', 'what was rolled back is not there, what was released is');
is($c->sql(q(SELECT count(*) FROM saga.instance_key WHERE key = 'sub-gone')), '0', 'nor its key');
once('sub', '3/3 3/3 0/0', 'effects of the others, once');
once('thousand', '1000/1000 1000/1000 0/0', 'and of the thousand');

# ---- what an action does to its session ----

$c->sql(<<'SQL');
CREATE ROLE bob LOGIN;
GRANT saga_user TO bob;
CREATE SCHEMA bob AUTHORIZATION bob;
GRANT USAGE ON SCHEMA app TO bob;
SET ROLE alice;
CREATE FUNCTION app.run(command text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN EXECUTE command; RETURN 'ran'; END $$;
CREATE FUNCTION app.seen() RETURNS text LANGUAGE sql AS $$
SELECT concat_ws(' ', current_user, current_setting('search_path'), current_setting('TimeZone'), current_setting('work_mem'),
                 coalesce(current_setting('app.mine', true), ''),
                 (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),
                 pg_my_temp_schema(), (SELECT count(*) FROM pg_listening_channels()),
                 (SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'),
                 (SELECT count(*) FROM pg_cursors WHERE name = 'mine'),
                 current_setting('transaction_read_only'), current_setting('transaction_isolation'),
                 current_setting('session_replication_role'),
                 -- an action alone in its transaction has another one
                 CASE WHEN current_setting('lock_timeout') IN ('0', '5ms') THEN 'plain' END) $$;
SQL
$c->alice(<<'SQL');
SELECT saga.define('does', input => 'command text', steps => ARRAY[
    saga.step('does', action => 'SELECT app.run(:command)', on_failure => 'continue',
              retry => saga.retry_policy(max_attempts => 1, initial_interval => '20 ms')),
    saga.step('seen', action => 'SELECT app.seen()')]);
SELECT saga.define('sees', steps => ARRAY[saga.step('seen', action => 'SELECT app.seen()',
                                                    retry => saga.retry_policy(initial_interval => '20 ms'))]);
SQL
sub seen
{
    my ($id) = @_;
    return $c->sql("SELECT result #>> '{}' FROM saga.steps WHERE saga_id = '$id' AND step = 'seen'");
}
sub does
{
    my ($command) = @_;
    return $c->alice("SELECT saga.start('does', input => jsonb_build_object('command', \$q\$$command\$q\$))");
}
my $fresh = $c->start('sees');
$c->ended($fresh);
my $clean = seen($fresh);
like($clean, qr/^alice app, pg_temp UTC /, 'an action sees the owner and his search_path');

# With one executor: the next action runs in the same session.
sub clean
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($command) = @_;
    my $id = $c->start('sees');
    $c->ended($id);
    is(seen($id), $clean, "the action after \"$command\" is as any other") or restart_workers();
    return;
}

# These run, and what they set ends with the action.
for my $command (
    "SELECT set_config('TimeZone', 'Asia/Tokyo', false), set_config('app.mine', 'x', false)",
    "SET work_mem = '1MB'; SET search_path = nowhere",
    "SELECT set_config('lock_timeout', '7ms', false), 1/0",
    'SELECT pg_advisory_lock(4242)',
    'SELECT pg_advisory_lock_shared(4243), 1/0',
    'PREPARE mine AS SELECT 1',
    'DECLARE mine CURSOR FOR SELECT 1',
    'SET CONSTRAINTS ALL DEFERRED',
    'SET TRANSACTION READ ONLY')
{
    my $id = does($command);
    ok($c->until("SELECT state IN ('completed', 'stuck') FROM saga.instances WHERE id = '$id'"), "\"$command\" is done or refused");
    note($c->sql("SELECT state, failed_step, sqlstate, error FROM saga.instances WHERE id = '$id'"));
    $c->alice("SELECT saga.terminate('$id', reason => 'test')");
    clean($command);
}
is($c->sql('SELECT pg_try_advisory_lock(4242), pg_try_advisory_lock(4243)'), 't|t', 'no advisory lock stays');

# These are refused, with a code that tells why.
for my $case (
    [ 'CREATE TEMP TABLE mine (x int)' => '42501' ],
    [ 'LISTEN mine' => '42501|0A000' ],
    [ 'SET ROLE bob' => '42501' ],
    [ 'RESET ROLE' => '42501' ],
    [ "SELECT set_config('session_authorization', 'bob', false)" => '42501' ],
    [ 'RESET SESSION AUTHORIZATION' => '42501' ],
    [ 'DECLARE mine CURSOR WITH HOLD FOR SELECT 1' => '42501' ],
    [ 'COMMIT' => '0A000|2D000' ],
    [ 'SELECT count(*) FROM saga.instance' => '42501' ],
    [ 'UPDATE saga.definition SET owner = 10' => '42501' ],
    [ "SELECT saga.take_over('mine')" => '42501' ])
{
    my ($command, $code) = @$case;
    my $id = does($command);
    my $got;
    until_true(sub {
        $got = $c->sql("SELECT sqlstate FROM saga.log WHERE saga_id = '$id' AND step = 'does' AND kind = 'failed' ORDER BY seq LIMIT 1");
        return $got ne '' || $c->sql("SELECT done FROM saga.status('$id')") eq 't';
    }, 20);
    like($got, qr/^(?:$code)$/, "\"$command\" is refused with $code");
    $c->alice("SELECT saga.terminate('$id', reason => 'test')");
    $c->ended($id);
    clean($command);
}

# deferred constraints fire inside the action, as its owner
$c->alice(<<'SQL');
CREATE TABLE app.deferred (x int, by text);
CREATE TABLE app.fired (by text, path text);
CREATE FUNCTION app.fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO app.fired VALUES (current_user, current_setting('search_path'));
    IF new.x < 0 THEN
        RAISE EXCEPTION 'negative' USING ERRCODE = '23514';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON app.deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION app.fire();
CREATE FUNCTION app.sneak(n int) RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    SET CONSTRAINTS ALL DEFERRED;
    INSERT INTO app.deferred VALUES (n);
    RETURN n;
END
$$;
CREATE FUNCTION app.defer() RETURNS int LANGUAGE plpgsql AS $$ BEGIN SET CONSTRAINTS ALL DEFERRED; RETURN 1; END $$;
SELECT saga.define('defers', input => 'x integer', steps => ARRAY[
    saga.step('s', action => 'INSERT INTO deferred VALUES (:x)')]);
SELECT saga.define('sneaks', input => 'x integer', steps => ARRAY[
    saga.step('s', action => 'SELECT app.sneak(:x)',
              retry => saga.retry_policy(max_attempts => 1, initial_interval => '20 ms'))]);
SELECT saga.define('sets', input => 'x integer', steps => ARRAY[
    saga.parallel(saga.step('s', action => 'SELECT app.defer()'),
                  saga.step('t', action => 'INSERT INTO deferred VALUES (:x)'))])
SQL
is($c->run('defers', '{"x": 1}'), 'completed|||', 'a deferred constraint');
is($c->sql('SELECT * FROM app.fired'), 'alice|app, pg_temp', 'fires in the action, as its owner');
is($c->run('defers', '{"x": -1}'), 'compensated|declined|s|23514', 'and fails the action');
my $sneaks = $c->start('sneaks', '{"x": 2}');
ok($c->until("SELECT state <> 'running' AND state <> 'pending' FROM saga.instances WHERE id = '$sneaks'"), 'one put off by the action');
is($c->sql("SELECT count(*) FROM app.fired WHERE by <> 'alice'"), '0', 'never fires as another role');
is($c->sql(q(SELECT count(*) FROM app.deferred WHERE x = 2)), $c->sql("SELECT count(*) FROM saga.instances WHERE id = '$sneaks' AND state = 'completed'"),
    'and its effect is as the saga says');
note('put off: ' . $c->sql("SELECT outcome, sqlstate, message FROM saga.log WHERE saga_id = '$sneaks' AND kind = 'failed' LIMIT 1"));
my @sets = map { $c->start('sets', '{"x": 3}') } 1 .. 5;
is(scalar(grep { $c->sql("SELECT state FROM saga.wait('$_', timeout => '5 s')") ne 'completed' } @sets), 0,
    'SET CONSTRAINTS of one action does not reach the one beside it');
$c->alice("SELECT saga.terminate('$_', reason => 'test')") for $sneaks, @sets;

# ---- rights ----

$c->sql(<<'SQL');
CREATE TABLE bob.t (what text, by text);
ALTER TABLE bob.t OWNER TO bob;
GRANT USAGE ON SCHEMA bob TO alice;
GRANT INSERT ON bob.t TO alice;
SQL
$c->alice(<<'SQL');
SELECT saga.define('rights', input => 'g bigint', steps => ARRAY[
    saga.step('gate', action => 'SELECT gate(:g)'),
    saga.step('write', action => 'INSERT INTO bob.t VALUES (''x'', current_user)',
              retry => saga.retry_policy(initial_interval => '20 ms'))]);
SELECT saga.define('reads', steps => ARRAY[
    saga.step('s', action => 'SELECT app.run(''SELECT * FROM bob.t'')',
              retry => saga.retry_policy(initial_interval => '20 ms'))]);
SQL
my $lock = $c->session;
$lock->query_safe('SELECT pg_advisory_lock(77)');
my $id = $c->start('rights', '{"g": 77}');
$c->until(q(SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted));
$c->sql('REVOKE INSERT ON bob.t FROM alice');
$lock->query_safe('SELECT pg_advisory_unlock(77)');
$lock->quit;
ok($c->until_state($id, 'stuck'), 'an owner who lost a right: stuck');
is($c->sql("SELECT step, sqlstate, verbs FROM saga.stuck WHERE id = '$id'"), 'write|42501|{retry_step,skip_step,cancel,terminate}', 'with 42501');
$c->sql('GRANT INSERT ON bob.t TO alice');
$c->alice("SELECT saga.retry_step('$id', 'write')");
is($c->ended($id), 'completed|||', 'retry_step() when it was given back');
is($c->sql('SELECT * FROM bob.t'), 'x|alice', 'the effect was made by the owner, once');

$id = $c->start('reads');
ok($c->until_state($id, 'stuck'), "another user's table: stuck");
is($c->sql("SELECT sqlstate FROM saga.stuck WHERE id = '$id'"), '42501', 'with 42501');
$c->alice("SELECT saga.terminate('$id', reason => 'test')");

my ($code, $err) = $c->try(undef, q(SELECT saga.define('super', steps => ARRAY[saga.step('s', action => 'SELECT 1')])));
isnt($code, '', "a superuser's local step is refused at define ($code)");
like($err, qr/superuser/, 'and why');
$id = do {
    $c->sql('ALTER ROLE alice SUPERUSER');
    $c->start('sees');
};
ok($c->until_state($id, 'stuck'), 'an owner who became a superuser: stuck');
is($c->sql("SELECT step, sqlstate FROM saga.stuck WHERE id = '$id'"), 'seen|42501', 'with 42501');
$c->sql('ALTER ROLE alice NOSUPERUSER');
$c->alice("SELECT saga.retry_step('$id', 'seen')");
is($c->ended($id), 'completed|||', 'retry_step() when he is none any more');
is(seen($id), $clean, 'as the owner');

# ---- upkeep ----

# Old sagas: copies of new ones with an id of another day.
my $aged = <<'SQL';
CREATE FUNCTION app.aged(id uuid, days int) RETURNS uuid LANGUAGE sql AS $$
SELECT overlay(id::text PLACING left(saga.first_id_((now() AT TIME ZONE 'UTC')::date - days)::text, 13) FROM 1)::uuid $$;
CREATE FUNCTION app.age(src uuid, days int) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    dst uuid := app.aged(src, days);
BEGIN
    PERFORM saga.add_log_partitions_((now() AT TIME ZONE 'UTC')::date - days, 1);
    CREATE TEMP TABLE i AS SELECT * FROM saga.instance WHERE id = src;
    UPDATE i SET id = dst, started_at = started_at - days * interval '1 day', ended_at = ended_at - days * interval '1 day',
                 bucket = coalesce((SELECT bucket FROM saga.instance x WHERE x.id = dst), bucket);
    INSERT INTO saga.log_record SELECT dst, l.seq, l.at - days * interval '1 day', l.kind, l.step, l.operation, l.attempt, l.outcome,
        l.maybe, l.state, l.cause, l.reason, l.due, l.sqlstate, l.message, l.result, l.actor, l.note
        FROM saga.log_record l WHERE l.saga_id = src;
    INSERT INTO saga.stuck_saga SELECT dst, s.step, s.operation, s.reason, s.sqlstate, s.message, s.since
        FROM saga.stuck_saga s WHERE s.saga_id = src;
    INSERT INTO saga.instance_key SELECT 'aged', dst::text, dst;
    INSERT INTO saga.instance SELECT * FROM i;
    DROP TABLE i;
    RETURN dst;
END
$$;
SQL
$c->sql($aged);
$c->alice(<<'SQL');
CREATE FUNCTION app.mend(bigint) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'to be mended' USING ERRCODE = '42P01'; END $$;
SELECT saga.define('kept', retention => '60 days', steps => ARRAY[saga.step('s', action => 'SELECT 1')]);
SELECT saga.define('mended', input => 'tag text', steps => ARRAY[
    saga.step('first', server => 'a', action => 'SELECT app.act(''first'', :tag)'),
    saga.step('s', action => 'SELECT app.mend((:first)::bigint)', retry => saga.retry_policy(initial_interval => '20 ms'))]);
SQL
$id = $c->start('pair', '{"tag": "aged"}');
$c->ended($id);
my $gone = $c->sql("SELECT app.age('$id', 40)");
my $recent = $c->sql("SELECT app.age('$id', 20)");
$id = $c->start('kept');
$c->ended($id);
my $kept = $c->sql("SELECT app.age('$id', 41)");
my $parts = q(SELECT count(*) FROM pg_inherits WHERE inhparent = 'saga.log_record'::regclass);
my $now = $c->sql($parts);
is($c->sql('SELECT * FROM saga.upkeep()'), '1|2', 'upkeep: one saga and two partitions are past keeping');
is($c->sql($parts), $now - 2, 'the partitions are gone');
my $rows = sub {
    my ($saga) = @_;
    return $c->sql(<<SQL);
SELECT (SELECT count(*) FROM saga.instance WHERE id = '$saga'), (SELECT count(*) FROM saga.instance_key WHERE saga_id = '$saga'),
       (SELECT count(*) > 0 FROM saga.log_record WHERE saga_id = '$saga'), (SELECT count(*) > 0 FROM saga.log_default WHERE saga_id = '$saga')
SQL
};
is($rows->($gone), '0|0|f|f', 'an ended saga past its retention is gone, with key and log');
is($rows->($recent), '1|1|t|f', 'a more recent one stays');
is($rows->($kept), '1|1|t|t', 'as does one whose definition says so, its log in the default partition');
is($c->sql("SELECT count(*) FROM saga.check_log('$kept')"), '0', 'and whole');
is($c->sql('SELECT * FROM saga.upkeep()'), '0|0', 'again: nothing');
is($c->sql(q(SELECT count(*) FROM pg_class WHERE relnamespace = 'saga'::regnamespace
              AND relname = 'log_' || to_char((now() AT TIME ZONE 'UTC')::date + 2, 'YYYYMMDD'))), '1', 'partitions ahead are there');

# a live one: old, stuck, and then mended
$id = $c->start('mended', '{"tag": "mended"}');
ok($c->until_state($id, 'stuck'), 'a saga that is stuck');
my $live = $c->sql("SELECT app.age('$id', 45)");
# its bucket follows from its id, so the coordinator is asked to look at all
$c->sql("UPDATE saga.instance SET bucket = b.bucket FROM (SELECT bucket FROM saga.instance WHERE id = '$id') b WHERE id = '$live'");
is($c->sql('SELECT * FROM saga.upkeep()'), '0|1', 'upkeep: its partition goes');
is($rows->($live), '1|1|t|t', 'a live saga stays, its log in the default partition');
is($c->sql("SELECT count(*) FROM saga.check_log('$live')"), '0', 'and whole');
$c->alice('CREATE OR REPLACE FUNCTION app.mend(bigint) RETURNS bigint LANGUAGE sql AS $$ SELECT $1 $$');
$c->alice("SELECT saga.retry_step('$_', 's')") for $live, $id;
is($c->ended($_), 'completed|||', 'and goes on from there') for $live, $id;
is($p->sql("SELECT count(*) FROM app.effect WHERE arg = 'mended'", 'a'), '1', 'without doing again what was done');

# the partitions that CREATE EXTENSION made get old, too
my $last = $c->sql(q(SELECT to_char((now() AT TIME ZONE 'UTC')::date + 2, 'YYYYMMDD')));
my ($from, $to) = split /\|/, $c->sql(q(SELECT saga.first_id_('2020-01-01'), saga.first_id_('2020-01-02')));
$c->sql(<<SQL);
ALTER TABLE saga.log_record DETACH PARTITION saga.log_$last;
ALTER TABLE saga.log_$last RENAME TO log_20200101;
ALTER TABLE saga.log_record ATTACH PARTITION saga.log_20200101 FOR VALUES FROM ('$from') TO ('$to');
SQL
($code, $err, my $out) = $c->try(undef, 'SELECT * FROM saga.upkeep()');
is("$code $out", ' 0|1', 'a partition that came with the extension is dropped when it is old') or diag($err);

# the participant's rows: the coordinator's hourly call, made here by hand
{
    my $epoch = $c->sql(q(SELECT format('%L, %s, %s, %L', coordinator, timeline, counter, nonce) FROM saga.identity));
    my $all = $p->sql('SELECT count(*) FROM saga_participant.barrier', 'a');
    my $saga = $c->start('pair', '{"tag": "barrier"}');
    $c->ended($saga);
    my $forged = $c->sql("SELECT app.aged('$saga', 30)");
    my $spared = $c->sql("SELECT app.aged('$saga', 31)");
    my $later = $c->sql("SELECT app.aged('$saga', 32)");
    $p->sql(<<SQL, 'a');
INSERT INTO saga_participant.barrier (coordinator, saga, step, op, status, created_at, not_after)
SELECT coordinator, v.id, step, op, status, now() - interval '20 days', v.until
  FROM saga_participant.barrier, (VALUES ('$forged'::uuid, now() - interval '13 days'), ('$spared', now() - interval '13 days'),
                                         ('$later', now() + interval '1 day')) v (id, until)
 WHERE saga = '$saga'
SQL
    is($p->as('svc', "SELECT saga_participant.purge($epoch, now() - interval '7 days', '{$spared}')", 'a'), '1',
        'purge: one row is past keeping');
    is($p->sql(qq(SELECT string_agg(saga::text, ' ' ORDER BY saga) FROM saga_participant.barrier WHERE saga IN ('$saga', '$forged', '$spared', '$later')), 'a'),
        join(' ', sort $spared, $later, $saga), 'those of live sagas, of calls that may still come, and new ones stay');
    ($code) = $p->try('svc', "SELECT saga_participant.purge('other', 1, 1, 'x', now(), '{}')", 'a');
    is($code, 'SGB04', 'only the current coordinator may');
}

# ---- several coordinators, and one again ----

my @workers = split /\n/, $c->sql('SELECT pid FROM saga.stat_workers');
set($c, 'saga.coordinators', 2);
ok(new_workers(@workers), 'two coordinators');
my @shared = start_many('four', 'two', 500);
ok($c->until_all_ended, '500 sagas');
is($c->sql(q(SELECT count(*) FROM saga.stat_workers WHERE kind = 'coordinator' AND items > 500)), '2', 'of which each does its share');
is($c->sql(q(SELECT count(*) FROM saga.stat_workers WHERE kind = 'executor' AND items > 100)), '2', 'with its executor');
start_many('four', 'turn', 500);
set($c, 'saga.coordinators', undef);
ok(new_workers(), 'one again, while 500 sagas run');
ok($c->until_all_ended, 'all end');
is($c->sql(q(SELECT count(*) FROM saga.instances WHERE input->>'tag' ~ '^(two|turn)-' AND state <> 'completed')), '0', 'completed');
once('two', '1000/1000 500/500 500/500', 'each effect once');
once('turn', '1000/1000 500/500 500/500', 'also of those that changed hands');

is($c->sql('SELECT count(*) FROM saga.check_log()'), '0', 'every log folds to its state');
is($c->sql('SELECT count(*) FROM saga.local_outcome'), '0', 'no local outcome is left');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal/, 'no crash');
unlike(slurp_file($node->logfile), qr/could not write the saga log|is set aside/, 'and no turn that failed');
done_testing();
