/* saga--1.0.sql */
\echo Use "CREATE EXTENSION saga" to load this file. \quit

-- Nothing that exists is adopted: if somebody made a schema of this name
-- before, this fails.
CREATE SCHEMA saga;
COMMENT ON SCHEMA saga IS 'Sagas: transactions across services that own their databases';
REVOKE ALL ON SCHEMA saga FROM PUBLIC;

-- Roles belong to the server, not to this database: made if absent, never
-- dropped.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['saga_user', 'saga_operator', 'saga_monitor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) wanted) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
END
$$;
GRANT USAGE ON SCHEMA saga TO saga_user, saga_operator, saga_monitor;
-- ---------------------------------------------------------------------------
-- Tables of the running sagas.  Only the library writes them; users look
-- through the views.

-- One row a saga: what listing and waiting need.  No index on a column that
-- changes but the partial one, so that all updates but the last stay HOT.
CREATE TABLE saga.instance (
    id            uuid PRIMARY KEY,
    bucket        smallint NOT NULL,
    definition_id bigint NOT NULL,
    state         text NOT NULL,
    direction     text NOT NULL,
    cause         text,
    key           text,
    input         jsonb NOT NULL,
    output        jsonb,
    failed_step   text,
    sqlstate      text,
    error         text,
    correlation   text,
    labels        jsonb,
    priority      integer NOT NULL DEFAULT 0,
    started_by    oid NOT NULL,
    started_at    timestamptz NOT NULL,
    start_at      timestamptz,
    deadline      timestamptz,
    ended_at      timestamptz,
    origin        integer NOT NULL,
    parent_id     uuid,
    parent_step   text,
    depth         integer NOT NULL DEFAULT 0,
    copy_of       uuid,
    protocol      text NOT NULL DEFAULT 'saga'
) WITH (fillfactor = 45);
CREATE INDEX instance_live ON saga.instance (bucket) WHERE ended_at IS NULL;
-- These never change, so an update stays HOT.
CREATE INDEX instance_labels ON saga.instance USING gin (labels jsonb_path_ops) WHERE labels IS NOT NULL;
CREATE INDEX instance_parent ON saga.instance (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX instance_copy ON saga.instance (copy_of) WHERE copy_of IS NOT NULL;
COMMENT ON TABLE saga.instance IS 'One row for each saga; equals the fold of its log';

-- The idempotency keys of start(), over all versions of a definition.
CREATE TABLE saga.instance_key (
    name     text NOT NULL,
    key      text NOT NULL,
    saga_id  uuid NOT NULL,
    PRIMARY KEY (name, key)
);
CREATE INDEX instance_key_saga ON saga.instance_key (saga_id);
COMMENT ON TABLE saga.instance_key IS 'Idempotency keys given to start()';

-- The append-only truth.  Ids are UUIDv7, so ranges of ids are ranges of time.
CREATE TABLE saga.log_record (
    saga_id   uuid NOT NULL,
    seq       integer NOT NULL,
    at        timestamptz NOT NULL,
    kind      text NOT NULL,
    step      text,
    operation text,
    attempt   integer,
    outcome   text,
    maybe     boolean,
    state     text,
    cause     text,
    reason    text,
    due       timestamptz,
    sqlstate  text,
    message   text,
    result    jsonb,
    actor     text,
    note      text,
    value     bigint
) PARTITION BY RANGE (saga_id);
-- The key is each partition's own: a dump can restore one of those that are
-- not part of the extension.
CREATE TABLE saga.log_default PARTITION OF saga.log_record (PRIMARY KEY (saga_id, seq)) DEFAULT;
COMMENT ON TABLE saga.log_record IS 'The append-only log of every saga, partitioned by time of start';
COMMENT ON TABLE saga.log_default IS 'Log of sagas whose id fits no dated partition (clock faults, long-lived ones)';

-- Local barrier: a row stands here from the commit of a local action until its
-- log record is durable; one that was accepted, until it is answered.
CREATE TABLE saga.local_outcome (
    saga_id   uuid NOT NULL,
    node      integer NOT NULL,
    operation "char" NOT NULL,
    bucket    smallint NOT NULL,
    attempt   integer NOT NULL,
    result    jsonb,
    accepted  boolean NOT NULL DEFAULT false,
    PRIMARY KEY (saga_id, node, operation)
);
COMMENT ON TABLE saga.local_outcome IS 'Local actions that are committed and not yet logged';

-- Commands of sessions for the coordinator.
CREATE TABLE saga.inbox (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    saga_id  uuid NOT NULL,
    bucket   smallint NOT NULL,
    verb     text NOT NULL,
    step     text,
    result   jsonb,
    force    boolean NOT NULL DEFAULT false,
    actor    text NOT NULL,
    note     text,
    at       timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    operation text,
    kind     text,
    value    bigint
);
CREATE INDEX inbox_saga ON saga.inbox (saga_id);
-- Of the answers to one call, the first one counts.
CREATE UNIQUE INDEX inbox_answer ON saga.inbox (saga_id, step, operation) WHERE verb IN ('complete', 'fail');
COMMENT ON TABLE saga.inbox IS 'Commands, signals and answers on their way to the coordinator';

-- Signals for a key with which no saga was started yet.
CREATE TABLE saga.kept_signal (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name      text NOT NULL,
    key       text NOT NULL,
    signal    text NOT NULL,
    payload   jsonb,
    signal_id text,
    actor     text NOT NULL,
    at        timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE INDEX kept_signal_key ON saga.kept_signal (name, key);
CREATE UNIQUE INDEX kept_signal_id ON saga.kept_signal (name, key, signal_id) WHERE signal_id IS NOT NULL;
COMMENT ON TABLE saga.kept_signal IS 'Signals that wait for a saga to be started with their key';

-- Steps that are offered to saga.take(); a session removes what it answers.
CREATE TABLE saga.queued_step (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    saga_id     uuid NOT NULL,
    step        text NOT NULL,
    operation   text NOT NULL,
    queue       text NOT NULL,
    definition  text NOT NULL,
    priority    integer NOT NULL,
    input       jsonb,
    enqueued_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    visible_at  timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    taken       integer NOT NULL DEFAULT 0
) WITH (fillfactor = 70);
CREATE INDEX queued_step_order ON saga.queued_step (queue, priority DESC, id);
CREATE INDEX queued_step_saga ON saga.queued_step (saga_id);
COMMENT ON TABLE saga.queued_step IS 'Steps that wait to be taken from a queue, or were taken and not yet answered';

-- What heartbeats said.
CREATE TABLE saga.step_progress (
    saga_id   uuid NOT NULL,
    step      text NOT NULL,
    operation text NOT NULL,
    progress  jsonb,
    at        timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (saga_id, step, operation)
) WITH (fillfactor = 70);
COMMENT ON TABLE saga.step_progress IS 'The last heartbeat of each step whose call was taken on';

-- Sagas that are out of memory until a time, or until somebody acts (infinity).
CREATE TABLE saga.wakeup (
    saga_id  uuid PRIMARY KEY,
    bucket   smallint NOT NULL,
    due      timestamptz NOT NULL
);
COMMENT ON TABLE saga.wakeup IS 'Sagas that wait, and until when';

-- Sagas that wait for an operator.
CREATE TABLE saga.stuck_saga (
    saga_id   uuid PRIMARY KEY,
    step      text,
    operation text,
    reason    text NOT NULL,
    sqlstate  text,
    message   text,
    since     timestamptz NOT NULL
);
COMMENT ON TABLE saga.stuck_saga IS 'Sagas that wait for an operator, and why';

-- Prepared transactions of ours at participants that no live saga will end.
CREATE TABLE saga.orphan (
    gid         text NOT NULL,
    server      text NOT NULL,
    decision    text NOT NULL,
    prepared_at timestamptz NOT NULL,
    found_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    error       text,
    PRIMARY KEY (gid, server)
);
COMMENT ON TABLE saga.orphan IS 'Prepared transactions at participants that no live saga will end: they are being ended';

-- Who this database is to participants (the fence).
CREATE TABLE saga.identity (
    only_one         boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    coordinator      text NOT NULL,
    origin           integer NOT NULL DEFAULT pg_catalog.floor(pg_catalog.random() OPERATOR(pg_catalog.*) 2147483647),
    timeline         integer NOT NULL DEFAULT 0,
    counter          bigint NOT NULL DEFAULT 0,
    nonce            text NOT NULL DEFAULT '',
    server_started   timestamptz,
    host             text,
    host_guard       text,
    held             text,
    secret           bytea NOT NULL DEFAULT pg_catalog.sha256(
        pg_catalog.uuid_send(pg_catalog.gen_random_uuid()) OPERATOR(pg_catalog.||) pg_catalog.uuid_send(pg_catalog.gen_random_uuid()))
);
COMMENT ON TABLE saga.identity IS 'The identity and epoch under which this database calls participants';
INSERT INTO saga.identity (coordinator) VALUES (pg_catalog.gen_random_uuid()::text);

SELECT pg_catalog.pg_extension_config_dump('saga.instance', '');
SELECT pg_catalog.pg_extension_config_dump('saga.instance_key', '');
SELECT pg_catalog.pg_extension_config_dump('saga.log_default', '');
SELECT pg_catalog.pg_extension_config_dump('saga.local_outcome', '');
SELECT pg_catalog.pg_extension_config_dump('saga.wakeup', '');
SELECT pg_catalog.pg_extension_config_dump('saga.stuck_saga', '');
SELECT pg_catalog.pg_extension_config_dump('saga.kept_signal', '');
SELECT pg_catalog.pg_extension_config_dump('saga.kept_signal_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.queued_step', '');
SELECT pg_catalog.pg_extension_config_dump('saga.queued_step_id_seq', '');
-- ---------------------------------------------------------------------------
-- Definitions: their tables, the constructors of their nodes, and the
-- functions that make, change and show them.

-- Owner and grantee are regrole so that a dump names the roles.
CREATE TABLE saga.definition (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL,
    version     integer NOT NULL,
    owner       regrole NOT NULL,
    hash        text NOT NULL,
    body        jsonb NOT NULL,
    search_path text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT pg_catalog.now(),
    paused      boolean NOT NULL DEFAULT false,
    UNIQUE (name, version)
);
COMMENT ON TABLE saga.definition IS 'Versions of definitions; only the library writes them';
COMMENT ON COLUMN saga.definition.id IS 'What instances refer to';
COMMENT ON COLUMN saga.definition.name IS 'As given to saga.define()';
COMMENT ON COLUMN saga.definition.version IS 'Counted from 1 for each name';
COMMENT ON COLUMN saga.definition.owner IS 'Role whose rights actions have; the same in all versions of a name';
COMMENT ON COLUMN saga.definition.hash IS 'SHA-256 of body and search_path';
COMMENT ON COLUMN saga.definition.body IS 'Steps and options, in the form that src/definition.c describes';
COMMENT ON COLUMN saga.definition.search_path IS 'In force at saga.define(), and again when local actions run';
COMMENT ON COLUMN saga.definition.created_at IS 'When the version was made';
COMMENT ON COLUMN saga.definition.paused IS 'Set by saga.pause_definition(), in all versions of a name';

CREATE TABLE saga.privilege (
    definition text NOT NULL,
    grantee    regrole NOT NULL,
    privileges text[] NOT NULL,
    PRIMARY KEY (definition, grantee)
);
COMMENT ON TABLE saga.privilege IS 'What saga.grant() granted; only the library writes it';
COMMENT ON COLUMN saga.privilege.definition IS 'Name of the definition';
COMMENT ON COLUMN saga.privilege.grantee IS 'Role that has the privileges';
COMMENT ON COLUMN saga.privilege.privileges IS 'Of start, signal, see, operate';

SELECT pg_catalog.pg_extension_config_dump('saga.definition', '');
SELECT pg_catalog.pg_extension_config_dump('saga.definition_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.privilege', '');

-- ---- nodes ----

CREATE TYPE saga.node;
CREATE FUNCTION saga.node_in(cstring) RETURNS saga.node
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'saga_node_in';
COMMENT ON FUNCTION saga.node_in(cstring) IS 'I/O; refuses text';
CREATE FUNCTION saga.node_out(saga.node) RETURNS cstring
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'saga_node_out';
COMMENT ON FUNCTION saga.node_out(saga.node) IS 'I/O';
CREATE TYPE saga.node (
    INPUT = saga.node_in,
    OUTPUT = saga.node_out,
    LIKE = pg_catalog.jsonb
);
COMMENT ON TYPE saga.node IS 'A step or a group of steps, as built by saga.step() and the other constructors';
REVOKE ALL ON TYPE saga.node FROM PUBLIC;
GRANT USAGE ON TYPE saga.node TO saga_user;
CREATE CAST (saga.node AS jsonb) WITHOUT FUNCTION;
COMMENT ON CAST (saga.node AS jsonb) IS 'The node as JSON';
CREATE CAST (jsonb AS saga.node) WITHOUT FUNCTION;
COMMENT ON CAST (jsonb AS saga.node) IS 'For constructors; saga.define() checks what it is given';

-- Functions that take nodes as VARIADIC have a second form with an array and
-- more arguments.  Its array is of this type, so that a call with the keyword
-- VARIADIC means the first.
CREATE DOMAIN saga.nodes AS saga.node[];
COMMENT ON DOMAIN saga.nodes IS 'An array of nodes';
REVOKE ALL ON TYPE saga.nodes FROM PUBLIC;
GRANT USAGE ON TYPE saga.nodes TO saga_user;

-- Constructors check nothing: saga.define() reports all faults at once.  Their
-- bodies are parsed here, so no search_path can bend them.
CREATE FUNCTION saga.step(
    name text,
    action text,
    compensation text DEFAULT NULL,
    server text DEFAULT NULL,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    for_each text DEFAULT NULL,
    max_parallel integer DEFAULT NULL,
    pivot boolean DEFAULT false,
    retriable boolean DEFAULT NULL,
    timeout interval DEFAULT NULL,
    retry jsonb DEFAULT NULL,
    on_failure text DEFAULT NULL,
    result text DEFAULT NULL,
    returns text DEFAULT NULL,
    decline_if text DEFAULT NULL,
    expect_rows integer DEFAULT NULL,
    callback boolean DEFAULT false,
    callback_timeout interval DEFAULT NULL,
    delivery text DEFAULT 'at_least_once',
    compensation_server text DEFAULT NULL,
    compensation_timeout interval DEFAULT NULL,
    compensation_retry jsonb DEFAULT NULL,
    queue text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'step', 'name', name, 'action', action, 'compensation', compensation, 'server', server,
    'after', after, 'condition', condition, 'for_each', for_each, 'max_parallel', max_parallel,
    'pivot', pivot, 'retriable', retriable,
    'timeout', pg_catalog.trim_scale(extract(epoch FROM timeout)), 'retry', retry,
    'on_failure', on_failure, 'result', result, 'returns', returns, 'decline_if', decline_if,
    'expect_rows', expect_rows, 'callback', callback,
    'callback_timeout', pg_catalog.trim_scale(extract(epoch FROM callback_timeout)),
    'delivery', delivery, 'compensation_server', compensation_server,
    'compensation_timeout', pg_catalog.trim_scale(extract(epoch FROM compensation_timeout)),
    'compensation_retry', compensation_retry, 'queue', queue))::saga.node;
COMMENT ON FUNCTION saga.step(text, text, text, text, text[], text, text, integer, boolean, boolean, interval, jsonb, text, text, text, text, integer, boolean, interval, text, text, interval, jsonb, text)
IS 'A step: an action, and perhaps the compensation that undoes it';

CREATE FUNCTION saga.undo_step(
    name text,
    compensation text,
    server text DEFAULT NULL,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    timeout interval DEFAULT NULL,
    retry jsonb DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'undo', 'name', name, 'compensation', compensation, 'server', server, 'after', after,
    'condition', condition, 'timeout', pg_catalog.trim_scale(extract(epoch FROM timeout)), 'retry', retry,
    'on_failure', on_failure))::saga.node;
COMMENT ON FUNCTION saga.undo_step(text, text, text, text[], text, interval, jsonb, text)
IS 'A step that does nothing when it is reached, and whose compensation runs if the saga comes back';

CREATE FUNCTION saga.call_step(
    name text,
    definition text,
    input text DEFAULT NULL,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    for_each text DEFAULT NULL,
    max_parallel integer DEFAULT NULL,
    pivot boolean DEFAULT false,
    retry jsonb DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'call', 'name', name, 'definition', definition, 'input', input, 'after', after,
    'condition', condition, 'for_each', for_each, 'max_parallel', max_parallel, 'pivot', pivot,
    'retry', retry, 'on_failure', on_failure))::saga.node;
COMMENT ON FUNCTION saga.call_step(text, text, text, text[], text, text, integer, boolean, jsonb, text)
IS 'A step that runs a saga of another definition, and undoes it if this one comes back';

CREATE FUNCTION saga.sleep_step(
    name text,
    duration text,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'sleep', 'name', name, 'duration', duration, 'after', after, 'condition', condition,
    'on_failure', on_failure))::saga.node;
COMMENT ON FUNCTION saga.sleep_step(text, text, text[], text, text)
IS 'A step that is done some time after it is reached: an interval, or an expression that gives one';

CREATE FUNCTION saga.sleep_step(
    name text,
    duration interval,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql STABLE PARALLEL SAFE
RETURN saga.sleep_step(name, duration::text, after, condition, on_failure);
COMMENT ON FUNCTION saga.sleep_step(text, interval, text[], text, text)
IS 'A step that is done some time after it is reached';

CREATE FUNCTION saga.sleep_until_step(
    name text,
    at text,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'sleep_until', 'name', name, 'at', at, 'after', after, 'condition', condition,
    'on_failure', on_failure))::saga.node;
COMMENT ON FUNCTION saga.sleep_until_step(text, text, text[], text, text)
IS 'A step that is done at a time: a timestamp, or an expression that gives one';

CREATE FUNCTION saga.sleep_until_step(
    name text,
    at timestamptz,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql STABLE PARALLEL SAFE
RETURN saga.sleep_until_step(name, at::text, after, condition, on_failure);
COMMENT ON FUNCTION saga.sleep_until_step(text, timestamptz, text[], text, text)
IS 'A step that is done at a fixed time';

CREATE FUNCTION saga.signal_step(
    name text,
    signal text,
    timeout interval DEFAULT NULL,
    on_timeout text DEFAULT 'fail',
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'signal', 'name', name, 'signal', signal,
    'timeout', pg_catalog.trim_scale(extract(epoch FROM timeout)), 'on_timeout', on_timeout,
    'after', after, 'condition', condition, 'on_failure', on_failure))::saga.node;
COMMENT ON FUNCTION saga.signal_step(text, text, interval, text, text[], text, text)
IS 'A step that waits for a signal; its result is the payload';

CREATE FUNCTION saga.branch_step(name text, VARIADIC cases saga.node[])
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'branch', 'name', name, 'cases', cases::jsonb[]))::saga.node;
COMMENT ON FUNCTION saga.branch_step(text, saga.node[])
IS 'Runs the steps of the first case whose condition is true; cases are saga.when() and saga.otherwise()';

CREATE FUNCTION saga.branch_step(
    name text,
    cases saga.nodes,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'branch', 'name', name, 'cases', cases::jsonb[], 'after', after, 'condition', condition,
    'on_failure', on_failure))::saga.node;
COMMENT ON FUNCTION saga.branch_step(text, saga.nodes, text[], text, text)
IS 'Runs the steps of the first case whose condition is true; on_failure is what they inherit';

CREATE FUNCTION saga.when(condition text, steps saga.node[])
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'when', 'condition', condition, 'steps', steps::jsonb[]))::saga.node;
COMMENT ON FUNCTION saga.when(text, saga.node[]) IS 'A case of saga.branch_step()';

CREATE FUNCTION saga.otherwise(steps saga.node[])
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'otherwise', 'steps', steps::jsonb[]))::saga.node;
COMMENT ON FUNCTION saga.otherwise(saga.node[])
IS 'The last case of saga.branch_step(): taken if no condition was true';

CREATE FUNCTION saga.loop_step(
    name text,
    steps saga.node[],
    "while" text DEFAULT NULL,
    max integer DEFAULT NULL,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'loop', 'name', name, 'steps', steps::jsonb[], 'while', "while", 'max', max, 'after', after,
    'condition', condition, 'on_failure', on_failure))::saga.node;
COMMENT ON FUNCTION saga.loop_step(text, saga.node[], text, integer, text[], text, text)
IS 'Runs its steps again and again: while an expression is true, at most max times';

CREATE FUNCTION saga.savepoint_step(
    name text,
    max_tries integer DEFAULT 3,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'savepoint', 'name', name, 'max_tries', max_tries, 'after', after, 'condition', condition,
    'on_failure', on_failure))::saga.node;
