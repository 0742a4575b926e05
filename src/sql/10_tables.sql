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
    ended_at      timestamptz
) WITH (fillfactor = 70);
CREATE INDEX instance_live ON saga.instance (bucket) WHERE ended_at IS NULL;
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
    PRIMARY KEY (saga_id, seq)
) PARTITION BY RANGE (saga_id);
CREATE TABLE saga.log_default PARTITION OF saga.log_record DEFAULT;
COMMENT ON TABLE saga.log_record IS 'The append-only log of every saga, partitioned by time of start';
COMMENT ON TABLE saga.log_default IS 'Log of sagas whose id fits no dated partition (clock faults, long-lived ones)';

-- Local barrier: a row stands here from the commit of a local action until its
-- log record is durable.
CREATE TABLE saga.local_outcome (
    saga_id   uuid NOT NULL,
    node      smallint NOT NULL,
    operation "char" NOT NULL,
    bucket    smallint NOT NULL,
    attempt   integer NOT NULL,
    result    jsonb,
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
    at       timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE saga.inbox IS 'Operator commands on their way to the coordinator';

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

-- Who this database is to participants (the fence).
CREATE TABLE saga.identity (
    only_one         boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    coordinator      text NOT NULL,
    timeline         integer NOT NULL DEFAULT 0,
    counter          bigint NOT NULL DEFAULT 0,
    nonce            text NOT NULL DEFAULT '',
    server_started   timestamptz,
    host             text,
    host_guard       text,
    held             text
);
COMMENT ON TABLE saga.identity IS 'The identity and epoch under which this database calls participants';
INSERT INTO saga.identity (coordinator) VALUES (pg_catalog.gen_random_uuid()::text);

SELECT pg_catalog.pg_extension_config_dump('saga.instance', '');
SELECT pg_catalog.pg_extension_config_dump('saga.instance_key', '');
SELECT pg_catalog.pg_extension_config_dump('saga.log_record', '');
SELECT pg_catalog.pg_extension_config_dump('saga.log_default', '');
SELECT pg_catalog.pg_extension_config_dump('saga.local_outcome', '');
SELECT pg_catalog.pg_extension_config_dump('saga.wakeup', '');
SELECT pg_catalog.pg_extension_config_dump('saga.stuck_saga', '');
