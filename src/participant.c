/*
 * participant.c
 *		Asking participants from a session, outside any saga: install the
 *		barrier there, check what is needed, parse the statements of a define.
 *
 * Runs in ordinary backends, as the calling user, with that user's mapping.
 * It waits for the participant, but within time-outs and open to cancel; it is
 * never called by a worker.  Owns its connections for the length of one call:
 * whatever happens, they are closed at its end.  Never shows a password.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "connector_libpq.h"
#include "errors.h"
#include "guc.h"
#include "participant.h"

#define PARTICIPANT_VERSION		1
#define DEFINE_TIMEOUT			2000	/* ms, to connect, and for each answer */
#define SCRIPT_TIMEOUT			60000
#define CHECK_TIMEOUT			10000
#define CLOCK_TOLERANCE			60000	/* ms */

PG_FUNCTION_INFO_V1(saga_prepare_participant);
PG_FUNCTION_INFO_V1(saga_check_participant);

/* ---- one connection in a session ---- */

static void
ignore_notice(void *arg, const PGresult *res)
{
}

/* Wait for the socket.  False if the time is over. */
static bool
wait_for(PGconn *conn, int events, TimestampTz until)
{
	long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
	int			rc;

	if (left <= 0)
		return false;
	rc = WaitLatchOrSocket(MyLatch,
						   WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | events,
						   PQsocket(conn), left,
						   saga_wait_event("SagaParticipantAnswer"));
	if (rc & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

static void
disconnect(PGconn **conn)
{
	if (*conn == NULL)
		return;
	PQfinish(*conn);
	*conn = NULL;
	ReleaseExternalFD();
}

/*
 * Do some work with a connection of its own, which is closed whatever happens.
 * The work opens it by connect_to().
 */
typedef void (*SessionWork) (PGconn **conn, void *arg);

static void
with_connection(SessionWork work, void *arg)
{
	PGconn	   *conn = NULL;

	PG_TRY();
	{
		work(&conn, arg);
	}
	PG_CATCH();
	{
		disconnect(&conn);
		PG_RE_THROW();
	}
	PG_END_TRY();
	disconnect(&conn);
}

/*
 * Connect within a time.  False with *fault set if that is not possible; the
 * connection is the caller's to close either way.
 */
static bool
connect_to(const SagaServer *server, int timeout_ms, PGconn **conn,
		   SagaFault *fault)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;
	char		message[256];

	if (!AcquireExternalFD())
	{
		saga_fault_set(fault, SAGA_ANSWER_TRANSIENT, "53000",
					   "too many files and sockets are open in this process",
					   NULL, "Increase max_files_per_process.");
		return false;
	}
	*conn = PQconnectStartParams(server->keywords, server->values, false);
	if (*conn == NULL)
	{
		ReleaseExternalFD();
		saga_fault_set(fault, SAGA_ANSWER_TRANSIENT, "53200", "out of memory",
					   NULL, NULL);
		return false;
	}
	PQsetNoticeReceiver(*conn, ignore_notice, NULL);
	PQsetErrorVerbosity(*conn, PQERRORS_VERBOSE);
	if (PQstatus(*conn) == CONNECTION_BAD)
		status = PGRES_POLLING_FAILED;
	while (status != PGRES_POLLING_OK)
	{
		if (status == PGRES_POLLING_FAILED)
		{
			saga_connect_fault(*conn, fault);
			return false;
		}
		if (!wait_for(*conn, status == PGRES_POLLING_READING ?
					  WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE, until))
		{
			snprintf(message, sizeof(message),
					 "could not connect to server \"%s\" within %d ms",
					 server->name, timeout_ms);
			saga_fault_set(fault, SAGA_ANSWER_TRANSIENT, "08001", message, NULL, NULL);
			return false;
		}
		status = PQconnectPoll(*conn);
	}
	PQsetnonblocking(*conn, 1);
	return saga_connection_allowed(*conn, server, fault);
}

/*
 * Wait for the last result of what was sent, the first error if there is one.
 * NULL if the connection broke or the time is over.
 */
static PGresult *
last_result(PGconn *conn, int timeout_ms)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	PGresult   *volatile last = NULL;

	PG_TRY();
	{
		for (;;)
		{
			int			unsent = PQflush(conn);
			PGresult   *res;

			while (unsent >= 0 && PQisBusy(conn))
			{
				if (!wait_for(conn, WL_SOCKET_READABLE |
							  (unsent ? WL_SOCKET_WRITEABLE : 0), until) ||
					!PQconsumeInput(conn))
				{
					unsent = -1;
					break;
				}
				unsent = PQflush(conn);
			}
			if (unsent < 0)
			{
				PQclear(last);
				last = NULL;
				break;
			}
			res = PQgetResult(conn);
			if (res == NULL)
				break;
			if (last && PQresultStatus(last) == PGRES_FATAL_ERROR)
				PQclear(res);
			else
			{
				PQclear(last);
				last = res;
			}
		}
	}
	PG_CATCH();
	{
		PQclear(last);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return last;
}

static char *
copy_field(const PGresult *res, int field)
{
	const char *text = PQresultErrorField(res, field);

	return text && *text ? pstrdup(text) : NULL;
}

static const char *
result_sqlstate(const PGresult *res)
{
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);

	return sqlstate && strlen(sqlstate) == 5 ? sqlstate : "08006";
}