COMMENT ON FUNCTION saga.savepoint_step(text, integer, text[], text, text)
IS 'Where steps with on_failure => ''goto:name'' come back to, at most so often that what follows is tried max_tries times';

CREATE FUNCTION saga.parallel(VARIADIC nodes saga.node[])
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'parallel', 'nodes', nodes::jsonb[]))::saga.node;
COMMENT ON FUNCTION saga.parallel(saga.node[]) IS 'Steps that do not wait for each other';

CREATE FUNCTION saga.parallel(
    nodes saga.nodes,
    after text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    on_failure text DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'parallel', 'nodes', nodes::jsonb[], 'after', after, 'condition', condition,
    'on_failure', on_failure))::saga.node;
COMMENT ON FUNCTION saga.parallel(saga.nodes, text[], text, text)
IS 'Steps that do not wait for each other; after, condition and on_failure hold for each';

CREATE FUNCTION saga.retry_policy(
    max_attempts integer DEFAULT NULL,
    initial_interval interval DEFAULT NULL,
    backoff double precision DEFAULT NULL,
    max_interval interval DEFAULT NULL,
    jitter double precision DEFAULT NULL,
    decline_on text[] DEFAULT NULL,
    retry_on text[] DEFAULT NULL,
    stuck_on text[] DEFAULT NULL)
RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'max_attempts', max_attempts,
    'initial_interval', pg_catalog.trim_scale(extract(epoch FROM initial_interval)),
    'backoff', backoff,
    'max_interval', pg_catalog.trim_scale(extract(epoch FROM max_interval)),
    'jitter', jitter, 'decline_on', decline_on, 'retry_on', retry_on, 'stuck_on', stuck_on));
COMMENT ON FUNCTION saga.retry_policy(integer, interval, double precision, interval, double precision, text[], text[], text[])
IS 'When a step is tried again, and which SQLSTATEs mean that it is declined, to be tried again, or broken';

-- ---- making and changing ----

CREATE FUNCTION saga.define(
    name text,
    steps saga.node[],
    input text DEFAULT NULL,
    output text DEFAULT NULL,
    deadline interval DEFAULT NULL,
    retention interval DEFAULT NULL,
    key_retention interval DEFAULT NULL,
    max_running integer DEFAULT NULL,
    priority integer DEFAULT NULL,
    protocol text DEFAULT 'saga',
    protocols text[] DEFAULT NULL,
    compensation_order text DEFAULT 'reverse',
    on_completed text DEFAULT NULL,
    on_compensated text DEFAULT NULL,
    on_stuck text DEFAULT NULL)
RETURNS integer LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_define';
COMMENT ON FUNCTION saga.define(text, saga.node[], text, text, interval, interval, interval, integer, integer, text, text[], text, text, text, text)
IS 'Make a version of a definition and return its number; the number of the newest if nothing has changed';

CREATE FUNCTION saga.drop_definition(name text, version integer DEFAULT NULL)
RETURNS integer LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_drop_definition';
COMMENT ON FUNCTION saga.drop_definition(text, integer)
IS 'Drop one version, or all, with the sagas of it that have ended, and return how many; refused while some have not ended';

