--
-- Control flow in saga.define(): constructors, their order, expressions, and
-- what is refused.  Needs no workers.
--
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS saga;
CREATE ROLE regress_flow_owner;
CREATE ROLE regress_flow_other;
GRANT saga_user TO regress_flow_owner, regress_flow_other;
CREATE SCHEMA regress_flow;
GRANT USAGE, CREATE ON SCHEMA regress_flow TO regress_flow_owner, regress_flow_other;
SET search_path = regress_flow;
RESET client_min_messages;

SET ROLE regress_flow_owner;
CREATE TABLE orders (id bigint PRIMARY KEY, status text, total numeric(12,2));
CREATE FUNCTION small(integer) RETURNS boolean LANGUAGE sql AS 'SELECT $1 < 10';
CREATE TYPE colour AS ENUM ('red', 'green');

-- The faults of a statement as rows.
CREATE FUNCTION faults(sql text) RETURNS TABLE (step text, fault text, hint text, sqlstate text)
LANGUAGE plpgsql AS $$
DECLARE
    detail text;
BEGIN
    EXECUTE sql;
EXCEPTION WHEN SQLSTATE 'SGD01' THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL;
    RETURN QUERY SELECT f.* FROM jsonb_to_recordset(detail::jsonb)
        AS f(step text, fault text, hint text, sqlstate text);
END
$$;
CREATE FUNCTION step_faults(steps text, more text DEFAULT '') RETURNS TABLE (step text, fault text)
LANGUAGE sql AS $$ SELECT f.step, f.fault FROM faults(format('SELECT saga.define(''f'', ARRAY[%s]%s)', steps, more)) f $$;

