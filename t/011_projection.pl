# Projections: every class of upkeep, and the situations in which a plain idea
# of incremental upkeep goes wrong.
#
# The situations, and where they are staged ("-": not on this release, or no
# test can bring it about):
#
#  1 visible before it is flushed         here (asynchronous commits); 015
#  2 flushed before it is visible         here and 015 (a missing standby)
#  3 visible in another order than committed  here (2), 015
#  4 read your writes                     here, 200 bookmarks under load
#  5 subtransactions, more than fit       here
#  6 prepared transactions                here, 015
#  7 TRUNCATE                             here, 012, 013
#  8 rewrites                             016
#  9 partitions come and go               here
# 10 replica identity                     here, 016
# 11 FULL while transactions run          here
# 12 unchanged values out of line         here
# 13 what cannot be a source              here
# 14 settings                             here
# 15 row security                         016
# 16 creation inside a transaction        here
# 17 read before it is filled             here
# 18 filled while older transactions run  here
# 19 a crash between state and slot       014
# 20 slot ahead of a standby              - (17 and later)
# 21 slot lost, failover                  016
# 22 dump and restore                     016
# 23 epochs of transaction ids            here (the server starts in epoch 3)
# 24 equal and not the same               here, 013
# 25 NULL keys                            here, 013
# 26 duplicates                           here, 013
# 27 float sums                           here
# 28 scale, NaN, infinity                 here, 013
# 29 overflow on the way                  here
# 30 results the query leaves open        here
# 31 anomalies of SERIALIZABLE            - (documented)
# 32 decoding and SQL in one process      all
# 33 large and small deltas               here, 012
# 34 our own writes                       here
# 35 WAL kept for one that lags           016
# 36 a huge transaction                   here
# 37 a standby                            016
# 38 columns come and go                  016
# 39 COPY FREEZE                          here
# 40 remote sources                       - (not yet)
use strict;
use warnings;
use lib 't/lib';
use ProjectionTest;
use RandomQuery;
use SagaTest;
use Test::More;
use Writers;

my $rq = RandomQuery->new(seed => 11);
my $c = ProjectionTest->new('c', stopped => 1, conf => "saga.executors = 1\n");
my $node = $c->{node};

# transaction ids beyond 32 bits (23)
PostgreSQL::Test::Utils::system_or_bail('pg_resetwal', '-e', '3', '-D', $node->data_dir);
$node->start;
$c->make_app;
cmp_ok($c->sql('SELECT pg_current_xact_id()'), '>', 2**32 * 3, 'transaction ids are in a later epoch');

$c->sql('GRANT CREATE ON DATABASE app TO alice');
$c->alice($rq->schema . "SET search_path = rq;\n" . Writers->new(tables => { $rq->tables })->fill . 'CREATE SCHEMA m;');

# ---- each class ----

