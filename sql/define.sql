--
-- saga.define(): versions, faults, rights.  Needs no workers.
--
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS saga;
CREATE ROLE regress_saga_owner;
CREATE ROLE regress_saga_other;
CREATE ROLE regress_saga_member;
GRANT saga_user TO regress_saga_owner, regress_saga_other, regress_saga_member;
CREATE SCHEMA regress_define;
GRANT USAGE, CREATE ON SCHEMA regress_define TO regress_saga_owner;
SET search_path = regress_define;
RESET client_min_messages;

SET ROLE regress_saga_owner;
CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2));
CREATE FUNCTION take(o bigint, t numeric) RETURNS jsonb LANGUAGE sql
    AS $$ SELECT jsonb_build_object('id', o) $$;
CREATE TYPE address AS (street text, zip char(5));
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);

-- The faults of a statement as rows.
CREATE FUNCTION faults(sql text) RETURNS TABLE (step text, fault text, hint text, sqlstate text)
LANGUAGE plpgsql AS $$
DECLARE
    detail text;
    message text;
BEGIN
    EXECUTE sql;
EXCEPTION WHEN SQLSTATE 'SGD01' THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, message = MESSAGE_TEXT;
    RETURN QUERY SELECT f.* FROM jsonb_to_recordset(detail::jsonb)
        AS f(step text, fault text, hint text, sqlstate text);
END
$$;
-- The same without hints, for a definition of the given steps.
CREATE FUNCTION step_faults(steps text, more text DEFAULT '') RETURNS TABLE (step text, fault text)
LANGUAGE sql AS $$ SELECT f.step, f.fault FROM faults(format('SELECT saga.define(''f'', ARRAY[%s]%s)', steps, more)) f $$;

-- ---- versions ----
SELECT saga.define('order',
    input => 'order_id bigint, total numeric(12,2), items jsonb',
    steps => ARRAY[
        saga.parallel(
            saga.step('payment', 'SELECT take(:order_id, :total)', 'SELECT take(:order_id, -:total)', returns => 'jsonb'),
            saga.step('stock', 'UPDATE orders SET status = :items WHERE id = :order_id', 'none')),
        saga.step('shipment', pivot => true, action => 'SELECT take(:order_id, 0)'),
        saga.step('mail', 'SELECT :payment.id', on_failure => 'continue')],
    on_completed => 'UPDATE orders SET status = ''done'' WHERE id = :order_id',
    deadline => '1 hour');
-- the same content, said in another way, is the same version
SELECT saga.define('order',
    input => 'order_id int8, total decimal(12, 2), items pg_catalog.jsonb',
    steps => ARRAY[
        saga.parallel(
            saga.step('payment', 'SELECT take(:order_id, :total)', 'SELECT take(:order_id, -:total)', returns => 'jsonb', pivot => false),
            saga.step('stock', 'UPDATE orders SET status = :items WHERE id = :order_id', 'none', retry => saga.retry_policy())),
        saga.step('shipment', pivot => true, action => 'SELECT take(:order_id, 0)'),
        saga.step('mail', 'SELECT :payment.id', on_failure => 'continue', result => 'one')],
    on_completed => 'UPDATE orders SET status = ''done'' WHERE id = :order_id',
    deadline => '60 minutes', compensation_order => 'reverse', priority => 0);
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 1')]);
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 2')]);
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 2')]);
-- back to what version 1 was: the newest must be what was asked for
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 1')]);
-- another search_path makes another version
SET search_path = regress_define, public;
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 1')]);
SET search_path = regress_define;
SELECT name, version, owner, steps, paused, latest, search_path FROM saga.definitions ORDER BY name, version;
SELECT body FROM saga.definitions WHERE name = 'order';
SELECT s FROM saga.definitions d, saga.definition_steps_(d.body::jsonb) WITH ORDINALITY AS s(s, o)
WHERE name = 'order' ORDER BY o;
-- a version that was rolled back is not there, and leaves nothing in caches
BEGIN;
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 3')]);
SELECT saga.render('small', 'a');
ROLLBACK;
SELECT saga.render('small', 'a');

-- ---- one error with all faults ----
SELECT saga.define('bad', ARRAY[
    saga.step('one', 'SELECT :nothing', after => '{nowhere}'),
    saga.step('two', 'SELEC 1; SELECT 2', server => 'nowhere')], input => 'a integer');
\echo :LAST_ERROR_SQLSTATE

