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
