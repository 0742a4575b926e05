/*
 * server.c
 *		Participants as SQL/MED has them: options of servers and user mappings
 *		checked when they are set, and turned into libpq parameters when used.
 *
 * Owns the list of options of saga_postgres; that of saga_http is
 * server_http.c's.  Called by CREATE/ALTER SERVER and USER MAPPING
 * (the validator), by definition.c and participant.c in sessions, and by the
 * coordinator before it submits a call.  Reads the system caches and nothing
 * else: needs a transaction, opens no socket.  The value of a user mapping's
 * option must never stand in a message; names of options may.
 */
#include "postgres.h"

#include <ctype.h>

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "server.h"
#include "server_private.h"

PG_FUNCTION_INFO_V1(saga_postgres_validator);

#define DEFAULT_POOL_SIZE			16
#define MAX_POOL_SIZE				1000
#define LOCK_TIMEOUT				10000	/* ms */
#define IDLE_IN_TRANSACTION_TIMEOUT 10000	/* ms */

/* Both the allow-list of saga_postgres and the pick from other wrappers. */
static const SagaOptionSpec option_specs[] = {
	{"host", ForeignServerRelationId, OPTION_TEXT, false, true},
	{"hostaddr", ForeignServerRelationId, OPTION_TEXT, false, true},
	{"port", ForeignServerRelationId, OPTION_PORT, false, true},
	{"dbname", ForeignServerRelationId, OPTION_TEXT, false, true},
	{"sslmode", ForeignServerRelationId, OPTION_SSLMODE, false, true},
	{"sslrootcert", ForeignServerRelationId, OPTION_TEXT, true, true},
	{"sslcrl", ForeignServerRelationId, OPTION_TEXT, true, true},
	{"service", ForeignServerRelationId, OPTION_TEXT, true, true},
	{"passfile", ForeignServerRelationId, OPTION_TEXT, true, true},
	{"channel_binding", ForeignServerRelationId, OPTION_TEXT, false, true},
	{"keepalives", ForeignServerRelationId, OPTION_FLAG, false, true},
	{"keepalives_idle", ForeignServerRelationId, OPTION_INT, false, true},
	{"keepalives_interval", ForeignServerRelationId, OPTION_INT, false, true},
	{"keepalives_count", ForeignServerRelationId, OPTION_INT, false, true},
	{"tcp_user_timeout", ForeignServerRelationId, OPTION_INT, false, true},
	{"target_session_attrs", ForeignServerRelationId, OPTION_SESSION_ATTRS, false, true},
	{"connect_timeout", ForeignServerRelationId, OPTION_INTERVAL, false, false},
	{"statement_timeout", ForeignServerRelationId, OPTION_INTERVAL, false, false},
	{"pool_size", ForeignServerRelationId, OPTION_INT, false, false},
	{"search_path", ForeignServerRelationId, OPTION_TEXT, false, false},
	{"prepared", ForeignServerRelationId, OPTION_BOOL, false, false},
	{"user", UserMappingRelationId, OPTION_TEXT, false, true},
	{"password", UserMappingRelationId, OPTION_TEXT, false, true},
	{"sslcert", UserMappingRelationId, OPTION_TEXT, true, true},
	{"sslkey", UserMappingRelationId, OPTION_TEXT, true, true},
	{"password_required", UserMappingRelationId, OPTION_BOOL, false, false},
	{NULL, InvalidOid, OPTION_TEXT, false, false}
};

static uint64 server_generation = 1;

/* ---- values ---- */

/* Milliseconds; digits alone count 'bare' ms each.  False if it is no time. */
bool
saga_option_ms(const char *value, int bare, int *result)
{
	const char *p = value;

	while (isdigit((unsigned char) *p))
		p++;
	if (*p == '\0' && p > value)
	{
		int64		n;

		if (strlen(value) > 9)
			return false;
		n = strtol(value, NULL, 10) * (int64) bare;
		if (n > INT_MAX)
			return false;
		*result = (int) n;
		return true;
	}
	return parse_int(value, result, GUC_UNIT_MS, NULL) && *result >= 0;
}