-- What an expression gives: as it is rendered, with the values as literals.
CREATE FUNCTION evaluate(definition text, step text, operation text, input jsonb DEFAULT NULL, results jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    r jsonb := saga.render(definition, step, input, results, operation);
    sql text := r ->> 'sql';
    result jsonb;
BEGIN
    FOR i IN REVERSE jsonb_array_length(r -> 'values') .. 1 LOOP
        sql := replace(sql, '$' || i, quote_nullable(r -> 'values' ->> (i - 1)) || coalesce('::' || (r -> 'types' ->> (i - 1)), ''));
    END LOOP;
    EXECUTE sql INTO result;
    RETURN result;
END
$$;
-- The same of an expression that stands in a definition made for it.
CREATE FUNCTION value_of(expression text, input jsonb, operation text DEFAULT 'condition', declared text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga.define('value', CASE operation
            WHEN 'condition' THEN ARRAY[saga.step('only', 'SELECT 1', condition => expression)]
            WHEN 'for_each' THEN ARRAY[saga.step('only', 'SELECT 1', for_each => expression)]
            WHEN 'duration' THEN ARRAY[saga.sleep_step('only', expression)]
            WHEN 'at' THEN ARRAY[saga.sleep_until_step('only', expression)]
            ELSE ARRAY[saga.step('only', 'SELECT 1')] END,
        input => declared, output => CASE operation WHEN 'output' THEN expression END);
    RETURN evaluate('value', 'only', operation, input);
END
$$;
CREATE FUNCTION edges() RETURNS SETOF text LANGUAGE sql AS
$$ SELECT trim(l) FROM regexp_split_to_table(saga.graph('f'), E'\n') l WHERE l LIKE '%>%' $$;

-- ---- everything at once ----
SELECT saga.define('child', ARRAY[saga.step('c', 'SELECT 1')], output => '{"c": :c}');
SELECT saga.define('all',
    input => 'order_id bigint, total numeric(12,2), lines jsonb, amounts integer[]',
    steps => ARRAY[
        saga.savepoint_step('again', max_tries => 2),
        saga.parallel(ARRAY[
            saga.step('payment', 'SELECT :total', 'SELECT :payment::text', condition => ':total > 0', on_failure => 'goto:again'),
            saga.step('line', 'SELECT :item.sku::text, :item_index', 'SELECT :item.sku::text, :result::text, :item_index',
                      for_each => ':lines', max_parallel => 4)], condition => ':order_id > 0', on_failure => 'stuck'),
        saga.step('amount', 'SELECT :item + 1', for_each => ':amounts'),
        saga.undo_step('note', 'SELECT 1', condition => ':payment.failed'),
        saga.call_step('sub', 'child', '{"id": :order_id, "text": "order :{order_id}"}', retry => saga.retry_policy(max_attempts => 3)),
        saga.sleep_step('nap', '10 minutes'),
        saga.sleep_until_step('morning', '2030-01-01 08:00+01'),
        saga.signal_step('approval', 'approved', timeout => '1 day', on_timeout => 'continue'),
        saga.branch_step('route',
            saga.when(':approval.ok = true', ARRAY[saga.step('a1', 'SELECT 1'), saga.step('a2', 'SELECT :a1::integer')]),
            saga.when(':total < 5', ARRAY[saga.step('b1', 'SELECT 1')]),
            saga.otherwise(ARRAY[saga.step('o1', 'SELECT 1')])),
        saga.loop_step('poll', ARRAY[saga.step('look', 'SELECT :iteration'), saga.sleep_step('pause', interval '1 s')],
            while => ':look.state = ''busy''', max => 10),
        saga.step('render_video', '{"order": :order_id}', queue => 'gpu', callback_timeout => '1 hour'),
        saga.step('person', 'INSERT INTO orders (id, status) VALUES (:order_id, :callback_token)', callback => true,
            decline_if => ':result.state = ''declined''', delivery => 'at_most_once'),
        saga.step('last', 'SELECT :line.0.x::text, :a1::text, :look::text, :approval.by::text')],
    output => '{"payment": :payment, "all": :line}', protocol => 'saga', protocols => '{saga}');
SELECT body FROM saga.definitions WHERE name = 'all';
SELECT string_agg(s, ' ' ORDER BY o) FROM saga.definitions d, saga.definition_steps_(d.body::jsonb) WITH ORDINALITY AS s(s, o) WHERE name = 'all';
SELECT saga.graph('all');
-- the same, said in another way, is the same version
SELECT saga.define('same', ARRAY[saga.sleep_step('a', '600 s'), saga.sleep_until_step('b', '2030-01-01 00:00+00'),
    saga.step('c', 'SELECT 1', delivery => 'at_least_once', callback => false), saga.signal_step('d', 's', on_timeout => 'fail')]);
SET intervalstyle = 'sql_standard';
SET datestyle = 'German';
SET timezone = 'Asia/Tokyo';
SELECT saga.define('same', ARRAY[saga.sleep_step('a', interval '10 minutes'), saga.sleep_until_step('b', timestamptz '01.01.2030 09:00'),
    saga.step('c', 'SELECT 1'), saga.signal_step('d', 's')], protocol => 'saga');
RESET intervalstyle;
RESET datestyle;
RESET timezone;
SELECT saga.define('same', ARRAY[saga.sleep_step('a', duration => '11 minutes')]);
-- both forms of what takes nodes
SELECT saga.parallel(saga.sleep_step('a', '1 s'))::jsonb = saga.parallel(VARIADIC ARRAY[saga.sleep_step('a', '1 s')])::jsonb AS a,
    saga.parallel(saga.sleep_step('a', '1 s'))::jsonb = saga.parallel(ARRAY[saga.sleep_step('a', '1 s')])::jsonb AS b,
    saga.branch_step('b', saga.otherwise('{}'))::jsonb = saga.branch_step('b', VARIADIC ARRAY[saga.otherwise('{}')])::jsonb AS c,
    saga.branch_step('b', saga.otherwise('{}'))::jsonb = saga.branch_step('b', ARRAY[saga.otherwise('{}')])::jsonb AS d;

-- ---- order ----
-- what follows a branch waits for it and for the ends of all cases
SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1'),
    saga.branch_step('b',
        saga.when('true', ARRAY[saga.step('c', 'SELECT 1'), saga.parallel(saga.step('d', 'SELECT 1'), saga.step('e', 'SELECT 1'))]),
        saga.when('true', ARRAY[saga.branch_step('n', saga.when('true', ARRAY[saga.step('x', 'SELECT 1')]))]),
        saga.when('true', '{}')),
    saga.step('z', 'SELECT 1')]);
SELECT saga.graph('f');
-- a case that waits for a step outside does not stand for it: z waits for w too
SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1'), saga.step('w', 'SELECT 1', after => '{a}'),
    saga.branch_step('b', ARRAY[saga.when('true', ARRAY[saga.step('c', 'SELECT 1', after => '{w}'), saga.step('d', 'SELECT 1', after => '{}')])], after => '{a}'),
    saga.step('z', 'SELECT 1')]);
