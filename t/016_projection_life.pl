# The life of projections: what an owner does with them, errors in one of them,
# DDL on their sources, rights, reads that wait, lost slots, copies, and what an
# idle database costs.
use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils qw(slurp_file);
use ProjectionTest;
use SagaTest;
use Test::More;
use Writers;

my $c = ProjectionTest->new('life', stopped => 1, conf => <<'CONF');
saga.executors = 1
max_connections = 60
checkpoint_timeout = '1h'
autovacuum = off
CONF
my $node = $c->{node};
open my $hba, '>>', $node->data_dir . '/pg_hba.conf' or die;
print $hba "local replication all trust\n";
close $hba;
$node->start;
$c->make_app;
$c->sql('GRANT CREATE ON DATABASE app TO alice');
$c->alice(<<'SQL');
CREATE SCHEMA m;
CREATE TABLE item (id int PRIMARY KEY, k int, n numeric(10,2), s text, spare int);
CREATE TABLE fact (id int PRIMARY KEY, item_id int, v int);
CREATE INDEX ON fact (item_id);
ALTER TABLE item REPLICA IDENTITY FULL;
ALTER TABLE fact REPLICA IDENTITY FULL;
INSERT INTO item SELECT i, i % 5, i, chr(97 + i % 7), i FROM generate_series(1, 200) i;
INSERT INTO fact SELECT i, 1 + i % 200, i % 11 FROM generate_series(1, 1000) i;
SELECT saga.create_projection('m.sums', 'SELECT i.k, count(*) AS c, sum(f.v) AS v FROM item i JOIN fact f ON f.item_id = i.id GROUP BY i.k');
SELECT saga.create_projection('m.list', 'SELECT id, s, n FROM item WHERE n > 10');
SELECT saga.create_projection('m.outer_join', 'SELECT i.id, f.v FROM item i LEFT JOIN fact f ON f.item_id = i.id');
SELECT saga.create_projection('m.extremes', 'SELECT item_id, max(v) AS hi FROM fact GROUP BY item_id');
SQL
my @names = qw(m.sums m.list m.outer_join m.extremes);
ok($c->following(@names), 'four projections');

my %tables = (
    'app.item' => { key => ['id'], rows => 150, columns => [ [ id => 'key200' ], [ k => 'small', 5 ], [ n => 'money', 5 ], [ s => 'word', 5 ], [ spare => 'small' ] ] },
    'app.fact' => { key => ['id'], rows => 900, columns => [ [ id => 'key1000' ], [ item_id => 'key200', 5 ], [ v => 'small' ] ] });

sub state_is
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($name, $state, $test) = @_;
    return ok($c->until("SELECT state = '$state' FROM saga.projections WHERE name = '$name'"), $test)
      || diag($c->state($name));
}

# ---- pause, resume, rename, replace, rebuild, drop ----

$c->alice(q(SELECT saga.pause_projection('m.sums')));
state_is('m.sums', 'paused', 'a projection is paused');
my $before = $c->sql('SELECT md5(string_agg(x::text, $$,$$ ORDER BY x)) FROM m.sums x');
$c->alice('UPDATE fact SET v = v + 1; DELETE FROM item WHERE id < 20');
$c->same([ 'm.list', 'm.outer_join', 'm.extremes' ], 'the others go on');
is($c->sql('SELECT md5(string_agg(x::text, $$,$$ ORDER BY x)) FROM m.sums x'), $before, 'it stays as it was');
is($c->sql(q(SELECT state, stale, age > interval '0' FROM saga.freshness('m.sums'))), 'paused|f|t', 'and its freshness says so');
$c->refused('alice', q(SELECT saga.wait_for_projection('m.sums')), 'SGC01', qr/paused/, 'nobody waits for it');
$c->exact('m.list', 'the others are exact');
$c->alice(q(SELECT saga.resume_projection('m.sums')));
ok($c->following('m.sums'), 'it is resumed');
$c->same(\@names, 'and catches up');

$c->alice(q(SELECT saga.rename_projection('m.list', 'listed')));
$c->alice('UPDATE item SET n = n + 1');
$c->same('m.listed', 'one renamed goes on');
$c->alice(q(SELECT saga.rename_projection('m.listed', 'list')));
$c->alice('CREATE SCHEMA elsewhere; ALTER VIEW m.list SET SCHEMA elsewhere; UPDATE item SET n = n - 1');
$c->same('elsewhere.list', 'one moved to another schema goes on');
$c->alice('ALTER VIEW elsewhere.list SET SCHEMA m');

