--
-- Projections as sessions see them: arguments, rights, names, states, reading.
-- Needs no projector: all are paused before it can see them, and a fill is
-- feigned.
--
\set SHOW_CONTEXT never
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS saga;
-- newer minor releases let the administrator say which libraries may decode
DO $$
BEGIN
    PERFORM set_config(name, 'pgoutput, saga', false) FROM pg_settings WHERE name = 'output_plugin_libraries';
END
$$;
CREATE ROLE regress_proj_owner;
CREATE ROLE regress_proj_heir;
CREATE ROLE regress_proj_reader;
CREATE ROLE regress_proj_other;
GRANT saga_user TO regress_proj_owner, regress_proj_heir, regress_proj_other;
CREATE SCHEMA regress_proj AUTHORIZATION regress_proj_owner;
GRANT USAGE ON SCHEMA regress_proj TO regress_proj_heir, regress_proj_reader, regress_proj_other;
SET search_path = regress_proj;
RESET client_min_messages;

SET ROLE regress_proj_owner;
CREATE TABLE sales (id bigint PRIMARY KEY, day date, amount integer);
CREATE TABLE keyed (id bigint PRIMARY KEY, v text);
CREATE TABLE parted (id bigint, v text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20);
ALTER TABLE parted_2 REPLICA IDENTITY FULL;
INSERT INTO sales SELECT n, date '2026-01-01' + n % 3, n FROM generate_series(1, 9) n;

-- ---- arguments ----
SELECT saga.create_projection(NULL, 'SELECT id FROM keyed');
SELECT saga.create_projection('p', NULL);
SELECT saga.create_projection('p', 'SELECT id FROM keyed', consistency => NULL);
SELECT saga.create_projection('p', 'SELECT id FROM keyed', consistency => 'Strict');
SELECT saga.create_projection('p', 'SELECT id FROM keyed', replica_identity => 'none');
SELECT saga.create_projection('p', 'SELECT id FROM keyed', require_class => 'cheap');
SELECT saga.create_projection('p', 'SELECT id FROM keyed', max_lag => '0');
SELECT saga.create_projection('p', 'SELECT id FROM keyed', indexes => ARRAY[NULL]);
SELECT saga.create_projection('p', 'SELECT id FROM keyed', indexes => '{nix}');
SELECT saga.create_projection('', 'SELECT id FROM keyed');
SELECT saga.create_projection('a.b.c.d', 'SELECT id FROM keyed');
SELECT saga.create_projection('nowhere.p', 'SELECT id FROM keyed');
SELECT saga.create_projection('pg_temp.p', 'SELECT id FROM keyed');
SELECT saga.create_projection('sales', 'SELECT id FROM keyed');
SELECT saga.create_projection('saga.p', 'SELECT id FROM keyed');
SELECT saga.create_projection('p', 'SELECT id FROM nowhere');
SELECT saga.create_projection('p', 'SELECT 1; SELECT 2');
SELECT saga.create_projection('p', 'DELETE FROM keyed');

-- ---- replica identity ----
\set VERBOSITY default
SELECT saga.create_projection('p', 'SELECT day, sum(amount) AS amount FROM sales GROUP BY day');
SELECT saga.create_projection('p', 'SELECT v, count(*) AS n FROM parted GROUP BY v');
\set VERBOSITY terse
-- the key is all that this one uses
BEGIN;
SELECT saga.create_projection('p', 'SELECT id FROM keyed');
ROLLBACK;
SET ROLE regress_proj_other;
SELECT saga.create_projection('p', 'SELECT id FROM keyed');
RESET ROLE;
GRANT CREATE ON SCHEMA regress_proj TO regress_proj_other, regress_proj_heir;
GRANT SELECT ON sales TO regress_proj_other;
SET ROLE regress_proj_other;
SELECT saga.create_projection('p', 'SELECT day, sum(amount) AS amount FROM sales GROUP BY day', replica_identity => 'full');
SET ROLE regress_proj_owner;
SELECT relreplident FROM pg_class WHERE oid = 'sales'::regclass;

-- ---- made, and read ----
BEGIN;
SELECT saga.create_projection('daily', 'SELECT day, sum(amount) AS amount FROM sales GROUP BY day',
    indexes => '{day,"amount DESC"}', replica_identity => 'full', max_lag => '1 hour');
