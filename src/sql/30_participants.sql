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
'one row for each call that happened (done) or must never happen (refused); op: a action, u undo';

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
	IF FOUND AND b.status = 'done' THEN
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
-- are quoted here.  Answers 'D' (done now) or 'P' (was done) and the result.
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
	-- an expression, as PERFORM would cost a run of the executor
	IF pg_catalog.pg_advisory_xact_lock_shared(pg_catalog.hashtextextended(p_coordinator, 7461)) IS NULL THEN
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

	-- A COMMIT that waits for a standby must not be given up with a warning
	-- and a tag that looks like success.
	IF pg_catalog.set_config('statement_timeout', '0', true) IS NULL THEN
	END IF;
	RETURN pg_catalog.concat('D', v_result);
END
$f$;
COMMENT ON FUNCTION saga_participant.run(text, integer, bigint, text, uuid, text, "char", timestamp with time zone, text, text[], text, text, integer, integer, text) IS
'run one call of a saga at most once and record its result';

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

REVOKE ALL ON FOREIGN DATA WRAPPER saga_postgres FROM PUBLIC;
REVOKE ALL ON FUNCTION saga.saga_postgres_validator(text[], oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION saga.participant_script(text[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION saga.prepare_participant(text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION saga.check_participant(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION saga.participant_script(text[]) TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION saga.prepare_participant(text, boolean) TO saga_user, saga_operator;
GRANT EXECUTE ON FUNCTION saga.check_participant(text) TO saga_user, saga_operator, saga_monitor;