# readers of the old contents are not disturbed while the new are made
{
    $c->alice('SET search_path = app; SELECT saga.replace_projection(\'m.extremes\', \'SELECT item_id, max(v) AS hi, min(v) AS lo FROM fact GROUP BY item_id\')');
    ok($c->until(q(SELECT count(*) = 1 FROM pg_attribute WHERE attrelid = 'm.extremes'::regclass AND attname = 'lo')), 'a query is replaced');
    delete $c->{definition}{'m.extremes'};
    ok($c->following('m.extremes'), 'the new one is followed');
    $c->alice('UPDATE fact SET v = v + 2 WHERE id % 3 = 0');
    $c->same('m.extremes', 'and right');
}
for my $method (qw(diff swap))
{
    $c->alice("SELECT saga.rebuild_projection('m.sums', method => '$method')");
    is($c->sql('SELECT count(*) > 0 FROM m.sums'), 't', "rows are read during a rebuild by $method");
    ok($c->following('m.sums'), "rebuilt by $method");
    $c->alice('UPDATE fact SET v = v + 1 WHERE id % 2 = 0');
    $c->same('m.sums', "and right after $method");
}
# storage spoilt on purpose: found by the check, mended by the rebuild
{
    my $storage = $c->sql(q(SELECT format('saga_data.%I', relname) FROM pg_class WHERE relnamespace = 'saga_data'::regnamespace AND relkind = 'r'
        AND relname LIKE 'p' || (SELECT id FROM saga.projections WHERE name = 'm.list') || '\_%' LIMIT 1));
    $c->sql("DELETE FROM $storage WHERE ctid IN (SELECT ctid FROM $storage LIMIT 3)");
    is($c->compare('m.list'), '3|0', 'missing rows are found');
    $c->alice(q(SELECT saga.rebuild_projection('m.list')));
    ok($c->following('m.list'), 'a rebuild');
    $c->exact('m.list', 'mends them');
}
$c->alice(q(SELECT saga.create_projection('m.gone', 'SELECT k FROM app.item')));
$c->alice(q(SELECT saga.drop_projection('m.gone')));
$c->alice(q(SELECT saga.create_projection('m.gone', 'SELECT k FROM app.item')));
ok($c->following('m.gone'), 'dropped and made again');
$c->alice('DROP VIEW m.gone');
ok($c->until(q(SELECT count(*) = 0 FROM pg_class WHERE relnamespace = 'saga_data'::regnamespace AND relkind = 'r'
    AND relname !~ (SELECT '^p(' || string_agg(id::text, '|') || ')_' FROM saga.projection))), 'what DROP VIEW leaves is swept');
$c->refused('alice', q(SELECT saga.drop_projection('m.gone')), '42704', qr/gone/, 'refused: one that is not there');
$c->refused('alice', q(SELECT saga.drop_projection('app.item')), '42809', qr/item/, 'refused: a table');

# ---- an error in one of them ----

$c->alice(q(SELECT saga.create_projection('m.ratio', 'SELECT id, 100 / v AS r FROM app.fact WHERE id > 5000')));
$c->alice(q(SELECT saga.create_projection('m.ratios', 'SELECT item_id, sum(100 / nullif(v, 0)) AS r FROM app.fact GROUP BY item_id')));
ok($c->following('m.ratio', 'm.ratios'), 'one that can fail');
$c->alice('INSERT INTO fact VALUES (6001, 1, 5), (6002, 1, 0), (6003, 2, 4)');
state_is('m.ratio', 'parked', 'a division by zero parks it');
is($c->sql(q(SELECT sqlstate, reason LIKE '%division by zero%' FROM saga.projections WHERE name = 'm.ratio')), '22012|t', 'with the SQLSTATE and the reason');
$c->same([ @names, 'm.ratios' ], 'the others go on');
is($c->sql('SELECT count(*) FROM m.ratio'), '0', 'it shows what it showed before');
$c->alice('UPDATE fact SET v = 10 WHERE id = 6002');
$c->alice(q(SELECT saga.resume_projection('m.ratio')));
ok($c->following('m.ratio'), 'mended, it goes on');
$c->same('m.ratio', 'and is right');