# name => [class, query]
my %query = (
    filtered => [ 'delta', q{SELECT id, k * 2 AS k2, g FROM item WHERE n > 3 OR b} ],
    keyless => [ 'delta', q{SELECT k, s, m FROM dup WHERE k < 8} ],
    joined => [ 'delta', q{SELECT i.g, f.s, f.v FROM item i JOIN fact f ON f.item_id = i.id} ],
    self_join => [ 'delta', q{SELECT a.k AS k, a.s AS s1, b.s AS s2 FROM dup a JOIN dup b ON a.k = b.k} ],
    three => [ 'delta', q{SELECT i.g, f.s, d.m FROM item i, fact f, dup d WHERE f.item_id = i.id AND d.k = f.k AND d.s > 'a'} ],
    crossed => [ 'delta', q{SELECT t.name, i.id FROM tiny t CROSS JOIN item i WHERE i.id < 10} ],
    union_all => [ 'delta', q{SELECT k, s FROM fact UNION ALL SELECT k, s FROM dup UNION ALL SELECT k, g FROM item} ],
    from_view => [ 'delta', q{SELECT g, v FROM v_fact WHERE v > 0} ],
    from_parts => [ 'delta', q{SELECT id, k, s, n, at FROM part} ],
    one_part => [ 'delta', q{SELECT id, s FROM part_low} ],
    with_cte => [ 'delta', q{WITH c AS (SELECT id, k FROM item WHERE b) SELECT c.id, t.name FROM c JOIN tiny t ON t.k = c.k} ],
    sums => [ 'delta', q{SELECT k, count(*) AS c, count(n) AS cn, sum(n) AS s, avg(n) AS a, sum(id) AS si FROM item GROUP BY k} ],
    sums_join => [ 'delta', q{SELECT i.g, count(*) AS c, sum(f.v) AS v FROM item i JOIN fact f ON f.item_id = i.id GROUP BY i.g} ],
    scalar => [ 'delta', q{SELECT count(*) AS c, sum(v) AS v, avg(k) AS a FROM fact} ],
    filters => [ 'delta', q{SELECT s, count(*) FILTER (WHERE v > 5) AS c, sum(v) FILTER (WHERE k IS NULL) AS v FROM fact GROUP BY s} ],
    had => [ 'delta', q{SELECT k, sum(v) + 2 * count(*) AS x FROM fact GROUP BY k HAVING count(*) > 3} ],
    bools => [ 'delta', q{SELECT g, bool_and(b) AS a, bool_or(b) AS o, every(k > 2) AS e FROM item GROUP BY g} ],
    spread => [ 'delta', q{SELECT g, var_samp(n) AS v, stddev_pop(k) AS s FROM item GROUP BY g} ],
    by_expression => [ 'delta', q{SELECT extract(year FROM d) AS y, extract(month FROM d) AS mo, sum(n) AS n FROM item GROUP BY 1, 2} ],
    by_null => [ 'delta', q{SELECT k, s, count(*) AS c FROM dup GROUP BY k, s} ],
    distinct_rows => [ 'distinct', q{SELECT DISTINCT k, s FROM dup} ],
    distinct_join => [ 'distinct', q{SELECT DISTINCT i.g, f.s FROM item i JOIN fact f ON f.item_id = i.id} ],
    united => [ 'distinct', q{SELECT k, s FROM fact UNION SELECT k, s FROM dup} ],
    common => [ 'distinct', q{SELECT k, s FROM fact INTERSECT SELECT k, s FROM dup} ],
    common_all => [ 'distinct', q{SELECT k, s FROM fact INTERSECT ALL SELECT k, s FROM dup} ],
    less => [ 'distinct', q{SELECT k, s FROM fact EXCEPT SELECT k, s FROM dup} ],
    less_all => [ 'distinct', q{SELECT k FROM fact EXCEPT ALL SELECT k FROM dup} ],
    counted => [ undef, q{SELECT k, count(DISTINCT s) AS c FROM dup GROUP BY k} ],
    extremes => [ 'min/max', q{SELECT k, min(v) AS lo, max(s) AS hi, count(*) AS c FROM fact GROUP BY k} ],
    extreme => [ 'min/max', q{SELECT max(d) AS d, min(n) AS n FROM item} ],
    lists => [ 'group recompute', q{SELECT k, string_agg(s, ',' ORDER BY s) AS s, array_agg(id ORDER BY id) AS i FROM fact GROUP BY k} ],
    medians => [ 'group recompute', q{SELECT k, percentile_disc(0.5) WITHIN GROUP (ORDER BY v) AS p FROM fact GROUP BY k} ],
    floats => [ 'group recompute', q{SELECT k, sum(f) AS f, avg(f) AS a FROM fact GROUP BY k} ],
    scales => [ undef, q{SELECT m, count(*) AS c FROM dup GROUP BY m} ],
    scale_sums => [ undef, q{SELECT k, sum(m) AS s, avg(m) AS a FROM dup GROUP BY k} ],
    cases => [ undef, q{SELECT ci, count(*) AS c, max(ci) AS x FROM pair GROUP BY ci} ],
    distinct_cases => [ undef, q{SELECT DISTINCT ci, m FROM pair} ],
    rolled => [ undef, q{SELECT g, k, count(*) AS c, sum(n) AS n FROM item GROUP BY ROLLUP (g, k)} ],
    left_join => [ 'key recompute', q{SELECT i.id, i.g, f.s, f.v FROM item i LEFT JOIN fact f ON f.item_id = i.id AND f.v > 0} ],
    right_join => [ 'key recompute', q{SELECT i.g, f.id FROM item i RIGHT JOIN fact f ON f.item_id = i.id} ],
    full_join => [ 'key recompute', q{SELECT i.g, f.s, d.m FROM fact f FULL JOIN item i ON i.id = f.item_id LEFT JOIN dup d ON d.k = f.k} ],
    left_sums => [ undef, q{SELECT i.id, count(f.id) AS c, sum(f.v) AS v FROM item i LEFT JOIN fact f ON f.item_id = i.id GROUP BY i.id} ],
    there => [ 'key recompute', q{SELECT id, g FROM item i WHERE EXISTS (SELECT FROM fact f WHERE f.item_id = i.id AND f.v > 3)} ],
    not_there => [ 'key recompute', q{SELECT id, g FROM item i WHERE NOT EXISTS (SELECT FROM fact f WHERE f.item_id = i.id)} ],
    among => [ 'key recompute', q{SELECT id FROM item WHERE k IN (SELECT k FROM tiny)} ],
    not_among => [ 'key recompute', q{SELECT id, k FROM item WHERE k NOT IN (SELECT k FROM dup WHERE s = 'a')} ],
    looked_up => [ 'key recompute', q{SELECT id, (SELECT max(v) FROM fact f WHERE f.item_id = i.id) AS v FROM item i} ],
    above_mean => [ undef, q{SELECT id, v FROM fact WHERE v > (SELECT avg(v) FROM fact)} ],
    ranked => [ 'key recompute', q{SELECT id, k, rank() OVER (PARTITION BY k ORDER BY v, id) AS r, sum(v) OVER (PARTITION BY k) AS s FROM fact} ],
    first_of => [ 'key recompute', q{SELECT DISTINCT ON (k) k, id, v FROM fact ORDER BY k, v DESC, id} ],
    top_two => [ 'key recompute', q{SELECT t.k, x.id FROM tiny t CROSS JOIN LATERAL (SELECT id FROM fact f WHERE f.k = t.k ORDER BY id LIMIT 2) x} ],
    whole_window => [ 'full diff', q{SELECT id, row_number() OVER (ORDER BY id) AS r FROM item} ],
    chain => [ 'full diff', q{WITH RECURSIVE r (id, up) AS (SELECT id, item_id FROM fact WHERE k = 1
        UNION SELECT f.id, f.item_id FROM r JOIN fact f ON f.id = r.up) SELECT id, up FROM r} ],
    top_ten => [ undef, q{SELECT k, sum(v) AS v FROM fact GROUP BY k ORDER BY sum(v) DESC NULLS LAST, k LIMIT 5} ],
    limit_inside => [ 'full diff', q{SELECT g, count(*) AS c FROM (SELECT g FROM item ORDER BY id LIMIT 10) x GROUP BY g} ],
    nested => [ undef, q{SELECT c, count(*) AS n FROM (SELECT k, count(*) AS c FROM dup GROUP BY k) x GROUP BY c} ],
    both_sides => [ undef, q{SELECT a.k, a.c, b.v FROM (SELECT k, count(*) AS c FROM dup GROUP BY k) a
        JOIN (SELECT k, sum(v) AS v FROM fact GROUP BY k) b ON a.k = b.k} ],
    sums_of_union => [ undef, q{SELECT k, sum(x) AS x FROM (SELECT k, v::numeric AS x FROM fact UNION ALL SELECT k, m FROM dup) u GROUP BY k} ],
    no_columns => [ 'delta', q{SELECT count(*) AS c FROM item, tiny} ],
);
my @names = map { "m.$_" } sort keys %query;