SELECT * FROM edges();
-- loops in loops, for_each in a loop
SELECT saga.define('f', ARRAY[saga.loop_step('l', ARRAY[saga.step('a', 'SELECT 1'),
    saga.loop_step('m', ARRAY[saga.step('b', 'SELECT 1', for_each => '[1, 2]'), saga.step('c', 'SELECT :b.0::integer, :a::integer, :iteration')], max => 2)],
    while => ':c = 1'), saga.step('z', 'SELECT :c::integer, :b::text')]);
SELECT saga.graph('f');
-- two callers of one signal
SELECT saga.define('f', ARRAY[saga.parallel(saga.signal_step('a', 'go'), saga.signal_step('b', 'go', timeout => '1 s'))]);

-- ---- expressions ----
-- undeclared names: a number beside a number, JSON beside JSON
SELECT value_of(e, '{"n": 150.5, "m": 9, "s": "150.5", "t": true, "l": [1, 2], "o": {"k": "v"}, "z": null}') = 'true' AS yes, e
FROM unnest(ARRAY[':n > 100', '100 < :n', ':n - 1 > :m', ':n > :m', ':m < :n', ':s = ''150.5''', ':t', 'NOT :nothing.at.all IS NOT NULL',
    ':n IN (1, 150.5)', ':m BETWEEN 8 AND 9.5', 'coalesce(:nothing, 5) > 4.5', ':o -> ''k'' = ''"v"''', ':o @> ''{"k": "v"}''', ':o ? ''k''',
    ':l -> 0 = ''1''', ':z IS NULL', ':n + :m = 159.5', ':n IS DISTINCT FROM 3', ':n = :n', ':s <> :n', 'small(:m)',
    'EXISTS (SELECT 1 FROM jsonb_array_elements(:l) x WHERE x = ''2'')', '-:m = -9', ':m % 2 = 1', 'jsonb_array_length(:l) = 2']) AS e;
SELECT value_of(e, '{"n": 5, "f": false}') AS no, e FROM unnest(ARRAY[':f', ':nothing', ':n > 100', 'NULL']) AS e;
-- a JSON string that is no number is an error of the value, as in any cast
SELECT value_of(':n > 100', '{"n": "many"}');
-- declared ones have their own type
SELECT value_of(':c = ''green'' AND :n = 1 AND :d > ''2020-01-01''', '{"c": "green", "n": 1, "d": "2021-01-01"}', declared => 'c colour, n smallint, d date');
-- elements: a path alone, a statement, JSON
SELECT value_of(':items', '{"items": [{"a": 1}, null, 2.50]}', 'for_each');
SELECT value_of(':items', '{"items": [1, 2]}', 'for_each', 'items integer[]');
SELECT value_of(':items -> ''lines''', '{"items": {"lines": [1]}}', 'for_each');
SELECT value_of('ARRAY(SELECT generate_series(1, :n::integer))', '{"n": 3}', 'for_each');
SELECT value_of('[1, :n, "a:{n}"]', '{"n": "it''s \"\\"}', 'for_each');
-- JSON with names in it: values keep their types, strings are escaped
SELECT value_of('{"n": :n, "s": :s, "o": :o, "none": :nothing, "text": "<:{s}> :n :{o.k} \":{n}\"", "id": :saga_name, "a":1, "b":[], "c":{"d":"x:y"}}',
    '{"n": 1.50, "s": "a\"b\\c", "o": {"k": [true, null]}}', 'output');