/* libpq counts connect_timeout in seconds, PostgreSQL statement_timeout in ms */
static int
bare_unit(const char *name)
{
	return strcmp(name, "connect_timeout") == 0 ? 1000 : 1;
}

bool
saga_option_int(const char *value, int min, int max, int *result)
{
	char	   *end;
	long		n;

	errno = 0;
	n = strtol(value, &end, 10);
	if (errno != 0 || end == value || *end != '\0' || n < min || n > max)
		return false;
	*result = (int) n;
	return true;
}

/* One port, or a comma-separated list of them as libpq takes it. */
static bool
ports_valid(const char *value)
{
	char	   *copy = pstrdup(value);
	char	   *save = NULL;
	int			port;

	for (char *one = strtok_r(copy, ",", &save); one;
		 one = strtok_r(NULL, ",", &save))
	{
		if (!saga_option_int(one, 1, 65535, &port))
			return false;
	}
	return *value != '\0';
}

static bool
one_of(const char *value, const char *const *words)
{
	for (; *words; words++)
	{
		if (strcmp(value, *words) == 0)
			return true;
	}
	return false;
}

/* NULL if the value is good, else what is needed. */
static const char *
value_fault(const SagaOptionSpec *spec, const char *value)
{
	static const char *const sslmodes[] = {"disable", "allow", "prefer",
	"require", "verify-ca", "verify-full", NULL};
	static const char *const attrs[] = {"any", "read-write", "read-only",
	"primary", "standby", "prefer-standby", NULL};
	int			n;
	bool		b;
	bool		pool = strcmp(spec->name, "pool_size") == 0;

	switch (spec->type)
	{
		case OPTION_TEXT:
			if (strcmp(spec->name, "search_path") == 0)
			{
				List	   *names;

				if (!SplitIdentifierString(pstrdup(value), ',', &names))
					return "A list of schema names is needed.";
			}
			return NULL;
		case OPTION_BOOL:
			return parse_bool(value, &b) ? NULL :
				"A boolean (true or false) is needed.";
		case OPTION_FLAG:
			return saga_option_int(value, 0, 1, &n) ? NULL :
				"0 or 1 is needed.";
		case OPTION_INT:
			if (pool)
				return saga_option_int(value, 1, MAX_POOL_SIZE, &n) ? NULL :
					"A number from 1 to 1000 is needed.";
			return saga_option_int(value, 0, INT_MAX, &n) ? NULL :
				"A number of 0 or more is needed.";
		case OPTION_PORT:
			return ports_valid(value) ? NULL :
				"A port number from 1 to 65535 is needed, or a list of them.";
		case OPTION_INTERVAL:
			return saga_option_ms(value, bare_unit(spec->name), &n) && n > 0 ? NULL :
				"A positive time such as 500ms, 5s or 1min is needed.";
		case OPTION_SSLMODE:
			return one_of(value, sslmodes) ? NULL :
				"One of disable, allow, prefer, require, verify-ca, verify-full is needed.";
		case OPTION_SESSION_ATTRS:
			return one_of(value, attrs) ? NULL :
				"One of any, read-write, read-only, primary, standby, prefer-standby is needed.";
		default:
			return NULL;
	}
}

/* ---- the validator ---- */

const SagaOptionSpec *
saga_find_option(const SagaOptionSpec *specs, const char *name)
{
	for (const SagaOptionSpec *spec = specs; spec->name; spec++)
	{
		if (strcmp(spec->name, name) == 0)
			return spec;
	}
	return NULL;
}