SELECT saga.pause_projection('daily');
SELECT * FROM daily ORDER BY day;
COMMIT;
SELECT relreplident FROM pg_class WHERE oid = 'sales'::regclass;
SELECT name, owner, state, reason, sqlstate, filled, stale, consistency, max_lag, key, indexes, replaces, search_path
  FROM saga.projections;
SELECT state, age, stale, "position" FROM saga.freshness('daily');
SELECT bytes, age FROM saga.projection_lag('regress_proj.daily');
SELECT count(*), count(p.phase) FROM saga.stat_projections s LEFT JOIN saga.progress p USING (id);
SELECT saga.check_projection('daily');
-- until it is filled it is the query, and shows what this transaction did
BEGIN;
INSERT INTO sales VALUES (10, '2026-01-01', 1000);
SELECT * FROM daily WHERE day = '2026-01-01';
SET LOCAL saga.read_consistency = strict;
SELECT * FROM daily WHERE day = '2026-01-01';
ROLLBACK;

SET ROLE regress_proj_reader;
SELECT * FROM daily;
SET ROLE regress_proj_owner;
GRANT SELECT ON daily TO regress_proj_reader;
SET ROLE regress_proj_reader;
SELECT count(*) FROM daily;
SELECT count(*) FROM saga.projections;
SET ROLE regress_proj_other;
SELECT count(*) FROM saga.projections;
SELECT saga.freshness('daily');
SELECT saga.wait_for_projection('daily');
SELECT saga.pause_projection('daily');
SELECT saga.resume_projection('daily');
SELECT saga.rebuild_projection('daily');
SELECT saga.drop_projection('daily');
SELECT saga.check_projection('daily');
SELECT saga.rename_projection('daily', 'mine');
SELECT saga.replace_projection('daily', 'SELECT 1');
SELECT saga.alter_projection_owner('daily', 'regress_proj_other');
RESET ROLE;
GRANT saga_monitor TO regress_proj_other;
SET ROLE regress_proj_other;
SELECT name FROM saga.projections;

-- ---- names ----
SET ROLE regress_proj_owner;
SELECT saga.pause_projection('nix');
SELECT saga.pause_projection('sales');
SELECT saga.rename_projection('daily', 'other.daily');
SELECT saga.rename_projection('daily', 'sales');
SELECT saga.rename_projection('daily', '"per day"');
SELECT count(*) FROM "per day";
SELECT name FROM saga.projections;
SELECT saga.rename_projection('"per day"', 'daily');

-- ---- filled ----
RESET ROLE;
UPDATE saga.projection SET filled = true WHERE view = 'daily'::regclass;
SET ROLE regress_proj_reader;
SELECT count(*) FROM daily;
SET ROLE regress_proj_owner;
UPDATE daily SET amount = 0;
SELECT saga.check_projection('daily');
SELECT saga.wait_for_projection('daily', timeout => '1 s');
SET saga.read_consistency = strict;
SELECT count(*) FROM daily;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM daily;
ROLLBACK;
DO $$ BEGIN PERFORM count(*) FROM regress_proj.daily; END $$;
EXPLAIN (COSTS OFF, ANALYZE, TIMING OFF, SUMMARY OFF) SELECT count(*) FROM daily;
SET saga.read_consistency = 'session';
CREATE TABLE written ();
SELECT count(*) FROM daily;
RESET saga.read_consistency;
SELECT count(*) FROM daily;
SET saga.read_consistency = 'sloppy';
DROP TABLE written;
-- what is used cannot be dropped by oversight
DROP TABLE sales;
ALTER TABLE sales DROP COLUMN amount;

-- ---- bookmarks ----
SELECT saga.bookmark() ~ '^\d+:\d+:[0-9A-F]+/[0-9A-F]+$' AS looks_well;
SELECT saga.wait_for_projection('daily', at => 'yesterday');
SELECT saga.wait_for_projection('daily', at => '1:1:0/0');
SELECT saga.wait_for_projection('daily', at => '1:1:0/0 ');
SELECT saga.wait_for_projection('daily', at => regexp_replace(saga.bookmark(), '[^:]*$', 'FFFFFFFF/0'));
SELECT saga.wait_for_projection('daily', at => regexp_replace(saga.bookmark(), ':\d+:', ':77:'));
SELECT saga.wait_for_projection('daily', timeout => '-1 s');
SELECT saga.wait_for_projection('daily', timeout => NULL);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT saga.wait_for_projection('daily');
ROLLBACK;
BEGIN;
INSERT INTO sales VALUES (10, '2026-01-01', 1000);
SELECT saga.wait_for_projection('daily');
ROLLBACK;