static int
make_sqlstate(const char *s)
{
	return MAKE_SQLSTATE(s[0], s[1], s[2], s[3], s[4]);
}

/* The text of a query's one value, or NULL with *sqlstate and *message. */
static char *
one_value(PGconn *conn, const char *sql, char *sqlstate, char **message)
{
	PGresult   *res = NULL;
	char	   *value = NULL;

	*message = NULL;
	if (PQsendQueryParams(conn, sql, 0, NULL, NULL, NULL, NULL, 0))
		res = last_result(conn, CHECK_TIMEOUT);
	if (res == NULL)
	{
		strlcpy(sqlstate, "08006", 6);
		*message = pstrdup("the participant did not answer");
	}
	else if (PQresultStatus(res) == PGRES_TUPLES_OK && PQntuples(res) == 1 &&
			 !PQgetisnull(res, 0, 0))
		value = pstrdup(PQgetvalue(res, 0, 0));
	else if (PQresultStatus(res) == PGRES_FATAL_ERROR)
	{
		strlcpy(sqlstate, result_sqlstate(res), 6);
		*message = copy_field(res, PG_DIAG_MESSAGE_PRIMARY);
	}
	else
		strlcpy(sqlstate, "00000", 6);
	PQclear(res);
	return value;
}

/* ---- prepare ---- */