# A batch that comes to nothing has parked nobody: the storage of the second
# cannot be locked after the first has failed.
{
    my $storage = $c->sql(q(SELECT 'saga_data.p' || id || '_0' FROM saga.projection WHERE view = 'm.ratios'::regclass));
    my $waiting = "SELECT count(*) FROM pg_locks WHERE relation = '$storage'::regclass AND NOT granted";
    my $lock = $c->session;
    $lock->query_safe("BEGIN; LOCK TABLE $storage IN ACCESS EXCLUSIVE MODE");
    $c->alice('UPDATE fact SET v = 0 WHERE id = 6001');
    ok($c->until("SELECT ($waiting) = 1"), 'a batch waits for a lock');
    ok($c->until("SELECT ($waiting) = 0"), 'and is given up');
    state_is('m.ratio', 'following', 'with all that it did');
    $c->alice('UPDATE fact SET v = 3 WHERE id = 6003');
    $lock->query_safe('COMMIT');
    $lock->quit;
    state_is('m.ratio', 'parked', 'the next one parks it');
    $c->same([ @names, 'm.ratios' ], 'and the others have everything');
    $c->alice('UPDATE fact SET v = 10 WHERE id = 6001');
    $c->alice(q(SELECT saga.resume_projection('m.ratio')));
    ok($c->following('m.ratio'), 'mended, it goes on');
    $c->same('m.ratio', 'and is right');
}
$c->alice(q(DELETE FROM fact WHERE id > 5000; SELECT saga.drop_projection('m.ratio'); SELECT saga.drop_projection('m.ratios')));

# ---- DDL on the sources ----

# Until its rows are stored and no older snapshot is left, the view depends on
# its sources, and PostgreSQL itself refuses what would break it.
ok($c->until(q(SELECT bool_and(plain) FROM saga.projection)), 'all views are plain');

for my $ddl (
    'ALTER TABLE item ADD COLUMN more int DEFAULT 7',
    'ALTER TABLE item DROP COLUMN spare',
    'ALTER TABLE fact ADD COLUMN at timestamptz DEFAULT clock_timestamp()',    # rewrites
    'CLUSTER fact USING fact_pkey',
    'VACUUM FULL item',
    'CREATE INDEX ON item (k); REINDEX TABLE item',
    'ALTER TABLE fact SET (fillfactor = 50)',
    'ALTER TABLE item ALTER more TYPE bigint',    # rewrites
    'ALTER TABLE item RENAME COLUMN more TO other',
    'BEGIN; UPDATE item SET k = k + 1; ALTER TABLE item ADD COLUMN late int; UPDATE item SET late = 1, k = k - 1 WHERE id < 50; COMMIT',
    'BEGIN; ALTER TABLE item ADD COLUMN never int; UPDATE item SET k = 3; ROLLBACK')
{
    $c->alice($ddl);
    $c->alice('UPDATE item SET n = n + 1 WHERE id % 7 = 0; UPDATE fact SET v = v + 1 WHERE id % 5 = 0; INSERT INTO fact (id, item_id, v) SELECT max(id) + 1, 5, 5 FROM fact');
    ok($c->following(@names), "followed after $ddl");
    $c->same(\@names, "right after $ddl");
}
pop @{ $tables{'app.item'}{columns} };

# a source renamed: its name in the stored text is no more
$c->alice('ALTER TABLE fact RENAME TO facts');
$c->alice('INSERT INTO facts (id, item_id, v) VALUES (7001, 5, 5)');
ok($c->until(q(SELECT count(*) > 0 FROM saga.projections WHERE state IN ('parked', 'following'))), 'a source renamed');
$c->alice('ALTER TABLE facts RENAME TO fact');
for my $name (@names)
{
    $c->alice("SELECT saga.resume_projection('$name')") if $c->state($name) =~ /^parked/;
}
ok($c->following(@names), 'renamed back, all are followed');
$c->same(\@names, 'and right');

# a column that is used, and a source that is: PostgreSQL knows the dependency,
# or the projection says what is missing; never a wrong row
$c->alice(q(CREATE TABLE short (id int PRIMARY KEY, x int, y int); ALTER TABLE short REPLICA IDENTITY FULL; INSERT INTO short VALUES (1, 1, 1), (2, 2, 2);
    SELECT saga.create_projection('m.short', 'SELECT id, x FROM app.short')));
ok($c->following('m.short'), 'one over a table that will change');
ok($c->until(q(SELECT plain FROM saga.projection WHERE view = 'm.short'::regclass)), 'its view is plain');
{
    my ($code, $err) = $c->try('alice', 'ALTER TABLE app.short DROP COLUMN x');
    my $ok = $code eq '2BP01' || $c->until(q(SELECT state = 'parked' FROM saga.projections WHERE name = 'm.short'));
    ok($ok, 'a used column is not dropped unseen') or diag($err);
    ($code, $err) = $c->try('alice', 'ALTER TABLE app.short ALTER x TYPE text USING x::text || $$!$$');
    $c->alice(q(INSERT INTO app.short (id, y) VALUES (3, 3)));
    $ok = $code eq '0A000' || $c->until(q(SELECT state = 'parked' FROM saga.projections WHERE name = 'm.short'));
    ok($ok, 'nor its type changed') or diag("$code $err");
    is($c->sql('SELECT count(*) >= 2 FROM m.short'), 't', 'it can be read all the time');
}
$c->alice(q(SELECT saga.drop_projection('m.short'); DROP TABLE app.short;
    CREATE TABLE short (id int PRIMARY KEY, x int, y int); ALTER TABLE short REPLICA IDENTITY FULL; INSERT INTO short VALUES (1, 1, 1), (2, 2, 2);
    SELECT saga.create_projection('m.short', 'SELECT id, x FROM app.short')));