# One that is in no transaction that has committed: its creator reads it (17).
my $first = $c->session('alice');
$first->query_safe('SET search_path = rq; BEGIN');
$first->query_safe(q{INSERT INTO tiny VALUES (90, 'mine') ON CONFLICT DO NOTHING});
$first->query_safe(q{SELECT saga.create_projection('m.early', 'SELECT k, name FROM tiny')});
is($first->query_safe(q{SELECT name FROM m.early WHERE k = 90}), 'mine', 'a projection is read in the transaction that makes it');

# Creation does not wait for that one, nor it for others (16).
my $refused = '';
for my $name (sort keys %query)
{
    my ($code, $err) = $c->try_project('alice', "m.$name", $query{$name}[1], search_path => 'rq');
    $refused .= "$name: $err" if $code;
}
is($refused, '', scalar(@names) . ' projections are made while a transaction runs');
$first->query_safe('COMMIT');
push @names, 'm.early';
$c->same(\@names, 'they are right at once');
ok($c->following(@names), 'they are filled and followed');
$c->exact(\@names, 'they are exact when filled');
my $classes = $c->sql('SELECT name, class FROM saga.projections');
my %class = map { my ($n, $k) = /^m\.(.*)\|(.*)$/; ($n => $k) } split /\n/, $classes;
is(join("\n", map { "$_: $class{$_}, not $query{$_}[0]" } grep { defined $query{$_}[0] && $class{$_} ne $query{$_}[0] } sort keys %query),
    '', 'each has its class');

# ---- single changes ----