/* Roles named in the server's mappings, as far as the caller may see them. */
static Datum
mapped_users(Oid serverid, Datum own_user)
{
	Oid			types[2] = {OIDOID, TEXTOID};
	Datum		values[2] = {ObjectIdGetDatum(serverid), own_user};
	Datum		array;
	bool		isnull;

	if (SPI_execute_with_args("SELECT coalesce(array_agg(DISTINCT o.option_value), '{}')"
							  " FROM pg_catalog.pg_user_mappings m,"
							  " pg_catalog.pg_options_to_table(m.umoptions) o"
							  " WHERE m.srvid = $1 AND o.option_name = 'user'"
							  " AND o.option_value <> $2",
							  2, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read user mappings");
	array = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return array;
}

/* The script, in the caller's memory context. */
static char *
participant_script(const SagaServer *server, const char *own_user)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			type = TEXTARRAYOID;
	Datum		grantees;
	char	   *script;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	/* who runs it owns what it makes, and needs no grant */
	grantees = mapped_users(server->serverid, CStringGetTextDatum(own_user));
	if (SPI_execute_with_args("SELECT saga.participant_script($1)", 1, &type,
							  &grantees, NULL, true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read the participant's script");
	script = MemoryContextStrdup(caller,
								 SPI_getvalue(SPI_tuptable->vals[0],
											  SPI_tuptable->tupdesc, 1));
	SPI_finish();
	return script;
}

static const char *
mapped_user(const SagaServer *server)
{
	for (int i = 0; i < server->npairs; i++)
	{
		if (strcmp(server->keywords[i], "user") == 0)
			return server->values[i];
	}
	return "";
}

static void
report_script_error(const SagaServer *server, PGresult *res)
{
	const char *sqlstate = res ? result_sqlstate(res) : "08006";
	char	   *message = res ? copy_field(res, PG_DIAG_MESSAGE_PRIMARY) : NULL;
	char	   *hint = res ? copy_field(res, PG_DIAG_MESSAGE_HINT) : NULL;
	int			code = make_sqlstate(sqlstate);

	if (hint == NULL)
		hint = strcmp(sqlstate, "42501") == 0 ?
			psprintf("Print the script with SELECT saga.prepare_participant('%s', execute => false) and have an administrator of that database run it.",
					 server->name) :
			"Correct that and call it again: nothing was changed there.";
	PQclear(res);
	ereport(ERROR,
			(errcode(code),
			 errmsg("could not prepare server \"%s\" as a participant", server->name),
			 errdetail_internal("%s", message ? message :
								"The participant did not answer."),
			 errhint("%s", hint)));
}

typedef struct ScriptWork
{
	const SagaServer *server;
	const char *script;
} ScriptWork;

static void
run_script(PGconn **conn, void *arg)
{
	ScriptWork *work = arg;
	const SagaServer *server = work->server;
	PGresult   *res = NULL;
	SagaFault	fault;

	if (!connect_to(server, server->connect_timeout_ms, conn, &fault))
		ereport(ERROR,
				(errcode(make_sqlstate(fault.sqlstate)),
				 errmsg("could not connect to server \"%s\"", server->name),
				 errdetail_internal("%s", fault.detail[0] ? fault.detail : fault.message),
				 fault.hint[0] ? errhint("%s", fault.hint) : 0));
	if (PQsendQuery(*conn, work->script))
		res = last_result(*conn, SCRIPT_TIMEOUT);
	if (res == NULL || PQresultStatus(res) == PGRES_FATAL_ERROR)
		report_script_error(server, res);
	PQclear(res);
}

/*
 * saga.prepare_participant(server, execute): the script to be run there, or
 * with 'execute' a line telling that it was run.
 */
Datum
saga_prepare_participant(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	SagaServer *server = saga_server_lookup(name, GetUserId(), NULL, NULL);
	bool		execute = PG_GETARG_BOOL(1);
	char	   *script;
	ScriptWork	work;

	if (server->kind == SAGA_SERVER_HTTP)
		PG_RETURN_TEXT_P(cstring_to_text(psprintf("%sserver \"%s\" is an HTTP service: there is nothing to install",
												  execute ? "" : "-- ", name)));
	script = participant_script(server, execute ? mapped_user(server) : "");
	if (!execute)
		PG_RETURN_TEXT_P(cstring_to_text(script));
	work.server = server;
	work.script = script;
	with_connection(run_script, &work);
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("saga_participant version %d is installed at server \"%s\"",
											  PARTICIPANT_VERSION, name)));
}

/* ---- parse, for define ---- */

static bool
parse_one(PGconn *conn, SagaParseRequest *request)
{
	Oid		   *types = palloc0(sizeof(Oid) * Max(request->ntypes, 1));
	PGresult   *res = NULL;

	for (int i = 0; i < request->ntypes; i++)
		types[i] = request->types[i] < FirstGenbkiObjectId ?
			request->types[i] : InvalidOid;
	request->ok = false;
	request->hint = NULL;
	if (saga_statement_is_refused(request->sql))
	{
		strlcpy(request->sqlstate, "0A000", 6);
		request->message = pstrdup("commands that control transactions or sessions cannot be steps");
		return true;
	}
	if (PQsendPrepare(conn, "", request->sql, request->ntypes, types))
		res = last_result(conn, DEFINE_TIMEOUT);
	if (res == NULL)
		return false;
	if (PQresultStatus(res) == PGRES_COMMAND_OK)
		request->ok = true;
	else
	{
		strlcpy(request->sqlstate, result_sqlstate(res), 6);
		request->message = copy_field(res, PG_DIAG_MESSAGE_PRIMARY);
		request->hint = copy_field(res, PG_DIAG_MESSAGE_HINT);
		if (request->message == NULL)
			request->message = pstrdup("it cannot be parsed there");
		if (strcmp(request->sqlstate, "42P18") == 0 ||
			strcmp(request->sqlstate, "42725") == 0)
			request->hint = pstrdup("Write a cast after the parameter, such as :name::integer.");
	}
	PQclear(res);
	/* the participant stopped, or lost us: that is no fault of the statement */
	return request->ok || strncmp(request->sqlstate, "08", 2) != 0;
}

typedef struct ParseWork
{
	const SagaServer *server;
	SagaParseRequest *requests;
	int			n;
	char	   *unreachable;
} ParseWork;

static void
parse_all(PGconn **conn, void *arg)
{
	ParseWork  *work = arg;
	SagaFault	fault;

	if (!connect_to(work->server,
					Min(work->server->connect_timeout_ms, DEFINE_TIMEOUT),
					conn, &fault))
	{
		work->unreachable = pstrdup(fault.detail[0] ? fault.detail : fault.message);
		return;
	}
	for (int i = 0; i < work->n; i++)
	{
		if (!parse_one(*conn, &work->requests[i]))
		{
			work->unreachable = pstrdup("the participant did not answer");
			return;
		}
	}
}

char *
saga_participant_parse(const SagaServer *server, SagaParseRequest *requests,
					   int n)
{
	ParseWork	work = {server, requests, n, NULL};

	with_connection(parse_all, &work);
	return work.unreachable;
}

/* ---- two-phase commit, for define ---- */

typedef struct PrepareWork
{
	const SagaServer *server;
	char	   *value;			/* of max_prepared_transactions; NULL: unknown */
} PrepareWork;

static void
ask_prepared(PGconn **conn, void *arg)
{
	PrepareWork *work = arg;
	SagaFault	fault;
	char		sqlstate[6];
	char	   *message;

	if (connect_to(work->server,
				   Min(work->server->connect_timeout_ms, DEFINE_TIMEOUT),
				   conn, &fault))
		work->value = one_value(*conn, "SELECT pg_catalog.current_setting('max_prepared_transactions')",
								sqlstate, &message);
}

bool
saga_participant_prepares(const SagaServer *server)
{
	PrepareWork work = {server, NULL};

	with_connection(ask_prepared, &work);
	return work.value == NULL || strcmp(work.value, "0") != 0;
}

/* ---- check ---- */

static void
report(ReturnSetInfo *rsinfo, const char *check, bool ok, const char *found,
	   const char *needed, const char *hint)
{
	Datum		values[5];
	bool		nulls[5] = {false};

	values[0] = CStringGetTextDatum(check);
	values[1] = BoolGetDatum(ok);
	nulls[2] = found == NULL;
	nulls[3] = needed == NULL;
	nulls[4] = ok || hint == NULL;
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(found);
	values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(needed);
	values[4] = nulls[4] ? (Datum) 0 : CStringGetTextDatum(hint);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* What stands in our own catalogs. */
static SagaServer *
check_objects(ReturnSetInfo *rsinfo, const char *name)
{
	char	   *problem = NULL;
	int			sqlstate = 0;
	SagaServer *server = saga_server_lookup(name, GetUserId(), &problem, &sqlstate);
	ForeignServer *fs = GetForeignServerByName(name, true);

	if (fs == NULL)
	{
		report(rsinfo, "server", false, problem, "a foreign server",
			   "Create it with CREATE SERVER ... FOREIGN DATA WRAPPER saga_postgres or saga_http.");
		return NULL;
	}
	report(rsinfo, "server", sqlstate != ERRCODE_WRONG_OBJECT_TYPE,
		   GetForeignDataWrapper(fs->fdwid)->fdwname,
		   "saga_postgres, saga_http, postgres_fdw or dblink_fdw",
		   "Create a server of wrapper saga_postgres or saga_http.");
	if (sqlstate == ERRCODE_WRONG_OBJECT_TYPE)
		return NULL;
	report(rsinfo, "usage", sqlstate != ERRCODE_INSUFFICIENT_PRIVILEGE,
		   sqlstate == ERRCODE_INSUFFICIENT_PRIVILEGE ? "no" : "yes",
		   psprintf("USAGE for \"%s\"", GetUserNameFromId(GetUserId(), true)),
		   "Ask the server's owner for GRANT USAGE ON FOREIGN SERVER.");
	if (sqlstate == ERRCODE_INSUFFICIENT_PRIVILEGE ||
		(server && server->kind == SAGA_SERVER_HTTP))
		return server;
	report(rsinfo, "user mapping", sqlstate != ERRCODE_UNDEFINED_OBJECT,
		   sqlstate == ERRCODE_UNDEFINED_OBJECT ? "none" :
		   server ? psprintf("user \"%s\"", mapped_user(server)) : "there is one",
		   psprintf("one for \"%s\" or PUBLIC", GetUserNameFromId(GetUserId(), true)),
		   "Create it with CREATE USER MAPPING.");
	if (sqlstate == ERRCODE_UNDEFINED_OBJECT)
		return NULL;
	report(rsinfo, "password", server != NULL,
		   server == NULL ? "none" :
		   server->password_required ? "given" : "not required",
		   "one, for roles that are not superusers",
		   "Add option password to the user mapping.");
	return server;
}

/* One query there, and what it must give; NULL 'good' takes anything. */
static char *
check_value(ReturnSetInfo *rsinfo, PGconn *conn, const char *check,
			const char *sql, const char *good, const char *needed,
			const char *hint)
{
	char		sqlstate[6];
	char	   *message;
	char	   *value = one_value(conn, sql, sqlstate, &message);
	bool		ok = value && (good == NULL || strcmp(value, good) == 0);

	report(rsinfo, check, ok, value ? value : message, needed, hint);
	return ok ? value : NULL;
}

/* An epoch and a claim as in a real call, all of it rolled back. */
static void
check_barrier(ReturnSetInfo *rsinfo, PGconn *conn)
{
	char	   *sql = psprintf("SELECT saga_participant.claim('saga check %d', 1, 1, 'check', '00000000-0000-0000-0000-000000000000', 'check', 'a', 'infinity')",
							   MyProcPid);
	char	   *attach = psprintf("SELECT saga_participant.attach('saga check %d', 1, 1, 'check', false)",
								  MyProcPid);
	char		sqlstate[6];
	char	   *message;
	char	   *found = NULL;

	(void) one_value(conn, "BEGIN", sqlstate, &message);
	if (one_value(conn, attach, sqlstate, &message))
		found = one_value(conn, sql, sqlstate, &message);
	report(rsinfo, "barrier", found && strcmp(found, "R") == 0,
		   found && strcmp(found, "R") == 0 ? "a key was claimed, and rolled back" :
		   message ? message : "no claim", "a claim that works",
		   "Run saga.prepare_participant again.");
	(void) one_value(conn, "ROLLBACK", sqlstate, &message);
}

static void
check_clock(ReturnSetInfo *rsinfo, PGconn *conn)
{
	TimestampTz before = GetCurrentTimestamp();
	char		sqlstate[6];
	char	   *message;
	char	   *value = one_value(conn,
								  "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
								  sqlstate, &message);
	TimestampTz after = GetCurrentTimestamp();
	int64		here = (before + (after - before) / 2) / 1000 +
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * INT64CONST(86400000);
	int64		difference;

	if (value == NULL)
	{
		report(rsinfo, "clock", false, message, NULL, NULL);
		return;
	}
	difference = strtoll(value, NULL, 10) - here;
	report(rsinfo, "clock",
		   difference < CLOCK_TOLERANCE && difference > -CLOCK_TOLERANCE,
		   psprintf(INT64_FORMAT " ms ahead of this server", difference),
		   "less than 60 s apart",
		   "Set the clocks: calls carry the time until which they are valid.");
}

static void
check_settings(ReturnSetInfo *rsinfo, PGconn *conn, const SagaServer *server)
{
	int			connections = server->pool_size * saga_coordinators;
	char		sqlstate[6];
	char	   *message;
	char	   *value;

	(void) check_value(rsinfo, conn, "fsync", "SELECT current_setting('fsync')",
					   "on", "on", "Without it a crash there can lose what it has confirmed.");
	(void) check_value(rsinfo, conn, "synchronous_commit",
					   "SELECT current_setting('synchronous_commit')", NULL,
					   "on or higher; a lower one is raised in our sessions", NULL);
	(void) check_value(rsinfo, conn, "max_prepared_transactions",
					   "SELECT current_setting('max_prepared_transactions')", NULL,
					   "more than 0, for protocol 'two_phase' only", NULL);
	value = one_value(conn,
					  "SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
					  " (SELECT nullif(rolconnlimit, -1) FROM pg_catalog.pg_roles WHERE rolname = current_user),"
					  " (SELECT nullif(datconnlimit, -1) FROM pg_catalog.pg_database WHERE datname = current_database()))",
					  sqlstate, &message);
	report(rsinfo, "connections", value && atoi(value) >= connections,
		   value ? value : message,
		   psprintf("%d (pool_size times saga.coordinators)", connections),
		   "Reduce the server's option pool_size, or raise the limit there.");
	check_clock(rsinfo, conn);
}

static void
check_connected(ReturnSetInfo *rsinfo, PGconn *conn, const SagaServer *server)
{
	char	   *prepare = psprintf("Run SELECT saga.prepare_participant('%s').", server->name);

	report(rsinfo, "connection", true,
		   psprintf("database \"%s\" as \"%s\"%s", PQdb(conn), PQuser(conn),
					PQsslInUse(conn) ? ", encrypted" : ""),
		   NULL, NULL);
	(void) check_value(rsinfo, conn, "server version",
					   "SELECT current_setting('server_version')", NULL,
					   "12 or later", NULL);
	(void) check_value(rsinfo, conn, "writable",
					   "SELECT CASE WHEN pg_is_in_recovery() THEN 'no' ELSE 'yes' END",
					   "yes", "yes",
					   "It is a standby: name all members in option host, with target_session_attrs 'read-write'.");
	if (check_value(rsinfo, conn, "schema",
					"SELECT saga_participant.version()",
					psprintf("%d", PARTICIPANT_VERSION),
					psprintf("version %d", PARTICIPANT_VERSION), prepare))
	{
		(void) check_value(rsinfo, conn, "privileges",
						   "SELECT CASE WHEN bool_and(p) THEN 'granted' ELSE 'missing' END FROM ("
						   " SELECT has_schema_privilege('saga_participant', 'USAGE')"
						   " UNION ALL SELECT has_table_privilege(t, p) FROM unnest(ARRAY['saga_participant.epoch', 'saga_participant.barrier']) t, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p"
						   " UNION ALL SELECT has_function_privilege(oid, 'EXECUTE') FROM pg_catalog.pg_proc WHERE pronamespace = 'saga_participant'::regnamespace) AS x (p)",
						   "granted", "those of the script", prepare);
		check_barrier(rsinfo, conn);
	}
	check_settings(rsinfo, conn, server);
}

typedef struct CheckWork
{
	const SagaServer *server;
	ReturnSetInfo *rsinfo;
} CheckWork;

static void
check_participant(PGconn **conn, void *arg)
{
	CheckWork  *work = arg;
	SagaFault	fault;

	if (connect_to(work->server, work->server->connect_timeout_ms, conn, &fault))
		check_connected(work->rsinfo, *conn, work->server);
	else
		report(work->rsinfo, "connection", false,
			   fault.detail[0] ? fault.detail : fault.message,
			   "a log-in with the user mapping",
			   fault.hint[0] ? fault.hint :
			   "Look at the options of the server and the mapping, and at pg_hba.conf there.");
}

/* Names only: what stands behind them is nobody's business. */
static char *
credentials(const SagaServer *server)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < server->npairs; i++)
	{
		const char *name = server->keywords[i];

		if (strcmp(name, "bearer") == 0 || strcmp(name, "user") == 0 ||
			strncmp(name, "header_", 7) == 0)
			appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "", name);
	}
	return names.len > 0 ? names.data : pstrdup("none");
}

