--
-- dry_run(), test_run(): sagas within a session, rolled back.  Needs no
-- workers.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS saga;
CREATE ROLE regress_dry;
CREATE ROLE regress_dry_other;
GRANT saga_user TO regress_dry, regress_dry_other;
CREATE SCHEMA dry AUTHORIZATION regress_dry;
GRANT USAGE ON SCHEMA dry TO regress_dry_other;
CREATE SERVER dry_pay FOREIGN DATA WRAPPER saga_postgres OPTIONS (host '127.0.0.1', port '1');
GRANT USAGE ON FOREIGN SERVER dry_pay TO regress_dry;
CREATE USER MAPPING FOR regress_dry SERVER dry_pay OPTIONS (user 'nobody', password 'secret');
SET client_min_messages = error;
SET ROLE regress_dry;
SET search_path = dry;
\pset null '-'

CREATE TABLE item (id integer PRIMARY KEY, stock integer NOT NULL CHECK (stock >= 0), note text);
INSERT INTO item SELECT n, 10, repeat('long ', 1000) FROM generate_series(1, 3) n;
CREATE TABLE line (what text, n integer);
INSERT INTO line VALUES ('same', 1), ('same', 1), ('other', 2);
CREATE TABLE seen (who text, what text);

SELECT saga.define('order', input => 'id integer, n integer', steps => ARRAY[
  saga.step('take', 'UPDATE item SET stock = stock - :n WHERE id = :id', 'UPDATE item SET stock = stock + :n WHERE id = :id',
            expect_rows => 1),
  saga.step('there_and_back', 'WITH d AS (DELETE FROM item WHERE id = 3 RETURNING *) SELECT count(*) FROM d',
            'INSERT INTO item SELECT 3, 10, repeat(''long '', 1000)'),
  saga.step('lines', 'DELETE FROM line WHERE what = ''same''', 'INSERT INTO line VALUES (''same'', 1), (''new'', 3)'),
  saga.step('pay', server => 'dry_pay', action => 'SELECT pay(:id, :take.rows)', compensation => 'SELECT refund(:id, :pay.ref)'),
  saga.step('ship', pivot => true, action => 'INSERT INTO line VALUES (''shipped'', :id)'),
  saga.step('tell', 'SELECT :pay.ref')],
  on_completed => 'INSERT INTO seen VALUES (current_user, ''completed'')',
  on_compensated => 'INSERT INTO seen VALUES (current_user, ''compensated'')');
SELECT phase, step, operation, sent - 'types' AS sent, result, error, relation, key, before - 'note' AS before, after - 'note' AS after
  FROM saga.dry_run('order', '{"id": 1, "n": 2}', stubs => '{"pay": {"ref": "r1"}}');

-- it comes back by itself; a result that is no stub; one that is an error
SELECT phase, step, operation, result, left(error, 5) AS error, relation, before - 'note' AS before, after - 'note' AS after
  FROM saga.dry_run('order', '{"id": 1, "n": 20}');
SELECT phase, step, operation, result, error FROM saga.dry_run('order', '{"id": 2, "n": 2}') WHERE step = 'pay';
SELECT phase, step, operation, result, error
  FROM saga.dry_run('order', '{"id": 2, "n": 2}', stubs => '{"pay": {"$error": "card declined"}}') WHERE step IS NOT NULL;
SELECT phase, step, error FROM saga.dry_run('order', '{"id": 2, "n": 2}', stubs => '{"pay": {"$error": "42501: not yours"}}')
 WHERE phase = 'end' OR step = 'pay';

-- nothing of it has happened
SELECT id, stock FROM item ORDER BY id;
SELECT * FROM line ORDER BY what;
SELECT * FROM seen;

-- within a transaction that has changed rows itself
BEGIN;
UPDATE item SET stock = 5 WHERE id = 1;
SELECT relation, key, before - 'note' AS before, after - 'note' AS after FROM saga.dry_run('order', '{"id": 1, "n": 5}')
 WHERE phase = 'not restored' AND relation = 'item'::regclass;
SELECT stock FROM item WHERE id = 1;
ROLLBACK;

-- tables that cannot be compared
CREATE FUNCTION truncating() RETURNS void LANGUAGE plpgsql SET search_path = dry AS 'BEGIN TRUNCATE line; END';
SELECT saga.define('strange', steps => ARRAY[
  saga.step('truncate', 'SELECT truncating()', 'SELECT 1'),
  saga.step('lock', 'SELECT saga.semantic_lock(''item'', ''1'')', 'SELECT 1'),
  saga.step('again', 'SELECT saga.semantic_lock(''item'', ''1''), saga.reread(''item'', ''{"id": 1}'')', 'SELECT 1')]);
SELECT phase, step, operation, result, error, relation FROM saga.dry_run('strange');

-- who may, and with what
SELECT count(*) FROM saga.dry_run('order', '{"id": 1}');
SELECT count(*) FROM saga.dry_run('order', '{"id": 1, "n": 1}', stubs => '[]');
SELECT count(*) FROM saga.dry_run('none');
SELECT saga.grant('order', 'regress_dry_other', '{start,see}');
SET ROLE regress_dry_other;
SELECT count(*) FROM saga.dry_run('order', '{"id": 1, "n": 1}');