CREATE FUNCTION saga.pause_definition(name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_pause_definition';
COMMENT ON FUNCTION saga.pause_definition(text) IS 'Let no saga of the definition begin until it is resumed';

CREATE FUNCTION saga.resume_definition(name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_resume_definition';
COMMENT ON FUNCTION saga.resume_definition(text) IS 'Let sagas of the definition begin again';

CREATE FUNCTION saga.grant(definition text, role name, privileges text[] DEFAULT '{start,signal,see,operate}')
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_grant';
COMMENT ON FUNCTION saga.grant(text, name, text[]) IS 'Grant privileges on a definition and its sagas';

CREATE FUNCTION saga.revoke(definition text, role name, privileges text[] DEFAULT '{start,signal,see,operate}')
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_revoke';
COMMENT ON FUNCTION saga.revoke(text, name, text[]) IS 'Take granted privileges back';

CREATE FUNCTION saga.alter_owner(definition text, role name)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_alter_owner';
COMMENT ON FUNCTION saga.alter_owner(text, name)
IS 'Give all versions of a definition another owner, with whose rights actions then run';

-- ---- looking ----

CREATE FUNCTION saga.may(definition text, privilege text)
RETURNS boolean LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'saga_may';
COMMENT ON FUNCTION saga.may(text, text)
IS 'Has the current user this privilege (start, signal, see, operate) on the definition?';

CREATE FUNCTION saga.render(
    definition text,
    step text,
    input jsonb DEFAULT NULL,
    results jsonb DEFAULT NULL,
    operation text DEFAULT 'action',
    version integer DEFAULT NULL)
RETURNS jsonb LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'saga_render';
COMMENT ON FUNCTION saga.render(text, text, jsonb, jsonb, text, integer)
IS 'What would be sent: server, SQL, values and their types; results holds those of other steps by name, and item, item_index, iteration';

CREATE FUNCTION saga.definition_steps_(body jsonb)
RETURNS SETOF text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT n OPERATOR(pg_catalog.#>>) '{}'
    FROM pg_catalog.jsonb_path_query(body, 'strict $.steps.** ? (@.type() == "object" && exists(@.name)).name') AS n;
END;
COMMENT ON FUNCTION saga.definition_steps_(jsonb) IS 'Internal: names of the steps of a definition as they are listed';

-- The servers in the order in which they are listed.  The labels are those of
-- label_of() in src/two_phase.c.
CREATE FUNCTION saga.two_phase_branches_(body jsonb)
RETURNS TABLE (branch integer, server text, label text) LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT b.branch, b.server,
           CASE WHEN b.server OPERATOR(pg_catalog.~) '^[a-zA-Z0-9_]+$' COLLATE "C" THEN b.server
                ELSE pg_catalog.concat('server-', b.branch) END
    FROM (SELECT pg_catalog.row_number() OVER (ORDER BY pg_catalog.min(n.position))::integer OPERATOR(pg_catalog.-) 1 AS branch,
                 n.step OPERATOR(pg_catalog.->>) 'server' AS server
          FROM pg_catalog.jsonb_path_query(body, 'strict $.steps.** ? (@.type() == "object" && @.kind == "step" && exists(@.server))')
               WITH ORDINALITY AS n(step, position)
          GROUP BY n.step OPERATOR(pg_catalog.->>) 'server') b;
END;
COMMENT ON FUNCTION saga.two_phase_branches_(jsonb) IS 'Internal: servers of a definition, numbered and named as two-phase commit does';

CREATE FUNCTION saga.protocol_steps_(body jsonb, protocol text)
RETURNS SETOF text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT s FROM saga.definition_steps_(body) AS s WHERE protocol OPERATOR(pg_catalog.<>) 'two_phase'
    UNION ALL
    SELECT b.step FROM (
        SELECT 0 AS part, branch, pg_catalog.concat('prepare_', label) AS step FROM saga.two_phase_branches_(body)
        UNION ALL SELECT 1, 0, 'decide'
        UNION ALL SELECT 2, branch, pg_catalog.concat('commit_', label) FROM saga.two_phase_branches_(body)
        ORDER BY 1, 2) b
    WHERE protocol OPERATOR(pg_catalog.=) 'two_phase';
END;
COMMENT ON FUNCTION saga.protocol_steps_(jsonb, text) IS 'Internal: names of the steps of a definition under a protocol';

CREATE VIEW saga.definitions WITH (security_barrier) AS
SELECT d.name, d.version, d.owner, s.steps, d.created_at, d.paused,
       d.version = pg_catalog.max(d.version) OVER (PARTITION BY d.name) AS latest,
       d.search_path, pg_catalog.jsonb_pretty(d.body) AS body
FROM saga.definition d
CROSS JOIN LATERAL (SELECT pg_catalog.count(*)::integer AS steps FROM saga.definition_steps_(d.body)) s
WHERE saga.may(d.name, 'see');
COMMENT ON VIEW saga.definitions IS 'Versions of the definitions that you own or may see';
COMMENT ON COLUMN saga.definitions.name IS 'As given to saga.define()';
COMMENT ON COLUMN saga.definitions.version IS 'Counted from 1 for each name';
COMMENT ON COLUMN saga.definitions.owner IS 'Role whose rights actions have';
COMMENT ON COLUMN saga.definitions.steps IS 'Number of steps';
COMMENT ON COLUMN saga.definitions.created_at IS 'When the version was made';
COMMENT ON COLUMN saga.definitions.paused IS 'No saga of it begins until saga.resume_definition()';
COMMENT ON COLUMN saga.definitions.latest IS 'Is it the version that saga.start() uses?';
COMMENT ON COLUMN saga.definitions.search_path IS 'In force at saga.define(), and again when local actions run';
COMMENT ON COLUMN saga.definitions.body IS 'Steps and options as stored, as indented JSON';

-- ---- rights ----

REVOKE ALL ON saga.definition, saga.privilege, saga.definitions FROM PUBLIC;
GRANT SELECT ON saga.definitions TO saga_user, saga_operator, saga_monitor;
REVOKE ALL ON FUNCTION
    saga.node_in(cstring),
    saga.node_out(saga.node),
    saga.step(text, text, text, text, text[], text, text, integer, boolean, boolean, interval, jsonb, text, text, text, text, integer, boolean, interval, text, text, interval, jsonb, text),
    saga.undo_step(text, text, text, text[], text, interval, jsonb, text),
    saga.call_step(text, text, text, text[], text, text, integer, boolean, jsonb, text),
    saga.sleep_step(text, text, text[], text, text),
    saga.sleep_step(text, interval, text[], text, text),
    saga.sleep_until_step(text, text, text[], text, text),
    saga.sleep_until_step(text, timestamptz, text[], text, text),
    saga.signal_step(text, text, interval, text, text[], text, text),
    saga.branch_step(text, saga.node[]),
    saga.branch_step(text, saga.nodes, text[], text, text),
    saga.when(text, saga.node[]),
    saga.otherwise(saga.node[]),
    saga.loop_step(text, saga.node[], text, integer, text[], text, text),
    saga.savepoint_step(text, integer, text[], text, text),
    saga.parallel(saga.node[]),
    saga.parallel(saga.nodes, text[], text, text),
    saga.retry_policy(integer, interval, double precision, interval, double precision, text[], text[], text[]),
    saga.define(text, saga.node[], text, text, interval, interval, interval, integer, integer, text, text[], text, text, text, text),
    saga.drop_definition(text, integer),
    saga.pause_definition(text),
    saga.resume_definition(text),
    saga.grant(text, name, text[]),
    saga.revoke(text, name, text[]),
    saga.alter_owner(text, name),
    saga.may(text, text),
    saga.render(text, text, jsonb, jsonb, text, integer),
    saga.definition_steps_(jsonb)
FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    saga.node_out(saga.node),
    saga.step(text, text, text, text, text[], text, text, integer, boolean, boolean, interval, jsonb, text, text, text, text, integer, boolean, interval, text, text, interval, jsonb, text),
    saga.undo_step(text, text, text, text[], text, interval, jsonb, text),
    saga.call_step(text, text, text, text[], text, text, integer, boolean, jsonb, text),
    saga.sleep_step(text, text, text[], text, text),
    saga.sleep_step(text, interval, text[], text, text),
    saga.sleep_until_step(text, text, text[], text, text),
    saga.sleep_until_step(text, timestamptz, text[], text, text),
    saga.signal_step(text, text, interval, text, text[], text, text),
    saga.branch_step(text, saga.node[]),
    saga.branch_step(text, saga.nodes, text[], text, text),
    saga.when(text, saga.node[]),
    saga.otherwise(saga.node[]),
    saga.loop_step(text, saga.node[], text, integer, text[], text, text),
    saga.savepoint_step(text, integer, text[], text, text),
    saga.parallel(saga.node[]),
    saga.parallel(saga.nodes, text[], text, text),
    saga.retry_policy(integer, interval, double precision, interval, double precision, text[], text[], text[]),
    saga.define(text, saga.node[], text, text, interval, interval, interval, integer, integer, text, text[], text, text, text, text),
    saga.drop_definition(text, integer),
    saga.grant(text, name, text[]),
    saga.revoke(text, name, text[]),
    saga.alter_owner(text, name)
TO saga_user;
GRANT EXECUTE ON FUNCTION
    saga.pause_definition(text),
    saga.resume_definition(text)
TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION
    saga.may(text, text),
    saga.render(text, text, jsonb, jsonb, text, integer),
    saga.definition_steps_(jsonb)
TO saga_user, saga_operator, saga_monitor;
-- Participants: the wrapper for PostgreSQL servers, the script that installs
-- the barrier at a participant, and the functions that run and check it.

CREATE FUNCTION saga.saga_postgres_validator(text[], oid) RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION saga.saga_postgres_validator(text[], oid) IS
'checks the options of servers and user mappings of saga_postgres; called by CREATE and ALTER SERVER and USER MAPPING';

CREATE FOREIGN DATA WRAPPER saga_postgres
	NO HANDLER VALIDATOR saga.saga_postgres_validator;
COMMENT ON FOREIGN DATA WRAPPER saga_postgres IS
'PostgreSQL databases that take part in sagas; USAGE on a server of it is the right to call out';

CREATE FUNCTION saga.saga_http_validator(text[], oid) RETURNS void
LANGUAGE c STRICT AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION saga.saga_http_validator(text[], oid) IS
'checks the options of servers and user mappings of saga_http; called by CREATE and ALTER SERVER and USER MAPPING';

CREATE FOREIGN DATA WRAPPER saga_http
	NO HANDLER VALIDATOR saga.saga_http_validator;
COMMENT ON FOREIGN DATA WRAPPER saga_http IS
'HTTP services that take part in sagas; USAGE on a server of it is the right to call out';

-- The only copy of what stands at a participant.  It is plain SQL and PL/pgSQL
-- for PostgreSQL 12 and later, so that a managed database can be one, and may
-- be run again at any time (also to upgrade).  Rules for its functions:
--
-- - SECURITY INVOKER: a step has the rights of the mapping's user, no more.
-- - "run" and "undo" pin no search_path, for the user's statement runs in
--   them under the session's; they qualify everything instead.
-- - The advisory lock is taken in one statement and the epoch read in the
--   next: the later snapshot sees every epoch raised before the lock was got.
-- - The claim comes before the effect, so that a second try waits for the
--   first on the key and never runs into its effects.
CREATE FUNCTION saga.participant_script(grantees text[] DEFAULT '{}')
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $function$
SELECT $script$-- saga_participant, version 1: makes this database a participant of sagas.
-- Run it as a role that may create a schema here; it may be run again.
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;

DO $do$
BEGIN
	PERFORM pg_advisory_xact_lock(hashtextextended('saga_participant', 0));
	-- never adopt a schema in which somebody else may have planted something
	IF EXISTS (SELECT FROM pg_namespace n
			   WHERE n.nspname = 'saga_participant'
				 AND n.nspowner <> current_user::regrole) THEN
		RAISE EXCEPTION 'schema "saga_participant" belongs to another role'
			USING ERRCODE = '42501',
				  HINT = 'Run this script as the owner of that schema (SET ROLE), if you trust that role.';
	END IF;
	IF to_regprocedure('saga_participant.version()') IS NOT NULL THEN
		IF saga_participant.version() > 1 THEN
			RAISE EXCEPTION 'schema "saga_participant" is newer than this script'
				USING ERRCODE = '55000',
					  DETAIL = format('Its version is %s, that of the script is 1.',
									  saga_participant.version()),
					  HINT = 'Nothing has to be done: a newer one serves older coordinators.';
		END IF;
	END IF;
END
$do$;

CREATE SCHEMA IF NOT EXISTS saga_participant;
COMMENT ON SCHEMA saga_participant IS
'makes each call of a saga happen at most once in this database';

CREATE TABLE IF NOT EXISTS saga_participant.epoch
(
	coordinator text PRIMARY KEY,
	timeline integer NOT NULL,
	counter bigint NOT NULL,
	nonce text NOT NULL,
	raised_at timestamp with time zone NOT NULL DEFAULT now()
);
COMMENT ON TABLE saga_participant.epoch IS
'newest generation of each coordinator; older ones are refused';

CREATE TABLE IF NOT EXISTS saga_participant.barrier
(
	coordinator text NOT NULL,
	saga uuid NOT NULL,
	step text NOT NULL,
	op "char" NOT NULL,
	status text NOT NULL,
	result jsonb,
	created_at timestamp with time zone NOT NULL DEFAULT now(),
	not_after timestamp with time zone NOT NULL,
	PRIMARY KEY (coordinator, saga, step, op)
) WITH (fillfactor = 85);
COMMENT ON TABLE saga_participant.barrier IS
'one row for each call that happened (done) or must never happen (refused); op: a action, u undo, p of a prepared transaction';

CREATE OR REPLACE FUNCTION saga_participant.version() RETURNS integer
LANGUAGE sql IMMUTABLE AS 'SELECT 1';
COMMENT ON FUNCTION saga_participant.version() IS
'version of this schema';

CREATE OR REPLACE FUNCTION saga_participant.decline
	(reason text, detail jsonb DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
	IF detail IS NULL THEN
		RAISE EXCEPTION USING ERRCODE = 'SGB01',
			MESSAGE = coalesce(reason, 'declined');
	END IF;
	RAISE EXCEPTION USING ERRCODE = 'SGB01',
		MESSAGE = coalesce(reason, 'declined'), DETAIL = detail::text;
END
$f$;
COMMENT ON FUNCTION saga_participant.decline(text, jsonb) IS
'end the calling step of a saga as declined: business says no, nothing is retried';

CREATE OR REPLACE FUNCTION saga_participant.accepted() RETURNS void
LANGUAGE sql AS $f$SELECT pg_catalog.set_config('saga_participant.accepted', 'yes', true)$f$;
COMMENT ON FUNCTION saga_participant.accepted() IS
'in the action of a step with callback => true: its answer comes later, by saga.complete_step()';

-- On connecting: raise the epoch, or be refused as an old coordinator.
CREATE OR REPLACE FUNCTION saga_participant.attach
	(p_coordinator text, p_timeline integer, p_counter bigint, p_nonce text,
	 p_session boolean)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
DECLARE
	v_key bigint := hashtextextended(p_coordinator, 7461);
	e saga_participant.epoch%ROWTYPE;
BEGIN
	IF pg_is_in_recovery() THEN
		RAISE EXCEPTION 'this server is a standby' USING ERRCODE = '57P03';
	END IF;
	-- a commit that is not flushed could be answered and then lost
	IF p_session AND current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
		PERFORM set_config('synchronous_commit', 'on', false);
	END IF;
	-- a statement whose coordinator hung up must not go on holding its key
	IF p_session AND current_setting('server_version_num')::integer >= 140000 THEN
		BEGIN
			PERFORM set_config('client_connection_check_interval', '2s', false);
		EXCEPTION WHEN OTHERS THEN
			NULL;				-- not on every platform
		END;
	END IF;

	-- the common case, and one that does not wait for calls in flight
	SELECT * INTO e FROM saga_participant.epoch
	WHERE coordinator = p_coordinator;
	IF FOUND AND (e.timeline, e.counter, e.nonce) = (p_timeline, p_counter, p_nonce) THEN
		RETURN 'same';
	END IF;
	IF NOT FOUND OR (e.timeline, e.counter) < (p_timeline, p_counter) THEN
		-- waits for the calls of the older epoch to end
		PERFORM pg_advisory_xact_lock(v_key);
		INSERT INTO saga_participant.epoch AS o
			(coordinator, timeline, counter, nonce)
		VALUES (p_coordinator, p_timeline, p_counter, p_nonce)
		ON CONFLICT (coordinator) DO UPDATE
			SET timeline = p_timeline, counter = p_counter, nonce = p_nonce,
				raised_at = now()
			WHERE (o.timeline, o.counter) < (p_timeline, p_counter)
			   OR (o.timeline, o.counter, o.nonce) = (p_timeline, p_counter, p_nonce);
		IF FOUND THEN
			RETURN 'raised';
		END IF;
		SELECT * INTO e FROM saga_participant.epoch
		WHERE coordinator = p_coordinator;
	END IF;
	RAISE EXCEPTION 'coordinator "%" is not the current one', p_coordinator
		USING ERRCODE = 'SGB04',
			  DETAIL = format('Its epoch is %s.%s, this participant has seen %s.%s at %s.',
							  p_timeline, p_counter, e.timeline, e.counter, e.raised_at),
			  HINT = 'It is an old primary or a restored copy; see the operations manual under fencing.';
END
$f$;
COMMENT ON FUNCTION saga_participant.attach(text, integer, bigint, text, boolean) IS
'a coordinator announces its epoch; older ones are refused from then on';

-- Behind a pooler in transaction mode: a session's settings, for one
-- transaction.
CREATE OR REPLACE FUNCTION saga_participant.settings(p_timeout text)
RETURNS void
LANGUAGE plpgsql
AS $f$
BEGIN
	PERFORM pg_catalog.set_config('statement_timeout', p_timeout, true),
		pg_catalog.set_config('lock_timeout', '10s', true),
		pg_catalog.set_config('idle_in_transaction_session_timeout', '10s', true),
		pg_catalog.set_config('TimeZone', 'UTC', true),
		pg_catalog.set_config('DateStyle', 'ISO', true),
		pg_catalog.set_config('IntervalStyle', 'postgres', true),
		pg_catalog.set_config('extra_float_digits', '1', true),
		pg_catalog.set_config('bytea_output', 'hex', true),
		pg_catalog.set_config('standard_conforming_strings', 'on', true),
		pg_catalog.set_config('transaction_read_only', 'off', true);
	IF pg_catalog.current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN
		PERFORM pg_catalog.set_config('synchronous_commit', 'on', true);
	END IF;
END
$f$;
COMMENT ON FUNCTION saga_participant.settings(text) IS
'settings of a coordinator''s transaction behind a pooler';

-- Why a claim inserted no row: raises, or returns the recorded result.
CREATE OR REPLACE FUNCTION saga_participant.recorded
	(p_coordinator text, p_timeline integer, p_counter bigint, p_nonce text,
	 p_saga uuid, p_step text, p_op "char", p_not_after timestamp with time zone,
	 p_refused_ok boolean)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
DECLARE
	b saga_participant.barrier%ROWTYPE;
BEGIN
	IF NOT EXISTS (SELECT FROM saga_participant.epoch e
				   WHERE e.coordinator = p_coordinator
					 AND e.timeline = p_timeline AND e.counter = p_counter
					 AND e.nonce = p_nonce) THEN
		RAISE EXCEPTION 'coordinator "%" is not the current one', p_coordinator
			USING ERRCODE = 'SGB04',
				  DETAIL = 'A newer one has announced itself at this participant.';
	END IF;
	SELECT * INTO b FROM saga_participant.barrier
	WHERE coordinator = p_coordinator AND saga = p_saga
	  AND step = p_step AND op = p_op;
	IF FOUND AND b.status = 'accepted' AND NOT p_refused_ok THEN
		RETURN 'A';
	ELSIF FOUND AND b.status IN ('done', 'accepted') THEN
		RETURN 'P' || coalesce(b.result::text, '');
	ELSIF FOUND AND p_refused_ok THEN
		RETURN 'R';
	ELSIF FOUND THEN
		RAISE EXCEPTION 'this call was refused before it came'
			USING ERRCODE = 'SGB03',
				  DETAIL = format('Refused at %s.', b.created_at);
	ELSIF clock_timestamp() > p_not_after THEN
		RAISE EXCEPTION 'this call came too late'
			USING ERRCODE = 'SGB05',
				  DETAIL = format('It was to be made before %s, the clock here says %s.',
								  p_not_after, clock_timestamp());
	END IF;
	RAISE EXCEPTION 'the record of this call has just been removed'
		USING ERRCODE = 'SGB02';
END
$f$;
COMMENT ON FUNCTION saga_participant.recorded(text, integer, bigint, text, uuid, text, "char", timestamp with time zone, boolean) IS
'internal: what is recorded of a call that could not claim its key';

-- Claim the key, run the prepared statement, record the result.  p_call is
-- 'EXECUTE name(%L, ...)': the statement was prepared on the protocol level,
-- so that this database infers the types of its parameters, and the values
-- are quoted here.  Answers 'D' (done now) or 'P' (was done) and the result, or
-- 'A' (taken on, now or before: the result comes from elsewhere).
CREATE OR REPLACE FUNCTION saga_participant.run
	(p_coordinator text, p_timeline integer, p_counter bigint, p_nonce text,
	 p_saga uuid, p_step text, p_op "char", p_not_after timestamp with time zone,
	 p_call text, p_args text[], p_shape text, p_column text,
	 p_expect integer, p_max integer, p_prepare text)
RETURNS text
LANGUAGE plpgsql
AS $f$
DECLARE
	v_row_id tid;
	r record;
	v_row jsonb;
	v_rows jsonb[] := '{}';
	v_result text;
	n bigint := 0;
	v_size bigint := 0;
BEGIN
	-- an expression, as PERFORM would cost a run of the executor; and no lock
	-- that a prepared transaction would keep
	IF (CASE WHEN p_op OPERATOR(pg_catalog.<>) 'p'
		THEN pg_catalog.pg_advisory_xact_lock_shared(pg_catalog.hashtextextended(p_coordinator, 7461)) IS NULL END) THEN
	END IF;
	INSERT INTO saga_participant.barrier
		(coordinator, saga, step, op, status, not_after)
	SELECT p_coordinator, p_saga, p_step, p_op, 'done', p_not_after
	WHERE EXISTS (SELECT FROM saga_participant.epoch e
				  WHERE e.coordinator OPERATOR(pg_catalog.=) p_coordinator
					AND e.timeline OPERATOR(pg_catalog.=) p_timeline
					AND e.counter OPERATOR(pg_catalog.=) p_counter
					AND e.nonce OPERATOR(pg_catalog.=) p_nonce)
	  AND pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<=) p_not_after
	ON CONFLICT DO NOTHING
	RETURNING ctid INTO v_row_id;
	IF v_row_id IS NULL THEN
		RETURN saga_participant.recorded(p_coordinator, p_timeline, p_counter, p_nonce,
										 p_saga, p_step, p_op, p_not_after, false);
	END IF;

	IF p_prepare IS NOT NULL THEN
		-- behind a pooler: an earlier failure may have left the name there
		IF EXISTS (SELECT FROM pg_catalog.pg_prepared_statements
				   WHERE name OPERATOR(pg_catalog.=) 'saga_call') THEN
			DEALLOCATE saga_call;
		END IF;
		EXECUTE p_prepare;
	END IF;

	IF p_shape OPERATOR(pg_catalog.=) 'rows' THEN
		FOR r IN EXECUTE pg_catalog.format(p_call, VARIADIC p_args) LOOP
			v_row := pg_catalog.to_jsonb(r);
			IF p_column IS NOT NULL THEN
				v_row := v_row OPERATOR(pg_catalog.->) p_column;
			END IF;
			n := n OPERATOR(pg_catalog.+) 1;
			v_size := v_size OPERATOR(pg_catalog.+) pg_catalog.pg_column_size(v_row);
			IF v_size OPERATOR(pg_catalog.>) p_max THEN
				RAISE EXCEPTION 'the result of the action is too large'
					USING ERRCODE = 'SGL01',
						  DETAIL = pg_catalog.format('It has more than %s bytes.', p_max);
			END IF;
			v_rows := pg_catalog.array_append(v_rows, v_row);
		END LOOP;
		v_row := pg_catalog.to_jsonb(v_rows);
	ELSIF p_shape OPERATOR(pg_catalog.=) 'one' OR p_shape OPERATOR(pg_catalog.=) 'first' THEN
		EXECUTE pg_catalog.format(p_call, VARIADIC p_args) INTO r;
		GET DIAGNOSTICS n = ROW_COUNT;
		IF n OPERATOR(pg_catalog.>) 0 THEN
			v_row := pg_catalog.to_jsonb(r);
			IF p_column IS NOT NULL THEN
				v_row := v_row OPERATOR(pg_catalog.->) p_column;
			END IF;
		END IF;
	ELSE
		EXECUTE pg_catalog.format(p_call, VARIADIC p_args);
		GET DIAGNOSTICS n = ROW_COUNT;
		IF p_shape OPERATOR(pg_catalog.=) 'count' THEN
			v_row := pg_catalog.jsonb_build_object('rows', n);
		END IF;
	END IF;

	IF p_expect OPERATOR(pg_catalog.>=) 0 AND p_expect OPERATOR(pg_catalog.<>) n THEN
		RAISE EXCEPTION 'the action gave % rows, expected %', n, p_expect
			USING ERRCODE = 'SGB01';
	ELSIF n OPERATOR(pg_catalog.>) 1 AND p_shape OPERATOR(pg_catalog.=) 'one' THEN
		RAISE EXCEPTION 'the action returned % rows where at most one is expected', n
			USING ERRCODE = 'SGR01',
				  HINT = 'Give the step result => ''rows'', ''first'' or ''none''.';
	END IF;

	v_result := v_row::pg_catalog.text;
	IF v_result OPERATOR(pg_catalog.=) 'null' THEN
		v_result := NULL;
	ELSIF v_result IS NOT NULL THEN
		IF pg_catalog.octet_length(v_result) OPERATOR(pg_catalog.>) p_max THEN
			RAISE EXCEPTION 'the result of the action is too large'
				USING ERRCODE = 'SGL01',
					  DETAIL = pg_catalog.format('It has %s bytes, the limit is %s.',
												 pg_catalog.octet_length(v_result), p_max);
		END IF;
		UPDATE saga_participant.barrier b SET result = v_row
		WHERE b.ctid OPERATOR(pg_catalog.=) v_row_id;
	END IF;
	IF p_prepare IS NOT NULL THEN
		DEALLOCATE saga_call;
	END IF;
	IF pg_catalog.current_setting('saga_participant.accepted', true) OPERATOR(pg_catalog.=) 'yes' THEN
		UPDATE saga_participant.barrier b SET status = 'accepted'
		WHERE b.coordinator OPERATOR(pg_catalog.=) p_coordinator
		  AND b.saga OPERATOR(pg_catalog.=) p_saga
		  AND b.step OPERATOR(pg_catalog.=) p_step AND b.op OPERATOR(pg_catalog.=) p_op;
		v_result := NULL;
	END IF;

	-- A COMMIT that waits for a standby must not be given up with a warning
	-- and a tag that looks like success.
	IF pg_catalog.set_config('statement_timeout', '0', true) IS NULL THEN
	END IF;
	IF pg_catalog.current_setting('saga_participant.accepted', true) OPERATOR(pg_catalog.=) 'yes' THEN
		RETURN 'A';
	END IF;
	RETURN pg_catalog.concat('D', v_result);
END
$f$;
COMMENT ON FUNCTION saga_participant.run(text, integer, bigint, text, uuid, text, "char", timestamp with time zone, text, text[], text, text, integer, integer, text) IS
'run one call of a saga at most once and record its result';

-- First in a transaction that is to be prepared: claim the branch's key.  There
-- is no advisory lock, for the prepared transaction would keep it, and nobody
-- could raise the epoch while it stands.  An old coordinator that gets in here
-- at the last moment leaves a prepared transaction, no more: whoever rolls
-- back claims the same key first.
CREATE OR REPLACE FUNCTION saga_participant.vote
	(p_coordinator text, p_timeline integer, p_counter bigint, p_nonce text,
	 p_saga uuid, p_step text, p_not_after timestamp with time zone, p_gid text)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
	IF EXISTS (SELECT FROM pg_prepared_xacts
			   WHERE gid = p_gid AND database = current_database()
				 AND owner = current_user) THEN
		RAISE EXCEPTION 'this branch is prepared already' USING ERRCODE = 'SGB06';
	END IF;
	INSERT INTO saga_participant.barrier
		(coordinator, saga, step, op, status, not_after)
	SELECT p_coordinator, p_saga, p_step, 'p', 'done', p_not_after
	WHERE EXISTS (SELECT FROM saga_participant.epoch e
				  WHERE e.coordinator = p_coordinator
					AND e.timeline = p_timeline AND e.counter = p_counter
					AND e.nonce = p_nonce)
	  AND clock_timestamp() <= p_not_after
	ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		PERFORM saga_participant.recorded(p_coordinator, p_timeline, p_counter, p_nonce,
										  p_saga, p_step, 'p', p_not_after, false);
		RAISE EXCEPTION 'this branch is committed already' USING ERRCODE = 'SGB06';
	END IF;
	RETURN 'D';
END
$f$;
COMMENT ON FUNCTION saga_participant.vote(text, integer, bigint, text, uuid, text, timestamp with time zone, text) IS
'claim the key of a branch of two-phase commit, or tell that it has voted';

-- Before COMMIT PREPARED or ROLLBACK PREPARED, which cannot be part of a
-- statement of ours: an old coordinator is refused, and with a session's lock,
-- which unfence() gives back after it, nobody becomes a newer one.  A session
-- whose coordinator is gone must not keep the lock: it ends after 10 s.
CREATE OR REPLACE FUNCTION saga_participant.fence
	(p_coordinator text, p_timeline integer, p_counter bigint, p_nonce text,
	 p_session boolean)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
DECLARE
	v_key bigint := hashtextextended(p_coordinator, 7461);
BEGIN
	IF p_session AND current_setting('server_version_num')::integer >= 140000 THEN
		PERFORM set_config('idle_session_timeout', '10s', false);
		PERFORM pg_advisory_lock_shared(v_key);
	END IF;
	IF NOT EXISTS (SELECT FROM saga_participant.epoch e
				   WHERE e.coordinator = p_coordinator
					 AND e.timeline = p_timeline AND e.counter = p_counter
					 AND e.nonce = p_nonce) THEN
		RAISE EXCEPTION 'coordinator "%" is not the current one', p_coordinator
			USING ERRCODE = 'SGB04',
				  DETAIL = 'A newer one has announced itself at this participant.';
	END IF;
	RETURN 'D';
END
$f$;
COMMENT ON FUNCTION saga_participant.fence(text, integer, bigint, text, boolean) IS
'is this the current coordinator, and, with a session''s lock, will it be until that is given back?';

CREATE OR REPLACE FUNCTION saga_participant.unfence(p_coordinator text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
BEGIN
	IF current_setting('server_version_num')::integer >= 140000 THEN
		PERFORM pg_advisory_unlock_shared(hashtextextended(p_coordinator, 7461));
		PERFORM set_config('idle_session_timeout', '0', false);
	END IF;
END
$f$;
COMMENT ON FUNCTION saga_participant.unfence(text) IS
'give back what fence() took for the session';

-- Undo of an action that may not have happened: refuse its key first, which
-- waits for a first try that still runs.  'N': it had not, nothing was run.
CREATE OR REPLACE FUNCTION saga_participant.undo
	(p_coordinator text, p_timeline integer, p_counter bigint, p_nonce text,
	 p_saga uuid, p_step text, p_not_after timestamp with time zone,
	 p_call text, p_args text[], p_shape text, p_column text,
	 p_expect integer, p_max integer, p_prepare text)
RETURNS text
LANGUAGE plpgsql
AS $f$
DECLARE
	v_action text;
BEGIN
	v_action := saga_participant.claim(p_coordinator, p_timeline, p_counter, p_nonce,
									   p_saga, p_step, 'a', p_not_after);
	IF v_action OPERATOR(pg_catalog.=) 'R' THEN
		INSERT INTO saga_participant.barrier
			(coordinator, saga, step, op, status, not_after)
		VALUES (p_coordinator, p_saga, p_step, 'u', 'done', p_not_after)
		ON CONFLICT DO NOTHING;
		RETURN 'N';
	END IF;
	RETURN saga_participant.run(p_coordinator, p_timeline, p_counter, p_nonce,
								p_saga, p_step, 'u', p_not_after, p_call, p_args,
								p_shape, p_column, p_expect, p_max, p_prepare);
END
$f$;
COMMENT ON FUNCTION saga_participant.undo(text, integer, bigint, text, uuid, text, timestamp with time zone, text, text[], text, text, integer, integer, text) IS
'run the compensation of an action if that happened, else see to it that it never will';

-- Did the call happen?  'P' and its result if so; else it never will: 'R'.
CREATE OR REPLACE FUNCTION saga_participant.claim
	(p_coordinator text, p_timeline integer, p_counter bigint, p_nonce text,
	 p_saga uuid, p_step text, p_op "char", p_not_after timestamp with time zone)
RETURNS text
LANGUAGE plpgsql
AS $f$
BEGIN
	IF pg_catalog.pg_advisory_xact_lock_shared(pg_catalog.hashtextextended(p_coordinator, 7461)) IS NULL THEN
	END IF;
	INSERT INTO saga_participant.barrier
		(coordinator, saga, step, op, status, not_after)
	SELECT p_coordinator, p_saga, p_step, p_op, 'refused', p_not_after
	WHERE EXISTS (SELECT FROM saga_participant.epoch e
				  WHERE e.coordinator OPERATOR(pg_catalog.=) p_coordinator
					AND e.timeline OPERATOR(pg_catalog.=) p_timeline
					AND e.counter OPERATOR(pg_catalog.=) p_counter
					AND e.nonce OPERATOR(pg_catalog.=) p_nonce)
	  AND pg_catalog.clock_timestamp() OPERATOR(pg_catalog.<=) p_not_after
	ON CONFLICT DO NOTHING;
	IF FOUND THEN
		RETURN 'R';
	END IF;
	RETURN saga_participant.recorded(p_coordinator, p_timeline, p_counter, p_nonce,
									 p_saga, p_step, p_op, p_not_after, true);
END
$f$;
COMMENT ON FUNCTION saga_participant.claim(text, integer, bigint, text, uuid, text, "char", timestamp with time zone) IS
'tell whether a call happened, and refuse it for ever if it did not';

-- At most 10000 rows at a time; the answer tells how many.  Ids of sagas begin
-- with their time, which bounds the range of the primary key to be read; one
-- day is allowed for clocks that differ.
CREATE OR REPLACE FUNCTION saga_participant.purge
	(p_coordinator text, p_timeline integer, p_counter bigint, p_nonce text,
	 p_before timestamp with time zone, p_live uuid[])
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $f$
DECLARE
	v_bound uuid := (lpad(to_hex((extract(epoch FROM p_before + '1 day'::interval) * 1000)::bigint),
						  12, '0') || repeat('f', 20))::uuid;
	n bigint;
BEGIN
	-- a restored copy would not know of sagas that still need their rows
	PERFORM pg_advisory_xact_lock_shared(hashtextextended(p_coordinator, 7461));
	IF NOT EXISTS (SELECT FROM saga_participant.epoch e
				   WHERE e.coordinator = p_coordinator
					 AND e.timeline = p_timeline AND e.counter = p_counter
					 AND e.nonce = p_nonce) THEN
		RAISE EXCEPTION 'coordinator "%" is not the current one', p_coordinator
			USING ERRCODE = 'SGB04',
				  DETAIL = 'A newer one has announced itself at this participant.';
	END IF;
	DELETE FROM saga_participant.barrier b
	WHERE b.ctid = ANY (ARRAY(
		SELECT o.ctid FROM saga_participant.barrier o
		WHERE o.coordinator = p_coordinator AND o.saga < v_bound
		  AND o.created_at < p_before AND o.not_after < clock_timestamp()
		  AND o.saga <> ALL (coalesce(p_live, '{}'))
		ORDER BY o.coordinator, o.saga LIMIT 10000));
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n::text;
END
$f$;
COMMENT ON FUNCTION saga_participant.purge(text, integer, bigint, text, timestamp with time zone, uuid[]) IS
'remove records of calls that are past keeping, except those of live sagas; returns how many';

REVOKE ALL ON SCHEMA saga_participant FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA saga_participant FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA saga_participant FROM PUBLIC;
$script$
|| coalesce((SELECT string_agg(format($grant$GRANT USAGE ON SCHEMA saga_participant TO %1$I;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA saga_participant TO %1$I;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA saga_participant TO %1$I;
$grant$, g), '' ORDER BY g)
	FROM (SELECT DISTINCT u FROM unnest(grantees) AS u WHERE u <> '') AS d (g)),
'-- Roles that are to run steps here need, and each can see what the others recorded:
-- GRANT USAGE ON SCHEMA saga_participant TO ...;
-- GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA saga_participant TO ...;
-- GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA saga_participant TO ...;
')
|| 'COMMIT;
'
$function$;
COMMENT ON FUNCTION saga.participant_script(text[]) IS
'the SQL script that makes a PostgreSQL database (12 or later) a participant, with grants to the given roles of that database';

CREATE FUNCTION saga.prepare_participant
	(server text, execute boolean DEFAULT true)
RETURNS text
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'saga_prepare_participant';
COMMENT ON FUNCTION saga.prepare_participant(text, boolean) IS
'install schema saga_participant at a server, or with execute => false return the script for the administrator of that database';

CREATE FUNCTION saga.check_participant(server text)
RETURNS TABLE ("check" text, ok boolean, found text, needed text, hint text)
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'saga_check_participant';
COMMENT ON FUNCTION saga.check_participant(text) IS
'everything a server needs in order to take part in sagas, checked one by one as the calling role; never an error';

REVOKE ALL ON FOREIGN DATA WRAPPER saga_postgres, saga_http FROM PUBLIC;
REVOKE ALL ON FUNCTION saga.saga_postgres_validator(text[], oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION saga.saga_http_validator(text[], oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION saga.participant_script(text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION saga.prepare_participant(text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION saga.check_participant(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION saga.participant_script(text[]) TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION saga.prepare_participant(text, boolean) TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION saga.check_participant(text) TO saga_user, saga_operator, saga_monitor;
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
    labels jsonb DEFAULT NULL, protocol text DEFAULT NULL)
RETURNS uuid LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_start';
COMMENT ON FUNCTION saga.start(text, jsonb, text, timestamptz, text, integer, integer, interval, text, jsonb, text)
IS 'Start a saga as part of this transaction: no commit, no saga';

CREATE FUNCTION saga.start_many(definition text, inputs jsonb, key_field text DEFAULT NULL)
RETURNS TABLE (ordinal integer, id uuid, created boolean)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_start_many';
COMMENT ON FUNCTION saga.start_many(text, jsonb, text)
IS 'Start a saga for each object of a JSON array';

CREATE FUNCTION saga.wait(id uuid, timeout interval DEFAULT '30 s')
RETURNS saga.outcome LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_wait';
COMMENT ON FUNCTION saga.wait(uuid, interval) IS 'Wait for a saga to end; at the time-out done is false';

-- ---- durable procedures ----

CREATE FUNCTION saga.start_procedure(procedure regprocedure, args jsonb DEFAULT '{}', key text DEFAULT NULL)
RETURNS uuid LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_start_procedure';
COMMENT ON FUNCTION saga.start_procedure(regprocedure, jsonb, text)
IS 'Start a durable procedure: a function or procedure that goes on after any crash; returns the saga that runs it';
CREATE FUNCTION saga.run_step(name text, action text, args jsonb DEFAULT '{}', server text DEFAULT NULL,
    compensation text DEFAULT NULL)
RETURNS jsonb LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_procedure_step';
COMMENT ON FUNCTION saga.run_step(text, text, jsonb, text, text)
IS 'In a durable procedure: run a step once, whatever happens, and return its result';
CREATE FUNCTION saga.sleep(duration interval)
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_procedure_sleep';
COMMENT ON FUNCTION saga.sleep(interval) IS 'In a durable procedure: go on so much later, using nothing meanwhile';
CREATE FUNCTION saga.await_signal(signal text)
RETURNS jsonb LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_procedure_signal';
COMMENT ON FUNCTION saga.await_signal(text) IS 'In a durable procedure: wait for a signal and return its payload';
CREATE FUNCTION saga.procedure_entry_(saga_id uuid, procedure oid, source text, args jsonb)
RETURNS jsonb LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_procedure_entry';
COMMENT ON FUNCTION saga.procedure_entry_(uuid, oid, text, jsonb) IS 'Internal: runs a durable procedure up to its next request';
CREATE FUNCTION saga.procedure_run_(request jsonb, undo boolean, saga_id uuid, step text)
RETURNS jsonb LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_procedure_run';
COMMENT ON FUNCTION saga.procedure_run_(jsonb, boolean, uuid, text) IS 'Internal: runs a local step that a durable procedure asked for';

CREATE FUNCTION saga.wait_any(ids uuid[], timeout interval DEFAULT '30 s')
RETURNS saga.outcome LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_wait_any';
COMMENT ON FUNCTION saga.wait_any(uuid[], interval)
IS 'Wait for one of several sagas to end, and say which; at the time-out done is false and the rest NULL';

CREATE FUNCTION saga.status(id uuid)
RETURNS saga.outcome LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_status';
COMMENT ON FUNCTION saga.status(uuid) IS 'What has become of a saga, as committed now';

-- Signals and answers.
CREATE FUNCTION saga.signal(id uuid, signal text, payload jsonb DEFAULT NULL, signal_id text DEFAULT NULL)
RETURNS boolean LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_signal';
COMMENT ON FUNCTION saga.signal(uuid, text, jsonb, text)
IS 'Send a signal to a saga; false if it has ended';

CREATE FUNCTION saga.signal_key(definition text, key text, signal text, payload jsonb DEFAULT NULL,
    signal_id text DEFAULT NULL, if_absent text DEFAULT 'error')
RETURNS boolean LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_signal_key';
COMMENT ON FUNCTION saga.signal_key(text, text, text, jsonb, text, text)
IS 'Send a signal to the saga that was, or with if_absent => ''keep'' will be, started with a key';

CREATE FUNCTION saga.complete_step(token text, result jsonb DEFAULT NULL)
RETURNS boolean LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_complete_step';
COMMENT ON FUNCTION saga.complete_step(text, jsonb)
IS 'Answer a step that was taken on: done; false if the call needs no answer any more';

CREATE FUNCTION saga.fail_step(token text, error text DEFAULT NULL, kind text DEFAULT 'declined')
RETURNS boolean LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_fail_step';
COMMENT ON FUNCTION saga.fail_step(text, text, text)
IS 'Answer a step that was taken on: declined, transient or broken; false if the call needs no answer any more';

CREATE FUNCTION saga.heartbeat(token text, progress jsonb DEFAULT NULL)
RETURNS boolean LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_heartbeat';
COMMENT ON FUNCTION saga.heartbeat(text, jsonb)
IS 'A step that was taken on is alive: its time-out begins anew; false if the call needs no answer any more';

CREATE FUNCTION saga.accepted()
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_accepted';
COMMENT ON FUNCTION saga.accepted()
IS 'In a local action of a step with callback => true: its answer comes later, by saga.complete_step()';

CREATE FUNCTION saga.take(queue text, n integer DEFAULT 1, visibility interval DEFAULT '5 min')
RETURNS TABLE (token text, saga_id uuid, step text, input jsonb, attempt integer)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_take';
COMMENT ON FUNCTION saga.take(text, integer, interval)
IS 'Take steps from a queue; each comes again after the time given as visibility unless it is answered';

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

CREATE FUNCTION saga.command_(id uuid, verb text, step text, result jsonb, value bigint, reason text, strict boolean)
RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_command';
COMMENT ON FUNCTION saga.command_(uuid, text, text, jsonb, bigint, text, boolean)
IS 'Internal: leave a verb with a value in the inbox (use set_deadline, migrate, ...)';

CREATE FUNCTION saga.rerun_from(id uuid, step text, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.command_(id, 'rerun_from', step, NULL, NULL, reason, strict);
COMMENT ON FUNCTION saga.rerun_from(uuid, text, text, boolean)
IS 'Run a step that is over or stuck, and all that follows it, once more; nothing is undone first';

CREATE FUNCTION saga.set_deadline(id uuid, deadline timestamptz, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.command_(id, 'set_deadline', NULL, NULL,
    CASE WHEN pg_catalog.isfinite(deadline)
         THEN (extract(epoch FROM deadline - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint END,
    reason, strict);
COMMENT ON FUNCTION saga.set_deadline(uuid, timestamptz, text, boolean)
IS 'Give a saga another deadline; NULL or infinity: none';

CREATE FUNCTION saga.breakpoint(id uuid, step text, set boolean DEFAULT true, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.command_(id, 'breakpoint', step, NULL, CASE WHEN set THEN 1 ELSE 0 END, reason, strict);
COMMENT ON FUNCTION saga.breakpoint(uuid, text, boolean, text, boolean)
IS 'Pause the saga when it reaches a step; set => false takes that back';

CREATE FUNCTION saga.set_step_options(id uuid, step text, timeout interval DEFAULT NULL, retry jsonb DEFAULT NULL,
    compensation_timeout interval DEFAULT NULL, compensation_retry jsonb DEFAULT NULL,
    reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.command_(id, 'set_step_options', step, pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'timeout', pg_catalog.trim_scale(extract(epoch FROM timeout)), 'retry', retry,
    'compensation_timeout', pg_catalog.trim_scale(extract(epoch FROM compensation_timeout)),
    'compensation_retry', compensation_retry)), NULL, reason, strict);
COMMENT ON FUNCTION saga.set_step_options(uuid, text, interval, jsonb, interval, jsonb, text, boolean)
IS 'Give a step of one saga another time-out or another policy of attempts';

CREATE FUNCTION saga.migrate(id uuid, version integer DEFAULT NULL, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE sql VOLATILE
RETURN saga.command_(id, 'migrate', NULL, NULL, version, reason, strict);
COMMENT ON FUNCTION saga.migrate(uuid, integer, text, boolean)
IS 'Let a saga that is paused, stuck or waiting go on with another version of its definition, if its log fits that';

CREATE FUNCTION saga.restart(id uuid, version integer DEFAULT NULL, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_restart';
COMMENT ON FUNCTION saga.restart(uuid, integer, text, boolean)
IS 'Start another saga with the input and the key of one that has ended';

CREATE FUNCTION saga.fork(id uuid, step text, version integer DEFAULT NULL, reason text DEFAULT NULL, strict boolean DEFAULT false)
RETURNS text LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_fork';
COMMENT ON FUNCTION saga.fork(uuid, text, integer, text, boolean)
IS 'Start another saga that has the results of one that has ended or is paused, up to a step, and goes on from there';

GRANT EXECUTE ON FUNCTION saga.command_(uuid, text, text, jsonb, bigint, text, boolean),
    saga.rerun_from(uuid, text, text, boolean), saga.set_deadline(uuid, timestamptz, text, boolean),
    saga.breakpoint(uuid, text, boolean, text, boolean),
    saga.set_step_options(uuid, text, interval, jsonb, interval, jsonb, text, boolean),
    saga.migrate(uuid, integer, text, boolean), saga.restart(uuid, integer, text, boolean),
    saga.fork(uuid, text, integer, text, boolean) TO saga_user, saga_operator;

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

-- The name of a step without the numbers of its run.
CREATE FUNCTION saga.plain_step_(step text)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.regexp_replace(step, '((\[[0-9]+\])+|~[0-9]+)+$', '');
COMMENT ON FUNCTION saga.plain_step_(text) IS 'Internal: which step of the definition a run is of';

CREATE VIEW saga.instances WITH (security_barrier) AS
SELECT i.id, d.name, d.version, i.state, i.direction, i.cause, i.key, i.failed_step, i.sqlstate, i.error,
       i.input, i.output, i.correlation, i.labels, i.priority,
       pg_catalog.pg_get_userbyid(i.started_by) AS started_by, i.started_at, i.start_at, i.deadline, i.ended_at,
       i.parent_id, i.parent_step, i.copy_of,
       i.protocol, w.waiting_for, w.waiting_until
FROM saga.instance i JOIN saga.definition d ON d.id = i.definition_id
LEFT JOIN LATERAL (
    SELECT pg_catalog.string_agg(DISTINCT
               CASE last.kind WHEN 'awaiting' THEN 'signal ' || last.message WHEN 'accepted' THEN 'callback' ELSE 'time' END,
               ', ') AS waiting_for,
           pg_catalog.min(last.due) AS waiting_until
    FROM (SELECT DISTINCT ON (l.step) l.kind, l.message, l.due
          FROM saga.log_record l
          WHERE l.saga_id = i.id AND i.state = 'waiting'
            AND l.step IS NOT NULL AND l.kind NOT IN ('undo', 'breakpoint')
          ORDER BY l.step, l.seq DESC) last
    WHERE last.kind IN ('awaiting', 'accepted', 'sleeping')) w ON true
WHERE i.started_by = (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
   OR saga.may(d.name, 'see');
COMMENT ON VIEW saga.instances IS 'Sagas you started or may see, one row each';

CREATE VIEW saga.log WITH (security_barrier) AS
SELECT l.saga_id, l.seq, l.at, l.kind, l.step, l.operation, l.attempt, l.outcome, l.state, l.cause, l.reason,
       l.due, l.sqlstate,
       CASE WHEN p.readable THEN l.message END AS message,
       CASE WHEN p.readable THEN l.result END AS result,
       l.actor, l.note, l.value
FROM saga.log_record l
JOIN saga.instances i ON i.id = l.saga_id
CROSS JOIN LATERAL (SELECT pg_catalog.current_setting('saga.log_payloads', true) IS DISTINCT FROM 'off'
                        OR saga.may(i.name, 'operate') AS readable) p;
COMMENT ON VIEW saga.log IS 'The append-only history of each saga';

-- A step's state is what its last record says.  Steps of bodies stand here by
-- the names of their runs, at the place of the step they are of.
CREATE VIEW saga.steps WITH (security_barrier) AS
WITH last AS (
    SELECT DISTINCT ON (l.saga_id, l.step) l.*
    FROM saga.log_record l
    WHERE l.step IS NOT NULL AND l.kind NOT IN ('undo', 'breakpoint') AND l.step NOT LIKE '$%'
    ORDER BY l.saga_id, l.step, l.seq DESC
)
SELECT i.id AS saga_id, n.position, n.step,
       CASE
           WHEN last.kind IS NULL THEN CASE WHEN i.ended_at IS NULL AND i.direction = 'forward' THEN 'waiting' ELSE 'not run' END
           WHEN last.kind = 'done' THEN CASE last.operation WHEN 'undo' THEN 'undone' ELSE 'done' END
           WHEN last.kind = 'intent' THEN CASE last.operation WHEN 'undo' THEN 'undoing' WHEN 'claim' THEN 'claiming' ELSE 'running' END
           WHEN last.kind = 'failed' AND last.due IS NOT NULL THEN CASE last.operation WHEN 'undo' THEN 'retrying undo' ELSE 'retrying' END
           WHEN last.kind = 'failed' THEN 'failed'
           WHEN last.kind = 'retried' THEN CASE last.operation WHEN 'undo' THEN 'undoing' ELSE 'running' END
           WHEN last.kind = 'chosen' AND last.value = 0 THEN 'not taken'
           WHEN last.kind IN ('chosen', 'expanded', 'iteration') THEN 'running'
           WHEN last.kind = 'accepted' AND last.operation = 'undo' THEN 'undo accepted'
           ELSE last.kind
       END AS state,
       (SELECT pg_catalog.max(l.attempt) FROM saga.log_record l
        WHERE l.saga_id = i.id AND l.step = n.step AND l.operation = coalesce(last.operation, 'action')) AS attempts,
       CASE WHEN last.kind = 'failed' THEN last.due END AS next_attempt_at,
       last.at AS changed_at, last.outcome, last.sqlstate,
       CASE WHEN last.kind <> 'awaiting' THEN last.message END AS error,
       (SELECT l.result FROM saga.log_record l
        WHERE l.saga_id = i.id AND l.step = n.step AND l.kind IN ('done', 'skipped') AND l.operation <> 'undo'
        ORDER BY l.seq DESC LIMIT 1) AS result,
       CASE last.kind WHEN 'awaiting' THEN 'signal ' || last.message WHEN 'accepted' THEN 'callback' WHEN 'sleeping' THEN 'time' END AS waiting_for,
       CASE WHEN last.kind IN ('awaiting', 'accepted', 'sleeping') THEN last.due END AS waiting_until,
       CASE WHEN last.kind = 'accepted' THEN (
           SELECT p.progress FROM saga.step_progress p
           WHERE p.saga_id = i.id AND p.step = n.step AND p.operation = last.operation) END AS progress
FROM saga.instances i
JOIN saga.definition d ON d.name = i.name AND d.version = i.version
CROSS JOIN LATERAL (
    WITH names AS (
        SELECT s.position, s.step FROM saga.protocol_steps_(d.body, i.protocol) WITH ORDINALITY AS s(step, position)
    ), runs AS (
        SELECT names.position, r.step
        FROM (SELECT DISTINCT l.step FROM saga.log_record l WHERE l.saga_id = i.id AND l.step ~ '[]0-9]$') r
        JOIN names ON names.step = saga.plain_step_(r.step)
        WHERE r.step <> names.step
    )
    SELECT runs.position, runs.step FROM runs
    UNION ALL
    SELECT names.position, names.step FROM names
    -- a step of a body has no run of its own name
    WHERE NOT EXISTS (SELECT FROM runs WHERE runs.position = names.position)
       OR EXISTS (SELECT FROM saga.log_record l WHERE l.saga_id = i.id AND l.step = names.step)) n
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
           WHEN 'deadline' THEN ARRAY['resume', 'set_deadline', 'terminate']
           WHEN 'error' THEN ARRAY['terminate']
           WHEN 'hook_fails' THEN ARRAY['retry_step', 'skip_step', 'terminate']
           ELSE CASE
                    WHEN NOT c.is_over THEN ARRAY['retry_step', 'skip_step']
                    WHEN i.direction = 'forward' THEN ARRAY['rerun_from', 'skip_step']
                    ELSE ARRAY['skip_step'] END
                || CASE WHEN i.direction = 'forward' AND NOT c.past_pivot THEN ARRAY['cancel'] ELSE '{}' END
                || ARRAY['terminate']
       END AS verbs
FROM saga.stuck_saga s
JOIN saga.instances i ON i.id = s.saga_id
JOIN saga.definition d ON d.name = i.name AND d.version = i.version
CROSS JOIN LATERAL (SELECT
    -- the sub-saga was terminated, or cannot be undone: asking again is of no use
    s.sqlstate IS NOT DISTINCT FROM '55000' AND pg_catalog.jsonb_path_exists(d.body, '$.steps.** ? (@.kind == "call" && @.name == $step)',
        pg_catalog.jsonb_build_object('step', pg_catalog.split_part(pg_catalog.split_part(s.step, '[', 1), '~', 1))) AS is_over,
    EXISTS (SELECT FROM pg_catalog.jsonb_path_query(d.body, '$.steps.** ? (@.pivot == true).name') AS p(name)
            JOIN saga.log_record l ON l.saga_id = s.saga_id AND l.step = p.name OPERATOR(pg_catalog.#>>) '{}'
            WHERE l.kind IN ('intent', 'done')) AS past_pivot) AS c;
COMMENT ON VIEW saga.stuck IS 'Sagas that wait for an operator: why, and the verbs that help';

CREATE FUNCTION saga.prepared_gid_(saga uuid, label text, branch integer)
RETURNS text LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'saga_prepared_gid_sql';
COMMENT ON FUNCTION saga.prepared_gid_(uuid, text, integer) IS 'Internal: name of a prepared transaction at its participant';

-- Branches that have voted, or may have, and are not ended; then the orphans.
CREATE VIEW saga.in_doubt WITH (security_barrier) AS
SELECT saga.prepared_gid_(i.id, b.label, b.branch) AS gid, b.server, i.id AS saga_id, i.name, i.state,
       p.at AS prepared_at,
       CASE WHEN d.decided THEN 'commit' WHEN i.direction = 'undo' THEN 'rollback' END AS decision,
       CASE
           WHEN i.state = 'paused' THEN 'saga.resume(): the saga is paused'
           WHEN d.decided THEN 'COMMIT PREPARED at server ' || pg_catalog.quote_ident(b.server)
           WHEN i.direction = 'undo' THEN 'ROLLBACK PREPARED at server ' || pg_catalog.quote_ident(b.server)
           WHEN v.missing IS NOT NULL THEN 'the votes of: ' || v.missing
           ELSE 'the decision'
       END AS waits_for,
       CASE WHEN e.kind = 'failed' THEN e.message END AS error
FROM saga.instances i
JOIN saga.definition f ON f.name = i.name AND f.version = i.version
CROSS JOIN LATERAL saga.two_phase_branches_(f.body) b
CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM saga.log_record l WHERE l.saga_id = i.id AND l.step = 'decide'
                                   AND l.kind = 'done' AND l.operation = 'action')
                        OR EXISTS (SELECT FROM saga.local_outcome o WHERE o.saga_id = i.id AND o.operation = 'a') AS decided) d
CROSS JOIN LATERAL (SELECT l.kind, l.operation, l.at, l.maybe FROM saga.log_record l
                    WHERE l.saga_id = i.id AND l.step = 'prepare_' || b.label AND l.kind <> 'undo'
                    ORDER BY l.seq DESC LIMIT 1) p
LEFT JOIN LATERAL (SELECT l.kind, l.message FROM saga.log_record l
                   WHERE l.saga_id = i.id AND l.step IN ('prepare_' || b.label, 'commit_' || b.label)
                   ORDER BY l.seq DESC LIMIT 1) e ON true
CROSS JOIN LATERAL (SELECT pg_catalog.string_agg(o.server, ', ' ORDER BY o.branch) AS missing
                    FROM saga.two_phase_branches_(f.body) o
                    WHERE NOT EXISTS (SELECT FROM saga.log_record l WHERE l.saga_id = i.id
                                      AND l.step = 'prepare_' || o.label AND l.kind = 'done' AND l.operation = 'action')) v
WHERE i.protocol = 'two_phase' AND i.ended_at IS NULL
  AND NOT (p.kind IN ('done', 'skipped') AND p.operation = 'undo')
  AND NOT (p.kind = 'failed' AND p.operation = 'action' AND NOT coalesce(p.maybe, false))
  AND NOT EXISTS (SELECT FROM saga.log_record l WHERE l.saga_id = i.id AND l.step = 'commit_' || b.label
                  AND l.kind IN ('done', 'skipped'))
UNION ALL
SELECT o.gid, o.server, NULL, NULL, NULL, o.prepared_at, o.decision,
       CASE o.decision WHEN 'commit' THEN 'COMMIT' ELSE 'ROLLBACK' END || ' PREPARED at server ' || pg_catalog.quote_ident(o.server),
       o.error
FROM saga.orphan o
WHERE pg_catalog.pg_has_role('saga_operator', 'USAGE') OR pg_catalog.pg_has_role('saga_monitor', 'USAGE');
COMMENT ON VIEW saga.in_doubt IS 'Prepared transactions of two-phase commit that are not ended: since when, what was decided, and what they wait for';

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
WHERE w.fdwname IN ('saga_postgres', 'saga_http', 'postgres_fdw', 'dblink_fdw');
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
       pg_catalog.round(pg_catalog.count(*) FILTER (WHERE i.started_at > pg_catalog.now() - '60 s'::interval) / 60.0, 3) AS starts_per_s,
       pg_catalog.round(pg_catalog.count(*) FILTER (WHERE i.ended_at > pg_catalog.now() - '60 s'::interval) / 60.0, 3) AS ends_per_s,
       pg_catalog.round((pg_catalog.percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM i.ended_at - i.started_at) * 1000))::numeric, 3) AS p50_ms,
       pg_catalog.round((pg_catalog.percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM i.ended_at - i.started_at) * 1000))::numeric, 3) AS p95_ms,
       pg_catalog.round((pg_catalog.percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM i.ended_at - i.started_at) * 1000))::numeric, 3) AS p99_ms,
       pg_catalog.max(i.started_at) AS last_started_at,
       pg_catalog.max(i.ended_at) AS last_ended_at
FROM saga.instances i
GROUP BY i.name, i.version;
COMMENT ON VIEW saga.stat_sagas IS 'Outcomes and durations by definition, over the sagas that are kept';
-- ---------------------------------------------------------------------------
-- Pictures: text that draws itself (Mermaid, Graphviz), and pages of HTML
-- without any outside resource.  All of them see through the views above, so
-- with the reader's rights, and escape whatever is not theirs.

CREATE FUNCTION saga.graph(definition text, format text DEFAULT 'mermaid', version integer DEFAULT NULL)
RETURNS text LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'saga_graph';
COMMENT ON FUNCTION saga.graph(text, text, integer)
IS 'The steps of a definition and their order, as a Mermaid flowchart or in DOT';

-- One row for each operation of each step.  The call of a local step leaves no
-- record before its end: it began when the record before that was written.
CREATE FUNCTION saga.spans_(id uuid)
RETURNS TABLE (step text, operation text, began timestamptz, ended timestamptz, state text, attempts integer, error text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    WITH l AS (
        SELECT r.*, pg_catalog.lag(r.at) OVER (ORDER BY r.seq) AS before
        FROM saga.log r WHERE r.saga_id = spans_.id
    ), s AS (
        SELECT l.step, coalesce(l.operation, 'action') AS operation,
               (pg_catalog.array_agg(CASE WHEN l.kind IN ('done', 'failed', 'hook') THEN coalesce(l.before, l.at) ELSE l.at END
                                     ORDER BY l.seq))[1] AS began,
               pg_catalog.max(l.at) AS last_at,
               (pg_catalog.array_agg(l.kind ORDER BY l.seq DESC))[1] AS kind,
               (pg_catalog.array_agg(l.due ORDER BY l.seq DESC))[1] AS due,
               pg_catalog.max(l.attempt) AS attempts,
               (pg_catalog.array_agg(l.message ORDER BY l.seq DESC) FILTER (WHERE l.message IS NOT NULL))[1] AS error,
               pg_catalog.min(l.seq) AS seq
        FROM l
        WHERE l.step IS NOT NULL AND l.kind NOT IN ('undo', 'breakpoint', 'restarted')
        GROUP BY l.step, coalesce(l.operation, 'action')
    ), k AS (
        SELECT s.*, CASE
            WHEN s.kind = 'failed' AND s.due IS NOT NULL THEN 'retrying'
            WHEN s.kind = 'done' AND s.operation = 'undo' THEN 'undone'
            WHEN s.kind IN ('done', 'failed', 'stuck', 'skipped', 'continued', 'refused') THEN s.kind
            WHEN s.kind = 'hook' AND s.due IS NULL THEN 'done'
            WHEN s.kind IN ('chosen', 'expanded') THEN 'done'
            WHEN s.kind IN ('sleeping', 'awaiting', 'accepted') THEN 'waiting'
            ELSE 'running' END AS state
        FROM s
    )
    SELECT k.step, k.operation, k.began,
           CASE WHEN k.state IN ('retrying', 'stuck', 'running', 'waiting')
                THEN coalesce((SELECT i.ended_at FROM saga.instances i WHERE i.id = spans_.id), pg_catalog.clock_timestamp())
                ELSE k.last_at END,
           k.state, k.attempts, k.error
    FROM k
    ORDER BY k.began, k.seq;
END;
COMMENT ON FUNCTION saga.spans_(uuid) IS 'Internal: bars of the pictures of a saga';

CREATE FUNCTION saga.timeline(id uuid, format text DEFAULT 'mermaid')
RETURNS text LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    i      record;
    s      record;
    n      integer := 0;
    part   text;
    result text;
BEGIN
    IF format NOT IN ('mermaid', 'dot') THEN
        RAISE EXCEPTION 'unrecognized format: "%"', format
            USING ERRCODE = '22023', HINT = 'Formats are mermaid and dot.';
    END IF;
    SELECT * INTO i FROM saga.instances v WHERE v.id = timeline.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'saga % does not exist', id USING ERRCODE = '42704';
    END IF;
    IF format = 'dot' THEN
        result := E'digraph timeline {\n  rankdir=LR;\n  node [shape=box, style=filled, fontname="sans-serif"];\n';
    ELSE
        -- ends of statements and of comments are what a title must not have
        result := E'gantt\n  title ' || translate(i.name, '#;:%<>"', '_______') || ' ' || i.state
               || E'\n  dateFormat x\n  axisFormat %H:%M:%S\n';
    END IF;
    FOR s IN
        SELECT * FROM saga.spans_(id) b
        ORDER BY CASE WHEN format = 'dot' THEN b.began ELSE min(b.began) OVER (PARTITION BY b.step) END, b.step, b.began
    LOOP
        n := n + 1;
        IF format = 'dot' THEN
            result := result || format('  n%s [label="%s\n%s: %s\n%s\n%s ms", fillcolor="%s"];', n,
                replace(replace(s.step, '\', '\\'), '"', '\"'), s.operation, s.state,
                to_char(s.began AT TIME ZONE 'UTC', 'HH24:MI:SS.MS'),
                round(extract(epoch FROM s.ended - s.began) * 1000, 1), saga.colour_(s.state)) || E'\n'
                || CASE WHEN n > 1 THEN format('  n%s -> n%s;', n - 1, n) || E'\n' ELSE '' END;
        ELSE
            IF part IS DISTINCT FROM s.step THEN
                part := s.step;
                result := result || '  section ' || translate(s.step, '#;:%<>"', '_______') || E'\n';
            END IF;
            result := result || format('    %s %s :%s%s, %s', s.operation, s.state,
                CASE WHEN s.state IN ('done', 'undone', 'skipped', 'continued') THEN 'done, '
                     WHEN s.state IN ('failed', 'stuck', 'refused') THEN 'crit, ' ELSE 'active, ' END,
                floor(extract(epoch FROM s.began) * 1000), greatest(ceil(extract(epoch FROM s.ended) * 1000),
                                                                   floor(extract(epoch FROM s.began) * 1000) + 1)) || E'\n';
        END IF;
    END LOOP;
    RETURN result || CASE WHEN format = 'dot' THEN E'}\n' ELSE '' END;
END
$$;
COMMENT ON FUNCTION saga.timeline(uuid, text) IS 'What a saga did when, as a Mermaid Gantt chart or in DOT';

CREATE FUNCTION saga.colour_(state text)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN state IN ('done', 'completed') THEN '#8fd19e'
            WHEN state IN ('stuck', 'failed', 'terminated', 'refused') THEN '#f1a9a0'
            WHEN state IN ('retrying', 'waiting', 'paused', 'pending') THEN '#fde08d'
            WHEN state IN ('undone', 'compensated', 'skipped', 'continued') THEN '#cfd4da'
            ELSE '#9ec5fe' END;
COMMENT ON FUNCTION saga.colour_(text) IS 'Internal: colour of a state in pictures';

CREATE FUNCTION saga.html_(value text)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(pg_catalog.replace(
    coalesce(value, ''), '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), '''', '&#39;');
COMMENT ON FUNCTION saga.html_(text) IS 'Internal: text as HTML';

-- A table of HTML from rows of JSON; a column "state" has its colour.
CREATE FUNCTION saga.html_table_(title text, columns text[], rows jsonb)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT pg_catalog.concat('<h2>', saga.html_(title), '</h2>',
        CASE WHEN rows IS NULL OR rows = '[]' THEN '<p>none</p>' ELSE pg_catalog.concat(
            '<table><tr>', (SELECT pg_catalog.string_agg(pg_catalog.concat('<th>', saga.html_(c), '</th>'), '' ORDER BY n)
                            FROM pg_catalog.unnest(columns) WITH ORDINALITY AS u(c, n)), '</tr>',
            (SELECT pg_catalog.string_agg(pg_catalog.concat('<tr>',
                 (SELECT pg_catalog.string_agg(pg_catalog.concat('<td',
                      CASE WHEN c = 'state' THEN pg_catalog.concat(' style="background:', saga.colour_(r ->> c), '"') END,
                      '>', saga.html_(r ->> c), '</td>'), '' ORDER BY n)
                  FROM pg_catalog.unnest(columns) WITH ORDINALITY AS u(c, n)), '</tr>'), E'\n' ORDER BY at)
             FROM pg_catalog.jsonb_array_elements(rows) WITH ORDINALITY AS e(r, at)), '</table>') END, E'\n');
END;
COMMENT ON FUNCTION saga.html_table_(text, text[], jsonb) IS 'Internal: rows as a table of HTML';

CREATE FUNCTION saga.html_page_(title text, body text)
RETURNS text LANGUAGE sql STABLE
RETURN pg_catalog.concat('<!DOCTYPE html>', E'\n', '<html lang="en"><head><meta charset="utf-8"><title>', saga.html_(title),
    '</title><meta http-equiv="Content-Security-Policy" content="default-src ''none''; style-src ''unsafe-inline''">',
    '<style>body{font:14px sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin-bottom:1em}',
    'th,td{border:1px solid #ccc;padding:3px 8px;text-align:left;vertical-align:top;max-width:40em;overflow-wrap:anywhere}',
    'th{background:#eee}.bars{width:100%}.bars td{border:0;border-bottom:1px solid #eee}.bar{position:relative;height:16px}',
    '.bar div{position:absolute;height:16px;min-width:2px;border-radius:2px}</style></head><body><h1>',
    saga.html_(title), '</h1><p>', saga.html_(pg_catalog.current_database()), ', ',
    pg_catalog.to_char(pg_catalog.clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), E' UTC</p>\n', body, E'</body></html>\n');
COMMENT ON FUNCTION saga.html_page_(text, text) IS 'Internal: a whole page of HTML';

CREATE FUNCTION saga.report_html()
RETURNS text LANGUAGE sql STABLE
RETURN saga.html_page_('Sagas', pg_catalog.concat(
    saga.html_table_('Waiting for an operator', '{id,name,version,state,step,operation,reason,sqlstate,error,since,hint,verbs}',
        (SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(s) || '{"state": "stuck"}' ORDER BY s.since)
         FROM (SELECT * FROM saga.stuck ORDER BY since LIMIT 200) s)),
    saga.html_table_('Definitions', '{name,version,started,live,stuck,completed,compensated,terminated,starts_per_s,ends_per_s,p50_ms,p95_ms,p99_ms,last_started_at,last_ended_at}',
        (SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(s) ORDER BY s.stuck DESC, s.name, s.version) FROM saga.stat_sagas s)),
    saga.html_table_('Sagas that run', '{id,name,version,state,direction,cause,failed_step,error,started_at,deadline}',
        (SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(i) - 'input' - 'output' ORDER BY i.state <> 'stuck', i.started_at)
         FROM (SELECT * FROM saga.instances WHERE ended_at IS NULL ORDER BY state <> 'stuck', started_at LIMIT 200) i)),
    saga.html_table_('Ended last', '{id,name,version,state,cause,failed_step,error,started_at,ended_at}',
        (SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(i) - 'input' - 'output' ORDER BY i.ended_at DESC)
         FROM (SELECT * FROM saga.instances WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT 100) i)),
    saga.html_table_('Participants', '{name,circuit,calls,done,declined,transient,broken,unknown,in_flight,latency_avg_ms,latency_max_ms}',
        (SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(p) ORDER BY p.circuit = 'closed', p.name) FROM saga.stat_participants p)),
    saga.html_table_('Workers', '{kind,number,pid,started_at,turns,items,loaded,errors,activity}',
        (SELECT pg_catalog.jsonb_agg(pg_catalog.to_jsonb(w) ORDER BY w.kind, w.number) FROM saga.stat_workers w))));
COMMENT ON FUNCTION saga.report_html() IS 'All sagas you may see as one page of HTML, those that wait for an operator first';

CREATE FUNCTION saga.report_html(id uuid)
RETURNS text LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    i     record;
    bars  text;
    until timestamptz;
    width numeric;
BEGIN
    SELECT * INTO i FROM saga.instances v WHERE v.id = report_html.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'saga % does not exist', id USING ERRCODE = '42704';
    END IF;
    until := coalesce(i.ended_at, clock_timestamp());
    width := greatest(extract(epoch FROM until - i.started_at), 0.000001);
    SELECT string_agg(format(
        '<tr><td>%s</td><td>%s</td><td class="bars"><div class="bar"><div title="%s" style="left:%s%%;width:%s%%;background:%s"></div></div></td><td>%s ms</td></tr>',
        saga.html_(s.step), saga.html_(s.operation || ': ' || s.state), saga.html_(coalesce(s.error, s.state)),
        round(least(greatest(extract(epoch FROM s.began - i.started_at) / width * 100, 0), 99.9), 2),
        round(least(greatest(extract(epoch FROM s.ended - s.began) / width * 100, 0), 100), 2), saga.colour_(s.state),
        round(extract(epoch FROM s.ended - s.began) * 1000, 1)), E'\n' ORDER BY s.began)
    INTO bars FROM saga.spans_(id) s;
    RETURN saga.html_page_(format('%s %s', i.name, id), concat(
        saga.html_table_('Waiting for an operator', '{step,operation,state,reason,sqlstate,error,since,hint,verbs}',
            (SELECT jsonb_agg(to_jsonb(s) || '{"state": "stuck"}') FROM saga.stuck s WHERE s.id = report_html.id)),
        saga.html_table_('Saga', '{id,name,version,state,direction,cause,key,failed_step,sqlstate,error,started_by,started_at,deadline,ended_at,input,output}',
            jsonb_build_array(to_jsonb(i))),
        '<h2>Timeline</h2><table class="bars">', bars, E'</table>\n',
        saga.html_table_('Steps', '{position,step,state,attempts,next_attempt_at,changed_at,outcome,sqlstate,error,result}',
            (SELECT jsonb_agg(to_jsonb(s) ORDER BY s.position) FROM saga.steps s WHERE s.saga_id = report_html.id)),
        saga.html_table_('Log', '{seq,at,kind,step,operation,attempt,outcome,state,cause,reason,due,sqlstate,message,result,actor,note}',
            (SELECT jsonb_agg(to_jsonb(l) ORDER BY l.seq) FROM saga.log l WHERE l.saga_id = report_html.id))));
END
$$;
COMMENT ON FUNCTION saga.report_html(uuid) IS 'One saga as a page of HTML: its steps, when they ran, its log';

GRANT EXECUTE ON FUNCTION saga.graph(text, text, integer), saga.spans_(uuid), saga.timeline(uuid, text), saga.colour_(text),
    saga.html_(text), saga.html_table_(text, text[], jsonb), saga.html_page_(text, text),
    saga.report_html(), saga.report_html(uuid)
    TO saga_user, saga_operator, saga_monitor;
-- ---------------------------------------------------------------------------
-- Schedules.

CREATE TABLE saga.schedule (
    name       text PRIMARY KEY,
    definition text NOT NULL,
    cron       text,
    every      interval CHECK ((cron IS NULL) <> (every IS NULL)),
    input      jsonb NOT NULL,
    timezone   text NOT NULL,
    catch_up   text NOT NULL CHECK (catch_up IN ('all', 'last', 'none')),
    overlap    text NOT NULL CHECK (overlap IN ('skip', 'queue', 'allow')),
    time_field text,
    owner      regrole NOT NULL,
    anchor     timestamptz NOT NULL,
    next_at    timestamptz NOT NULL,
    queued     timestamptz[] NOT NULL DEFAULT '{}',
    last_at    timestamptz,
    last_saga  uuid,
    runs       bigint NOT NULL DEFAULT 0,
    missed     bigint NOT NULL DEFAULT 0,
    error      text,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    origin     integer NOT NULL
);
COMMENT ON TABLE saga.schedule IS 'What saga.schedule() made; only the library writes it';
SELECT pg_catalog.pg_extension_config_dump('saga.schedule', '');

CREATE FUNCTION saga.schedule(
    name text,
    definition text,
    cron text DEFAULT NULL,
    every interval DEFAULT NULL,
    input jsonb DEFAULT '{}',
    timezone text DEFAULT 'UTC',
    catch_up text DEFAULT 'all',
    overlap text DEFAULT 'skip',
    time_field text DEFAULT NULL)
RETURNS timestamptz LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_schedule';
COMMENT ON FUNCTION saga.schedule(text, text, text, interval, jsonb, text, text, text, text)
IS 'Start a saga by the clock, again and again; returns the time of the next run';

CREATE FUNCTION saga.unschedule(name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_unschedule';
COMMENT ON FUNCTION saga.unschedule(text) IS 'Drop a schedule; sagas that it started go on';

CREATE FUNCTION saga.cron_next(cron text, timezone text DEFAULT 'UTC', after timestamptz DEFAULT pg_catalog.now())
RETURNS timestamptz LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'saga_cron_next_time';
COMMENT ON FUNCTION saga.cron_next(text, text, timestamptz)
IS 'The first time after another one that a cron expression means; NULL if there is none';

CREATE VIEW saga.schedules WITH (security_barrier) AS
SELECT s.name, s.definition, pg_catalog.pg_get_userbyid(s.owner) AS owner, s.cron, s.every, s.timezone, s.input,
       s.time_field, s.catch_up, s.overlap, s.next_at AS next_run, s.last_at AS last_run, s.last_saga,
       pg_catalog.cardinality(s.queued) AS queued, s.runs, s.missed, s.error, s.created_at
FROM saga.schedule s
WHERE s.owner = (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
   OR saga.may(s.definition, 'see');
COMMENT ON VIEW saga.schedules IS 'Schedules that you made, or of definitions that you may see';
COMMENT ON COLUMN saga.schedule.name IS 'as given to saga.schedule()';
COMMENT ON COLUMN saga.schedule.definition IS 'whose newest version is started';
COMMENT ON COLUMN saga.schedule.cron IS 'when, or';
COMMENT ON COLUMN saga.schedule.every IS 'how often';
COMMENT ON COLUMN saga.schedule.input IS 'input of each run';
COMMENT ON COLUMN saga.schedule.timezone IS 'whose clocks cron, days and months are about';
COMMENT ON COLUMN saga.schedule.catch_up IS 'which runs that were missed are made up for: all, last or none';
COMMENT ON COLUMN saga.schedule.overlap IS 'if the run before has not ended: skip, queue or allow';
COMMENT ON COLUMN saga.schedule.time_field IS 'field of the input that gets the time of the run';
COMMENT ON COLUMN saga.schedule.owner IS 'role that starts the sagas';
COMMENT ON COLUMN saga.schedule.anchor IS 'from when on every is counted';
COMMENT ON COLUMN saga.schedule.next_at IS 'time of the next run';
COMMENT ON COLUMN saga.schedule.queued IS 'times of runs that wait for the one before to end';
COMMENT ON COLUMN saga.schedule.last_at IS 'time that the last run was for';
COMMENT ON COLUMN saga.schedule.last_saga IS 'the last run';
COMMENT ON COLUMN saga.schedule.runs IS 'sagas started';
COMMENT ON COLUMN saga.schedule.missed IS 'times for which none was started';
COMMENT ON COLUMN saga.schedule.error IS 'why the last time gave none';
COMMENT ON COLUMN saga.schedule.created_at IS 'when it was made';
COMMENT ON COLUMN saga.schedule.origin IS 'saga.identity.origin of the database it was made in';
COMMENT ON COLUMN saga.schedules.next_run IS 'time of the next run';
COMMENT ON COLUMN saga.schedules.last_run IS 'time that the last run was for';
COMMENT ON COLUMN saga.schedules.queued IS 'runs that wait for the one before to end';
COMMENT ON COLUMN saga.schedules.name IS 'as given to saga.schedule()';
COMMENT ON COLUMN saga.schedules.definition IS 'whose newest version is started';
COMMENT ON COLUMN saga.schedules.owner IS 'role that starts the sagas';
COMMENT ON COLUMN saga.schedules.cron IS 'when, or';
COMMENT ON COLUMN saga.schedules.every IS 'how often';
COMMENT ON COLUMN saga.schedules.timezone IS 'whose clocks cron, days and months are about';
COMMENT ON COLUMN saga.schedules.input IS 'input of each run';
COMMENT ON COLUMN saga.schedules.time_field IS 'field of the input that gets the time of the run';
COMMENT ON COLUMN saga.schedules.catch_up IS 'which runs that were missed are made up for: all, last or none';
COMMENT ON COLUMN saga.schedules.overlap IS 'if the run before has not ended: skip, queue or allow';
COMMENT ON COLUMN saga.schedules.last_saga IS 'the last run';
COMMENT ON COLUMN saga.schedules.runs IS 'sagas started';
COMMENT ON COLUMN saga.schedules.missed IS 'times for which none was started';
COMMENT ON COLUMN saga.schedules.error IS 'why the last time gave none';
COMMENT ON COLUMN saga.schedules.created_at IS 'when it was made';
GRANT SELECT ON saga.schedules TO saga_user, saga_operator, saga_monitor;
GRANT EXECUTE ON FUNCTION saga.schedule(text, text, text, interval, jsonb, text, text, text, text), saga.unschedule(text),
    saga.cron_next(text, text, timestamptz) TO saga_user;


-- ---------------------------------------------------------------------------
-- Isolation: what sagas lack between each other, and local actions can ask
-- for.  The functions work in local actions only; what they leave goes when
-- the saga ends, in the transaction that ends it.

CREATE TABLE saga.semantic_lock (
    source regclass NOT NULL,
    key    text NOT NULL,
    saga   uuid NOT NULL,
    since  timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (source, key)
);
CREATE INDEX semantic_lock_saga ON saga.semantic_lock (saga);
COMMENT ON TABLE saga.semantic_lock IS 'Semantic locks and the sagas that have them';
COMMENT ON COLUMN saga.semantic_lock.source IS 'Table whose row it stands for';
COMMENT ON COLUMN saga.semantic_lock.key IS 'Which row, in the words of the definition';
COMMENT ON COLUMN saga.semantic_lock.saga IS 'Who has it';
COMMENT ON COLUMN saga.semantic_lock.since IS 'Since when';

CREATE TABLE saga.semantic_lock_waiter (
    place  bigint GENERATED ALWAYS AS IDENTITY,
    source regclass NOT NULL,
    key    text NOT NULL,
    saga   uuid NOT NULL,
    step   integer NOT NULL,
    since  timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    PRIMARY KEY (source, key, saga, step)
);
CREATE INDEX semantic_lock_waiter_saga ON saga.semantic_lock_waiter (saga);
COMMENT ON TABLE saga.semantic_lock_waiter IS 'Steps that wait for a semantic lock';
COMMENT ON COLUMN saga.semantic_lock_waiter.place IS 'Place in the queue';
COMMENT ON COLUMN saga.semantic_lock_waiter.source IS 'Table of the lock';
COMMENT ON COLUMN saga.semantic_lock_waiter.key IS 'Key of the lock';
COMMENT ON COLUMN saga.semantic_lock_waiter.saga IS 'Who waits';
COMMENT ON COLUMN saga.semantic_lock_waiter.step IS 'With which of its steps: its number in the saga';
COMMENT ON COLUMN saga.semantic_lock_waiter.since IS 'Since when';

CREATE TABLE saga.escrow_counter (
    counter text NOT NULL,
    key     text NOT NULL DEFAULT '',
    value   numeric NOT NULL,
    minimum numeric,
    maximum numeric,
    owner   regrole NOT NULL,
    PRIMARY KEY (counter, key)
) WITH (fillfactor = 50);
COMMENT ON TABLE saga.escrow_counter IS 'Counters whose amounts sagas reserve';
COMMENT ON COLUMN saga.escrow_counter.counter IS 'Name of the counter';
COMMENT ON COLUMN saga.escrow_counter.key IS 'Which of them; '''' where there is one only';
COMMENT ON COLUMN saga.escrow_counter.value IS 'Without reservations, final or not';
COMMENT ON COLUMN saga.escrow_counter.minimum IS 'Lowest value; NULL: none';
COMMENT ON COLUMN saga.escrow_counter.maximum IS 'Highest value; NULL: none';
COMMENT ON COLUMN saga.escrow_counter.owner IS 'Who may reserve from it and change it';

CREATE TABLE saga.escrow_reservation (
    saga    uuid NOT NULL,
    step    integer NOT NULL,
    counter text NOT NULL,
    key     text NOT NULL,
    amount  numeric NOT NULL,
    final   boolean NOT NULL DEFAULT false,
    at      timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    decided_by uuid NOT NULL,
    PRIMARY KEY (saga, step, counter, key)
);
CREATE INDEX escrow_reservation_decided_by ON saga.escrow_reservation (decided_by);
CREATE INDEX escrow_reservation_counter ON saga.escrow_reservation (counter, key);
COMMENT ON TABLE saga.escrow_reservation IS 'Amounts that steps have reserved';
COMMENT ON COLUMN saga.escrow_reservation.saga IS 'The saga';
COMMENT ON COLUMN saga.escrow_reservation.step IS 'Its step: its number in the saga';
COMMENT ON COLUMN saga.escrow_reservation.counter IS 'Name of the counter';
COMMENT ON COLUMN saga.escrow_reservation.key IS 'Which of them';
COMMENT ON COLUMN saga.escrow_reservation.amount IS 'To be added to the value when the saga completes; mostly negative';
COMMENT ON COLUMN saga.escrow_reservation.final IS 'The saga has completed: the next to lock the counter adds it';
COMMENT ON COLUMN saga.escrow_reservation.at IS 'When it was reserved';
COMMENT ON COLUMN saga.escrow_reservation.decided_by IS 'The saga whose end decides about it: saga, or when that has completed its parent';

CREATE TABLE saga.reread_value (
    saga   uuid NOT NULL,
    source regclass NOT NULL,
    key    jsonb NOT NULL,
    digest text NOT NULL,
    PRIMARY KEY (saga, source, key)
);
COMMENT ON TABLE saga.reread_value IS 'Rows that sagas have read and will read again';
COMMENT ON COLUMN saga.reread_value.saga IS 'The saga';
COMMENT ON COLUMN saga.reread_value.source IS 'Table of the row';
COMMENT ON COLUMN saga.reread_value.key IS 'Columns and values that find it';
COMMENT ON COLUMN saga.reread_value.digest IS 'MD5 of its contents; empty: there was no such row';

SELECT pg_catalog.pg_extension_config_dump('saga.semantic_lock', '');
SELECT pg_catalog.pg_extension_config_dump('saga.semantic_lock_waiter', '');
SELECT pg_catalog.pg_extension_config_dump('saga.semantic_lock_waiter_place_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.escrow_counter', '');
SELECT pg_catalog.pg_extension_config_dump('saga.escrow_reservation', '');
SELECT pg_catalog.pg_extension_config_dump('saga.reread_value', '');

CREATE FUNCTION saga.semantic_lock(source regclass, key text, policy text DEFAULT 'wait', timeout interval DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_semantic_lock';
COMMENT ON FUNCTION saga.semantic_lock(regclass, text, text, interval)
IS 'In a local action: have this lock until the saga ends, or wait for it';

CREATE FUNCTION saga.semantic_unlock(source regclass, key text)
RETURNS boolean LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_semantic_unlock';
COMMENT ON FUNCTION saga.semantic_unlock(regclass, text)
IS 'In a local action: give a semantic lock up before the saga ends; false if the saga does not have it';

CREATE FUNCTION saga.create_escrow(counter text, key text DEFAULT '', value numeric DEFAULT 0,
    minimum numeric DEFAULT 0, maximum numeric DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_create_escrow';
COMMENT ON FUNCTION saga.create_escrow(text, text, numeric, numeric, numeric)
IS 'Make a counter that sagas can reserve amounts of';

CREATE FUNCTION saga.set_escrow(counter text, key text DEFAULT '', value numeric DEFAULT NULL, add numeric DEFAULT NULL,
    minimum numeric DEFAULT NULL, maximum numeric DEFAULT NULL)
RETURNS numeric LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_set_escrow';
COMMENT ON FUNCTION saga.set_escrow(text, text, numeric, numeric, numeric, numeric)
IS 'Set an escrow counter, or add to it, or move its bounds; returns its value';

CREATE FUNCTION saga.drop_escrow(counter text, key text DEFAULT '')
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_drop_escrow';
COMMENT ON FUNCTION saga.drop_escrow(text, text) IS 'Drop an escrow counter that has no reservations';

CREATE FUNCTION saga.escrow(counter text, key text, amount numeric)
RETURNS numeric LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_escrow';
COMMENT ON FUNCTION saga.escrow(text, text, numeric)
IS 'In a local action: reserve an amount of a counter, declined if a bound could be passed; returns the lowest value it can come to';

CREATE FUNCTION saga.reread(source regclass, key jsonb, renew boolean DEFAULT false, lock boolean DEFAULT true)
RETURNS boolean LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_reread';
COMMENT ON FUNCTION saga.reread(regclass, jsonb, boolean, boolean)
IS 'In a local action: remember a row, and when called again in the saga decline if it has changed';

-- Also where nobody steps: in a session it is an ordinary error.
CREATE FUNCTION saga.abort(reason text, detail jsonb DEFAULT NULL)
RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF detail IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SGB01', MESSAGE = coalesce(reason, 'declined');
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'SGB01', MESSAGE = coalesce(reason, 'declined'), DETAIL = detail::text;
END
$$;
COMMENT ON FUNCTION saga.abort(text, jsonb) IS 'In a local action: end the step as declined, nothing is retried';

CREATE VIEW saga.semantic_locks WITH (security_barrier) AS
SELECT l.source, l.key, l.saga, i.name, l.since,
       (SELECT pg_catalog.array_agg(w.saga ORDER BY w.place)
        FROM saga.semantic_lock_waiter w WHERE w.source = l.source AND w.key = l.key) AS waiters
FROM saga.semantic_lock l JOIN saga.instances i ON i.id = l.saga;
COMMENT ON VIEW saga.semantic_locks IS 'Semantic locks of sagas that you may see';
COMMENT ON COLUMN saga.semantic_locks.source IS 'Table whose row it stands for';
COMMENT ON COLUMN saga.semantic_locks.key IS 'Which row, in the words of the definition';
COMMENT ON COLUMN saga.semantic_locks.saga IS 'Who has it';
COMMENT ON COLUMN saga.semantic_locks.name IS 'Definition of that saga';
COMMENT ON COLUMN saga.semantic_locks.since IS 'Since when';
COMMENT ON COLUMN saga.semantic_locks.waiters IS 'Sagas that wait for it, the next one first';

CREATE VIEW saga.escrow_counters WITH (security_barrier) AS
SELECT c.counter, c.key, c.value + r.final AS value, r.down AS reserved_down, r.up AS reserved_up,
       c.minimum, c.maximum, c.owner
FROM saga.escrow_counter c
CROSS JOIN LATERAL (
    SELECT coalesce(pg_catalog.sum(e.amount) FILTER (WHERE e.final), 0) AS final,
           coalesce(pg_catalog.sum(e.amount) FILTER (WHERE NOT e.final AND e.amount < 0), 0) AS down,
           coalesce(pg_catalog.sum(e.amount) FILTER (WHERE NOT e.final AND e.amount > 0), 0) AS up
    FROM saga.escrow_reservation e WHERE e.counter = c.counter AND e.key = c.key) r
WHERE pg_catalog.pg_has_role(c.owner, 'USAGE') OR pg_catalog.pg_has_role('saga_operator', 'USAGE')
   OR pg_catalog.pg_has_role('saga_monitor', 'USAGE');
COMMENT ON VIEW saga.escrow_counters IS 'Escrow counters of roles that you are a member of';
COMMENT ON COLUMN saga.escrow_counters.counter IS 'Name of the counter';
COMMENT ON COLUMN saga.escrow_counters.key IS 'Which of them; '''' where there is one only';
COMMENT ON COLUMN saga.escrow_counters.value IS 'With all that completed sagas have done to it';
COMMENT ON COLUMN saga.escrow_counters.reserved_down IS 'What sagas that run would take, as a negative number';
COMMENT ON COLUMN saga.escrow_counters.reserved_up IS 'What sagas that run would add';
COMMENT ON COLUMN saga.escrow_counters.minimum IS 'Lowest value; NULL: none';
COMMENT ON COLUMN saga.escrow_counters.maximum IS 'Highest value; NULL: none';
COMMENT ON COLUMN saga.escrow_counters.owner IS 'Who may reserve from it and change it';

CREATE VIEW saga.escrow_reservations WITH (security_barrier) AS
SELECT e.counter, e.key, e.saga, i.name, e.amount, e.at
FROM saga.escrow_reservation e JOIN saga.instances i ON i.id = e.saga
WHERE NOT e.final;
COMMENT ON VIEW saga.escrow_reservations IS 'What sagas that you may see have reserved of counters';
COMMENT ON COLUMN saga.escrow_reservations.counter IS 'Name of the counter';
COMMENT ON COLUMN saga.escrow_reservations.key IS 'Which of them';
COMMENT ON COLUMN saga.escrow_reservations.saga IS 'The saga';
COMMENT ON COLUMN saga.escrow_reservations.name IS 'Definition of that saga';
COMMENT ON COLUMN saga.escrow_reservations.amount IS 'To be added to the value when the saga completes';
COMMENT ON COLUMN saga.escrow_reservations.at IS 'When it was reserved';

GRANT SELECT ON saga.semantic_locks, saga.escrow_counters, saga.escrow_reservations TO saga_user, saga_operator, saga_monitor;
GRANT EXECUTE ON FUNCTION saga.semantic_lock(regclass, text, text, interval), saga.semantic_unlock(regclass, text),
    saga.create_escrow(text, text, numeric, numeric, numeric), saga.set_escrow(text, text, numeric, numeric, numeric, numeric),
    saga.drop_escrow(text, text), saga.escrow(text, text, numeric), saga.reread(regclass, jsonb, boolean, boolean),
    saga.abort(text, jsonb)
    TO saga_user;

-- ---------------------------------------------------------------------------
-- Sagas within a session, rolled back: what would happen.

CREATE FUNCTION saga.dry_run(definition text, input jsonb DEFAULT '{}', stubs jsonb DEFAULT '{}')
RETURNS TABLE (phase text, step text, operation text, sent jsonb, result jsonb, error text,
    relation regclass, key jsonb, before jsonb, after jsonb)
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_dry_run';
COMMENT ON FUNCTION saga.dry_run(text, jsonb, jsonb)
IS 'Run local steps and their undo and roll back: what would be sent, and which rows the undo does not restore';

CREATE FUNCTION saga.test_begin()
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_test_begin';
COMMENT ON FUNCTION saga.test_begin() IS 'Begin a test in this session: without mocks, and with all the time there is';

CREATE FUNCTION saga.test_mock(definition text, step text, result jsonb DEFAULT NULL, error text DEFAULT NULL,
    operation text DEFAULT 'action')
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_test_mock';
COMMENT ON FUNCTION saga.test_mock(text, text, jsonb, text, text)
IS 'Make up the answer of a step; several are given one after the other, and the last one stays';

CREATE FUNCTION saga.test_advance("by" interval)
RETURNS interval LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_test_advance';
COMMENT ON FUNCTION saga.test_advance(interval)
IS 'Let so much more time pass in test runs, and not all of it; returns how much it is now';

CREATE FUNCTION saga.test_run(definition text, input jsonb DEFAULT '{}')
RETURNS SETOF saga.log LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_test_run';
COMMENT ON FUNCTION saga.test_run(text, jsonb)
IS 'Drive a saga in this session with made-up answers, roll back, and return the log it would have';

GRANT EXECUTE ON FUNCTION saga.dry_run(text, jsonb, jsonb), saga.test_begin(), saga.test_mock(text, text, jsonb, text, text),
    saga.test_advance(interval), saga.test_run(text, jsonb) TO saga_user;

-- ---------------------------------------------------------------------------
-- Upkeep of the log.

-- The first id a UUIDv7 of this day (UTC) can have.
CREATE FUNCTION saga.first_id_(day date)
RETURNS uuid LANGUAGE sql IMMUTABLE STRICT
RETURN (pg_catalog.lpad(pg_catalog.to_hex((day OPERATOR(pg_catalog.-) date '1970-01-01')::bigint OPERATOR(pg_catalog.*) 86400000), 12, '0')
        OPERATOR(pg_catalog.||) '00000000000000000000')::uuid;
COMMENT ON FUNCTION saga.first_id_(date) IS 'Internal: lower bound of a day''s saga ids';

CREATE FUNCTION saga.add_log_partitions_(from_day date, days integer)
RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    day date;
BEGIN
    FOR day IN SELECT from_day + n FROM generate_series(0, days - 1) n LOOP
        IF to_regclass(format('saga.log_%s', to_char(day, 'YYYYMMDD'))) IS NULL THEN
            EXECUTE format('CREATE TABLE saga.log_%s PARTITION OF saga.log_record (PRIMARY KEY (saga_id, seq)) FOR VALUES FROM (%L) TO (%L)',
                           to_char(day, 'YYYYMMDD'), saga.first_id_(day), saga.first_id_(day + 1));
            EXECUTE format('COMMENT ON TABLE saga.log_%s IS %L', to_char(day, 'YYYYMMDD'),
                           'Log of the sagas started on ' || day);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION saga.add_log_partitions_(date, integer) IS 'Internal: make log partitions for days that have none';

-- A coordinator makes the first ones when it first writes the log.  They are
-- not part of the extension: a dump has them with their rows, like any table.
CREATE FUNCTION saga.first_log_partitions_()
RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
BEGIN
    PERFORM saga.add_log_partitions_((now() AT TIME ZONE 'UTC')::date, 3);
END
$$;
COMMENT ON FUNCTION saga.first_log_partitions_() IS 'Internal: log partitions for today and the next days';

-- Partitions ahead, and away with what is past keeping.  Run by a worker once
-- in a while; an administrator may run it at any time.
CREATE FUNCTION saga.upkeep(OUT sagas_removed bigint, OUT partitions_dropped bigint)
RETURNS record LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    today  date := (now() AT TIME ZONE 'UTC')::date;
    keep   interval := current_setting('saga.retention')::interval;
    part   record;
    live   boolean;
BEGIN
    partitions_dropped := 0;
    PERFORM saga.add_log_partitions_(today, 3);

    -- in pieces, so that no transaction of this gets long
    WITH old AS (
        SELECT i.id FROM saga.instance i JOIN saga.definition d ON d.id = i.definition_id
        WHERE i.ended_at < now() - coalesce((d.body->>'retention')::interval, keep)
          -- a parent may have its children undone, a fork those of its model
          AND NOT EXISTS (SELECT FROM saga.instance p WHERE p.id = i.parent_id)
          AND NOT EXISTS (SELECT FROM saga.instance f WHERE f.copy_of = i.id AND f.ended_at IS NULL)
        LIMIT 50000
    ), gone AS (
        DELETE FROM saga.instance i USING old WHERE i.id = old.id
        RETURNING i.id
    ), keys AS (
        DELETE FROM saga.instance_key k USING gone WHERE k.saga_id = gone.id
    ), history AS (
        -- whole partitions go below; this is for the others
        DELETE FROM saga.log_default l USING gone WHERE l.saga_id = gone.id
    )
    SELECT count(*) INTO sagas_removed FROM gone;

    -- keys that may be used again before their saga's row goes
    DELETE FROM saga.instance_key k USING saga.instance i, saga.definition d
    WHERE i.id = k.saga_id AND d.id = i.definition_id
      AND i.ended_at < now() - (d.body->>'key_retention')::interval;

    -- what nobody came for
    DELETE FROM saga.kept_signal WHERE at < now() - keep;
    DELETE FROM saga.queued_step q
    WHERE NOT EXISTS (SELECT FROM saga.instance i WHERE i.id = q.saga_id AND i.ended_at IS NULL)
      AND q.enqueued_at < now() - interval '1 hour';
    DELETE FROM saga.step_progress p
    WHERE NOT EXISTS (SELECT FROM saga.instance i WHERE i.id = p.saga_id AND i.ended_at IS NULL)
      AND p.at < now() - interval '1 hour';

    FOR part IN
        SELECT c.oid::regclass AS name, to_date(substr(c.relname, 5), 'YYYYMMDD') AS day
        FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
        WHERE h.inhparent = 'saga.log_record'::regclass AND c.relname ~ '^log_[0-9]{8}$'
        ORDER BY c.relname
    LOOP
        CONTINUE WHEN part.day + 1 > (now() AT TIME ZONE 'UTC') - keep;
        -- old enough: what still has a row moves to the default partition
        EXECUTE format('ALTER TABLE saga.log_record DETACH PARTITION %s', part.name);
        EXECUTE format('INSERT INTO saga.log_record SELECT l.* FROM %s l JOIN saga.instance i ON i.id = l.saga_id',
                       part.name);
        EXECUTE format('DROP TABLE %s', part.name);
        partitions_dropped := partitions_dropped + 1;
    END LOOP;
END
$$;
COMMENT ON FUNCTION saga.upkeep()
IS 'Remove ended sagas past their retention, drop log partitions nobody needs, make those to come';

-- ---------------------------------------------------------------------------
-- Projections: read models kept from the WAL.  Their storage is in schema
-- saga_data, owned by each projection's owner, and not part of the extension,
-- so that a dump has it.

CREATE SCHEMA saga_data;
COMMENT ON SCHEMA saga_data IS 'Storage of the projections of saga; written by the projector only';
REVOKE ALL ON SCHEMA saga_data FROM PUBLIC;
GRANT USAGE ON SCHEMA saga_data TO saga_user;

-- Where the projector stands: one row, written with the contents it describes.
CREATE TABLE saga.feed (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    slot        text,
    identity    text NOT NULL DEFAULT '',
    timeline    integer NOT NULL DEFAULT 0,
    snapshot    pg_snapshot,
    position    pg_lsn NOT NULL DEFAULT '0/0',
    at          timestamptz,
    batches     bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
COMMENT ON TABLE saga.feed IS 'The snapshot and the position that all followed projections stand at';
COMMENT ON COLUMN saga.feed.only_one IS 'There is one row';
COMMENT ON COLUMN saga.feed.slot IS 'Name of the replication slot';
COMMENT ON COLUMN saga.feed.identity IS 'Random; made anew with the slot, and kept by every projection filled under it';
COMMENT ON COLUMN saga.feed.timeline IS 'Timeline the slot was made on';
COMMENT ON COLUMN saga.feed.snapshot IS 'Transactions visible in it are in the contents';
COMMENT ON COLUMN saga.feed.position IS 'All commits before this position of the WAL are in the contents';
COMMENT ON COLUMN saga.feed.at IS 'When the snapshot was taken';
COMMENT ON COLUMN saga.feed.batches IS 'Batches applied since the slot was made';
INSERT INTO saga.feed DEFAULT VALUES;

-- State: filling (the view shows the live query), following, paused, parked
-- (an error, or a change it cannot follow), rebuilding (old rows are shown).
CREATE TABLE saga.projection (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    view         regclass NOT NULL,
    owner        regrole NOT NULL,
    query        text NOT NULL,
    search_path  text NOT NULL,
    consistency  text NOT NULL DEFAULT 'eventual' CHECK (consistency IN ('eventual', 'strict')),
    key          text[],
    indexes      text[] NOT NULL DEFAULT '{}',
    max_lag      interval,
    class        text NOT NULL,
    shape        text NOT NULL,
    state        text NOT NULL DEFAULT 'filling' CHECK (state IN ('filling', 'following', 'paused', 'parked', 'rebuilding')),
    reason       text,
    sqlstate     text,
    since        timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    filled       boolean NOT NULL DEFAULT false,
    stale        boolean NOT NULL DEFAULT false,
    plain        boolean NOT NULL DEFAULT false,
    identity     text NOT NULL DEFAULT '',
    snapshot     pg_snapshot,
    position     pg_lsn,
    at           timestamptz,
    fill         bigint NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    replaces     bigint UNIQUE,
    stages       jsonb NOT NULL DEFAULT '[]',
    deterministic boolean NOT NULL DEFAULT true,
    built_on     bigint[]
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX projection_view ON saga.projection (view) WHERE replaces IS NULL;
COMMENT ON TABLE saga.projection IS 'Projections; only the library writes them';
COMMENT ON COLUMN saga.projection.id IS 'Names the storage tables';
COMMENT ON COLUMN saga.projection.view IS 'The public view';
COMMENT ON COLUMN saga.projection.owner IS 'Role whose rights upkeep has';
COMMENT ON COLUMN saga.projection.query IS 'As given';
COMMENT ON COLUMN saga.projection.search_path IS 'In force at creation, and when the query is parsed again';
COMMENT ON COLUMN saga.projection.consistency IS 'eventual, or strict: readers wait for what was committed before';
COMMENT ON COLUMN saga.projection.key IS 'Output columns to recompute by, if given';
COMMENT ON COLUMN saga.projection.indexes IS 'Column lists of the indexes asked for';
COMMENT ON COLUMN saga.projection.max_lag IS 'Age from which saga.freshness() calls it stale';
COMMENT ON COLUMN saga.projection.class IS 'The dearest of the classes of its stages';
COMMENT ON COLUMN saga.projection.shape IS 'Digest of the storage layout';
COMMENT ON COLUMN saga.projection.state IS 'filling, following, paused, parked or rebuilding';
COMMENT ON COLUMN saga.projection.reason IS 'Why it is paused, parked or being rebuilt';
COMMENT ON COLUMN saga.projection.sqlstate IS 'Of the error that parked it';
COMMENT ON COLUMN saga.projection.since IS 'When the state began';
COMMENT ON COLUMN saga.projection.filled IS 'Storage holds the query at some snapshot; until then the view runs the query';
COMMENT ON COLUMN saga.projection.stale IS 'Changes were lost for it: only a rebuild by difference brings it back';
COMMENT ON COLUMN saga.projection.plain IS 'The view has been replaced by the one that reads storage alone';
COMMENT ON COLUMN saga.projection.identity IS 'The feed it was filled under; another one means that changes are missing';
COMMENT ON COLUMN saga.projection.snapshot IS 'Its own snapshot while it does not stand where the feed stands';
COMMENT ON COLUMN saga.projection.position IS 'Its own position, likewise';
COMMENT ON COLUMN saga.projection.at IS 'When its own snapshot was taken';
COMMENT ON COLUMN saga.projection.fill IS 'Counts the fills and rebuilds asked for';
COMMENT ON COLUMN saga.projection.created_at IS 'When it was created';
COMMENT ON COLUMN saga.projection.replaces IS 'Id of the projection of the same view whose place it takes when it is filled';
COMMENT ON COLUMN saga.projection.stages IS 'The parts of the query, and the class of each';
COMMENT ON COLUMN saga.projection.deterministic IS 'False: the query leaves the choice among equals open';
COMMENT ON COLUMN saga.projection.built_on IS 'Digests of the views and sources that the contents come from; others mean a rebuild';

SELECT pg_catalog.pg_extension_config_dump('saga.projection', '');
SELECT pg_catalog.pg_extension_config_dump('saga.projection_id_seq', '');

-- ---- in the views of projections ----

CREATE FUNCTION saga.filled_(id bigint)
RETURNS boolean LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'saga_filled';
COMMENT ON FUNCTION saga.filled_(bigint) IS 'Internal: does the query''s snapshot see the storage of a projection filled?';

CREATE FUNCTION saga.serves_(id bigint)
RETURNS boolean LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'saga_serves';
COMMENT ON FUNCTION saga.serves_(bigint) IS 'Internal: true if the query''s snapshot sees the storage of a projection filled, else an error';

-- ---- making and changing ----

CREATE FUNCTION saga.create_projection(
    name text,
    query text,
    consistency text DEFAULT 'eventual',
    key text[] DEFAULT NULL,
    indexes text[] DEFAULT NULL,
    require_class text DEFAULT NULL,
    replica_identity text DEFAULT 'check',
    max_lag interval DEFAULT NULL)
RETURNS regclass LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_create_projection';
COMMENT ON FUNCTION saga.create_projection(text, text, text, text[], text[], text, text, interval)
IS 'Create a view whose contents are kept up from the WAL; until they are filled in, it runs the query itself';

CREATE FUNCTION saga.explain_projection(query text, OUT stage integer, OUT class text, OUT what text, OUT reason text,
    OUT missing_index text, OUT replica_identity text)
RETURNS SETOF record LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_explain_projection';
COMMENT ON FUNCTION saga.explain_projection(text)
IS 'How each part of a query would be kept up, why so, and what indexes and replica identities it lacks';

CREATE FUNCTION saga.replace_projection(
    name text,
    query text,
    key text[] DEFAULT NULL,
    indexes text[] DEFAULT NULL,
    require_class text DEFAULT NULL,
    replica_identity text DEFAULT 'check')
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_replace_projection';
COMMENT ON FUNCTION saga.replace_projection(text, text, text[], text[], text, text)
IS 'Give a projection another query; the old contents are shown until the new ones are complete';

CREATE FUNCTION saga.rename_projection(name text, new_name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_rename_projection';
COMMENT ON FUNCTION saga.rename_projection(text, text) IS 'Rename a projection, as ALTER VIEW does';

CREATE FUNCTION saga.drop_projection(name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_drop_projection';
COMMENT ON FUNCTION saga.drop_projection(text) IS 'Drop a projection, its view and its storage';

CREATE FUNCTION saga.pause_projection(name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_pause_projection';
COMMENT ON FUNCTION saga.pause_projection(text) IS 'Leave the contents of a projection as they are until it is resumed';

CREATE FUNCTION saga.resume_projection(name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_resume_projection';
COMMENT ON FUNCTION saga.resume_projection(text) IS 'Let a paused projection go on, and try a parked one again';

CREATE FUNCTION saga.rebuild_projection(name text, method text DEFAULT 'diff')
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_rebuild_projection';
COMMENT ON FUNCTION saga.rebuild_projection(text, text)
IS 'Run the query of a projection anew: diff changes the rows that differ, swap fills other storage and then shows that';

CREATE FUNCTION saga.alter_projection_owner(name text, role name)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_alter_projection_owner';
COMMENT ON FUNCTION saga.alter_projection_owner(text, name) IS 'Give a projection to another role, with whose rights it is kept up from then on';

-- ---- reading ----

CREATE FUNCTION saga.bookmark()
RETURNS text LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_bookmark';
COMMENT ON FUNCTION saga.bookmark() IS 'A mark behind all that was committed so far, for saga.wait_for_projection()';

CREATE FUNCTION saga.wait_for_projection(name text, at text DEFAULT NULL, timeout interval DEFAULT '30 s')
RETURNS boolean LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_wait_for_projection';
COMMENT ON FUNCTION saga.wait_for_projection(text, text, interval)
IS 'Wait until a projection holds what was committed before the bookmark (before now, if none is given); false at the time-out';

CREATE FUNCTION saga.freshness(name text, OUT as_of timestamptz, OUT age interval, OUT state text, OUT stale boolean,
    OUT "position" pg_lsn)
RETURNS record LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'saga_freshness';
COMMENT ON FUNCTION saga.freshness(text) IS 'How old the contents of a projection are that this query sees';

CREATE FUNCTION saga.projection_lag(name text, OUT bytes bigint, OUT transactions bigint, OUT age interval)
RETURNS record LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_projection_lag';
COMMENT ON FUNCTION saga.projection_lag(text) IS 'How far a projection is behind: bytes of WAL, transactions that wait, time';

CREATE FUNCTION saga.check_projection(name text, OUT missing bigint, OUT extra bigint, OUT "position" pg_lsn, OUT as_of timestamptz)
RETURNS record LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_check_projection';
COMMENT ON FUNCTION saga.check_projection(text)
IS 'Compare the contents of a projection with its query at one snapshot: rows missing, rows too many';

-- ---- looking ----

CREATE FUNCTION saga.projection_stats_(OUT id bigint, OUT batches bigint, OUT statements bigint, OUT rows_in bigint,
    OUT rows_out bigint, OUT recomputed bigint, OUT errors bigint, OUT waiting bigint, OUT last_batch_us bigint,
    OUT max_batch_us bigint, OUT last_batch_at timestamptz, OUT phase text, OUT phase_began timestamptz, OUT done bigint,
    OUT total bigint)
RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_projection_stats';
COMMENT ON FUNCTION saga.projection_stats_() IS 'Internal: rows of saga.stat_projections and saga.progress';

CREATE FUNCTION saga.projection_stand_(id bigint, OUT "position" pg_lsn, OUT as_of timestamptz, OUT lag_bytes bigint,
    OUT lag interval)
RETURNS record LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_projection_stand';
COMMENT ON FUNCTION saga.projection_stand_(bigint) IS 'Internal: where a projection stands';

CREATE VIEW saga.projections WITH (security_barrier) AS
SELECT p.id, p.view::text AS name, pg_catalog.pg_get_userbyid(p.owner) AS owner, p.query, p.class, p.state, p.reason,
       p.sqlstate, p.since, p.filled, p.stale, p.consistency, p.max_lag, p.key, p.indexes, p.deterministic, p.stages,
       p.replaces, p.search_path, p.created_at
FROM saga.projection p JOIN pg_catalog.pg_class c ON c.oid = p.view
WHERE pg_catalog.pg_has_role(p.owner, 'USAGE') OR pg_catalog.pg_has_role('saga_monitor', 'USAGE')
   OR pg_catalog.pg_has_role('saga_operator', 'USAGE');
COMMENT ON VIEW saga.projections IS 'Projections you own or may see, one row each';

CREATE VIEW saga.stat_projections WITH (security_barrier) AS
SELECT p.id, p.name, p.state, w."position", w.as_of, w.lag_bytes, w.lag, s.waiting, s.batches, s.statements, s.rows_in, s.rows_out,
       s.recomputed, pg_catalog.round(s.last_batch_us / 1000.0, 3) AS last_batch_ms,
       pg_catalog.round(s.max_batch_us / 1000.0, 3) AS max_batch_ms, s.last_batch_at, s.errors
FROM saga.projections p
CROSS JOIN LATERAL saga.projection_stand_(p.id) w
LEFT JOIN saga.projection_stats_() s ON s.id = p.id;
COMMENT ON VIEW saga.stat_projections IS 'Where each projection stands, and its batches since the server started';

CREATE VIEW saga.progress WITH (security_barrier) AS
SELECT p.id, p.name, p.state, s.phase, s.done, s.total,
       CASE s.phase WHEN 'waiting' THEN 'transactions' WHEN 'catching up' THEN 'bytes' ELSE 'stages' END AS unit,
       s.phase_began,
       CASE WHEN s.done > 0 AND s.total >= s.done
            THEN s.phase_began + (pg_catalog.clock_timestamp() - s.phase_began) * (s.total::double precision / s.done) END AS estimated_end
FROM saga.projections p JOIN saga.projection_stats_() s ON s.id = p.id
WHERE s.phase IS NOT NULL;
COMMENT ON VIEW saga.progress IS 'Projections that are being filled or rebuilt, and how far that is';

-- ---------------------------------------------------------------------------
-- Handlers: functions of users, called for each committed row change of a
-- table, in commit order, exactly once in effect.

-- State: starting (the projector has not taken it up), following, paused,
-- parked (an error, or lost changes).
CREATE TABLE saga.handler (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL UNIQUE,
    source       regclass NOT NULL,
    owner        regrole NOT NULL,
    operations   text[] NOT NULL,
    handler      regprocedure NOT NULL,
    search_path  text NOT NULL,
    state        text NOT NULL DEFAULT 'starting' CHECK (state IN ('starting', 'following', 'paused', 'parked')),
    reason       text,
    sqlstate     text,
    since        timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    lost         boolean NOT NULL DEFAULT false,
    identity     text NOT NULL DEFAULT '',
    position     pg_lsn,
    poison       pg_lsn,
    changes      bigint NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE saga.handler IS 'Handlers; only the library writes them';
COMMENT ON COLUMN saga.handler.id IS 'Names it within the projector';
COMMENT ON COLUMN saga.handler.name IS 'As given to saga.create_handler()';
COMMENT ON COLUMN saga.handler.source IS 'Table whose changes it is called for';
COMMENT ON COLUMN saga.handler.owner IS 'Role whose rights the calls have';
COMMENT ON COLUMN saga.handler.operations IS 'Some of insert, update and delete';
COMMENT ON COLUMN saga.handler.handler IS 'Function that is called';
COMMENT ON COLUMN saga.handler.search_path IS 'In force at creation, and again during calls';
COMMENT ON COLUMN saga.handler.state IS 'starting, following, paused or parked';
COMMENT ON COLUMN saga.handler.reason IS 'Why it is parked: operation, row, transaction, message';
COMMENT ON COLUMN saga.handler.sqlstate IS 'Of the error that parked it';
COMMENT ON COLUMN saga.handler.since IS 'When the state began';
COMMENT ON COLUMN saga.handler.lost IS 'Changes after its position are gone from the WAL';
COMMENT ON COLUMN saga.handler.identity IS 'The feed that its position belongs to; another one means that changes are lost';
COMMENT ON COLUMN saga.handler.position IS 'It was called for all that committed up to here; null: it has not started';
COMMENT ON COLUMN saga.handler.poison IS 'Commit of the transaction that it is parked on';
COMMENT ON COLUMN saga.handler.changes IS 'Calls so far';
COMMENT ON COLUMN saga.handler.created_at IS 'When it was created';

SELECT pg_catalog.pg_extension_config_dump('saga.handler', '');
SELECT pg_catalog.pg_extension_config_dump('saga.handler_id_seq', '');

-- The handler is the last argument and always needed; it has a default because
-- operations has one.
CREATE FUNCTION saga.create_handler(name text, source regclass,
    operations text[] DEFAULT '{insert,update,delete}', handler regprocedure DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_create_handler';
COMMENT ON FUNCTION saga.create_handler(text, regclass, text[], regprocedure)
IS 'Have a function (operation text, old_row, new_row) called for each committed row change of a table, in commit order, exactly once in effect';

CREATE FUNCTION saga.drop_handler(name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_drop_handler';
COMMENT ON FUNCTION saga.drop_handler(text) IS 'Call it for no further change';

CREATE FUNCTION saga.pause_handler(name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_pause_handler';
COMMENT ON FUNCTION saga.pause_handler(text)
IS 'Keep changes for it and call it for none, until saga.resume_handler(); what it keeps counts towards saga.max_slot_lag';

CREATE FUNCTION saga.resume_handler(name text, accept_loss boolean DEFAULT false)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_resume_handler';
COMMENT ON FUNCTION saga.resume_handler(text, boolean)
IS 'Go on where it was paused or parked; after lost changes it begins anew, if that is accepted';

CREATE FUNCTION saga.skip_handler_change(name text)
RETURNS void LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'saga_skip_handler_change';
COMMENT ON FUNCTION saga.skip_handler_change(text)
IS 'Go past the transaction that a handler is parked on: it is called for none of its changes';

CREATE VIEW saga.handlers WITH (security_barrier) AS
SELECT h.name, h.source, pg_catalog.pg_get_userbyid(h.owner) AS owner, h.operations, h.handler, h.state, h.reason,
       h.sqlstate, h.since, h.lost, h."position", h.changes, h.search_path, h.created_at
FROM saga.handler h
WHERE pg_catalog.pg_has_role(h.owner, 'USAGE') OR pg_catalog.pg_has_role('saga_monitor', 'USAGE')
   OR pg_catalog.pg_has_role('saga_operator', 'USAGE');
COMMENT ON VIEW saga.handlers IS 'Handlers you own or may see, one row each';

-- ---- rows that a dump brings ----

CREATE FUNCTION saga.restored_projection_()
RETURNS trigger LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_restored_projection';
COMMENT ON FUNCTION saga.restored_projection_() IS 'Internal: trigger that parks projections which come from a dump';
CREATE TRIGGER restored BEFORE INSERT ON saga.projection
FOR EACH ROW EXECUTE FUNCTION saga.restored_projection_();
ALTER TABLE saga.projection ENABLE ALWAYS TRIGGER restored;
COMMENT ON TRIGGER restored ON saga.projection IS 'Their storage is still being loaded then';

CREATE FUNCTION saga.wake_projector_()
RETURNS trigger LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_wake_projector';
COMMENT ON FUNCTION saga.wake_projector_() IS 'Internal: trigger that has a projector look at new handlers';
CREATE TRIGGER wake_projector AFTER INSERT ON saga.handler
FOR EACH STATEMENT EXECUTE FUNCTION saga.wake_projector_();
ALTER TABLE saga.handler ENABLE ALWAYS TRIGGER wake_projector;
COMMENT ON TRIGGER wake_projector ON saga.handler IS 'Handlers that come from a dump are announced by nobody else';

-- ---------------------------------------------------------------------------
-- Rights.  Nothing to PUBLIC, but for what is said at the end.

REVOKE ALL ON ALL TABLES IN SCHEMA saga FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA saga FROM PUBLIC;
GRANT SELECT ON saga.instances, saga.steps, saga.log, saga.stuck, saga.in_doubt, saga.definitions, saga.participants,
    saga.stat_sagas, saga.stat_participants, saga.stat_workers,
    saga.projections, saga.stat_projections, saga.progress, saga.handlers TO saga_user, saga_operator, saga_monitor;
GRANT EXECUTE ON FUNCTION saga.may(text, text), saga.workers_(), saga.participant_stats_(), saga.definition_steps_(jsonb),
    saga.protocol_steps_(jsonb, text), saga.two_phase_branches_(jsonb), saga.prepared_gid_(uuid, text, integer)
    TO saga_user, saga_operator, saga_monitor;
GRANT EXECUTE ON FUNCTION saga.start_procedure(regprocedure, jsonb, text), saga.run_step(text, text, jsonb, text, text),
    saga.sleep(interval), saga.await_signal(text), saga.procedure_entry_(uuid, oid, text, jsonb),
    saga.procedure_run_(jsonb, boolean, uuid, text) TO saga_user;
GRANT EXECUTE ON FUNCTION saga.start(text, jsonb, text, timestamptz, text, integer, integer, interval, text, jsonb, text),
    saga.start_many(text, jsonb, text), saga.wait(uuid, interval), saga.wait_any(uuid[], interval), saga.status(uuid)
    TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION saga.verb_(uuid, text, text, jsonb, boolean, text, boolean),
    saga.cancel(uuid, text, boolean), saga.terminate(uuid, text, boolean, boolean), saga.pause(uuid, text, boolean),
    saga.resume(uuid, text, boolean), saga.retry_step(uuid, text, text, boolean),
    saga.skip_step(uuid, text, jsonb, text, boolean, boolean) TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION saga.signal(uuid, text, jsonb, text), saga.signal_key(text, text, text, jsonb, text, text),
    saga.complete_step(text, jsonb), saga.fail_step(text, text, text), saga.heartbeat(text, jsonb), saga.accepted(),
    saga.take(text, integer, interval) TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION saga.plain_step_(text) TO saga_user, saga_operator, saga_monitor;
GRANT EXECUTE ON FUNCTION saga.check_log(uuid) TO saga_operator, saga_monitor;
GRANT EXECUTE ON FUNCTION saga.create_projection(text, text, text, text[], text[], text, text, interval),
    saga.explain_projection(text), saga.replace_projection(text, text, text[], text[], text, text), saga.rename_projection(text, text),
    saga.drop_projection(text), saga.pause_projection(text), saga.resume_projection(text),
    saga.rebuild_projection(text, text), saga.alter_projection_owner(text, name), saga.check_projection(text)
    TO saga_user;
GRANT EXECUTE ON FUNCTION saga.create_handler(text, regclass, text[], regprocedure), saga.drop_handler(text),
    saga.pause_handler(text), saga.resume_handler(text, boolean), saga.skip_handler_change(text) TO saga_user;
GRANT EXECUTE ON FUNCTION saga.bookmark(), saga.wait_for_projection(text, text, interval), saga.freshness(text),
    saga.projection_lag(text), saga.projection_stats_(), saga.projection_stand_(bigint)
    TO saga_user, saga_operator, saga_monitor;
-- Rights on functions in a view are the reader's, and who may read a
-- projection is for its owner to say.  These two tell and change nothing.
GRANT EXECUTE ON FUNCTION saga.filled_(bigint), saga.serves_(bigint) TO PUBLIC;
-- ---------------------------------------------------------------------------
-- What each column means.

DO $$
DECLARE
    c record;
BEGIN
    FOR c IN SELECT * FROM (VALUES
        ('identity', 'only_one', 'true: the table has one row'),
        ('identity', 'coordinator', 'identity under which participants know this database'),
        ('identity', 'origin', 'mark of the sagas started here'),
        ('identity', 'timeline', 'timeline of the server when the epoch was last raised'),
        ('identity', 'counter', 'raised by every new server incarnation before its first call'),
        ('identity', 'nonce', 'random, tells two incarnations of the same counter apart'),
        ('identity', 'server_started', 'start of the server incarnation that raised the epoch'),
        ('identity', 'host', 'host and data directory that sagas ran on'),
        ('identity', 'host_guard', 'saga.host_guard at that time'),
        ('identity', 'held', 'why no saga runs until saga.take_over() is called'),
        ('inbox', 'id', 'order in which commands are taken'),
        ('inbox', 'saga_id', 'the saga'),
        ('inbox', 'bucket', 'which coordinator takes it'),
        ('inbox', 'verb', 'cancel, terminate, pause, resume, retry_step or skip_step'),
        ('inbox', 'step', 'step it is about'),
        ('inbox', 'result', 'result that a skipped step shall have'),
        ('inbox', 'force', 'do not ask the participant what happened'),
        ('inbox', 'actor', 'session role, and saga.operator in parentheses'),
        ('inbox', 'note', 'reason given'),
        ('inbox', 'at', 'when it was given'),
        ('instance_key', 'name', 'definition, over all its versions'),
        ('instance_key', 'key', 'key given to start()'),
        ('instance_key', 'saga_id', 'the saga that has it'),
        ('instance', 'id', 'UUIDv7: ids ascend with the time of start'),
        ('instance', 'bucket', 'which coordinator owns it'),
        ('instance', 'definition_id', 'version it runs'),
        ('instance', 'state', 'pending, running, waiting, paused, stuck, completed, compensated or terminated'),
        ('instance', 'direction', 'forward or undo'),
        ('instance', 'cause', 'of the undo or the end: declined, cancelled, deadline, aborted or operator'),
        ('instance', 'key', 'key given to start()'),
        ('instance', 'input', 'input, with its declared types applied'),
        ('instance', 'output', 'output of the saga'),
        ('instance', 'failed_step', 'step whose failure began the undo, or that is stuck'),
        ('instance', 'sqlstate', 'of that failure'),
        ('instance', 'error', 'of that failure'),
        ('instance', 'correlation', 'correlation given to start()'),
        ('instance', 'labels', 'labels given to start()'),
        ('instance', 'priority', 'higher ones are taken up first'),
        ('instance', 'started_by', 'role that started it'),
        ('instance', 'started_at', 'when start() was called'),
        ('instance', 'start_at', 'not taken up before this time'),
        ('instance', 'deadline', 'absolute deadline'),
        ('instance', 'ended_at', 'when it ended'),
        ('instance', 'protocol', 'saga, or two_phase: by two-phase commit'),
        ('instance', 'origin', 'saga.identity.origin of the database it was started in'),
        ('instance', 'parent_id', 'the saga of which it is a sub-saga'),
        ('instance', 'parent_step', 'step of the parent that called it'),
        ('instance', 'depth', 'number of parents above it'),
        ('instance', 'copy_of', 'saga that it was restarted or forked from'),
        ('local_outcome', 'saga_id', 'the saga'),
        ('local_outcome', 'node', 'position of the step in the definition; -1: the ending action'),
        ('local_outcome', 'operation', 'a action, c compensation, h ending action'),
        ('local_outcome', 'bucket', 'which coordinator owns the saga'),
        ('local_outcome', 'attempt', 'attempt that was committed'),
        ('local_outcome', 'result', 'what it returned'),
        ('log_record', 'saga_id', 'the saga'),
        ('log_record', 'seq', '1, 2, ... without gaps'),
        ('log_record', 'at', 'when it was decided'),
        ('log_record', 'kind', 'started, intent, done, failed, continued, skipped, undo, stuck, paused, resumed, retried, terminating, refused, hook or ended'),
        ('log_record', 'step', 'the step; $end and $on_stuck are actions of the definition itself'),
        ('log_record', 'operation', 'action, undo, hook or claim'),
        ('log_record', 'attempt', 'attempts answered so far'),
        ('log_record', 'outcome', 'of a failure: declined, transient, broken or unknown'),
        ('log_record', 'maybe', 'the call may still have happened'),
        ('log_record', 'state', 'of the end'),
        ('log_record', 'cause', 'of the undo or the end'),
        ('log_record', 'reason', 'why an operator is needed'),
        ('log_record', 'due', 'when the next attempt is made'),
        ('log_record', 'sqlstate', 'SQLSTATE of the answer'),
        ('log_record', 'message', 'message of the answer'),
        ('log_record', 'result', 'result of the step'),
        ('log_record', 'actor', 'who used the verb'),
        ('log_record', 'note', 'reason given with the verb'),
        ('orphan', 'gid', 'name of the prepared transaction'),
        ('orphan', 'server', 'where it stands'),
        ('orphan', 'decision', 'commit or rollback'),
        ('orphan', 'prepared_at', 'since when, by the clock of the participant'),
        ('orphan', 'found_at', 'when it was found'),
        ('orphan', 'error', 'why it could not be ended yet'),
        ('in_doubt', 'gid', 'name of the prepared transaction, as in pg_prepared_xacts there'),
        ('in_doubt', 'server', 'where it stands'),
        ('in_doubt', 'saga_id', 'the saga; null: no live one'),
        ('in_doubt', 'name', 'its definition'),
        ('in_doubt', 'state', 'state of the saga'),
        ('in_doubt', 'prepared_at', 'since when'),
        ('in_doubt', 'decision', 'commit, rollback, or null: none yet'),
        ('in_doubt', 'waits_for', 'what must happen before it is ended'),
        ('in_doubt', 'error', 'of the last attempt'),
        ('stuck_saga', 'saga_id', 'the saga'),
        ('stuck_saga', 'step', 'the step'),
        ('stuck_saga', 'operation', 'action, undo or hook'),
        ('stuck_saga', 'reason', 'declined, broken, undo_fails, deadline, hook_fails or error'),
        ('stuck_saga', 'sqlstate', 'of the last failure'),
        ('stuck_saga', 'message', 'of the last failure'),
        ('stuck_saga', 'since', 'since when'),
        ('wakeup', 'saga_id', 'the saga'),
        ('wakeup', 'bucket', 'which coordinator owns it'),
        ('wakeup', 'due', 'when it is looked at again; infinity: when somebody acts'),
        ('outcome', 'id', 'the saga'),
        ('outcome', 'state', 'its state'),
        ('outcome', 'done', 'it has ended'),
        ('outcome', 'cause', 'why it was undone or ended'),
        ('outcome', 'output', 'its output'),
        ('outcome', 'failed_step', 'step whose failure began the undo, or that is stuck'),
        ('outcome', 'sqlstate', 'of that failure'),
        ('outcome', 'error', 'of that failure'),
        ('instances', 'name', 'definition'),
        ('instances', 'version', 'version it runs'),
        ('steps', 'position', 'position in the definition'),
        ('steps', 'step', 'name of the step'),
        ('steps', 'state', 'waiting, running, retrying, done, failed, skipped, stuck, undoing, undone, ... : what its last record says'),
        ('steps', 'attempts', 'attempts of the current operation that were answered'),
        ('steps', 'next_attempt_at', 'when it is tried again'),
        ('steps', 'changed_at', 'time of its last record'),
        ('steps', 'outcome', 'of the last failure: declined, transient, broken or unknown'),
        ('steps', 'sqlstate', 'of the last failure'),
        ('steps', 'error', 'of the last failure'),
        ('steps', 'result', 'what the action returned'),
        ('stuck', 'id', 'the saga'),
        ('stuck', 'name', 'definition'),
        ('stuck', 'version', 'version it runs'),
        ('stuck', 'direction', 'forward or undo'),
        ('stuck', 'error', 'of the last failure'),
        ('stuck', 'hint', 'what to do'),
        ('stuck', 'verbs', 'functions that help'),
        ('participants', 'name', 'foreign server'),
        ('participants', 'wrapper', 'its foreign-data wrapper'),
        ('participants', 'owner', 'its owner'),
        ('participants', 'usable', 'you have USAGE on it'),
        ('participants', 'mappings', 'number of user mappings'),
        ('participants', 'used_by', 'definitions you may see that call it'),
        ('stat_participants', 'name', 'foreign server'),
        ('stat_participants', 'calls', 'calls answered or given up'),
        ('stat_participants', 'done', 'answers: done'),
        ('stat_participants', 'declined', 'answers: declined'),
        ('stat_participants', 'transient', 'answers: try again'),
        ('stat_participants', 'broken', 'answers: configuration'),
        ('stat_participants', 'unknown', 'sent, no answer'),
        ('stat_participants', 'latency_avg_ms', 'mean time from send to answer, milliseconds'),
        ('stat_participants', 'latency_max_ms', 'longest time from send to answer, milliseconds'),
        ('stat_participants', 'connections', 'open now'),
        ('stat_participants', 'in_flight', 'calls sent and not answered'),
        ('stat_participants', 'queued', 'calls that wait for a connection'),
        ('stat_participants', 'circuit', 'closed, open or half-open'),
        ('stat_participants', 'connects', 'attempts to connect'),
        ('stat_workers', 'kind', 'coordinator, executor, projector or filler'),
        ('stat_workers', 'number', 'which of its kind'),
        ('stat_workers', 'pid', 'process'),
        ('stat_workers', 'started_at', 'when it was started'),
        ('stat_workers', 'turns', 'coordinator: transactions that wrote the log; executor, projector: batches'),
        ('stat_workers', 'items', 'coordinator: records written; executor: actions run'),
        ('stat_workers', 'loaded', 'sagas in memory'),
        ('stat_workers', 'errors', 'coordinator: errors caught; executor: actions that failed'),
        ('stat_workers', 'activity', 'what it does, or why it holds all sagas'),
        ('stat_sagas', 'name', 'definition'),
        ('stat_sagas', 'version', 'version'),
        ('stat_sagas', 'started', 'sagas kept'),
        ('stat_sagas', 'live', 'not ended'),
        ('stat_sagas', 'stuck', 'waiting for an operator'),
        ('stat_sagas', 'completed', 'ended: completed'),
        ('stat_sagas', 'compensated', 'ended: compensated'),
        ('stat_sagas', 'terminated', 'ended: terminated'),
        ('stat_sagas', 'starts_per_s', 'starts a second over the last minute'),
        ('stat_sagas', 'ends_per_s', 'ends a second over the last minute'),
        ('stat_sagas', 'p50_ms', 'median time from start to end, milliseconds'),
        ('stat_sagas', 'p95_ms', '95th percentile of it'),
        ('stat_sagas', 'p99_ms', '99th percentile of it'),
        ('stat_sagas', 'last_started_at', 'last start'),
        ('stat_sagas', 'last_ended_at', 'last end'),
        ('projections', 'id', 'as in the names of its storage tables'),
        ('projections', 'name', 'the view'),
        ('projections', 'owner', 'whose rights upkeep has'),
        ('projections', 'query', 'as given'),
        ('projections', 'class', 'the dearest of the classes of its stages'),
        ('projections', 'state', 'filling, following, paused, parked or rebuilding'),
        ('projections', 'reason', 'why it is paused, parked or being rebuilt'),
        ('projections', 'sqlstate', 'of the error that parked it'),
        ('projections', 'since', 'when the state began'),
        ('projections', 'filled', 'the view shows stored rows; until then it runs the query'),
        ('projections', 'stale', 'changes were lost: it shows old rows until it is rebuilt'),
        ('projections', 'consistency', 'eventual, or strict: readers wait'),
        ('projections', 'max_lag', 'age from which saga.freshness() calls it stale'),
        ('projections', 'key', 'output columns to recompute by'),
        ('projections', 'indexes', 'column lists of the indexes asked for'),
        ('projections', 'deterministic', 'false: the query leaves the choice among equals open'),
        ('projections', 'stages', 'its parts: stage, class, what, reason, storage'),
        ('projections', 'replaces', 'id of the projection of the same name whose place it takes when filled'),
        ('projections', 'search_path', 'in force when it was created'),
        ('projections', 'created_at', 'when it was created'),
        ('stat_projections', 'id', 'as in saga.projections'),
        ('stat_projections', 'name', 'the view'),
        ('stat_projections', 'state', 'as in saga.projections'),
        ('stat_projections', 'position', 'all commits before it are in the contents'),
        ('stat_projections', 'as_of', 'when the contents were those of the query'),
        ('stat_projections', 'lag_bytes', 'WAL written since that position'),
        ('stat_projections', 'lag', 'age of the contents'),
        ('stat_projections', 'waiting', 'transactions read from the WAL and not applied yet'),
        ('stat_projections', 'batches', 'batches with changes for it'),
        ('stat_projections', 'statements', 'statements run for it'),
        ('stat_projections', 'rows_in', 'changed rows of its sources'),
        ('stat_projections', 'rows_out', 'rows written to its storage'),
        ('stat_projections', 'recomputed', 'batches in which a stage was run by difference'),
        ('stat_projections', 'last_batch_ms', 'time of the last batch, milliseconds'),
        ('stat_projections', 'max_batch_ms', 'time of the longest batch, milliseconds'),
        ('stat_projections', 'last_batch_at', 'when the last batch with changes for it ended'),
        ('stat_projections', 'errors', 'attempts that failed'),
        ('progress', 'id', 'as in saga.projections'),
        ('progress', 'name', 'the view'),
        ('progress', 'state', 'as in saga.projections'),
        ('progress', 'phase', 'waiting (for transactions that run), filling, comparing or catching up'),
        ('progress', 'done', 'how much of the phase is done'),
        ('progress', 'total', 'how much there is to do'),
        ('progress', 'unit', 'what these two count: transactions, stages or bytes'),
        ('progress', 'phase_began', 'when the phase began'),
        ('progress', 'estimated_end', 'when the phase would end at this pace'),
        ('handlers', 'name', 'as given to saga.create_handler()'),
        ('handlers', 'source', 'table whose changes it is called for'),
        ('handlers', 'owner', 'whose rights the calls have'),
        ('handlers', 'operations', 'some of insert, update and delete'),
        ('handlers', 'handler', 'function that is called'),
        ('handlers', 'state', 'starting, following, paused or parked'),
        ('handlers', 'reason', 'why it is parked: operation, row, transaction, message'),
        ('handlers', 'sqlstate', 'of the error that parked it'),
        ('handlers', 'since', 'when the state began'),
        ('handlers', 'lost', 'changes after its position are gone: saga.resume_handler(name, accept_loss => true) begins anew'),
        ('handlers', 'position', 'it was called for all that committed up to here'),
        ('handlers', 'changes', 'calls so far'),
        ('handlers', 'search_path', 'in force at creation, and again during calls'),
        ('handlers', 'created_at', 'when it was created')
    ) AS v(relation, col, meaning) LOOP
        EXECUTE pg_catalog.format('COMMENT ON COLUMN saga.%I.%I IS %L', c.relation, c.col, c.meaning);
    END LOOP;

    -- columns of a view that are a table's, by the same name
    FOR c IN
        SELECT v.relname AS relation, a.attname AS col, pg_catalog.col_description(t.oid, b.attnum) AS meaning
        FROM pg_catalog.pg_class v
        JOIN pg_catalog.pg_attribute a ON a.attrelid = v.oid AND a.attnum > 0
        JOIN pg_catalog.pg_class t ON t.relnamespace = v.relnamespace
             AND t.relname = CASE v.relname WHEN 'log' THEN 'log_record' WHEN 'stuck' THEN 'stuck_saga' ELSE 'instance' END
        JOIN pg_catalog.pg_attribute b ON b.attrelid = t.oid AND b.attname = a.attname
        WHERE v.relnamespace = 'saga'::regnamespace AND v.relname IN ('instances', 'log', 'stuck')
          AND pg_catalog.col_description(v.oid, a.attnum) IS NULL
    LOOP
        EXECUTE pg_catalog.format('COMMENT ON COLUMN saga.%I.%I IS %L', c.relation, c.col, c.meaning);
    END LOOP;
    COMMENT ON COLUMN saga.steps.saga_id IS 'the saga';
END
$$;
-- Last: have the launcher look at this database once this is committed.
CREATE FUNCTION saga.installed_() RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_installed';
COMMENT ON FUNCTION saga.installed_() IS 'Internal: wake the launcher';
REVOKE ALL ON FUNCTION saga.installed_() FROM PUBLIC;
SELECT saga.installed_();