SELECT value_of(':o', '{"o": {"k": 1}}', 'output'), value_of('"no :{o.k} \" :o"', '{"o": {"k": 1}}', 'output');
SELECT value_of('jsonb_build_object(''k'', :n::numeric + 1)', '{"n": 1}', 'output');
-- times
SELECT abs((value_of(e, '{"d": "10 minutes", "n": 600}', 'duration'))::text::numeric - extract(epoch FROM now()) - 600) < 60 AS ten_minutes, e
FROM unnest(ARRAY['10 minutes', ' 00:10', '600', '+600 s', 'PT10M', '''10 min''', ':d', ':n', 'interval ''5 min'' * 2', 'make_interval(secs => :n)']) AS e;
SELECT to_timestamp(value_of(e, '{"d": "2030-01-01T00:00:00Z"}', 'at', d)::text::numeric) = '2030-01-01 00:00+00' AS new_year, e
FROM (VALUES ('2030-01-01 00:00+00', NULL), (':d', NULL), (':d', 'd timestamptz'), ('''2029-12-31 00:00+00''::timestamptz + ''1 day''', NULL)) AS v(e, d);
-- cases, while
SELECT i, evaluate('all', 'route', 'cases', NULL, i::jsonb) FROM unnest(ARRAY['{"approval": {"ok": true}}', '{"approval": {"ok": false}}', '{}']) i;
SELECT evaluate('all', 'route', 'cases', '{"order_id": 1, "total": 4, "lines": [], "amounts": []}', '{}');
SELECT r, evaluate('all', 'poll', 'while', NULL, r::jsonb) FROM unnest(ARRAY['{}', '{"iteration": 1}', '{"iteration": 1, "look": {"state": "busy"}}', '{"iteration": 2, "look": {"state": "done"}}']) r;
SELECT evaluate('all', 'person', 'decline_if', NULL, '{"person": {"state": "declined"}}');
SELECT evaluate('all', 'payment', 'condition', '{"order_id": 1, "total": 0, "lines": [], "amounts": []}'),
    evaluate('all', 'line', 'condition', '{"order_id": 1, "total": 0, "lines": [], "amounts": []}'),
    evaluate('all', 'note', 'condition');
SELECT evaluate('all', 'sub', 'action', '{"order_id": 7, "total": 1, "lines": [], "amounts": []}');
-- elements in what is sent
SELECT saga.render('all', 'line', results => '{"item": {"sku": "s1"}, "item_index": 1, "line": [1, 2]}', operation => 'compensation');
SELECT saga.render('all', 'amount', results => '{"item": 5}');
SELECT saga.render('all', 'amount', operation => 'for_each');
SELECT saga.render('all', 'poll');
SELECT saga.render('all', 'sub', operation => 'compensation');
SELECT saga.render('all', 'payment', operation => 'while');

-- ---- what is refused ----
-- expressions
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[
    saga.step('a', 'SELECT 1', condition => ':x >'), saga.step('b', 'SELECT 1', condition => '1 FROM orders'), saga.step('c', 'SELECT 1', condition => '1, 2'),
    saga.step('d', 'SELECT 1', condition => 'true; SELECT 1'), saga.step('e', 'SELECT 1', condition => 'nosuch(:x)'), saga.step('g', 'SELECT 1', condition => ':x < interval ''1 h'''),
    saga.step('h', 'SELECT 1', condition => 'SELECT true'), saga.step('i', 'SELECT 1', condition => '  '), saga.step('j', 'SELECT 1', for_each => '{"a": :x'),
    saga.step('k', 'SELECT 1', for_each => ':x || :y'), saga.sleep_step('l', 'ten minutes'), saga.sleep_until_step('m', '2030-02-31'), saga.sleep_step('n', NULL::text),
    saga.step('o', 'SELECT 1', decline_if => ':o.x = 1'), saga.step('p', 'SELECT 1', condition => 'true) OR (1 = 1'), saga.step('q', 'SELECT 1', condition => 'true) UNION (SELECT true'),
    saga.loop_step('r', ARRAY[saga.step('s', 'SELECT 1')], while => ':t = 1'), saga.step('t', 'SELECT 1', condition => 'id > 1'), saga.sleep_step('u', '42 + 1')],
    output => '{"x": nothing}') $$);
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1', condition => ':y > 1'), saga.step('b', 'SELECT 1', for_each => ':a.z'),
    saga.branch_step('c', saga.when(':y', '{}')), saga.call_step('d', 'child', '{"a": :y, "b": :z.z}')], input => 'x integer', output => ':y') $$);
