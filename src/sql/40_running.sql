-- ---------------------------------------------------------------------------
-- Running sagas.

CREATE TYPE saga.outcome AS (
    id          uuid,
    state       text,
    done        boolean,
    cause       text,
    output      jsonb,
    failed_step text,
    sqlstate    text,
    error       text
);
COMMENT ON TYPE saga.outcome IS 'What has become of a saga: see saga.wait()';

CREATE FUNCTION saga.start(definition text, input jsonb DEFAULT '{}', key text DEFAULT NULL,
    start_at timestamptz DEFAULT NULL, on_conflict text DEFAULT 'return', version integer DEFAULT NULL,
    priority integer DEFAULT NULL, deadline interval DEFAULT NULL, correlation text DEFAULT NULL,
    labels jsonb DEFAULT NULL)
RETURNS uuid LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_start';
COMMENT ON FUNCTION saga.start(text, jsonb, text, timestamptz, text, integer, integer, interval, text, jsonb)
IS 'Start a saga as part of this transaction: no commit, no saga';

CREATE FUNCTION saga.start_many(definition text, inputs jsonb, key_field text DEFAULT NULL)
RETURNS TABLE (ordinal integer, id uuid, created boolean)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_start_many';
COMMENT ON FUNCTION saga.start_many(text, jsonb, text)
IS 'Start a saga for each object of a JSON array';

CREATE FUNCTION saga.wait(id uuid, timeout interval DEFAULT '30 s')
RETURNS saga.outcome LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_wait';
COMMENT ON FUNCTION saga.wait(uuid, interval) IS 'Wait for a saga to end; at the time-out done is false';

CREATE FUNCTION saga.status(id uuid)
RETURNS saga.outcome LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_status';
COMMENT ON FUNCTION saga.status(uuid) IS 'What has become of a saga, as committed now';

-- The operator's verbs.  Each leaves a command; the coordinator logs it.
CREATE FUNCTION saga.verb_(id uuid, verb text, step text, result jsonb, force boolean, reason text, strict boolean)
RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_verb';
COMMENT ON FUNCTION saga.verb_(uuid, text, text, jsonb, boolean, text, boolean)
IS 'Internal: leave a verb in the inbox (use cancel, pause, ...)';

