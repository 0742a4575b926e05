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
            EXECUTE format('CREATE TABLE saga.log_%s PARTITION OF saga.log_record FOR VALUES FROM (%L) TO (%L)',
                           to_char(day, 'YYYYMMDD'), saga.first_id_(day), saga.first_id_(day + 1));
            EXECUTE format('COMMENT ON TABLE saga.log_%s IS %L', to_char(day, 'YYYYMMDD'),
                           'Log of the sagas started on ' || day);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION saga.add_log_partitions_(date, integer) IS 'Internal: make log partitions for days that have none';
SELECT saga.add_log_partitions_((pg_catalog.now() AT TIME ZONE 'UTC')::date, 3);

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
-- Rights.  Nothing to PUBLIC.

REVOKE ALL ON ALL TABLES IN SCHEMA saga FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA saga FROM PUBLIC;
GRANT SELECT ON saga.instances, saga.steps, saga.log, saga.stuck, saga.definitions, saga.participants,
    saga.stat_sagas, saga.stat_participants, saga.stat_workers TO saga_user, saga_operator, saga_monitor;
GRANT EXECUTE ON FUNCTION saga.may(text, text), saga.workers_(), saga.participant_stats_(), saga.definition_steps_(jsonb)
    TO saga_user, saga_operator, saga_monitor;
GRANT EXECUTE ON FUNCTION saga.start(text, jsonb, text, timestamptz, text, integer, integer, interval, text, jsonb),
    saga.start_many(text, jsonb, text), saga.wait(uuid, interval), saga.status(uuid)
    TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION saga.verb_(uuid, text, text, jsonb, boolean, text, boolean),
    saga.cancel(uuid, text, boolean), saga.terminate(uuid, text, boolean, boolean), saga.pause(uuid, text, boolean),
    saga.resume(uuid, text, boolean), saga.retry_step(uuid, text, text, boolean),
    saga.skip_step(uuid, text, jsonb, text, boolean, boolean) TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION saga.check_log(uuid) TO saga_operator, saga_monitor;