sub after
{
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($what, $sql) = @_;
    $c->alice("SET search_path = rq;\n$sql");
    # what is altered is compared anew, and stale until then
    if ($sql =~ /ALTER|CREATE|DROP/)
    {
        $c->alice('UPDATE rq.item SET k = k WHERE id < 20');
        $c->settled(@names);
    }
    return $c->same(\@names, "after $what");
}

after('nothing that changes', 'UPDATE item SET k = k; UPDATE dup SET m = m; BEGIN; DELETE FROM tiny; ROLLBACK;');
after('the same row in and out', q{BEGIN; INSERT INTO item (id, k, g) VALUES (900, 1, 'a'); UPDATE item SET k = 2 WHERE id = 900;
    DELETE FROM item WHERE id = 900; COMMIT;});
after('duplicates', q{INSERT INTO dup SELECT * FROM dup; INSERT INTO dup VALUES (1, 'a', 1), (1, 'a', 1.0), (1, 'a', 1.00);});
after('one of three equal rows', q{DELETE FROM dup WHERE ctid = (SELECT min(ctid) FROM dup WHERE k = 1 AND s = 'a' AND m = 1);});
after('the first of equal values that are not the same', q{DELETE FROM dup WHERE m::text = '1.0'; UPDATE pair SET ci = upper(ci) WHERE x < 5; DELETE FROM pair WHERE ci::text COLLATE "C" = 'RED';});
after('NULLs', q{UPDATE fact SET k = NULL WHERE k = 2; UPDATE dup SET k = NULL, s = NULL WHERE k = 3; UPDATE item SET k = 3 WHERE k IS NULL; INSERT INTO dup VALUES (NULL, 'a', NULL);});
after('not a number', q{INSERT INTO dup VALUES (4, 'a', 'NaN'), (4, 'b', 'Infinity'), (5, 'c', '-Infinity');});
after('numbers again', q{DELETE FROM dup WHERE m = 'NaN'; DELETE FROM dup WHERE abs(m) = 'Infinity';});
after('a scale that goes', q{INSERT INTO dup VALUES (6, 'z', 1.123456789); DELETE FROM dup WHERE m = 1.123456789;});
after('large numbers', q{INSERT INTO fact (id, k, s, v) VALUES (901, 7, 'q', 9223372036854775807), (902, 7, 'q', 9223372036854775807); UPDATE fact SET v = -9223372036854775807 WHERE id = 901;});
after('large numbers gone', q{DELETE FROM fact WHERE id > 900;});
after('negative zero', q{UPDATE fact SET f = '-0' WHERE id % 3 = 0;});
after('an empty table', q{DELETE FROM fact;});
after('a row in an empty table', q{INSERT INTO fact VALUES (1, 1, 1, 'a', 1, 1);});
after('TRUNCATE', 'TRUNCATE tiny;');
after('TRUNCATE between changes', q{BEGIN; INSERT INTO dup VALUES (1, 'x', 1); TRUNCATE dup, tiny; INSERT INTO dup VALUES (1, 'a', 1), (2, 'b', 2); INSERT INTO tiny VALUES (1, 'a'), (2, 'b'); COMMIT;});
after('TRUNCATE undone', q{BEGIN; SAVEPOINT s; TRUNCATE item; ROLLBACK TO s; UPDATE item SET g = 'b' WHERE id < 9; COMMIT;});
after('TRUNCATE of a partition', 'TRUNCATE part_low;');
after('rows again', Writers->new(seed => 5, tables => { $rq->tables })->fill);
after('moves between partitions', q{UPDATE part SET id = id + 30 WHERE id < 30; UPDATE part SET s = CASE WHEN s = 'a' THEN 'x' ELSE 'a' END WHERE id < 60;});
after('a new partition with rows', q{CREATE TABLE part_old (LIKE part); INSERT INTO part_old SELECT -i, i % 5, 'a', i, NULL FROM generate_series(1, 20) i;
    ALTER TABLE part_old REPLICA IDENTITY FULL; ALTER TABLE part ATTACH PARTITION part_old FOR VALUES FROM (-100) TO (0);});
after('changes in it', q{UPDATE part SET k = 9 WHERE id < 0; DELETE FROM part_old WHERE id = -3; INSERT INTO part VALUES (-50, 1, 'b', 1, NULL);});
after('it detached', 'ALTER TABLE part DETACH PARTITION part_old;');
after('changes there that concern nobody', 'DELETE FROM part_old; INSERT INTO part VALUES (1, 1, NULL, 3, NULL);');
after('a partition dropped', 'BEGIN; DROP TABLE part_mid_z; CREATE TABLE part_mid_y PARTITION OF part_mid DEFAULT; ALTER TABLE part_mid_y REPLICA IDENTITY FULL; COMMIT;');
after('a view replaced', 'CREATE OR REPLACE VIEW v_item AS SELECT id, g, k FROM item WHERE b IS NOT TRUE;');
after('more subtransactions than a backend shows', q{DO $$ BEGIN FOR i IN 1 .. 150 LOOP
    BEGIN INSERT INTO fact (id, k, s, v) VALUES (1000 + i, i % 7, 'a', i); IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$;});