CREATE FUNCTION saga.cancel(id uuid, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.verb_(id, 'cancel', NULL, NULL, false, reason, strict);
COMMENT ON FUNCTION saga.cancel(uuid, text, boolean)
IS 'Undo what the saga has done; accepted until the pivot may have happened';

CREATE FUNCTION saga.terminate(id uuid, reason text DEFAULT NULL, force boolean DEFAULT false, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.verb_(id, 'terminate', NULL, NULL, force, reason, strict);
COMMENT ON FUNCTION saga.terminate(uuid, text, boolean, boolean)
IS 'End the saga as it stands, undoing nothing; force: without asking participants what happened';

CREATE FUNCTION saga.pause(id uuid, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.verb_(id, 'pause', NULL, NULL, false, reason, strict);
COMMENT ON FUNCTION saga.pause(uuid, text, boolean) IS 'Start no new call of the saga; calls in flight finish';

CREATE FUNCTION saga.resume(id uuid, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.verb_(id, 'resume', NULL, NULL, false, reason, strict);
COMMENT ON FUNCTION saga.resume(uuid, text, boolean) IS 'Let a paused saga, or one past its deadline, go on';

CREATE FUNCTION saga.retry_step(id uuid, step text, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.verb_(id, 'retry_step', step, NULL, false, reason, strict);
COMMENT ON FUNCTION saga.retry_step(uuid, text, text, boolean)
IS 'Try a stuck or waiting step now, its attempts counted from the beginning';

CREATE FUNCTION saga.skip_step(id uuid, step text, result jsonb DEFAULT NULL, reason text DEFAULT NULL,
    force boolean DEFAULT false, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.verb_(id, 'skip_step', step, result, force, reason, strict);
COMMENT ON FUNCTION saga.skip_step(uuid, text, jsonb, text, boolean, boolean)
IS 'Count a step (when undoing: its compensation) as done with this result; a call that may have happened is first forbidden at the participant, unless forced';

CREATE FUNCTION saga.take_over(reason text DEFAULT NULL)
RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_take_over';
COMMENT ON FUNCTION saga.take_over(text)
IS 'Let the held sagas of a copied or restored database go on here, and nowhere else';

-- ---------------------------------------------------------------------------
-- Looking.

CREATE FUNCTION saga.workers_(OUT kind text, OUT number integer, OUT pid integer, OUT started_at timestamptz,
    OUT turns bigint, OUT items bigint, OUT loaded bigint, OUT errors bigint, OUT activity text)
RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_workers';
COMMENT ON FUNCTION saga.workers_() IS 'Internal: rows of saga.stat_workers';

CREATE FUNCTION saga.participant_stats_(OUT serverid oid, OUT calls bigint, OUT done bigint, OUT declined bigint,
    OUT transient bigint, OUT broken bigint, OUT unknown bigint, OUT latency_us bigint, OUT latency_max_us bigint,
    OUT connections integer, OUT in_flight integer, OUT queued integer, OUT circuit text, OUT connects bigint)
RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_participant_stats';
COMMENT ON FUNCTION saga.participant_stats_() IS 'Internal: rows of saga.stat_participants';

CREATE FUNCTION saga.check_log(id uuid DEFAULT NULL)
RETURNS TABLE (saga_id uuid, problem text) LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_check_log';
COMMENT ON FUNCTION saga.check_log(uuid)
IS 'Fold the log of one saga, or of all, and name every row that differs from it';

CREATE VIEW saga.instances WITH (security_barrier) AS
SELECT i.id, d.name, d.version, i.state, i.direction, i.cause, i.key, i.failed_step, i.sqlstate, i.error,
       i.input, i.output, i.correlation, i.labels, i.priority,
       pg_catalog.pg_get_userbyid(i.started_by) AS started_by, i.started_at, i.start_at, i.deadline, i.ended_at
FROM saga.instance i JOIN saga.definition d ON d.id = i.definition_id
WHERE i.started_by = (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
   OR saga.may(d.name, 'see');
COMMENT ON VIEW saga.instances IS 'Sagas you started or may see, one row each';

CREATE VIEW saga.log WITH (security_barrier) AS
SELECT l.saga_id, l.seq, l.at, l.kind, l.step, l.operation, l.attempt, l.outcome, l.state, l.cause, l.reason,
       l.due, l.sqlstate,
       CASE WHEN p.readable THEN l.message END AS message,
       CASE WHEN p.readable THEN l.result END AS result,
       l.actor, l.note
FROM saga.log_record l
JOIN saga.instances i ON i.id = l.saga_id
CROSS JOIN LATERAL (SELECT pg_catalog.current_setting('saga.log_payloads', true) IS DISTINCT FROM 'off'
                        OR saga.may(i.name, 'operate') AS readable) p;
COMMENT ON VIEW saga.log IS 'The append-only history of each saga';

-- A step's state is what its last record says.
CREATE VIEW saga.steps WITH (security_barrier) AS
WITH last AS (
    SELECT DISTINCT ON (l.saga_id, l.step) l.*
    FROM saga.log_record l
    WHERE l.step IS NOT NULL AND l.kind <> 'undo' AND l.step NOT LIKE '$%'
    ORDER BY l.saga_id, l.step, l.seq DESC
)
SELECT i.id AS saga_id, n.ordinality AS position, n.step,
       CASE
           WHEN last.kind IS NULL THEN CASE WHEN i.ended_at IS NULL AND i.direction = 'forward' THEN 'waiting' ELSE 'not run' END
           WHEN last.kind = 'done' THEN CASE last.operation WHEN 'undo' THEN 'undone' ELSE 'done' END
           WHEN last.kind = 'intent' THEN CASE last.operation WHEN 'undo' THEN 'undoing' WHEN 'claim' THEN 'claiming' ELSE 'running' END
           WHEN last.kind = 'failed' AND last.due IS NOT NULL THEN CASE last.operation WHEN 'undo' THEN 'retrying undo' ELSE 'retrying' END
           WHEN last.kind = 'failed' THEN 'failed'
           WHEN last.kind = 'retried' THEN CASE last.operation WHEN 'undo' THEN 'undoing' ELSE 'running' END
           ELSE last.kind
       END AS state,
       (SELECT pg_catalog.max(l.attempt) FROM saga.log_record l
        WHERE l.saga_id = i.id AND l.step = n.step AND l.operation = coalesce(last.operation, 'action')) AS attempts,
       last.due AS next_attempt_at, last.at AS changed_at, last.outcome, last.sqlstate, last.message AS error,
       (SELECT l.result FROM saga.log_record l
        WHERE l.saga_id = i.id AND l.step = n.step AND l.kind IN ('done', 'skipped') AND l.operation <> 'undo'
        ORDER BY l.seq DESC LIMIT 1) AS result
FROM saga.instances i
JOIN saga.definition d ON d.name = i.name AND d.version = i.version
CROSS JOIN LATERAL saga.definition_steps_(d.body) WITH ORDINALITY AS n(step, ordinality)
LEFT JOIN last ON last.saga_id = i.id AND last.step = n.step;
COMMENT ON VIEW saga.steps IS 'Every step of each saga and what has become of it';

CREATE VIEW saga.stuck WITH (security_barrier) AS
SELECT s.saga_id AS id, i.name, i.version, i.direction, s.step, s.operation, s.reason, s.sqlstate, s.message AS error, s.since,
       CASE s.reason
           WHEN 'declined' THEN 'The step was declined and the saga cannot go back. Mend the cause, then retry the step, or skip it.'
           WHEN 'broken' THEN 'The participant''s configuration is at fault, see the error. Mend it, then retry the step.'
           WHEN 'undo_fails' THEN 'The compensation goes on being tried. Mend the participant, or skip it when it has been done by hand.'
           WHEN 'deadline' THEN 'The deadline passed after the pivot. Resume the saga to let it finish.'
           WHEN 'error' THEN 'The coordinator cannot work on this saga, see the error. It tries again every few seconds; terminate with force ends it.'
           WHEN 'hook_fails' THEN 'The ending action of the definition fails. Mend the cause, then retry, or skip it.'
       END AS hint,
       CASE s.reason
           WHEN 'deadline' THEN ARRAY['resume', 'terminate']
           WHEN 'error' THEN ARRAY['terminate']
           ELSE CASE WHEN i.direction = 'forward' AND s.reason <> 'hook_fails'
                     THEN ARRAY['retry_step', 'skip_step', 'cancel', 'terminate']
                     ELSE ARRAY['retry_step', 'skip_step', 'terminate'] END
       END AS verbs
FROM saga.stuck_saga s JOIN saga.instances i ON i.id = s.saga_id;
COMMENT ON VIEW saga.stuck IS 'Sagas that wait for an operator: why, and the verbs that help';

CREATE VIEW saga.participants WITH (security_barrier) AS
SELECT s.srvname AS name, w.fdwname AS wrapper,
       pg_catalog.pg_get_userbyid(s.srvowner) AS owner,
       pg_catalog.has_server_privilege(s.oid, 'USAGE') AS usable,
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_user_mappings m WHERE m.srvid = s.oid) AS mappings,
       (SELECT pg_catalog.array_agg(DISTINCT d.name)
        FROM saga.definition d WHERE saga.may(d.name, 'see')
          AND pg_catalog.jsonb_path_exists(d.body, '$.** ? (@.server == $name)',
                                           pg_catalog.jsonb_build_object('name', s.srvname))) AS used_by
FROM pg_catalog.pg_foreign_server s JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
WHERE w.fdwname IN ('saga_postgres', 'postgres_fdw', 'dblink_fdw');
COMMENT ON VIEW saga.participants IS 'Foreign servers that saga can call';

CREATE VIEW saga.stat_participants WITH (security_barrier) AS
SELECT s.srvname AS name, p.calls, p.done, p.declined, p.transient, p.broken, p.unknown,
       CASE WHEN p.calls > 0 THEN pg_catalog.round(p.latency_us / 1000.0 / p.calls, 3) END AS latency_avg_ms,
       pg_catalog.round(p.latency_max_us / 1000.0, 3) AS latency_max_ms,
       p.connections, p.in_flight, p.queued, p.circuit, p.connects
FROM saga.participant_stats_() p JOIN pg_catalog.pg_foreign_server s ON s.oid = p.serverid;
COMMENT ON VIEW saga.stat_participants IS 'Calls to each participant since the server started';

CREATE VIEW saga.stat_workers WITH (security_barrier) AS
SELECT * FROM saga.workers_();
COMMENT ON VIEW saga.stat_workers IS 'The workers of this database';

CREATE VIEW saga.stat_sagas WITH (security_barrier) AS
SELECT i.name, i.version,
       pg_catalog.count(*) AS started,
       pg_catalog.count(*) FILTER (WHERE i.ended_at IS NULL) AS live,
       pg_catalog.count(*) FILTER (WHERE i.state = 'stuck') AS stuck,
       pg_catalog.count(*) FILTER (WHERE i.state = 'completed') AS completed,
       pg_catalog.count(*) FILTER (WHERE i.state = 'compensated') AS compensated,
       pg_catalog.count(*) FILTER (WHERE i.state = 'terminated') AS terminated,
       pg_catalog.percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM i.ended_at - i.started_at) * 1000) AS p50_ms,
       pg_catalog.percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM i.ended_at - i.started_at) * 1000) AS p99_ms,
       pg_catalog.max(i.started_at) AS last_started_at,
       pg_catalog.max(i.ended_at) AS last_ended_at
FROM saga.instances i
GROUP BY i.name, i.version;
COMMENT ON VIEW saga.stat_sagas IS 'Outcomes and durations by definition, over the sagas that are kept';
