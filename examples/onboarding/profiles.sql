-- The profiles: a server of its own, with a list of what was really done.
\set ON_ERROR_STOP 1
CREATE ROLE profiles_saga LOGIN PASSWORD 'profiles';
CREATE SCHEMA profiles;
CREATE TABLE profiles.entry (
  name text NOT NULL,
  kind text NOT NULL CHECK (kind IN ('create', 'remove')),
  at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  UNIQUE (name, kind)
);
GRANT USAGE ON SCHEMA profiles TO profiles_saga;
GRANT INSERT ON profiles.entry TO profiles_saga;
GRANT CREATE ON DATABASE :DBNAME TO profiles_saga;
