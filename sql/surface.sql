--
-- What can be seen and done from outside: comments, rights, search_path.
-- Needs no workers.  Lists of violations are empty; the last list is what the
-- three roles may do.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS saga;
LOAD 'saga';
RESET client_min_messages;

-- the objects of the extension, less the log's partitions by day
CREATE TEMP VIEW member AS
SELECT classid, objid, pg_describe_object(classid, objid, 0) AS what
  FROM pg_depend
 WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
   AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'saga')
   AND NOT (classid = 'pg_class'::regclass AND objid::regclass::text ~ '^saga\.log_[0-9]{8}$');
SELECT count(*) > 50 AS sane FROM member;

-- is everything in the schema a member, and is nothing elsewhere?
SELECT pg_describe_object('pg_proc'::regclass, oid, 0) AS stranger FROM pg_proc
 WHERE pronamespace = 'saga'::regnamespace AND oid NOT IN (SELECT objid FROM member)
UNION ALL
SELECT pg_describe_object('pg_class'::regclass, oid, 0) FROM pg_class
 WHERE relnamespace = 'saga'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
   AND relname !~ '^log_[0-9]{8}$' AND oid NOT IN (SELECT objid FROM member);
SELECT what AS elsewhere FROM member
 WHERE (classid = 'pg_proc'::regclass AND (SELECT pronamespace FROM pg_proc WHERE oid = objid) <> 'saga'::regnamespace)
    OR (classid = 'pg_class'::regclass AND (SELECT relnamespace FROM pg_class WHERE oid = objid) <> 'saga'::regnamespace)
    OR (classid = 'pg_type'::regclass AND (SELECT typnamespace FROM pg_type WHERE oid = objid) <> 'saga'::regnamespace);

-- ---- comments ----

SELECT what AS without_comment FROM member
 WHERE obj_description(objid, classid::regclass::name) IS NULL
   AND NOT (classid = 'pg_class'::regclass AND (SELECT relkind FROM pg_class WHERE oid = objid) = 'S')
 ORDER BY what COLLATE "C";

-- partitions have their parent's columns
SELECT c.relname AS relation, string_agg(a.attname, ' ' ORDER BY a.attnum) AS columns_without_comment
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = 'saga'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'c') AND NOT c.relispartition
   AND coalesce(col_description(c.oid, a.attnum), '') = ''
 GROUP BY c.relname ORDER BY c.relname COLLATE "C";

SELECT name AS setting_without_description FROM pg_settings
 WHERE name LIKE 'saga.%' AND coalesce(short_desc, '') = '';
SELECT count(*) > 5 AS sane FROM pg_settings WHERE name LIKE 'saga.%';

-- ---- nothing for PUBLIC ----

-- But for two: rights on functions in a view are the reader's, and whom a
-- projection's owner lets read it need not have any of our roles.
SELECT oid::regprocedure AS public_may_execute FROM pg_proc p
 WHERE pronamespace = 'saga'::regnamespace AND proname NOT IN ('filled_', 'serves_')
   AND EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee = 0);
SELECT oid::regclass AS public_may_use FROM pg_class
 WHERE relnamespace = 'saga'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
   AND EXISTS (SELECT FROM aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)))
                WHERE grantee = 0);
SELECT attrelid::regclass AS public_may_use, attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
 WHERE relnamespace = 'saga'::regnamespace AND EXISTS (SELECT FROM aclexplode(attacl) WHERE grantee = 0);
SELECT nspname AS public_may_use FROM pg_namespace
 WHERE nspname = 'saga' AND EXISTS (SELECT FROM aclexplode(nspacl) WHERE grantee = 0);
SELECT fdwname AS public_may_use FROM pg_foreign_data_wrapper
 WHERE fdwname LIKE 'saga%' AND EXISTS (SELECT FROM aclexplode(fdwacl) WHERE grantee = 0);

-- ---- what could be bent from outside ----

SELECT p.oid::regprocedure AS search_path_is_not_pinned
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE pronamespace = 'saga'::regnamespace AND lanname NOT IN ('c', 'internal') AND prosqlbody IS NULL
   AND NOT coalesce(proconfig, '{}') @> '{"search_path=pg_catalog, pg_temp"}';