-- ---- tests that users write ----

SET ROLE regress_dry;
SELECT saga.test_begin();
RESET ROLE;
SET saga.allow_test = on;
SET ROLE regress_dry;
SELECT saga.test_mock('order', 'pay');
SELECT saga.test_begin();
SELECT saga.test_mock('order', 'pay', error => '08006');
SELECT saga.test_mock('order', 'pay', error => '40001: once more');
SELECT saga.test_mock('order', 'pay', result => '{"ref": "r1"}');
SELECT seq, at - min(at) OVER () AS after, kind, step, operation, attempt, outcome, state, due - at AS wait, sqlstate, message, result
  FROM saga.test_run('order', '{"id": 1, "n": 2}');
SELECT stock FROM item WHERE id = 1;
-- only so much time passes
SELECT saga.test_advance('500 ms');
SELECT saga.test_advance(by => '1 s');
SELECT kind, step, due - at AS wait FROM saga.test_run('order', '{"id": 1, "n": 2}') WHERE step = 'pay';
-- compensations, and local steps, can be mocked too
SELECT saga.test_begin();
SELECT saga.test_mock('order', 'take', result => '{"rows": 7}');
SELECT saga.test_mock('order', 'pay', result => '{"ref": "r2"}');
SELECT saga.test_mock('order', 'ship', error => 'no ship today');
SELECT saga.test_mock('order', 'pay', error => '57014', operation => 'compensation');
SELECT saga.test_mock('order', 'pay', operation => 'compensation');
SELECT kind, step, operation, attempt, outcome, state, cause, sqlstate, message, result
  FROM saga.test_run('order', '{"id": 1, "n": 99}');
SELECT saga.test_mock('order', 'payment');
SELECT saga.test_mock('none', 'pay');
SELECT saga.test_mock('order', 'pay', operation => 'undo');
SELECT saga.test_advance('-1 s');
SELECT count(*) FROM saga.test_run('order', '{}');
SET ROLE regress_dry_other;
SELECT count(*) > 5 AS ran FROM saga.test_run('order', '{"id": 1, "n": 1}');
SELECT saga.test_mock('strange', 'lock');

-- ---- control flow ----

SET ROLE regress_dry;
SELECT saga.define('flow', input => 'n integer, items jsonb', deadline => '3 hours', steps => ARRAY[
  saga.savepoint_step('back', max_tries => 2),
  saga.step('mark', 'INSERT INTO line VALUES (''mark'', :n)', 'DELETE FROM line WHERE what = ''mark'''),
  saga.branch_step('size', saga.when(':n > 5', ARRAY[saga.step('big', 'SELECT ''big''', 'none')]),
                   saga.otherwise(ARRAY[saga.step('small', 'SELECT ''small''', 'none')])),
  saga.step('each', 'SELECT :item::text', for_each => ':items', compensation => 'SELECT :item::text'),
  saga.loop_step('twice', ARRAY[saga.step('add', 'INSERT INTO line VALUES (''add'', :iteration)', 'DELETE FROM line WHERE what = ''add'' AND n = :iteration')],
                 while => ':iteration < 2', max => 5),
  saga.sleep_step('nap', '1 hour'),
  saga.sleep_step('doze', '30 minutes'),
  saga.signal_step('approved', 'approve', timeout => '1 day'),
  saga.step('once', 'SELECT 1', 'none', condition => ':n = 1'),
  saga.step('fails', 'SELECT 1 / (:n - 7)', 'none', on_failure => 'goto:back'),
  saga.step('last', 'SELECT :approved.by', 'none')]);
SELECT phase, step, operation, result, error, relation FROM saga.dry_run('flow', '{"n": 6, "items": [1, "two"]}', stubs => '{"approved": {"by": "ann"}}')
 WHERE step NOT IN ('nap', 'doze');
SELECT saga.test_begin();
SELECT saga.test_mock('flow', 'approved', result => '{"by": "bob"}');
SELECT saga.test_mock('flow', 'each[1]', result => '"mocked"');
SELECT seq, at - min(at) OVER () AS after, kind, step, operation, outcome, state, cause, sqlstate, result
  FROM saga.test_run('flow', '{"n": 7, "items": [1, 2]}');
-- no signal: the deadline comes first
SELECT saga.test_begin();
SELECT seq, at - min(at) OVER () AS after, kind, step, state, cause FROM saga.test_run('flow', '{"n": 1, "items": []}') WHERE seq > 14;
SELECT saga.graph('flow');

RESET ROLE;
DROP OWNED BY regress_dry CASCADE;
SELECT count(*) FROM saga.instances WHERE name = 'order';
DELETE FROM saga.definition WHERE name IN ('order', 'strange', 'flow');
DELETE FROM saga.privilege WHERE definition IN ('order', 'strange', 'flow');
DROP SERVER dry_pay CASCADE;
DROP OWNED BY regress_dry_other;
DROP ROLE regress_dry, regress_dry_other;