-- ---- names ----
SELECT * FROM faults($$ SELECT saga.define(NULL, ARRAY[saga.step('a', 'SELECT 1')]) $$);
SELECT fault FROM faults($$ SELECT saga.define('', ARRAY[saga.step('a', 'SELECT 1')]) $$);
SELECT fault FROM faults($$ SELECT saga.define(repeat('x', 201), ARRAY[saga.step('a', 'SELECT 1')]) $$);
SELECT fault FROM faults($$ SELECT saga.define(E'a\nb', ARRAY[saga.step('a', 'SELECT 1')]) $$);
SELECT fault FROM faults($$ SELECT saga.define('f', '{}') $$);
SELECT fault FROM faults($$ SELECT saga.define('f', NULL) $$);
SELECT * FROM step_faults($$ NULL, saga.step(NULL, 'SELECT 1'), saga.step('', 'SELECT 1'), saga.step('9', 'SELECT 1'),
    saga.step('a-b', 'SELECT 1'), saga.step('saga_id', 'SELECT 1'), saga.step('input', 'SELECT 1'), saga.step('item', 'SELECT 1'),
    saga.step(repeat('x', 64), 'SELECT 1'), saga.step('twice', 'SELECT 1'), saga.step('twice', 'SELECT 1') $$);
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.parallel(VARIADIC '{}'::saga.node[])]) $$);
SELECT saga.define('f', ARRAY(SELECT saga.step('s' || i, 'SELECT 1') FROM generate_series(1, 1001) i));
\echo :LAST_ERROR_SQLSTATE
SELECT '{"kind": "step"}'::saga.node;
-- nodes that no constructor made
SELECT * FROM step_faults($$ '{"kind": "step", "name": "a", "action": 1, "after": "b", "pivot": "yes", "timeout": "long", "more": 1, "nodes": []}'::jsonb::saga.node,
    '{"kind": "dance"}'::jsonb::saga.node, '[]'::jsonb::saga.node, '{"kind": "parallel", "nodes": 1}'::jsonb::saga.node $$);

-- ---- order ----
SELECT * FROM step_faults($$ saga.step('a', 'SELECT 1', after => '{c}'), saga.step('b', 'SELECT 1', after => '{a}'),
    saga.step('c', 'SELECT 1', after => '{b}'), saga.step('d', 'SELECT 1'), saga.step('e', 'SELECT 1', after => '{}') $$);
SELECT * FROM step_faults($$ saga.step('a', 'SELECT 1', after => '{a}') $$);
SELECT * FROM step_faults($$ saga.step('a', 'SELECT 1', after => '{x,NULL}'), saga.parallel(ARRAY[saga.step('b', 'SELECT 1')], after => '{y}') $$);
-- who comes before whom, seen in what may be referred to
SELECT * FROM step_faults($$ saga.parallel(saga.parallel(saga.step('a', 'SELECT 1'), saga.step('b', 'SELECT 1')), saga.step('c', 'SELECT :a.x::int')),
    saga.step('d', 'SELECT :a.x::int, :b.x::int, :c.x::int') $$);
SELECT * FROM step_faults($$ saga.parallel(saga.step('a', 'SELECT :b.x::int'), saga.step('b', 'SELECT :a.x::int', after => '{a}')), saga.step('c', 'SELECT :a.x::int') $$);
SELECT * FROM step_faults($$ saga.step('a', 'SELECT :c.x::int', after => '{c}'), saga.step('b', 'SELECT :c.x::int'), saga.step('c', 'SELECT :b.x::int', after => '{}') $$);
SELECT * FROM step_faults($$ saga.step('a', 'SELECT 1'), saga.step('b', 'SELECT 1'),
    saga.parallel(ARRAY[saga.step('c', 'SELECT :a.x::int, :b.x::int'), saga.step('d', 'SELECT 1')], after => '{a}'),
    saga.step('e', 'SELECT :a.x::int, :b.x::int, :c.x::int, :d.x::int') $$);
-- pivot
SELECT * FROM step_faults($$ saga.step('a', 'SELECT 1'), saga.step('b', 'SELECT 1', 'none'), saga.step('c', 'SELECT 1', 'SELECT 1'),
    saga.step('p', 'SELECT 1', pivot => true), saga.step('q', 'SELECT 1', retriable => false), saga.step('r', 'SELECT 1', retriable => true) $$);
SELECT * FROM step_faults($$ saga.step('p', 'SELECT 1', pivot => true, on_failure => 'continue'), saga.step('q', 'SELECT 1', pivot => true) $$);