after('a merge of them', q{DELETE FROM fact WHERE id >= 1000;});

# A superuser may read a file: frozen rows are visible to older snapshots, too (39).
$c->sql(qq{BEGIN; TRUNCATE rq.tiny; COPY rq.tiny FROM PROGRAM 'printf "7,seven\\n8,eight\\n"' WITH (FORMAT csv, FREEZE); COMMIT});
$c->same(\@names, 'after COPY FREEZE');

# ---- who is visible when ----

# a long transaction while others commit (3, 18)
{
    my $long = $c->session('alice');
    $long->query_safe('SET search_path = rq; BEGIN; UPDATE item SET n = n + 1 WHERE id < 30; INSERT INTO dup VALUES (1, \'long\', 1)');
    $c->alice("SET search_path = rq; UPDATE fact SET v = v + 1; INSERT INTO dup VALUES (1, 'short', 1)");
    $c->same(\@names, 'with a transaction open');
    ok($c->project(alice => 'm.later', 'SELECT i.k, count(*) AS c, sum(i.n) AS n FROM rq.item i JOIN rq.dup d ON d.k = i.k GROUP BY i.k'),
        'one is made meanwhile');
    push @names, 'm.later';
    $c->alice("SET search_path = rq; UPDATE dup SET m = 5 WHERE s = 'short'");
    $c->same(\@names, 'and is right');
    $long->query_safe('UPDATE item SET n = n + 1 WHERE id > 40; COMMIT');
    $long->quit;
    $c->same(\@names, 'with that transaction committed');
    ok($c->following('m.later'), 'one made while a transaction was open is followed');
    $c->exact(\@names, 'and all are exact');
}

# prepared transactions (6)
$c->alice(q{SET search_path = rq; BEGIN; UPDATE item SET g = 'p' WHERE id % 2 = 0; SAVEPOINT s; DELETE FROM dup WHERE k = 1; ROLLBACK TO s; PREPARE TRANSACTION 'p1'});
$c->alice(q{SET search_path = rq; UPDATE fact SET v = v * 2 WHERE v < 1000; BEGIN; DELETE FROM pair; PREPARE TRANSACTION 'p2'});
$c->same(\@names, 'with transactions prepared');
$c->sql(q{COMMIT PREPARED 'p1'});
$c->sql(q{ROLLBACK PREPARED 'p2'});
$c->same(\@names, 'with one of them committed, the other rolled back');

# A commit that waits for a standby is in the WAL and not visible; what
# commits after it is visible (2, 3).
{
    $c->sql(q(ALTER SYSTEM SET synchronous_standby_names = 'missing'), 'postgres');
    $node->reload;
    $c->until(q(SELECT setting = 'missing' FROM pg_settings WHERE name = 'synchronous_standby_names'));
    my $waiting = $c->session('alice');
    $waiting->query_until(qr/started/, "\\echo started\nSET search_path = rq; BEGIN; UPDATE item SET n = n + 100, k = 1 WHERE id < 20; UPDATE fact SET item_id = 5 WHERE id < 10; COMMIT;\n");
    ok($c->until(q(SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'alice')), 'a commit waits for a standby');
    $c->alice(q(SET synchronous_commit = local; SET search_path = rq; UPDATE item SET k = 2 WHERE id > 30; UPDATE fact SET v = 7 WHERE id > 40));
    $c->alice(q(SET synchronous_commit = off; SET search_path = rq; INSERT INTO dup VALUES (2, 'off', 2)));
    $c->exact(\@names, 'exact while a commit waits for a standby');
    is($c->sql(q(SELECT count(*) FROM m.filtered f JOIN rq.item i USING (id) WHERE f.k2 IS DISTINCT FROM i.k * 2)), '0', 'and shows nothing that is not visible');
    is($c->sql(q(SET synchronous_commit = local; SELECT saga.wait_for_projection('m.sums', at => saga.bookmark(), timeout => '100 ms'))), 'f',
        'a bookmark behind that commit is not reached');
    $c->sql(q(ALTER SYSTEM RESET synchronous_standby_names), 'postgres');
    $node->reload;
    $waiting->query_safe('SELECT 1');
    $waiting->quit;
    $c->same(\@names, 'and follows when it is visible');
}