void
saga_unknown_option(const SagaOptionSpec *specs, const char *name, Oid catalog)
{
	StringInfoData valid;

	initStringInfo(&valid);
	for (const SagaOptionSpec *spec = specs; spec->name; spec++)
	{
		if (spec->catalog == catalog)
			appendStringInfo(&valid, "%s%s", valid.len > 0 ? ", " : "",
							 spec->name);
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", name),
			 valid.len > 0 ?
			 errhint("Valid options in this context are: %s.", valid.data) :
			 errhint("There are no valid options in this context.")));
}

void
saga_require_option(const SagaOptionSpec *spec, Oid catalog, const char *value,
					const char *needed)
{
	if (spec->superuser && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to set option \"%s\"", spec->name),
				 errdetail("It makes the server read files with the rights of its operating system user."),
				 errhint("Ask a superuser to set it.")));
	/* what may be a secret must not be in a message */
	if (needed)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("invalid value for option \"%s\"", spec->name),
				 catalog == UserMappingRelationId ||
				 (spec->type == OPTION_URL && strchr(value, '@')) ? 0 :
				 errdetail("The value is \"%s\".", value),
				 errhint("%s", needed)));
}

static void
check_option(DefElem *def, Oid catalog)
{
	const SagaOptionSpec *spec = saga_find_option(option_specs, def->defname);
	char	   *value;
	bool		flag;

	if (spec == NULL || spec->catalog != catalog)
		saga_unknown_option(option_specs, def->defname, catalog);
	value = defGetString(def);
	saga_require_option(spec, catalog, value, value_fault(spec, value));

	if (strcmp(spec->name, "password_required") == 0 &&
		parse_bool(value, &flag) && !flag && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to set option \"%s\" to false",
						spec->name),
				 errdetail("Connections without a password could use identities of the server itself."),
				 errhint("Ask a superuser to create or alter this user mapping.")));
}

Datum
saga_postgres_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ListCell   *lc;

	foreach(lc, options)
		check_option((DefElem *) lfirst(lc), catalog);
	PG_RETURN_VOID();
}

/* ---- from catalog to connection parameters ---- */

typedef struct Lookup
{
	SagaServer *server;
	char	  **problem;
	int		   *sqlstate;
	const char *password;
	const char *options;		/* of another wrapper's server */
	bool		not_required;	/* password_required 'false' */
	int			maxpairs;
} Lookup;

void
saga_server_add(SagaServer *server, int maxpairs, const char *keyword,
				const char *value)
{
	if (server->npairs >= maxpairs)
		elog(ERROR, "too many connection parameters");
	server->keywords[server->npairs] = keyword;
	server->values[server->npairs] = value;
	server->npairs++;
}

/* An option of the server or mapping; one that is not for us is passed over. */
static void
take_option(Lookup *lookup, const char *name, const char *value)
{
	SagaServer *server = lookup->server;
	const SagaOptionSpec *spec = saga_find_option(option_specs, name);
	bool		flag;

	if (strcmp(name, "options") == 0)
	{
		lookup->options = value;
		return;
	}
	if (spec == NULL)
		return;
	if (strcmp(name, "password") == 0)
		lookup->password = value;
	else if (strcmp(name, "password_required") == 0)
		lookup->not_required = parse_bool(value, &flag) && !flag;
	else if (strcmp(name, "pool_size") == 0)
		(void) saga_option_int(value, 1, MAX_POOL_SIZE, &server->pool_size);
	else if (strcmp(name, "statement_timeout") == 0)
		(void) saga_option_ms(value, 1, &server->statement_timeout_ms);
	else if (strcmp(name, "connect_timeout") == 0)
		(void) saga_option_ms(value, 1000, &server->connect_timeout_ms);
	else if (strcmp(name, "search_path") == 0)
		server->search_path = pstrdup(value);
	else if (strcmp(name, "prepared") == 0)
	{
		if (parse_bool(value, &flag))
			server->prepared = flag;
	}
	else if (spec->libpq)
		saga_server_add(server, lookup->maxpairs, spec->name, value);
}