-- ---- options ----
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', NULL), saga.step('b', '  ', server => ''), saga.undo_step('c', NULL),
    saga.step('d', 'SELECT 1', timeout => '0', on_failure => 'goto:here', result => 'all', expect_rows => -1),
    saga.step('e', 'SELECT 1', timeout => '2 days', on_failure => 'stop', compensation_timeout => '1 s'),
    saga.step('g', 'SELECT 1', result => 'none', returns => 'integer')],
    deadline => '0', retention => '-1 day', max_running => 0, compensation_order => 'random', on_completed => ' ') $$);
SELECT * FROM step_faults($$ saga.step('a', 'SELECT 1', retry => saga.retry_policy(max_attempts => -1, initial_interval => '1 hour', max_interval => '1 s',
        backoff => 0.5, jitter => 2, decline_on => '{23,4,235055}', retry_on => '{23}', stuck_on => '{NULL,P0001}')),
    saga.step('b', 'SELECT 1', 'SELECT 1', retry => '[]', compensation_retry => '{"tries": 1, "jitter": "NaN"}'),
    saga.step('c', 'SELECT 1', retry => saga.retry_policy(jitter => 'NaN')) $$);
SELECT saga.define('good', ARRAY[
    saga.step('a', 'SELECT 1', 'SELECT 2', timeout => '1.5 s', retriable => false, on_failure => 'stuck', result => 'rows', returns => 'integer', expect_rows => 1,
        retry => saga.retry_policy(3, '100 ms', 1.5, '1 minute', 0.1, '{23505}', '{23}', '{P0001}'),
        compensation_timeout => '1 minute', compensation_retry => saga.retry_policy(jitter => 0)),
    saga.undo_step('b', 'SELECT 3', timeout => '1 s', retry => saga.retry_policy(initial_interval => '0'))],
    deadline => '1 day', retention => '1 week', key_retention => '1 month', max_running => 5, priority => -1,
    compensation_order => 'graph', on_compensated => 'SELECT 1', on_stuck => 'SELECT 1');
SELECT body FROM saga.definitions WHERE name = 'good';

-- ---- types ----
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[
    saga.step('a', 'SELECT 1', returns => 'nosuchtype'), saga.step('b', 'SELECT 1', returns => 'positive'),
    saga.step('c', 'SELECT 1', returns => 'positive[]'), saga.step('d', 'SELECT 1', returns => 'record'),
    saga.step('e', 'SELECT 1', returns => 'int4, int4'), saga.step('g', 'SELECT 1', returns => 'numeric(1000000)')]) $$);
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1')], input => 'a integer, a text, b nosuchtype, c anyelement, d text COLLATE "C", e SETOF text') $$);
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1')], input => 'a integer) WHERE (true') $$);
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1')], input => 'a integer), f() AS y(b integer') $$);
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1')], input => 'a') $$);
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1')], input => 'a integer -- comment') $$);

-- ---- names in actions ----
SELECT * FROM faults($$ SELECT saga.define('f', input => 'orderid bigint, "Total" numeric', steps => ARRAY[
    saga.step('a', 'SELECT :orderId, :b, :a, :result, :saga_id.x, :item, :steps, :steps.x, :input.x, :nothing, :a.failed'),
    saga.undo_step('u', 'SELECT :result, :u'),
    saga.step('n', 'SELECT 1', result => 'none'),
    saga.step('b', 'SELECT :u, :n, :A, $1', 'SELECT :later')],
    on_completed => 'SELECT :result') $$);
-- all of these mean something
SELECT saga.define('f', input => 'orderid bigint, "Total" numeric, saga_id text', steps => ARRAY[
    saga.step('a', 'SELECT :orderid, :Total, :input.saga_id, :saga_id, :saga_name, :saga_key, :step_name, :attempt, :idempotency_key,
        :action_key, :correlation, :started_by, :started_at, :deadline, :cause, :input',
        'SELECT :result.id::text, :a.id::text, :a.failed, :steps.a.failed, :cause'),
    saga.step('b', 'SELECT :a, :a.failed, :{a.x-y}', 'SELECT :result')],
    on_stuck => 'SELECT :a.x, :b.failed');
-- without declared input any first name is input
SELECT saga.define('untyped', ARRAY[saga.step('a', 'UPDATE orders SET status = :status WHERE id = :id')]);
-- a reference follows the graph, not the list
SELECT * FROM step_faults($$ saga.step('a', 'SELECT 1'), saga.step('b', 'SELECT :a', after => '{}'), saga.step('c', 'SELECT :b, :a') $$);

-- ---- statements ----
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[
    saga.step('a', 'SELECT 1; SELECT 2'), saga.step('b', '-- nothing'), saga.step('c', 'COMMIT'), saga.step('d', 'COPY orders TO STDOUT'),
    saga.step('e', 'SET x.y = 1'), saga.step('g', 'LISTEN x'), saga.step('h', 'PREPARE x AS SELECT 1'), saga.step('i', 'SELECT FROM nosuchtable'),
    saga.step('j', 'SELECT nosuchfunction(:x)'), saga.step('k', 'SELECT f(:x) FROM (SELECT 1) f(f)'), saga.step('l', 'UPDATE orders SET id = :x::boolean'),
    saga.step('m', 'SELEC 1'), saga.step('n', 'CREATE TABLE x AS SELECT :x'), saga.step('o', 'SELECT CASE WHEN :x IS NULL THEN 1 END'),
    saga.step('p', 'VACUUM'), saga.step('q', 'SELECT ''unfinished')]) $$);