ok($c->following('m.short'), 'another such table');
$c->alice('ALTER TABLE app.short REPLICA IDENTITY DEFAULT');
$c->alice('UPDATE app.short SET y = 5 WHERE id = 1; DELETE FROM app.short WHERE id = 2');
ok($c->until(q(SELECT state = 'parked' AND reason ILIKE '%replica identity%' FROM saga.projections WHERE name = 'm.short'))
      || $c->until(q(SELECT state = 'following' FROM saga.projections WHERE name = 'm.short')), 'a replica identity taken away is noticed, or the rows are right') or diag($c->state('m.short'));
$c->exact('m.short', 'rows are right without it') if $c->state('m.short') =~ /^following/;
$c->alice('ALTER TABLE app.short REPLICA IDENTITY FULL');
$c->alice(q(SELECT saga.rebuild_projection('m.short')));
ok($c->following('m.short'), 'given back, a rebuild brings it back');
$c->exact('m.short', 'exact');
$c->alice('DROP TABLE app.short CASCADE');
ok($c->until(q(SELECT count(*) = 0 FROM saga.projection p WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = p.view))), 'dropped with its source');
$c->same(\@names, 'the others do not care');

# ---- rights ----

$c->sql('CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN; GRANT saga_user TO bob; GRANT USAGE ON SCHEMA m, app TO bob, carol');
$c->refused('bob', 'SELECT * FROM m.sums', '42501', qr/permission denied/, 'a projection is its owner\'s');
$c->alice('GRANT SELECT ON m.sums TO carol');
is($c->as('carol', 'SELECT count(*) > 0 FROM m.sums'), 't', 'who is granted SELECT reads it, without rights on its sources');
$c->refused('carol', 'SELECT * FROM app.fact', '42501', qr/permission denied/, 'which he does not have');
$c->refused('carol', q(SELECT saga.create_projection('m.carol', 'SELECT 1 AS x')), '42501', qr/permission denied/, 'only saga_user makes projections');
for my $call (q(drop_projection('m.sums')), q(pause_projection('m.sums')), q(rebuild_projection('m.sums')), q(check_projection('m.sums')),
    q(rename_projection('m.sums', 'mine')), q(replace_projection('m.sums', 'SELECT 1 AS x')), q(alter_projection_owner('m.sums', 'bob')))
{
    $c->refused('bob', "SELECT saga.$call", '42501', qr/owner|permission/, "refused: $call of another's");
}
$c->refused('bob', q(SELECT saga.create_projection('bobs', 'SELECT id FROM app.item')), '42501', qr/permission denied/, 'nobody projects what he cannot read');
is($c->as('bob', 'SELECT count(*) FROM saga.projections'), '0', 'nor sees the definitions of others');
$c->refused('bob', 'SELECT * FROM saga.projection', '42501', qr/permission denied/, 'nor their table');
is($c->sql(q(SELECT count(*) FROM pg_class WHERE relnamespace = 'saga_data'::regnamespace AND (has_table_privilege('bob', oid, 'SELECT') OR has_table_privilege('carol', oid, 'SELECT')))), '0', 'nor the storage');