const char *
saga_server_value(const SagaServer *server, const char *keyword)
{
	for (int i = 0; i < server->npairs; i++)
	{
		if (strcmp(server->keywords[i], keyword) == 0)
			return server->values[i];
	}
	return NULL;
}

static void
add_default(Lookup *lookup, const char *keyword, const char *value)
{
	if (saga_server_value(lookup->server, keyword) == NULL)
		saga_server_add(lookup->server, lookup->maxpairs, keyword, value);
}

/* Backslashes keep spaces within one word of the startup packet's options. */
static void
append_setting(StringInfo buf, const char *name, const char *value)
{
	appendStringInfo(buf, "%s-c %s=", buf->len > 0 ? " " : "", name);
	for (; *value; value++)
	{
		if (*value == '\\' || isspace((unsigned char) *value))
			appendStringInfoChar(buf, '\\');
		appendStringInfoChar(buf, *value);
	}
}

/*
 * What every session of ours has.  synchronous_commit is missing on purpose:
 * setting it here would lower a role's remote_apply, so saga_participant
 * raises it where it is too low.  A pooler refuses such options; the
 * connector then sets them in each transaction.
 */
static char *
session_options(const Lookup *lookup)
{
	const SagaServer *server = lookup->server;
	StringInfoData buf;

	initStringInfo(&buf);
	if (lookup->options)
		appendStringInfoString(&buf, lookup->options);
	append_setting(&buf, "statement_timeout",
				   psprintf("%d", server->statement_timeout_ms > 0 ?
							server->statement_timeout_ms :
							SAGA_STATEMENT_TIMEOUT));
	append_setting(&buf, "lock_timeout", psprintf("%d", LOCK_TIMEOUT));
	append_setting(&buf, "idle_in_transaction_session_timeout",
				   psprintf("%d", IDLE_IN_TRANSACTION_TIMEOUT));
	append_setting(&buf, "TimeZone", "UTC");
	append_setting(&buf, "DateStyle", "ISO");
	append_setting(&buf, "IntervalStyle", "postgres");
	append_setting(&buf, "extra_float_digits", "1");
	append_setting(&buf, "bytea_output", "hex");
	append_setting(&buf, "standard_conforming_strings", "on");
	append_setting(&buf, "default_transaction_read_only", "off");
	append_setting(&buf, "default_transaction_isolation", "read committed");
	append_setting(&buf, "client_min_messages", "warning");
	if (server->search_path)
		append_setting(&buf, "search_path", server->search_path);
	return buf.data;
}

static void
add_own_parameters(Lookup *lookup)
{
	SagaServer *server = lookup->server;

	add_default(lookup, "dbname", get_database_name(MyDatabaseId));
	add_default(lookup, "client_encoding", GetDatabaseEncodingName());
	/* one per connection: a name per call would cost a round trip */
	add_default(lookup, "application_name",
				psprintf("saga/%s", get_database_name(MyDatabaseId)));
	/* GSS would block, and its credentials are the server's own */
	add_default(lookup, "gssencmode", "disable");
	add_default(lookup, "keepalives", "1");
	add_default(lookup, "keepalives_idle", "30");
	add_default(lookup, "keepalives_interval", "10");
	add_default(lookup, "keepalives_count", "3");
	add_default(lookup, "tcp_user_timeout", "30000");
	if (server->prepared)
		add_default(lookup, "options", session_options(lookup));
	if (lookup->password)
		saga_server_add(server, lookup->maxpairs, "password", lookup->password);
}