-- names where they mean nothing
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[
    saga.step('a', 'SELECT :item::text, :item_index, :iteration, :callback_token, :result::text', 'SELECT :callback_token'),
    saga.step('b', 'SELECT :item::text', for_each => ':item', condition => ':item_index = 0'),
    saga.step('c', 'SELECT :b.0::text, :c::text', 'SELECT :c::text, :item::text', for_each => '[1]'),
    saga.branch_step('d', saga.when('true', ARRAY[saga.step('e', 'SELECT 1')]), saga.otherwise(ARRAY[saga.step('g', 'SELECT :e::text, :d::text')])),
    saga.loop_step('h', ARRAY[saga.step('i', 'SELECT :h::text, :j::text'), saga.step('j', 'SELECT :i::text')], max => 2),
    saga.sleep_step('k', '1 s'), saga.savepoint_step('l'), saga.step('m', 'SELECT :k::text, :l::text, :h::text, :e::text, :j::text, :k.failed')],
    output => '[:item, :iteration, :h]') $$);
-- "after"
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('o', 'SELECT 1'),
    saga.loop_step('l', ARRAY[saga.step('a', 'SELECT 1', after => '{o}'), saga.step('b', 'SELECT 1', after => '{a}')], max => 2),
    saga.branch_step('c', saga.when('true', ARRAY[saga.step('d', 'SELECT 1')]), saga.when('true', ARRAY[saga.step('e', 'SELECT 1', after => '{d,o}')])),
    saga.step('z', 'SELECT 1', after => '{b}')]) $$);
SELECT * FROM step_faults($$ saga.loop_step('l', ARRAY[saga.step('a', 'SELECT 1', after => '{b}'), saga.step('b', 'SELECT 1', after => '{a}')], max => 2) $$);
SELECT * FROM step_faults($$ saga.branch_step('b', saga.when('true', ARRAY[saga.step('a', 'SELECT 1', after => '{z}')])), saga.step('z', 'SELECT 1') $$);
-- names of steps are those of the whole definition
SELECT * FROM step_faults($$ saga.step('a', 'SELECT 1', for_each => '[1]'), saga.loop_step('l', ARRAY[saga.step('a', 'SELECT 1'), saga.step('l', 'SELECT 1')], max => 1) $$);
-- shapes
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.branch_step('a', VARIADIC '{}'::saga.node[]), saga.branch_step('b', saga.step('c', 'SELECT 1'), NULL),
    saga.branch_step('d', saga.otherwise('{}'), saga.when('true', '{}')), saga.branch_step('e', saga.when(NULL, '{}')),
    saga.when('true', ARRAY[saga.step('g', 'SELECT 1')]), saga.parallel(saga.otherwise('{}')),
    saga.loop_step('h', ARRAY[saga.step('i', 'SELECT 1')]), saga.loop_step('j', '{}', max => 0), saga.loop_step('k', NULL, while => 'true'),
    saga.savepoint_step('l', max_tries => 0), saga.savepoint_step('m', condition => 'true'),
    saga.signal_step('n', NULL), saga.signal_step('o', ' ', timeout => '0'), saga.signal_step('p', 's', on_timeout => 'go on'), saga.signal_step('q', 's', on_timeout => 'continue'),
    saga.call_step('r', NULL), saga.call_step('s', 'nosuch'), saga.call_step('t', 'f'),
    saga.step('u', 'SELECT 1', max_parallel => 2), saga.step('v', 'SELECT 1', for_each => '[]', max_parallel => 0),
    saga.step('w', '1', queue => 'q', server => 'nowhere'), saga.step('x', '1', queue => ''), saga.step('y', 'SELECT 1', callback_timeout => '1 s'),
    saga.step('z', 'SELECT 1', delivery => 'never', result => 'none', decline_if => 'true')], protocol => 'tcp', protocols => '{saga,NULL}') $$);
-- failures that go back
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[
    saga.step('a', 'SELECT 1', on_failure => 'goto:s'), saga.savepoint_step('s'),
    saga.step('b', 'SELECT 1', on_failure => 'goto:a'), saga.step('c', 'SELECT 1', on_failure => 'goto:'), saga.step('d', 'SELECT 1', on_failure => 'goto:nowhere'),
    saga.branch_step('e', saga.when('true', ARRAY[saga.savepoint_step('t'), saga.step('g', 'SELECT 1', on_failure => 'goto:t')])),
    saga.loop_step('h', ARRAY[saga.savepoint_step('u'), saga.step('i', 'SELECT 1', on_failure => 'goto:s'), saga.step('j', 'SELECT 1', on_failure => 'goto:u')], max => 2, on_failure => 'goto:t'),
    saga.step('k', 'SELECT 1', on_failure => 'goto:u'), saga.step('l', 'SELECT 1', on_failure => 'goto:s')]) $$);