# Read your own writes, while others write (4), though not to that table: their
# deletes would take it away again.
$c->alice('CREATE TABLE rq.mine (id int PRIMARY KEY); ALTER TABLE rq.mine REPLICA IDENTITY FULL');
ok($c->project(alice => 'm.mine', 'SELECT id FROM rq.mine') && $c->following('m.mine'), 'one over a table of our own');
push @names, 'm.mine';
{
    my $w = Writers->new(seed => 21, tables => { $rq->tables }, truncate => 0);
    $w->start($node, 'app', 3);
    my $wrong = 0;
    my $sql = "SET search_path = rq;\n";
    for my $i (1 .. 200)
    {
        $sql .= "INSERT INTO mine VALUES ($i);\n"
          . "SELECT saga.wait_for_projection('m.mine', at => saga.bookmark(), timeout => '60 s');\n"
          . "SELECT count(*) FROM m.mine WHERE id = $i;\n";
    }
    my $out = $c->alice($sql);
    my @lines = split /\n/, $out;
    is(scalar(grep { $_ eq 't' } @lines), 200, 'bookmarks are reached while others write');
    is(scalar(grep { $_ eq '1' } @lines), 200, 'and what was written before is read');
    $w->stop;
    is(join('', $w->strange_errors), '', 'the writers met no strange errors');
    $c->same(\@names, 'after them');
}

# A transaction much larger than the others (33, 36).  Among its rows are many
# of 1 and 1.0, equal and not the same, that sorts of various sizes leave in
# various orders: those of full_join are to be told apart for all that.
$c->alice(q{SET search_path = rq; INSERT INTO fact SELECT 100000 + i, i % 90, i % 40, chr(97 + i % 20), i, i / 4.0 FROM generate_series(1, 30000) i});
$c->same([ grep { !/self_join|three|crossed|chain/ } @names ], 'after a large transaction');
$c->alice('DELETE FROM rq.fact WHERE id >= 100000');
$c->same(\@names, 'after another that undoes it');
$c->exact(\@names, 'exact after all that');

# ---- values out of line (12), generated and dropped columns ----

$c->alice(<<'SQL');
SET search_path = app;
CREATE TABLE doc (id int PRIMARY KEY, gone int, k int, body text, twice int GENERATED ALWAYS AS (k * 2) STORED);
ALTER TABLE doc ALTER body SET STORAGE EXTERNAL, DROP gone, REPLICA IDENTITY FULL;
INSERT INTO doc (id, k, body) SELECT i, i % 3, repeat(md5(i::text), 200) FROM generate_series(1, 20) i;
SELECT saga.create_projection('m.doc', 'SELECT id, k, twice, length(body) AS l, body FROM doc');
SELECT saga.create_projection('m.doc_sums', 'SELECT k, count(*) AS c, max(body) AS b, sum(length(body)) AS l FROM doc GROUP BY k');
SELECT saga.create_projection('m.doc_joined', 'SELECT a.id, b.body FROM doc a JOIN doc b ON b.id = a.id + 1');
SQL
my @doc = qw(m.doc m.doc_sums m.doc_joined);
ok($c->following(@doc), 'values out of line are followed');
for my $sql ('UPDATE doc SET k = k + 1', 'UPDATE doc SET body = body || id::text WHERE k = 2', 'UPDATE doc SET id = id + 100 WHERE id < 5',
    'DELETE FROM doc WHERE k = 1', "BEGIN; UPDATE doc SET k = 7; UPDATE doc SET body = 'short' WHERE id = 6; UPDATE doc SET k = 8; COMMIT")
{
    $c->alice("SET search_path = app; $sql");
    $c->same(\@doc, "after $sql");
}

# ---- what is said no to ----