static uint64
server_fingerprint(const SagaServer *server)
{
	StringInfoData buf;
	uint64		hash;

	initStringInfo(&buf);
	for (int i = 0; i < server->npairs; i++)
	{
		/* with the final zeros, so that no two lists look alike */
		appendBinaryStringInfo(&buf, server->keywords[i],
							   strlen(server->keywords[i]) + 1);
		appendBinaryStringInfo(&buf, server->values[i],
							   strlen(server->values[i]) + 1);
	}
	appendStringInfo(&buf, "%u %u %d %d %d %d %d %d %d %g %d %s",
					 server->serverid, server->userid,
					 server->password_required, server->pool_size,
					 server->statement_timeout_ms, server->connect_timeout_ms,
					 server->prepared, server->request_timeout_ms,
					 server->max_response, server->rate, server->allow_private,
					 server->search_path ? server->search_path : "");
	hash = hash_bytes_extended((unsigned char *) buf.data, buf.len, 0);
	memset(buf.data, 0, buf.len);
	pfree(buf.data);
	return hash;
}

/* Hand a fault to the caller, or raise it.  Texts are copied. */
static SagaServer *
lookup_fault(Lookup *lookup, int sqlstate, const char *message,
			 const char *hint)
{
	if (lookup->problem == NULL)
		ereport(ERROR,
				(errcode(sqlstate),
				 errmsg_internal("%s", message),
				 hint ? errhint("%s", hint) : 0));
	*lookup->problem = pstrdup(message);
	if (lookup->sqlstate)
		*lookup->sqlstate = sqlstate;
	return NULL;
}

/* Options of the owner's mapping, else of PUBLIC's.  False if there is none. */
static bool
mapping_options(Oid serverid, Oid owner, List **options)
{
	HeapTuple	tup;
	Datum		datum;
	bool		isnull;

	tup = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(owner),
						  ObjectIdGetDatum(serverid));
	if (!HeapTupleIsValid(tup))
		tup = SearchSysCache2(USERMAPPINGUSERSERVER,
							  ObjectIdGetDatum(InvalidOid),
							  ObjectIdGetDatum(serverid));
	if (!HeapTupleIsValid(tup))
		return false;
	datum = SysCacheGetAttr(USERMAPPINGUSERSERVER, tup,
							Anum_pg_user_mapping_umoptions, &isnull);
	*options = isnull ? NIL : untransformRelOptions(datum);
	ReleaseSysCache(tup);
	return true;
}

static bool
wrapper_kind(const char *name, SagaServerKind *kind)
{
	if (strcmp(name, "saga_http") == 0)
		*kind = SAGA_SERVER_HTTP;
	else if (strcmp(name, "saga_postgres") == 0 ||
			 strcmp(name, "postgres_fdw") == 0 ||
			 strcmp(name, "dblink_fdw") == 0)
		*kind = SAGA_SERVER_POSTGRES;
	else
		return false;
	return true;
}

bool
saga_server_kind(const char *name, SagaServerKind *kind)
{
	ForeignServer *fs = GetForeignServerByName(name, true);

	return fs != NULL &&
		wrapper_kind(GetForeignDataWrapper(fs->fdwid)->fdwname, kind);
}

static SagaServer *
new_server(const ForeignServer *fs, Oid owner, SagaServerKind kind, int maxpairs)
{
	SagaServer *server = palloc0(sizeof(SagaServer));

	server->serverid = fs->serverid;
	server->userid = owner;
	server->name = pstrdup(fs->servername);
	server->kind = kind;
	server->keywords = palloc0(sizeof(char *) * (maxpairs + 1));
	server->values = palloc0(sizeof(char *) * (maxpairs + 1));
	server->pool_size = DEFAULT_POOL_SIZE;
	server->connect_timeout_ms = SAGA_CONNECT_TIMEOUT;
	server->prepared = true;
	return server;
}

static bool
may_use_server(Oid owner, Oid serverid)
{
	/* by way of SQL's function, whose C signature is the same in all versions */
	return DatumGetBool(DirectFunctionCall3(has_server_privilege_id_id,
											ObjectIdGetDatum(owner),
											ObjectIdGetDatum(serverid),
											PointerGetDatum(cstring_to_text("USAGE"))));
}