SELECT saga.define('statements', ARRAY[
    saga.step('a', 'INSERT INTO orders VALUES (:id, :status, :total) ON CONFLICT DO NOTHING RETURNING id'),
    saga.step('b', 'WITH d AS (DELETE FROM orders WHERE id = :id RETURNING *) SELECT count(*) FROM d'),
    saga.step('c', 'MERGE INTO orders o USING (SELECT :id::bigint) AS n(id) ON n.id = o.id WHEN MATCHED THEN DELETE'),
    saga.step('d', 'DO ''BEGIN END'''), saga.step('e', 'TRUNCATE orders'), saga.step('g', 'TABLE orders'), saga.step('h', 'VALUES (1)')]);
CREATE TEMP TABLE mine (a int);
SELECT * FROM step_faults($$ saga.step('a', 'SELECT * FROM mine'), saga.step('b', 'INSERT INTO mine VALUES (1)') $$);
-- analysed as the owner, with the stored search_path, whoever calls
RESET ROLE;
CREATE SCHEMA regress_hidden;
CREATE TABLE regress_hidden.secret (a int);
SET ROLE regress_saga_owner;
SELECT fault, sqlstate FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT FROM regress_hidden.secret')]) $$);
SET search_path = pg_catalog;
SELECT fault, hint, sqlstate FROM regress_define.faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT FROM orders')]) $$);
SET search_path = regress_define;

-- ---- servers ----
RESET ROLE;
CREATE SERVER regress_payments FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '1', dbname 'nowhere', connect_timeout '1s');
SET ROLE regress_saga_owner;
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1', server => 'regress_payments'), saga.step('b', 'SELECT 1', 'SELECT 1', compensation_server => 'nowhere')]) $$);
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER regress_payments TO regress_saga_owner;
SET ROLE regress_saga_owner;
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1', server => 'regress_payments')]) $$);
RESET ROLE;
CREATE USER MAPPING FOR regress_saga_owner SERVER regress_payments OPTIONS (user 'nobody', password 'secret');
SET ROLE regress_saga_owner;
-- faults that need nobody's answer
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'COMMIT', 'SELECT 1; SELECT 2', server => 'regress_payments')]) $$);