$c->sql(<<'SQL');
CREATE EXTENSION IF NOT EXISTS file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE app.foreign_t (k int) SERVER files OPTIONS (filename '/dev/null');
ALTER FOREIGN TABLE app.foreign_t OWNER TO alice;
SQL
$c->alice(<<'SQL');
SET search_path = app;
CREATE TABLE t (id int PRIMARY KEY, k int, at timestamptz, s text);
CREATE UNLOGGED TABLE unlogged_t (k int);
CREATE MATERIALIZED VIEW mat AS SELECT 1 AS k;
CREATE FUNCTION changes(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT $1';
CREATE FUNCTION looks(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT k FROM app.t WHERE id = $1';
SQL
my @no = (
    [ 'SELECT id, k FROM t', '55000', qr/REPLICA IDENTITY FULL/, 'a table without the replica identity, with the statement to write' ],
    [ 'SELECT k FROM unlogged_t', '0A000', qr/unlogged/i, 'an unlogged table' ],
    [ 'SELECT k FROM mat', '0A000', qr/materialized/i, 'a materialized view' ],
    [ 'SELECT k FROM foreign_t', '0A000', qr/foreign/i, 'a foreign table' ],
    [ 'SELECT relname FROM pg_class', '0A000', qr/catalog|system/i, 'a catalog' ],
    [ 'SELECT id, changes(k) AS k FROM t', '0A000', qr/volatile/i, 'a volatile function' ],
    [ 'SELECT id, looks(k) AS k FROM t', '0A000', qr/stable/i, 'a function that reads' ],
    [ 'SELECT id, random() AS r FROM t', '0A000', qr/volatile|random/i, 'random()' ],
    [ 'SELECT id FROM t WHERE at > now()', '0A000', qr/now/i, 'now()' ],
    [ 'SELECT id, at::date AS d FROM t', '0A000', qr/TimeZone|time zone/i, 'what depends on TimeZone' ],
    [ 'SELECT id, at::text AS d FROM t', '0A000', qr/TimeZone|DateStyle/i, 'what depends on DateStyle' ],
    [ q(SELECT id, date_trunc('day', at) AS d FROM t), '0A000', qr/TimeZone|time zone/i, 'date_trunc of a timestamp with time zone' ],
    [ q(SELECT id, to_char(at, 'YYYY') AS d FROM t), '0A000', qr/./, 'to_char' ],
    [ 'SELECT id FROM t TABLESAMPLE SYSTEM (10)', '0A000', qr/TABLESAMPLE/i, 'a sample' ],
    [ 'SELECT id FROM t FOR UPDATE', '0A000', qr/FOR UPDATE/i, 'row locks' ],
    [ 'SELECT id, xmin::text AS x FROM t', '0A000', qr/system column/i, 'system columns' ],
    [ 'SELECT id, id FROM t', '42701', qr/twice/i, 'a name twice' ],
    [ 'SELECT id, 1 FROM t', qr/^(?:0A000|42...)$/, qr/\?column\?|name/i, 'a column without a name' ],
    [ 'SELECT nothing FROM t', '42703', qr/nothing/, 'an unknown column' ],
    [ 'SELECT id FROM nowhere', '42P01', qr/nowhere/, 'an unknown table' ],
    [ 'SELEC id FROM t', '42601', qr/SELEC/, 'what does not parse' ],
    [ 'SELECT id FROM t; SELECT 1', qr/^(?:42601|0A000|42P11)$/, qr/./, 'two statements' ],
    [ 'DELETE FROM t RETURNING id', qr/^(?:0A000|42601|42P11)$/, qr/./, 'no SELECT' ],
    [ 'WITH d AS (DELETE FROM t RETURNING id) SELECT id FROM d', qr/^(?:0A000|42601)$/, qr/./, 'a data-modifying WITH' ],
    [ 'SELECT id INTO x FROM t', qr/^(?:0A000|42601|42P11)$/, qr/./, 'SELECT INTO' ],
    [ '', qr/^(?:0A000|42601|22023|42P11)$/, qr/./, 'nothing' ]);
for my $case (@no)
{
    my ($query, $want, $text, $what) = @$case;
    my ($code, $err) = $c->try_project('alice', 'm.no', $query, search_path => 'app');
    my $ok = (ref $want ? $code =~ $want : $code eq $want) && $err =~ $text;
    ok($ok, "refused: $what") or diag("expected $want $text, got " . ($code || 'no error') . "\n$err");
    $c->alice(q(SELECT saga.drop_projection('m.no'))) if $code eq '';
}
$c->refused('alice', q(SELECT saga.create_projection('m.no', 'SELECT id, k FROM app.t', require_class => 'nonsense')), '22023', qr/class/, 'refused: a class there is not');
$c->refused('alice', q(SELECT saga.create_projection('m.no', 'SELECT i.id, f.s FROM rq.item i LEFT JOIN rq.fact f ON f.item_id = i.id', require_class => 'delta')),
    '0A000', qr/delta/, 'refused: dearer than the class required');
$c->refused('alice', q(SELECT saga.create_projection('m.sums', 'SELECT k FROM rq.tiny')), '42P07', qr/exists/, 'refused: a name that is taken');
is($c->sql(q(SELECT count(*) FROM saga.projection WHERE view::text = 'm.no')), '0', 'nothing remains of what was refused');

# the identity is set where that is asked for, also while transactions run (10, 11)
{
    my $running = $c->session('alice');
    $c->alice('INSERT INTO app.t SELECT i, i % 3, NULL, chr(97 + i) FROM generate_series(1, 10) i');
    $running->query_safe('BEGIN; INSERT INTO rq.dup VALUES (1, \'y\', 1)');
    ok($c->project(alice => 'm.t', 'SELECT k, count(*) AS c, min(s) AS s FROM app.t GROUP BY k', replica_identity => q('full')), 'replica identity set on demand');
    is($c->sql(q(SELECT relreplident FROM pg_class WHERE oid = 'app.t'::regclass)), 'f', 'it is FULL');
    $running->query_safe('UPDATE app.t SET k = 5 WHERE id = 3; DELETE FROM app.t WHERE id = 4; COMMIT');
    $running->quit;
    $c->same('m.t', 'and the projection is right');
}

# a search path and settings of the creator are those of upkeep (14)
$c->alice(<<'SQL');
CREATE SCHEMA other;
CREATE TABLE other.t (id int PRIMARY KEY, k int, v text);
ALTER TABLE other.t REPLICA IDENTITY FULL;
CREATE FUNCTION other.same(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 + 1; END';
SET search_path = other;
INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b');
SELECT saga.create_projection('m.path', 'SELECT id, same(k) AS k, v FROM t');
SQL
$c->alice(q{SET search_path = other; INSERT INTO t VALUES (3, 3, 'c'); UPDATE t SET k = 9 WHERE id = 1});
$c->same('m.path', 'names are those of the creator');

# results that the query leaves open are said to be so (30)
$c->alice(q(SELECT saga.create_projection('m.open', 'SELECT k, array_agg(s) AS s FROM rq.dup GROUP BY k')));
is($c->sql(q(SELECT deterministic FROM saga.projections WHERE name = 'm.open')), 'f', 'an order left open is told');
is($c->sql(q(SELECT deterministic FROM saga.projections WHERE name = 'm.sums')), 't', 'others are not');
$c->alice(q(SELECT saga.drop_projection('m.open')));

# ---- what others see of it (34) ----

$c->sql(q(SELECT pg_create_logical_replication_slot('downstream', 'test_decoding')));
$c->alice(q(SET search_path = rq; UPDATE fact SET v = v + 1; INSERT INTO dup VALUES (3, 'seen', 3)));
$c->caught_up($_) for @names;
is($c->sql(q(SELECT count(*) FILTER (WHERE data LIKE '%table saga_data.%' OR data LIKE '%table saga.feed:%'), count(*) > 0 FROM pg_logical_slot_get_changes('downstream', NULL, NULL, 'only-local', '1'))),
    '0|t', 'other subscribers can leave out what we write');
$c->sql(q(SELECT pg_drop_replication_slot('downstream')));

# ---- the read model is a table with indexes ----

$c->alice(q(SELECT saga.create_projection('m.indexed', 'SELECT k, g, sum(n) AS total FROM rq.item GROUP BY k, g', indexes => '{g, "total DESC"}')));
ok($c->following('m.indexed'), 'one with indexes');
$c->alice('ANALYZE');
ok($c->until(q(SELECT plain FROM saga.projection WHERE view::text = 'm.indexed')), 'its view becomes plain');
like($c->alice(q(SET enable_seqscan = off; SET enable_bitmapscan = off; EXPLAIN SELECT * FROM m.indexed WHERE g = 'a')), qr/Index.*Scan/, 'its indexes are used');
$c->refused('alice', q(SELECT saga.create_projection('m.no', 'SELECT k FROM rq.item', indexes => '{missing}')), '42703', qr/missing/, 'an index on what is not there is refused');
for my $verb ("INSERT INTO m.indexed VALUES (1, 'a', 1)", 'UPDATE m.indexed SET g = 1', 'DELETE FROM m.indexed')
{
    my ($code) = $c->try('alice', $verb);
    isnt($code, '', "a projection is not written to: $verb");
}
$c->alice(q(SELECT saga.drop_projection('m.indexed')));
is($c->sql(q(SELECT count(*) FROM pg_class WHERE relnamespace = 'saga_data'::regnamespace AND relkind = 'r'
    AND relname !~ (SELECT '^p(' || string_agg(id::text, '|') || ')_' FROM saga.projection))), '0', 'nothing is left behind by those dropped');
$c->exact(\@names, 'exact at the end');
$node->stop;
done_testing();