/* False with the fault told, in the way the caller wants it. */
static bool
take_postgres_options(Lookup *lookup, List *options, List *mapping)
{
	SagaServer *server = lookup->server;
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		take_option(lookup, def->defname, defGetString(def));
	}
	foreach(lc, mapping)
	{
		DefElem    *def = (DefElem *) lfirst(lc);

		take_option(lookup, def->defname, defGetString(def));
	}
	server->password_required =
		!superuser_arg(server->userid) && !lookup->not_required;
	if (server->password_required &&
		(lookup->password == NULL || lookup->password[0] == '\0'))
	{
		(void) lookup_fault(lookup, ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED,
							psprintf("password is required for role \"%s\" on server \"%s\"",
									 GetUserNameFromId(server->userid, true),
									 server->name),
							"Roles that are not superusers must give a password in the user mapping.");
		return false;
	}
	add_own_parameters(lookup);
	return true;
}

SagaServer *
saga_server_lookup(const char *name, Oid owner, char **problem, int *sqlstate)
{
	Lookup		lookup = {0};
	ForeignServer *fs = GetForeignServerByName(name, true);
	List	   *mapping = NIL;
	SagaServerKind kind;
	bool		mapped;

	lookup.problem = problem;
	lookup.sqlstate = sqlstate;
	if (fs == NULL)
		return lookup_fault(&lookup, ERRCODE_UNDEFINED_OBJECT,
							psprintf("server \"%s\" does not exist", name),
							"Create it with CREATE SERVER ... FOREIGN DATA WRAPPER saga_postgres or saga_http.");
	if (!wrapper_kind(GetForeignDataWrapper(fs->fdwid)->fdwname, &kind))
		return lookup_fault(&lookup, ERRCODE_WRONG_OBJECT_TYPE,
							psprintf("server \"%s\" is not of a wrapper that sagas can call",
									 name),
							"Use a server of saga_postgres, saga_http, postgres_fdw or dblink_fdw.");
	if (!may_use_server(owner, fs->serverid))
		return lookup_fault(&lookup, ERRCODE_INSUFFICIENT_PRIVILEGE,
							psprintf("permission denied for foreign server %s: role \"%s\" has no USAGE on it",
									 name, GetUserNameFromId(owner, true)),
							"Ask its owner for GRANT USAGE ON FOREIGN SERVER.");

	/* an HTTP service may want no credentials, and we have none of our own */
	mapped = mapping_options(fs->serverid, owner, &mapping);
	if (!mapped && kind != SAGA_SERVER_HTTP)
		return lookup_fault(&lookup, ERRCODE_UNDEFINED_OBJECT,
							psprintf("user mapping not found for role \"%s\" and server \"%s\"",
									 GetUserNameFromId(owner, true), name),
							"Create it with CREATE USER MAPPING.");

	lookup.maxpairs = list_length(fs->options) + list_length(mapping) + 16;
	lookup.server = new_server(fs, owner, kind, lookup.maxpairs);
	if (kind == SAGA_SERVER_HTTP)
	{
		if (!saga_server_take_http(lookup.server, lookup.maxpairs, fs->options,
								   mapping))
			return lookup_fault(&lookup, ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE,
								psprintf("server \"%s\" has no option \"url\"", name),
								"Set it with ALTER SERVER ... OPTIONS (ADD url '...').");
	}
	else if (!take_postgres_options(&lookup, fs->options, mapping))
		return NULL;
	lookup.server->keywords[lookup.server->npairs] = NULL;
	lookup.server->values[lookup.server->npairs] = NULL;
	lookup.server->fingerprint = server_fingerprint(lookup.server);
	return lookup.server;
}

/* ---- invalidation ---- */

static void
server_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	server_generation++;
}

uint64
saga_server_generation(void)
{
	return server_generation;
}

void
saga_server_init(void)
{
	static bool done = false;

	if (done)
		return;
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, server_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID, server_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, server_changed, (Datum) 0);
	done = true;
}