-- ---- who ----
SET ROLE regress_saga_other;
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 5')]);
SELECT count(*) FROM saga.definitions;
SELECT saga.may('small', 'see'), saga.may('small', 'start'), saga.may('nosuch', 'see');
SELECT saga.may('small', 'frobnicate');
SELECT saga.render('small', 'a');
SELECT saga.grant('small', 'regress_saga_other');
SELECT saga.drop_definition('small');
SELECT saga.pause_definition('small');
SELECT saga.alter_owner('small', 'regress_saga_other');
SELECT * FROM saga.definition;
SELECT * FROM saga.privilege;
SET ROLE regress_saga_owner;
SELECT saga.grant('small', 'regress_saga_other', '{see,start}');
SELECT saga.grant('small', 'public');
SELECT saga.grant('small', 'nosuchrole');
SELECT saga.grant('small', 'regress_saga_other', '{everything}');
SELECT saga.grant('nosuch', 'regress_saga_other');
SET ROLE regress_saga_other;
SELECT saga.may('small', 'see'), saga.may('small', 'start'), saga.may('small', 'operate'), saga.may('order', 'see');
SELECT DISTINCT name FROM saga.definitions;
SET ROLE regress_saga_owner;
SELECT saga.grant('small', 'regress_saga_other', '{operate}');
SELECT saga.revoke('small', 'regress_saga_other', '{start}');
SET ROLE regress_saga_other;
SELECT saga.may('small', 'see'), saga.may('small', 'start'), saga.may('small', 'operate');
SELECT saga.pause_definition('small');
SET ROLE regress_saga_owner;
SELECT name, version, paused FROM saga.definitions WHERE name = 'small' ORDER BY version;
-- a new version of a paused definition is paused
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 6')]);
SELECT bool_and(paused) FROM saga.definitions WHERE name = 'small';
SELECT saga.resume_definition('small');
SELECT bool_or(paused) FROM saga.definitions WHERE name = 'small';
SELECT saga.pause_definition('nosuch');
-- members of the owner may make versions; the owner stays
RESET ROLE;
GRANT regress_saga_owner TO regress_saga_member;
SET ROLE regress_saga_member;
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 7')]);
SELECT DISTINCT owner FROM saga.definitions WHERE name = 'small';
-- roles that see or operate everything
RESET ROLE;
GRANT saga_monitor TO regress_saga_other;
SET ROLE regress_saga_other;
SELECT saga.may('order', 'see'), saga.may('order', 'operate'), saga.may('order', 'start');
RESET ROLE;
REVOKE saga_monitor FROM regress_saga_other;
GRANT saga_operator TO regress_saga_other;
SET ROLE regress_saga_other;
SELECT saga.may('order', 'see'), saga.may('order', 'operate'), saga.may('order', 'start');
RESET ROLE;
REVOKE saga_operator FROM regress_saga_other;
-- a superuser's local steps
SELECT * FROM faults($$ SELECT saga.define('regress_super', ARRAY[saga.step('a', 'SELECT 1')]) $$);
SET saga.allow_superuser_steps = on;
SELECT saga.define('regress_super', ARRAY[saga.step('a', 'SELECT 1')]);
RESET saga.allow_superuser_steps;
-- owner
SELECT saga.alter_owner('small', current_user);
SELECT saga.alter_owner('small', 'regress_saga_other');
SELECT DISTINCT owner FROM saga.definitions WHERE name = 'small';
SET ROLE regress_saga_owner;
SELECT saga.define('small', ARRAY[saga.step('a', 'SELECT 8')]);
SELECT saga.alter_owner('order', 'regress_saga_other');

-- ---- size ----
RESET ROLE;
SHOW saga.max_payload;
SET ROLE regress_saga_owner;
SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT ''' || repeat('x', 1100000) || '''')]);

-- ---- input ----
SELECT saga.define('input',
    input => 'i integer, n numeric(5,2), t text, v varchar(3), b boolean, j jsonb, a integer[], ts timestamptz, d date, p positive, ad address, ads address[], na numeric(5,1)[]',
    steps => ARRAY[saga.step('s', 'SELECT (:i, :n, :t, :v, :b, :j, :a, :ts, :d, :p, :ad, :ads, :na, :ad.zip, :a.0, :j.0.x::text)::text')]);
CREATE FUNCTION show(input jsonb) RETURNS TABLE (value text, type text) LANGUAGE sql AS $$
    SELECT v, t FROM saga.render('input', 's', input) r,
        ROWS FROM (jsonb_array_elements_text(r->'values'), jsonb_array_elements_text(r->'types')) AS x(v, t)
$$;
CREATE FUNCTION base(change jsonb) RETURNS jsonb LANGUAGE sql AS $$
    SELECT '{"i": 1, "n": 2, "t": "text", "v": "abc", "b": true, "j": [{"x": 1}], "a": [1, 2], "ts": "2024-02-29 12:00", "d": "2024-02-29",
        "p": 5, "ad": {"street": "Main \"st\"", "zip": "12345"}, "ads": [{"street": "a, b"}, null], "na": [[1, 2.25], ["3", null]]}'::jsonb || change
