-- Last: have the launcher look at this database once this is committed.
CREATE FUNCTION saga.installed_() RETURNS void LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'saga_installed';
COMMENT ON FUNCTION saga.installed_() IS 'Internal: wake the launcher';
REVOKE ALL ON FUNCTION saga.installed_() FROM PUBLIC;
SELECT saga.installed_();
