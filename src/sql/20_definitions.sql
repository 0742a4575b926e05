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

-- Constructors check nothing: saga.define() reports all faults at once.  Their
-- bodies are parsed here, so no search_path can bend them.
CREATE FUNCTION saga.step(
    name text,
    action text,
    compensation text DEFAULT NULL,
    server text DEFAULT NULL,
    after text[] DEFAULT NULL,
    pivot boolean DEFAULT false,
    retriable boolean DEFAULT NULL,
    timeout interval DEFAULT NULL,
    retry jsonb DEFAULT NULL,
    on_failure text DEFAULT NULL,
    result text DEFAULT NULL,
    returns text DEFAULT NULL,
    expect_rows integer DEFAULT NULL,
    compensation_server text DEFAULT NULL,
    compensation_timeout interval DEFAULT NULL,
    compensation_retry jsonb DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'step', 'name', name, 'action', action, 'compensation', compensation, 'server', server,
    'after', after, 'pivot', pivot, 'retriable', retriable,
    'timeout', pg_catalog.trim_scale(extract(epoch FROM timeout)), 'retry', retry,
    'on_failure', on_failure, 'result', result, 'returns', returns, 'expect_rows', expect_rows,
    'compensation_server', compensation_server,
    'compensation_timeout', pg_catalog.trim_scale(extract(epoch FROM compensation_timeout)),
    'compensation_retry', compensation_retry))::saga.node;
COMMENT ON FUNCTION saga.step(text, text, text, text, text[], boolean, boolean, interval, jsonb, text, text, text, integer, text, interval, jsonb)
IS 'A step: an action, and perhaps the compensation that undoes it';

CREATE FUNCTION saga.undo_step(
    name text,
    compensation text,
    server text DEFAULT NULL,
    after text[] DEFAULT NULL,
    timeout interval DEFAULT NULL,
    retry jsonb DEFAULT NULL)
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'undo', 'name', name, 'compensation', compensation, 'server', server, 'after', after,
    'timeout', pg_catalog.trim_scale(extract(epoch FROM timeout)), 'retry', retry))::saga.node;
COMMENT ON FUNCTION saga.undo_step(text, text, text, text[], interval, jsonb)
IS 'A step that does nothing when it is reached, and whose compensation runs if the saga comes back';

CREATE FUNCTION saga.parallel(VARIADIC nodes saga.node[])
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'parallel', 'nodes', nodes::jsonb[]))::saga.node;
COMMENT ON FUNCTION saga.parallel(saga.node[]) IS 'Steps that do not wait for each other';

CREATE FUNCTION saga.parallel(nodes saga.node[], after text[])
RETURNS saga.node LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
    'kind', 'parallel', 'nodes', nodes::jsonb[], 'after', after))::saga.node;
COMMENT ON FUNCTION saga.parallel(saga.node[], text[])
IS 'Steps that do not wait for each other, and for the named ones only';

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
    deadline interval DEFAULT NULL,
    retention interval DEFAULT NULL,
    key_retention interval DEFAULT NULL,
    max_running integer DEFAULT NULL,
    priority integer DEFAULT NULL,
    compensation_order text DEFAULT 'reverse',
    on_completed text DEFAULT NULL,
    on_compensated text DEFAULT NULL,
    on_stuck text DEFAULT NULL)
RETURNS integer LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_define';
COMMENT ON FUNCTION saga.define(text, saga.node[], text, interval, interval, interval, integer, integer, text, text, text, text)
IS 'Make a version of a definition and return its number; the number of the newest if nothing has changed';

CREATE FUNCTION saga.drop_definition(name text, version integer DEFAULT NULL)
RETURNS integer LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_drop_definition';
COMMENT ON FUNCTION saga.drop_definition(text, integer)
IS 'Drop one version, or all, and return how many; refused while sagas of it have not ended';

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
IS 'What would be sent: server, SQL, values and their types; results holds those of other steps by name';

CREATE FUNCTION saga.definition_steps_(body jsonb)
RETURNS SETOF text LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT n OPERATOR(pg_catalog.#>>) '{}'
    FROM pg_catalog.jsonb_path_query(body, 'strict $.steps.** ? (@.type() == "object" && exists(@.name)).name') AS n;
END;
COMMENT ON FUNCTION saga.definition_steps_(jsonb) IS 'Internal: names of the steps of a definition as they are listed';

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
    saga.step(text, text, text, text, text[], boolean, boolean, interval, jsonb, text, text, text, integer, text, interval, jsonb),
    saga.undo_step(text, text, text, text[], interval, jsonb),
    saga.parallel(saga.node[]),
    saga.parallel(saga.node[], text[]),
    saga.retry_policy(integer, interval, double precision, interval, double precision, text[], text[], text[]),
    saga.define(text, saga.node[], text, interval, interval, interval, integer, integer, text, text, text, text),
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
    saga.step(text, text, text, text, text[], boolean, boolean, interval, jsonb, text, text, text, integer, text, interval, jsonb),
    saga.undo_step(text, text, text, text[], interval, jsonb),
    saga.parallel(saga.node[]),
    saga.parallel(saga.node[], text[]),
    saga.retry_policy(integer, interval, double precision, interval, double precision, text[], text[], text[]),
    saga.define(text, saga.node[], text, interval, interval, interval, integer, integer, text, text, text, text),
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