-- a group's on_failure is that of what is in it
SELECT * FROM step_faults($$ saga.parallel(ARRAY[saga.step('a', 'SELECT 1'), saga.step('b', 'SELECT 1', on_failure => 'stuck')], on_failure => 'goto:x'),
    saga.branch_step('c', ARRAY[saga.when('true', ARRAY[saga.step('d', 'SELECT 1', for_each => '[1]')])], on_failure => 'goto:y'),
    saga.loop_step('e', ARRAY[saga.parallel(saga.step('g', 'SELECT 1'))], max => 1, on_failure => 'goto:z') $$);
-- the pivot
SELECT * FROM faults($$ SELECT saga.define('f', ARRAY[saga.step('a', 'SELECT 1', pivot => true, for_each => '[1]'), saga.step('b', 'SELECT 1', pivot => true, condition => 'true')]) $$);
SELECT * FROM step_faults($$ saga.loop_step('l', ARRAY[saga.step('a', 'SELECT 1', pivot => true)], max => 1) $$);
SELECT * FROM step_faults($$ saga.branch_step('b', saga.when('true', ARRAY[saga.step('a', 'SELECT 1', 'none', pivot => true)])) $$);
SELECT * FROM step_faults($$ saga.parallel(ARRAY[saga.step('a', 'SELECT 1', pivot => true)], condition => 'true', on_failure => 'continue') $$);
SELECT * FROM step_faults($$ saga.savepoint_step('s'), saga.step('a', 'SELECT 1', for_each => '[1]'), saga.loop_step('l', ARRAY[saga.step('b', 'SELECT 1')], max => 1),
    saga.step('c', 'SELECT 1', 'none', for_each => '[1]'), saga.call_step('d', 'child'), saga.sleep_step('e', '1 s'), saga.step('p', 'SELECT 1', pivot => true),
    saga.step('q', 'SELECT 1', on_failure => 'goto:s'), saga.loop_step('m', ARRAY[saga.step('r', 'SELECT 1', retriable => false)], max => 1) $$);
-- definitions that call each other
SELECT saga.define('ping', ARRAY[saga.step('a', 'SELECT 1')]);
SELECT saga.define('pong', ARRAY[saga.loop_step('l', ARRAY[saga.call_step('c', 'ping')], max => 2)]);
SELECT * FROM faults($$ SELECT saga.define('ping', ARRAY[saga.branch_step('b', saga.when('true', ARRAY[saga.call_step('c', 'pong')]))]) $$);
-- others' definitions
SET ROLE regress_flow_other;
SELECT * FROM regress_flow.faults($$ SELECT saga.define('theirs', ARRAY[saga.call_step('c', 'child', for_each => '[1, 2]')]) $$);
SET ROLE regress_flow_owner;
SELECT saga.grant('child', 'regress_flow_other', '{start}');
SET ROLE regress_flow_other;
SELECT saga.define('theirs', ARRAY[saga.call_step('c', 'child', for_each => '[1, 2]')]);
RESET ROLE;
-- limits: an element is a step of its own
SELECT saga.define('f', ARRAY(SELECT saga.step('s' || i, 'SELECT 1', for_each => '[]') FROM generate_series(1, 501) i));
\echo :LAST_ERROR_SQLSTATE
-- of a superuser's nothing runs here that somebody else could have a hand in
SELECT saga.define('root', ARRAY[saga.sleep_step('a', '1 s'), saga.signal_step('b', 's'), saga.call_step('c', 'child', '{"a": :b}', for_each => ':x')], output => ':x');
SELECT step, regexp_replace(fault, '".*"', '"..."') AS fault FROM regress_flow.faults($$ SELECT saga.define('root', ARRAY[saga.sleep_step('a', '1 s', condition => ':x > 1')]) $$);

SET client_min_messages = warning;
SELECT sum(saga.drop_definition(name)) > 0 AS dropped FROM (SELECT DISTINCT name FROM saga.definition) d WHERE name IN ('all', 'same', 'child', 'f', 'value', 'ping', 'pong', 'theirs', 'root');
DROP SCHEMA regress_flow CASCADE;
DROP OWNED BY regress_flow_owner, regress_flow_other;
DROP ROLE regress_flow_owner, regress_flow_other;
