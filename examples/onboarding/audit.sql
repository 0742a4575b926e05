-- The audit: a server of its own, with a list of what was really done.
\set ON_ERROR_STOP 1
CREATE ROLE audit_saga LOGIN PASSWORD 'audit';
CREATE SCHEMA audit;
CREATE TABLE audit.entry (
  name text NOT NULL,
  kind text NOT NULL CHECK (kind IN ('record', 'void')),
  at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  UNIQUE (name, kind)
);
GRANT USAGE ON SCHEMA audit TO audit_saga;
GRANT INSERT ON audit.entry TO audit_saga;
GRANT CREATE ON DATABASE :DBNAME TO audit_saga;