# upkeep has the owner's rights, and no more
$c->sql('CREATE SCHEMA bob AUTHORIZATION bob');
$c->alice('GRANT SELECT ON item TO bob');
$c->as('bob', q(SELECT saga.create_projection('bob.items', 'SELECT id, k FROM app.item')));
ok($c->following('bob.items'), 'bob follows what he may read');
$c->alice('REVOKE SELECT ON item FROM bob; UPDATE item SET k = k + 1');
state_is('bob.items', 'parked', 'a right revoked parks it');
like($c->state('bob.items'), qr/42501/, 'with the reason');
$c->alice('GRANT SELECT ON item TO bob');
$c->as('bob', q(SELECT saga.resume_projection('bob.items')));
ok($c->following('bob.items'), 'given back, it goes on');
$c->same('bob.items', 'and is right');
$c->as('bob', q(SELECT saga.drop_projection('bob.items')));
# a function of the owner runs as the owner, in the worker too
$c->as('bob', <<'SQL');
CREATE TABLE bob.t (id int PRIMARY KEY, x int);
ALTER TABLE bob.t REPLICA IDENTITY FULL;
CREATE FUNCTION bob.f(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
  IF current_user <> 'bob' THEN RAISE EXCEPTION 'I am %', current_user; END IF;
  BEGIN
    PERFORM set_config('role', 'postgres', false);
    RAISE EXCEPTION 'out' USING ERRCODE = 'ZZZZZ';
  EXCEPTION WHEN insufficient_privilege THEN
    NULL;
  END;
  RETURN $1 + 1;
END $$;
SELECT saga.create_projection('bob.p', 'SELECT id, bob.f(x) AS y FROM bob.t');
INSERT INTO bob.t VALUES (1, 1);
SQL
ok($c->following('bob.p'), 'functions run as the owner of the projection');
$c->as('bob', 'INSERT INTO bob.t VALUES (2, 2)');
is($c->ask(q(SELECT saga.wait_for_projection('bob.p'))), 't', 'also later');
is($c->sql('SELECT count(*) FROM bob.p'), '2', 'and give their rows');
# one who owns nothing any more
$c->sql(q(DROP OWNED BY bob CASCADE; DROP ROLE bob));
ok($c->until(q(SELECT count(*) = 0 FROM pg_class WHERE relnamespace = 'saga_data'::regnamespace AND relkind = 'r'
    AND relname !~ (SELECT '^p(' || string_agg(id::text, '|') || ')_' FROM saga.projection))), 'a role that goes takes its projections along');

# row security (15)
$c->alice(q(CREATE TABLE safe (id int PRIMARY KEY, who text); ALTER TABLE safe REPLICA IDENTITY FULL; ALTER TABLE safe ENABLE ROW LEVEL SECURITY;
    CREATE POLICY p ON safe USING (who = current_user); GRANT SELECT ON safe TO carol; INSERT INTO safe VALUES (1, 'carol'), (2, 'alice')));
$c->sql('GRANT saga_user TO carol; CREATE SCHEMA carol AUTHORIZATION carol');
$c->refused('carol', q(SELECT saga.create_projection('carol.safe', 'SELECT id FROM app.safe')), '0A000', qr/row.level security|policy|policies/i, 'refused: rows that the owner may not all see');
ok($c->project(alice => 'm.safe', 'SELECT id, who FROM app.safe'), 'the owner of the table is not subject to its policies');
ok($c->following('m.safe'), 'and follows it');
$c->alice('ALTER TABLE safe FORCE ROW LEVEL SECURITY');
$c->alice(q(SET row_security = on; UPDATE safe SET who = 'alice'));
ok($c->until(q(SELECT state = 'parked' FROM saga.projections WHERE name = 'm.safe')), 'until he is') or diag($c->state('m.safe'));
$c->alice(q(SELECT saga.drop_projection('m.safe')));

# ---- reads that wait ----

$c->alice(q(SELECT saga.create_projection('m.strict', 'SELECT k, count(*) AS c FROM app.item GROUP BY k', consistency => 'strict')));
ok($c->following('m.strict'), 'a strict projection');
{
    my $wrong = 0;
    my $sql = '';
    for my $i (1 .. 50)
    {
        $sql .= "INSERT INTO item (id, k) VALUES (@{[ 20000 + $i ]}, 777);\nSELECT c FROM m.strict WHERE k = 777;\n";
    }
    is($c->alice($sql), join("\n", 1 .. 50), 'a strict read shows each row committed before it');
    $c->alice('DELETE FROM item WHERE id > 20000');
    my $pid = $c->projector;
    kill 'STOP', $pid;
    $c->alice('INSERT INTO item (id, k) VALUES (20001, 777)');
    $c->refused('alice', q(SET saga.read_timeout = '300 ms'; SELECT * FROM m.strict), 'SGC02', qr/caught up/, 'it fails when the projector stands still');
    is($c->alice(q(SET saga.read_consistency = eventual; SELECT count(*) FROM m.sums)) > 0, 1, 'while others are served');
    $c->refused('alice', q(SET saga.read_consistency = strict; SET saga.read_timeout = '300 ms'; SELECT * FROM m.sums), 'SGC02', qr/caught up/, 'the setting makes any read strict');
    is($c->alice(q(SELECT age > interval '0' FROM saga.freshness('m.sums'))), 't', 'freshness is told');
    is($c->ask(q(SELECT saga.wait_for_projection('m.sums', timeout => '200 ms'))), 'f', 'waiting ends at its time-out');
    kill 'CONT', $pid;
    is($c->alice('SELECT c FROM m.strict WHERE k = 777'), '1', 'and works again when it goes on');
}
$c->refused('alice', q(BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM m.strict), 'SGC01', qr/isolation/, 'refused in REPEATABLE READ');
$c->refused('alice', q(BEGIN; UPDATE item SET k = 1; SELECT saga.wait_for_projection('m.sums')), '55000', qr/written/, 'nobody waits for his own transaction');
$c->refused('alice', q(SELECT saga.wait_for_projection('m.sums', at => 'nonsense')), '22023', qr/bookmark/, 'refused: no bookmark');
$c->refused('alice', q(SELECT saga.wait_for_projection('m.none')), '42704', qr/none/, 'refused: no projection');
$c->alice(q(DELETE FROM item WHERE id > 20000; SELECT saga.drop_projection('m.strict')));

# ---- bad input ----

for my $bad (
    [ q(create_projection(NULL, 'SELECT 1 AS x')), '22004' ], [ q(create_projection('m.x', NULL)), '22004' ],
    [ q(create_projection('', 'SELECT 1 AS x')), '42602' ], [ q(create_projection('a.b.c.d', 'SELECT id FROM app.item')), '42601' ],
    [ q(create_projection('nowhere.x', 'SELECT id FROM app.item')), '3F000' ], [ q(create_projection('m.x', 'SELECT id FROM app.item', consistency => 'maybe')), '22023' ],
    [ q(create_projection('m.x', 'SELECT id FROM app.item', replica_identity => 'none')), '22023' ],
    [ q(create_projection('m.x', 'SELECT id FROM app.item', key => '{nokey}')), '42703' ],
    [ q(create_projection('m.x', 'SELECT id FROM app.item', indexes => '{"id; DROP TABLE app.item"}')), '42601' ],
    [ q(create_projection('m.x', 'SELECT id FROM app.item', max_lag => '-1 s')), '22023' ],
    [ q(create_projection('pg_temp.x', 'SELECT id FROM app.item')), '0A000' ],
    [ q(create_projection('pg_catalog.x', 'SELECT id FROM app.item')), '42501' ],
    [ q(rename_projection('m.sums', 'a.b')), '42602' ], [ q(rename_projection('m.sums', 'list')), '42P07' ],
    [ q(rebuild_projection('m.sums', 'magic')), '22023' ])
{
    $c->refused('alice', "SELECT saga.$bad->[0]", $bad->[1], qr/./, "refused: $bad->[0]");
}
{
    $c->alice(<<'SQL');
CREATE TABLE "odd ""table'" ("a ""b" int PRIMARY KEY, "SELECT" text, "c'd" int);
ALTER TABLE "odd ""table'" REPLICA IDENTITY FULL;
SELECT saga.create_projection('m."odd ""name'' \;"', $q$SELECT "a ""b", "SELECT", count(*) AS "n'""x" FROM app."odd ""table'" GROUP BY 1, 2$q$);
INSERT INTO "odd ""table'" VALUES (1, 'x', 1);
SQL
    my $shown = $c->sql(q(SELECT name FROM saga.projections WHERE name LIKE '%odd%'));
    ok($c->following($shown), 'are followed');
    $c->same($shown, 'and right');
    $c->alice('SELECT saga.drop_projection(' . ProjectionTest::literal($shown) . ')');
}

# ---- the slot ----

my $w = Writers->new(seed => 3, tables => \%tables);
my $slot = $c->sql('SELECT slot FROM saga.feed');
my $rebuilt = sub {
    my ($what, $do) = @_;
    my $old = $c->sql('SELECT identity FROM saga.feed');
    $do->();
    ok($c->until("SELECT identity <> '$old' AND identity <> '' FROM saga.feed"), "$what: a new slot");
    is($c->sql('SELECT count(*) > 0 FROM m.outer_join'), 't', "$what: rows are read meanwhile");
    ok($c->following(@names), "$what: all are followed again");
    $c->same(\@names, "$what: all are right");
};
$w->start($node, 'app', 2);
$rebuilt->('the slot dropped', sub {
    $w->until_done($w->done + 20);
    # in the moment between the end of one projector and the start of the next
    $c->sql(<<SQL);
DO \$\$
BEGIN
  LOOP
    PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '$slot';
    BEGIN
      PERFORM pg_drop_replication_slot('$slot');
      EXIT;
    EXCEPTION WHEN object_in_use THEN
      PERFORM pg_sleep(0.01);
    END;
  END LOOP;
END
\$\$
SQL
    $w->until_done($w->done + 50);
    $w->stop;
});
is(join('', $w->strange_errors), '', 'the writers met no strange errors');

# invalidated by the server: it may keep so little WAL
$rebuilt->('the slot invalidated', sub {
    $c->sql(q(ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'; ), 'postgres');
    $node->reload;
    my $pid = $c->projector;
    kill 'STOP', $pid;
    for (1 .. 3)
    {
        $c->alice('UPDATE fact SET v = v + 1');
        $c->sql('SELECT pg_switch_wal()');
    }
    $c->alice('DELETE FROM fact WHERE id % 10 = 1; UPDATE item SET k = k + 1 WHERE id % 2 = 0');
    my $checkpoint = $c->session(undef, 'postgres');
    $checkpoint->query_until(qr/started/, "\\echo started\nCHECKPOINT;\n");
    # the server ends who holds it
    until_true(sub { $c->sql("SELECT wal_status = 'lost' OR wal_status = 'unreserved' FROM pg_replication_slots WHERE slot_name = '$slot'") eq 't' });
    kill 'CONT', $pid;
    $checkpoint->quit;
});
$c->sql('ALTER SYSTEM RESET max_slot_wal_keep_size', 'postgres');
$node->reload;

# Altered while no projector ran: neither the rewrite of a source nor another
# text of a view is in what is decoded afterwards.
{
    $c->alice('CREATE VIEW some_items AS SELECT id, k FROM item WHERE id < 100');
    ok($c->project(alice => 'm.from_view', 'SELECT k, count(*) AS c FROM app.some_items GROUP BY k'), 'one over a view');
    ok($c->following('m.from_view'), 'it is followed');
    my $libraries = $c->sql('SHOW shared_preload_libraries');
    $node->stop;
    $node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
    $node->start;
    $c->alice('CREATE OR REPLACE VIEW some_items AS SELECT id, k FROM item WHERE id > 50');
    $c->alice('ALTER TABLE fact ALTER v TYPE int USING v + 100');
    $node->stop;
    $node->append_conf('postgresql.conf', "shared_preload_libraries = '$libraries'\n");
    $node->start;
    ok($c->following(@names, 'm.from_view'), 'what was altered while no projector ran is seen');
    $c->same([ @names, 'm.from_view' ], 'and all are right');
    $c->alice(q(SELECT saga.drop_projection('m.from_view')));
}

# dropped while the server was down, as after a restore of its files without it
$rebuilt->('the slot gone', sub {
    $c->alice('UPDATE fact SET v = v + 1');
    $node->stop('immediate');
    PostgreSQL::Test::Utils::system_or_bail('rm', '-rf', $node->data_dir . "/pg_replslot/$slot");
    $node->start;
});

# A projection that lags is given up rather than the disk filled (35).
{
    $c->sql(q(ALTER SYSTEM SET saga.max_slot_lag = '16MB'), 'postgres');
    $node->reload;
    $c->alice(q(SELECT saga.pause_projection('m.list')));
    state_is('m.list', 'paused', 'one is paused');
    $c->alice('CREATE TABLE noise (x text)');
    ok(until_true(sub {
        $c->alice(q(UPDATE item SET k = k + 1; INSERT INTO noise SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 60000); TRUNCATE noise));
        return $c->sql(q(SELECT stale FROM saga.projections WHERE name = 'm.list')) eq 't';
    }), 'its changes are given up past saga.max_slot_lag');
    $c->alice(q(SELECT saga.resume_projection('m.list')));
    ok($c->following(@names), 'resumed, it is rebuilt');
    $c->same(\@names, 'all are right');
    $c->sql('ALTER SYSTEM RESET saga.max_slot_lag', 'postgres');
    $node->reload;
}

# ---- copies ----

# a standby reads what it has; promoted, it brings itself up to date
{
    $node->backup('b');
    my $standby = PostgreSQL::Test::Cluster->new('standby');
    $standby->init_from_backup($node, 'b', has_streaming => 1);
    $standby->start;
    my $s = bless { node => $standby, db => 'app' }, 'ProjectionTest';
    $c->alice('UPDATE fact SET v = v + 1 WHERE id % 2 = 0');
    $c->caught_up($_) for @names;
    my $sum = $c->sql('SELECT sum(v) FROM m.sums');
    ok($s->until("SELECT sum(v) = $sum FROM m.sums"), 'a standby shows the contents');
    $s->refused('alice', q(SET saga.read_consistency = strict; SELECT * FROM m.sums), 'SGC01', qr/standby|recovery/, 'and reads nothing strictly');
    is(scalar($s->worker_pids('saga projector')), 0, 'no projector runs there');
    # changes that the contents do not have yet, at the moment of the failover
    kill 'STOP', $c->projector;
    $c->alice('UPDATE fact SET v = v + 100 WHERE id % 3 = 0; DELETE FROM item WHERE id BETWEEN 50 AND 60');
    $node->wait_for_catchup($standby);
    $node->stop('immediate');
    $standby->promote;
    ok($s->until('SELECT NOT pg_is_in_recovery()'), 'promoted');
    is($s->sql('SELECT count(*) > 0 FROM m.sums'), 't', 'rows are read at once');
    ok($s->following(@names), 'promoted: all are followed again');
    $s->same(\@names, 'and right');
    $s->sql('INSERT INTO app.fact (id, item_id, v) VALUES (9001, 5, 5)');
    $s->same(\@names, 'and go on');
    $standby->stop('immediate');
    $node->start;
    ok($c->following(@names), 'the old one goes on for itself');
    $c->same(\@names, 'and is right');
}

# a dump restored into another database of another server
{
    my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
    $node->command_ok([ 'pg_dump', '-Fc', '-d', $node->connstr('app'), '-f', $dump ], 'dumped');
    my $other = ProjectionTest->new('other', bare => 1, conf => "saga.executors = 1\n");
    $other->sql('CREATE ROLE alice LOGIN; CREATE ROLE carol LOGIN; CREATE DATABASE app', 'postgres');
    $other->{node}->command_ok([ 'pg_restore', '-d', $other->{node}->connstr('app'), $dump ], 'restored');
    # memberships of roles are not in a dump of one database
    $other->sql('GRANT saga_user TO alice, carol');
    is($other->sql('SELECT count(*) > 0 FROM m.sums'), 't', 'restored: rows are read');
    is($other->sql(q(SELECT count(*) FILTER (WHERE state = 'parked' AND reason LIKE '%restored%') FROM saga.projections)), scalar(@names),
        'restored: they wait until all of the dump is there');
    $other->sql("SELECT saga.resume_projection('$_')") for @names;
    ok($other->following(@names), 'restored: all are followed');
    $other->same(\@names, 'and right');
    $other->sql('UPDATE app.fact SET v = v + 1');
    $other->same(\@names, 'and go on');
    $other->{node}->stop;
}

# ---- an idle database ----

for my $i (5 .. 10)
{
    $c->alice("SELECT saga.create_projection('m.more$i', 'SELECT k, count(*) + $i AS c FROM app.item GROUP BY k')");
}
my @ten = (@names, map { "m.more$_" } 5 .. 10);
ok($c->following(@ten), 'ten projections');
$c->same(\@ten, 'all right');
ok($c->until(q(SELECT count(*) = 0 FROM saga.projection WHERE NOT plain)), 'and their views plain');
sub ticks
{
    my $sum = 0;
    for my $pid (map { $c->worker_pids($_) } 'saga projector', 'saga launcher', 'saga coordinator', 'saga executor')
    {
        my @stat = split / /, slurp_file("/proc/$pid/stat") =~ s/^.*\) //r;
        $sum += $stat[11] + $stat[12];
    }
    return $sum;
}
{
    $c->sql('CHECKPOINT');
    # until the server itself has nothing more to write
    my ($lsn, $later) = ('', $c->sql('SELECT pg_current_wal_insert_lsn()'));
    until_true(sub { sleep 2; ($lsn, $later) = ($later, $c->sql('SELECT pg_current_wal_insert_lsn()')); return $lsn eq $later }, 60);
    my $used = ticks();
    sleep 10;    # this is the time that is measured
    my $end = $c->sql('SELECT pg_current_wal_insert_lsn()');
    my $wal = '';
    # the server itself tells standbys now and then which transactions run
    $wal = join '', grep { !/rmgr: Standby/ } split /^/m, qx(pg_waldump -p @{[ $node->data_dir ]}/pg_wal -s $later -e $end 2>&1) if $end ne $later;
    is($wal, '', 'idle: no WAL in ten seconds');
    cmp_ok(ticks() - $used, '<=', 5, 'idle: at most 50 ms of CPU in ten seconds') or diag(ticks() - $used);
}

# ---- the extension goes ----

$c->sql('DROP EXTENSION saga CASCADE');
ok($c->until("SELECT count(*) = 0 FROM pg_replication_slots"), 'no slot stays behind');
$c->alice('UPDATE fact SET v = v + 1');
$c->sql('DROP SCHEMA IF EXISTS saga_data CASCADE; CREATE EXTENSION saga');
$c->alice(q(DROP SCHEMA m CASCADE; CREATE SCHEMA m; SELECT saga.create_projection('m.sums', 'SELECT count(*) AS c FROM app.fact')));
ok($c->following('m.sums'), 'and it can come again');
delete $c->{definition};
$c->same('m.sums', 'and is right');
$node->stop;
done_testing();
