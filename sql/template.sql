--
-- Names in actions: where they count, what they stand for, how values are
-- bound.  Needs no workers.
--
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS saga;
CREATE ROLE regress_template;
GRANT saga_user TO regress_template;
CREATE SCHEMA regress_template AUTHORIZATION regress_template;
SET search_path = regress_template;
RESET client_min_messages;
SET ROLE regress_template;

-- Define a saga of one step, and show what would be sent for it.
CREATE FUNCTION sent(action text, input jsonb DEFAULT NULL, fields text DEFAULT NULL)
RETURNS TABLE (sql text, "values" text, types text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga.define('template', ARRAY[saga.step('only', action)], input => fields);
    RETURN QUERY SELECT r->>'sql', r->>'values', r->>'types' FROM saga.render('template', 'only', input) r;
END
$$;

-- ---- where names count ----
SELECT * FROM sent('SELECT :a::int, :{a}::int+:a::int,(:a)::text', '{"a": 5}');
-- as the first character, at the end, next to letters and digits
SELECT * FROM sent('SELECT:{a}::int4,1 WHERE 1=:{a}OR 2=:{a}', '{"a": 5}');
SELECT * FROM sent('SELECT 1 LIMIT :{a}', '{"a": 5}');
SELECT * FROM sent('SELECT 1 LIMIT :a', '{"a": 5}');
-- not in casts, slices, assignments
SELECT * FROM sent('SELECT x::text, y[1:n], (y)[n:2], z::date::text, $_$:a$_$, y[1::{n}] FROM (SELECT 1, ARRAY[1], 2, ''2020-01-01'') t(x, y, n, z)', '{"n": 1}');
SELECT * FROM sent('SELECT make_interval(days := :a)', '{"a": 5}');
-- not in literals, identifiers, dollar quotes, comments
SELECT * FROM sent($$SELECT ':a', 'it''s :a', E'\':a', 'x\', :a::text, "y:a", e'a'
    '\' :b ', U&'\0041:a', B'1', ':{a}' -- :a :{a}
    , /* :a /* :{a} */ :b */ :a::int FROM (SELECT 1) t("y:a")$$, '{"a": 5}');
SELECT * FROM sent('SELECT $$ :a ''$$, $x$ $$ :{a} $x$, $é$:a$é$, a$b$, :a::int FROM (SELECT 1) t(a$b$)', '{"a": 5}');
SELECT * FROM sent('SELECT ''http://h:80/'', ''12:30''::time, :a::int', '{"a": 5}');
-- a name ends where its last part ends
SELECT * FROM sent('SELECT :a.b::int, :a.b.c::int, :a.0.x::int, (:a.b)::int', '{"a": {"b": {"c": 7}}}');
SELECT * FROM sent('SELECT :{a.b c.d-e}::int, :{é}::int, :é::int', '{"a": {"b c": {"d-e": 7}}, "é": 8}');
-- these are no names, so PostgreSQL sees the colon
SELECT sent('SELECT :{}');
SELECT sent('SELECT : a');
SELECT sent('SELECT :1');
SELECT sent('SELECT :{a');
SELECT sent('SELECT x:a');
SELECT sent('SELECT $1');
SELECT sent('SELECT a$1 FROM (SELECT 1) t(a$1)');

-- ---- what values become ----
SELECT * FROM sent('SELECT :s::text, :n::text, :f::text, :t::text, :z::text, :o::text, :l::text, :none::text, :o.x::text, :l.1::text, :l.9::text, :s.x::text, :o.l.0::text',
    '{"s": "it''s \"q\" \\ é", "n": 1.500, "f": false, "t": true, "z": null, "o": {"x": 1, "l": ["y"]}, "l": [1, "two"]}');
-- a key that looks like a number, a position that looks like a key
SELECT * FROM sent('SELECT :a.0::text, :b.0::text, :b.00::text, :b.x::text, :b.99999999999::text', '{"a": {"0": "key"}, "b": ["position"]}');
-- declared types decide
SELECT * FROM sent('SELECT :j, :s, :a, :b, :n, :l, :bits', '{"j": "text", "s": "text", "a": ["x, y", "\"q\"", "back\\slash", "", "NULL", null, "{}"], "b": [], "n": [[1, 2], [3, null]], "l": [{"k": [1]}, [2], "three", null], "bits": ["(0,0),(1,1)"]}',
    'j json, s text, a text[], b text[], n int[], l jsonb[], bits box[]');
SELECT ARRAY(SELECT jsonb_array_elements_text('["x, y", "\"q\"", "back\\slash", "", "NULL", null, "{}"]'))
     = (saga.render('template', 'only', '{"j": "text", "s": "text", "a": ["x, y", "\"q\"", "back\\slash", "", "NULL", null, "{}"], "b": [], "n": [], "l": [], "bits": []}')->'values'->>2)::text[] AS same;
-- system names
SELECT * FROM sent('SELECT :saga_id, :saga_name, :saga_key, :step_name, :attempt, :idempotency_key, :action_key, :correlation, :started_by, :deadline, :cause');
SELECT saga.define('undo', ARRAY[saga.step('a', 'SELECT 1', 'SELECT :result.x::text, :a.x::text, :idempotency_key, :action_key, :a.failed, :result::text', returns => 'jsonb')]);
SELECT saga.render('undo', 'a', results => '{"a": {"x": [1]}}', operation => 'compensation')->'values';
-- types of results
CREATE TYPE item AS (sku text, n integer);
SELECT saga.define('types', ARRAY[
    saga.step('one', 'SELECT 1', returns => 'item'), saga.step('many', 'SELECT 1', returns => 'item', result => 'rows'),
    saga.step('list', 'SELECT 1', returns => 'numeric[]'),
    saga.step('use', 'SELECT :one, :one.n, :one.sku, :one.x::text, :many::text, :many.0, :many.0.n, :list, :list.0, :list.0.0::text')]);
SELECT saga.render('types', 'use', results => '{"one": {"sku": "a", "n": 1}, "many": [{"sku": "b", "n": 2}], "list": [1.50]}');

-- ---- a participant knows only built-in types ----
RESET ROLE;
CREATE SERVER regress_template FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '1', connect_timeout '1s');
GRANT USAGE ON FOREIGN SERVER regress_template TO regress_template;
CREATE USER MAPPING FOR regress_template SERVER regress_template OPTIONS (user 'nobody', password 'secret');
CREATE DOMAIN regress_template.positive AS integer CHECK (VALUE > 0);
SET ROLE regress_template;
SET client_min_messages = error;	-- nobody is there to parse it
SELECT saga.define('remote', input => 'a item, b positive, c item[], d text[]', steps => ARRAY[
    saga.step('step', 'SELECT f(:a, :b, :c, :d, :a.n, :saga_id)', server => 'regress_template', compensation => 'SELECT :a', compensation_server => '')]);
RESET client_min_messages;
SELECT saga.render('remote', 'step', '{"a": {"sku": "x"}, "b": 3, "c": [{"n": 4}], "d": ["y"]}');
SELECT saga.render('remote', 'step', '{"a": {"sku": "x"}, "b": 3, "c": [{"n": 4}], "d": ["y"]}', operation => 'compensation');

-- ---- clean up ----
SELECT sum(saga.drop_definition(name)) > 0 AS dropped FROM (SELECT DISTINCT name FROM saga.definitions OFFSET 0) d;
RESET ROLE;
SET client_min_messages = warning;
DROP SERVER regress_template CASCADE;
DROP SCHEMA regress_template CASCADE;
DROP ROLE regress_template;