static void
check_service(ReturnSetInfo *rsinfo, const SagaServer *server)
{
	const char *base = saga_server_value(server, "base");
	bool		tls = strncmp(base, "https:", 6) == 0;
	SagaHttpReach reach;
	bool		denied;

	saga_http_reach(server, &reach);
	report(rsinfo, "connection", reach.status > 0,
		   reach.status > 0 ?
		   psprintf("HTTP %d from %s in %.1f ms", reach.status, base, reach.latency / 1000.0) :
		   reach.detail ? psprintf("%s: %s", reach.message, reach.detail) : reach.message,
		   "an answer to HEAD, of whatever status",
		   reach.hint ? reach.hint :
		   "Look at the server's options url and connect_timeout, and whether the service runs.");
	if (reach.status == 0)
		return;
	report(rsinfo, "encryption", true, tls ? "TLS, certificate verified" : "none",
		   "https, unless the network is trusted", NULL);
	denied = reach.status == 401 || reach.status == 403;
	report(rsinfo, "credentials", !denied, credentials(server),
		   "those that the service asks for",
		   "Set bearer, user and password, or header_<name> in the user mapping.");
	report(rsinfo, "calls at once", true,
		   psprintf("%d", server->pool_size * saga_coordinators),
		   "no more than the service bears (pool_size times saga.coordinators)", NULL);
}

/* saga.check_participant(server): one row for each check, never an error. */
Datum
saga_check_participant(PG_FUNCTION_ARGS)
{
	CheckWork	work;

	InitMaterializedSRF(fcinfo, 0);
	work.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	work.server = check_objects(work.rsinfo,
								text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (work.server && work.server->kind == SAGA_SERVER_HTTP)
		check_service(work.rsinfo, work.server);
	else if (work.server)
		with_connection(check_participant, &work);
	return (Datum) 0;
}