SELECT oid::regprocedure AS definer_without_search_path FROM pg_proc
 WHERE pronamespace = 'saga'::regnamespace AND prosecdef
   AND NOT coalesce(proconfig, '{}') @> '{"search_path=pg_catalog, pg_temp"}';

-- a view over rows that are not everybody's must not let a function of the
-- reader's see them first
SELECT DISTINCT v.oid::regclass AS no_security_barrier
  FROM pg_class v
  JOIN pg_rewrite r ON r.ev_class = v.oid
  JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
  JOIN pg_class t ON t.oid = d.refobjid AND t.oid <> v.oid AND t.relnamespace = 'saga'::regnamespace
 WHERE v.relnamespace = 'saga'::regnamespace AND v.relkind = 'v'
   AND NOT coalesce(v.reloptions, '{}') && '{security_barrier=true,security_barrier=on,security_barrier=1}'
 ORDER BY 1;

-- and in fact
CREATE ROLE regress_surface_owner;
CREATE ROLE regress_surface_other;
GRANT saga_user TO regress_surface_owner, regress_surface_other;
SET ROLE regress_surface_owner;
SELECT saga.define('surface', steps => ARRAY[saga.step('s', 'SELECT 1')]);
SELECT saga.start('surface', '{"secret": 1}', start_at => now() + '1 year') IS NOT NULL AS started;
SET ROLE regress_surface_other;
CREATE FUNCTION pg_temp.peek(what text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$
BEGIN
    IF what LIKE '%secret%' THEN
        RAISE WARNING 'seen';
    END IF;
    RETURN true;
END
$$;
SELECT count(*) FROM saga.instances WHERE pg_temp.peek(input::text);
SELECT count(*) FROM saga.definitions WHERE pg_temp.peek(name);
SELECT count(*) FROM saga.instance;
SELECT saga.upkeep();
SELECT saga.take_over();
RESET ROLE;
DELETE FROM saga.instance i USING saga.definition d WHERE d.id = i.definition_id AND d.name = 'surface';
SET ROLE regress_surface_owner;
SELECT saga.drop_definition('surface');
RESET ROLE;
DROP OWNED BY regress_surface_owner, regress_surface_other;
DROP ROLE regress_surface_owner, regress_surface_other;

-- ---- what is granted ----

SELECT rolname AS role, rolsuper OR rolcreaterole OR rolcreatedb OR rolcanlogin OR rolreplication OR rolbypassrls AS more_than_a_group
  FROM pg_roles WHERE rolname ~ '^saga_' ORDER BY rolname COLLATE "C";
SELECT m.roleid::regrole AS group_of, m.member::regrole AS group_member FROM pg_auth_members m
 WHERE m.member IN (SELECT oid FROM pg_roles WHERE rolname ~ '^saga_');

CREATE TEMP VIEW granted AS
SELECT grantee, privilege_type AS privilege, 'schema saga' AS object
  FROM pg_namespace n, aclexplode(nspacl) WHERE nspname = 'saga'
UNION ALL
SELECT grantee, privilege_type, replace(t.oid::regtype::text, 'saga.', 'type ')
  FROM pg_type t, aclexplode(typacl) WHERE typnamespace = 'saga'::regnamespace
UNION ALL
SELECT grantee, privilege_type, replace(c.oid::regclass::text, 'saga.', CASE relkind WHEN 'v' THEN 'view ' ELSE 'relation ' END)
  FROM pg_class c, aclexplode(relacl) WHERE relnamespace = 'saga'::regnamespace
UNION ALL
SELECT grantee, privilege_type, 'function ' || proname || CASE WHEN count(*) > 1 THEN ' *' || count(*) ELSE '' END
  FROM pg_proc p, aclexplode(proacl) WHERE pronamespace = 'saga'::regnamespace AND grantee <> 0 GROUP BY proname, grantee, privilege_type
UNION ALL
SELECT grantee, privilege_type, 'wrapper ' || fdwname
  FROM pg_foreign_data_wrapper, aclexplode(fdwacl) WHERE fdwname ~ '^saga';
SELECT object, string_agg(DISTINCT lower(privilege), ' ') AS privilege,
       string_agg(DISTINCT pg_get_userbyid(grantee), ' ') AS granted_to
  FROM granted
 WHERE grantee <> (SELECT nspowner FROM pg_namespace WHERE nspname = 'saga')
 GROUP BY object ORDER BY object COLLATE "C";