-- ---- states ----
SELECT saga.pause_projection('daily');
BEGIN;
SELECT saga.resume_projection('daily');
SELECT state, reason FROM saga.projections;
SELECT saga.rebuild_projection('daily', 'quick');
SELECT saga.rebuild_projection('daily', NULL);
ROLLBACK;
BEGIN;
SELECT saga.rebuild_projection('daily');
SELECT state, reason FROM saga.projections;
ROLLBACK;
BEGIN;
SELECT saga.rebuild_projection('daily', 'swap');
SELECT name, state, filled, replaces IS NOT NULL AS beside FROM saga.projections ORDER BY id;
SELECT count(*) FROM daily;
ROLLBACK;
RESET ROLE;
UPDATE saga.projection SET state = 'parked', reason = 'division by zero', sqlstate = '22012' WHERE view = 'daily'::regclass;
SET ROLE regress_proj_owner;
SELECT saga.pause_projection('daily');
SELECT saga.wait_for_projection('daily');
SELECT count(*) FROM daily;
BEGIN;
SELECT saga.resume_projection('daily');
SELECT state, reason, sqlstate FROM saga.projections;
ROLLBACK;
RESET ROLE;
UPDATE saga.projection SET stale = true WHERE view = 'daily'::regclass;
SET ROLE regress_proj_owner;
SELECT saga.wait_for_projection('daily');
SELECT stale FROM saga.freshness('daily');
BEGIN;
SELECT saga.resume_projection('daily');
SELECT state, reason, sqlstate FROM saga.projections;
ROLLBACK;

-- ---- another query ----
SELECT saga.replace_projection('daily', 'SELECT day FROM sales GROUP BY day');
SELECT saga.replace_projection('daily', 'SELECT day, sum(amount) AS total FROM sales GROUP BY day');
SELECT saga.replace_projection('daily', 'SELECT day, sum(amount)::numeric AS amount FROM sales GROUP BY day');
SELECT saga.replace_projection('daily', 'SELECT nix');
SELECT saga.replace_projection('daily', NULL);
BEGIN;
SELECT saga.replace_projection('daily', 'SELECT day, sum(amount) AS amount, count(*) AS n FROM sales GROUP BY day');
SELECT saga.replace_projection('daily', 'SELECT day, sum(amount) AS amount, count(*) AS sales FROM sales GROUP BY day');
SELECT state, filled, indexes, query FROM saga.projections ORDER BY id;
SELECT saga.drop_projection('daily');
SELECT count(*) FROM saga.projections;
ROLLBACK;

-- ---- another owner ----
SELECT saga.alter_projection_owner('daily', 'nobody');
SELECT saga.alter_projection_owner('daily', 'regress_proj_heir');
RESET ROLE;
GRANT regress_proj_heir TO regress_proj_owner;
SET ROLE regress_proj_owner;
SELECT saga.alter_projection_owner('daily', 'regress_proj_heir');
GRANT SELECT ON sales TO regress_proj_heir;
SELECT saga.alter_projection_owner('daily', 'regress_proj_heir');
SELECT owner FROM saga.projections;
SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'saga_data';
SET ROLE regress_proj_reader;
SELECT count(*) FROM daily;

-- ---- gone ----
SET ROLE regress_proj_heir;
CREATE VIEW upon AS SELECT * FROM daily;
SELECT saga.drop_projection('daily');
DROP VIEW upon;
SELECT saga.drop_projection('daily');
SELECT count(*) FROM saga.projections;
SELECT count(*) FROM pg_tables WHERE schemaname = 'saga_data';
RESET ROLE;
-- functions of views say no more than they must
SELECT saga.filled_(0);
SELECT saga.serves_(0);
SELECT saga.filled_(NULL);

SET client_min_messages = warning;
DROP SCHEMA regress_proj CASCADE;
DROP OWNED BY regress_proj_owner, regress_proj_heir, regress_proj_reader, regress_proj_other;
DROP ROLE regress_proj_owner, regress_proj_heir, regress_proj_reader, regress_proj_other;