$$;
SET TimeZone = 'Asia/Tokyo';
SET DateStyle = 'SQL, DMY';
SELECT * FROM show(base('{}'));
SELECT * FROM show(base('{"n": "1.005", "j": "text", "ts": "infinity", "d": "01/02/2024", "a": [], "v": 12, "t": 1.50, "b": "yes"}'));
RESET TimeZone;
RESET DateStyle;
SELECT * FROM show((SELECT jsonb_object_agg(k, 'null'::jsonb) FROM jsonb_object_keys(base('{}')) k));
\set VERBOSITY terse
SELECT show(base('{}') - 'i');
SELECT show(base('{}') - 'ads');
SELECT show(base('{"extra": 1}'));
SELECT show(base('{"aa": 1}'));
SELECT show('[]');
SELECT show('1');
SELECT show(base('{"i": 1.5}'));
SELECT show(base('{"i": 3000000000}'));
SELECT show(base('{"i": "x"}'));
SELECT show(base('{"i": [1]}'));
SELECT show(base('{"n": 1000}'));
SELECT show(base('{"t": {}}'));
SELECT show(base('{"v": "abcd"}'));
SELECT show(base('{"b": 5.5}'));
SELECT show(base('{"a": 1}'));
SELECT show(base('{"a": "{1,2}"}'));
SELECT show(base('{"a": [1, "x"]}'));
SELECT show(base('{"a": [[1], [2, 3]]}'));
SELECT show(base('{"a": [[1], 2]}'));
SELECT show(base('{"a": [1, [2]]}'));
SELECT show(base('{"a": [[[[[[[1]]]]]]]}'));
SELECT show(base('{"ts": "yesterday-ish"}'));
SELECT show(base('{"p": 0}'));
SELECT show(base('{"ad": {"city": "x"}}'));
SELECT show(base('{"ad": "(a,b)"}'));
SELECT show(base('{"ad": {"zip": "123456"}}'));
\set VERBOSITY default
SELECT show(base('{"i": "x"}'));
SELECT saga.render('input', 'nosuch');
SELECT saga.render('input', 's', operation => 'compensation');
SELECT saga.render('input', 's', operation => 'dance');
SELECT saga.render('nosuch', 's');

-- ---- a definition whose world has changed ----
SELECT saga.define('changing', ARRAY[saga.step('a', 'SELECT 1')], input => 'x address');
RESET ROLE;
CREATE SCHEMA regress_gone;
GRANT ALL ON SCHEMA regress_gone TO regress_saga_owner;
SET ROLE regress_saga_owner;
CREATE TYPE regress_gone.t AS ENUM ('x');
SELECT saga.define('changing', ARRAY[saga.step('a', 'SELECT 1')], input => 'x regress_gone.t');
DROP TYPE regress_gone.t;
\c -
SET search_path = regress_define;
SET ROLE regress_saga_owner;
SELECT saga.render('changing', 'a');
SELECT saga.define('changing', ARRAY[saga.step('a', 'SELECT 1')]);
SELECT saga.drop_definition('changing', 7);
SELECT saga.drop_definition('changing', 2);
SELECT version FROM saga.definitions WHERE name = 'changing' ORDER BY version;

-- ---- dropping ----
RESET ROLE;
BEGIN;
INSERT INTO saga.instance (id, bucket, definition_id, state, direction, input, started_by, origin, started_at)
    SELECT 'ffffffff-ffff-7fff-bfff-ffffffffffff', 0, id, 'pending', 'forward', '{}', owner, 0, now() FROM saga.definition WHERE name = 'changing' AND version = 3;
SET LOCAL ROLE regress_saga_owner;
SAVEPOINT s;
SELECT saga.drop_definition('changing');
ROLLBACK TO s;
SELECT saga.drop_definition('changing', 1);
SELECT version FROM saga.definitions WHERE name = 'changing' ORDER BY version;
ROLLBACK;
SET ROLE regress_saga_owner;
SELECT version FROM saga.definitions WHERE name = 'changing' ORDER BY version;
SELECT saga.grant('changing', 'regress_saga_other');
SELECT saga.drop_definition('changing');
SELECT saga.drop_definition('changing');
SELECT saga.may('changing', 'see');
-- what was granted is gone with it
SELECT saga.define('changing', ARRAY[saga.step('a', 'SELECT 1')]);
SET ROLE regress_saga_other;
SELECT saga.may('changing', 'see');

-- ---- clean up ----
RESET ROLE;
CREATE TEMP VIEW ours AS SELECT DISTINCT name FROM saga.definitions WHERE owner::text LIKE 'regress_saga%' OR name = 'regress_super';
SELECT count(saga.drop_definition(name)) > 0 AS dropped FROM (SELECT * FROM ours OFFSET 0) o;
SELECT count(*) FROM ours;
SELECT count(*) FROM saga.privilege WHERE grantee::text LIKE 'regress_saga%';
SET client_min_messages = warning;
DROP SERVER regress_payments CASCADE;
DROP SCHEMA regress_define, regress_hidden, regress_gone CASCADE;
DROP ROLE regress_saga_owner, regress_saga_other, regress_saga_member;
