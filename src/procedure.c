/*
 * procedure.c
 *		Durable procedures: a function or procedure that asks for steps, sleeps
 *		and signals by calls, and goes on after any crash.
 *
 * Nothing of its own drives one.  start_procedure() makes an ordinary
 * definition and starts a saga of it: a loop, each iteration of which runs the
 * whole procedure again (an *entry*) up to its first request that is not
 * answered yet, and then the one step, sleep or wait that was asked for.
 *
 * An entry is a local action, procedure_entry_(), in the executor.  What was
 * asked for and answered before is read from the saga's log.  At the first
 * unanswered request the entry is suspended: an error that no EXCEPTION clause
 * catches by accident (query_canceled), and while it is on its way every other
 * call of ours raises it again.  Whatever the procedure has done by then is
 * rolled back; the request is the entry's result.  Only the entry that reaches
 * the end of the procedure keeps its effects, in the commit that records it.
 *
 * So a procedure must ask for the same things in the same order each time.
 * That is checked: by the hash of its source, and request by request.  One
 * that fails the check stops before an operator; it is never replayed wrong.
 *
 * Called by users (start_procedure) and by procedures running in an executor.
 * Must not touch the tables of running sagas but to read the log.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "define.h"
#include "errors.h"
#include "isolation.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_procedure_entry);
PG_FUNCTION_INFO_V1(saga_procedure_step);
PG_FUNCTION_INFO_V1(saga_procedure_sleep);
PG_FUNCTION_INFO_V1(saga_procedure_signal);
PG_FUNCTION_INFO_V1(saga_start_procedure);

/* What an earlier entry asked for, and the answer of its iteration. */
typedef struct Request
{
	Jsonb	   *asked;			/* {"kind": ..., ...} */
	Jsonb	   *answer;			/* or NULL: null */
	bool		taken;			/* of a signal: some await_signal() has it */
} Request;

/* The entry that runs; NULL: none does. */
typedef struct Entry
{
	MemoryContext context;
	Oid			procedure;
	char	   *source;			/* hash of its source now */
	int			nrequests;
	Request    *requests;
	int			at;				/* requests met so far */
	Jsonb	   *suspended_for;	/* the request that is not answered, or NULL */
	bool		departed;		/* it asks for other things than it did */
	Jsonb	   *result;			/* of the procedure, if it came to its end */
} Entry;

static Entry *entry = NULL;

/* ---- the source ---- */

/*
 * What must not change while a procedure is under way: its own text.  (What it
 * calls is its author's care: a request that differs is found all the same.)
 */
static char *
source_hash(Oid procedure)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(procedure));
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	StringInfoData hex;
	bool		isnull;
	Datum		source;
	char	   *body = "";

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("procedure with OID %u does not exist", procedure)));
	source = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosqlbody, &isnull);
	if (!isnull)
		body = TextDatumGetCString(source);
	else
	{
		source = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &isnull);
		if (!isnull)
			body = TextDatumGetCString(source);
	}
	ReleaseSysCache(tuple);
	if (hash == NULL || pg_cryptohash_init(hash) < 0 ||
		pg_cryptohash_update(hash, (uint8 *) body, strlen(body)) < 0 ||
		pg_cryptohash_final(hash, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute a SHA-256 hash");
	pg_cryptohash_free(hash);
	initStringInfo(&hex);
	for (int i = 0; i < 16; i++)
		appendStringInfo(&hex, "%02x", digest[i]);
	return hex.data;
}

/* ---- requests ---- */

static void
put(JsonbParseState **state, const char *key, Jsonb *value)
{
	JsonbValue	k;
	JsonbValue	v;

	k.type = jbvString;
	k.val.string.val = (char *) key;
	k.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &k);
	if (value == NULL)
		v.type = jbvNull;
	else if (JB_ROOT_IS_SCALAR(value))
		JsonbExtractScalar(&value->root, &v);
	else
	{
		v.type = jbvBinary;
		v.val.binary.data = &value->root;
		v.val.binary.len = VARSIZE(value) - VARHDRSZ;
	}
	pushJsonbValue(state, WJB_VALUE, &v);
}

static Jsonb *
json_string(const char *s)
{
	JsonbValue	v;

	if (s == NULL)
		return NULL;
	v.type = jbvString;
	v.val.string.val = (char *) s;
	v.val.string.len = strlen(s);
	return JsonbValueToJsonb(&v);
}

static Jsonb *
json_number(int64 n)
{
	JsonbValue	v;

	v.type = jbvNumeric;
	v.val.numeric = int64_to_numeric(n);
	return JsonbValueToJsonb(&v);
}

typedef struct Field
{
	const char *key;
	Jsonb	   *value;
} Field;

/* Fields without a value are left out. */
static Jsonb *
object_of(const Field *fields, int n)
{
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < n; i++)
		if (fields[i].value)
			put(&state, fields[i].key, fields[i].value);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* Leave the entry; its effects are rolled back. */
static void
suspend(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("the procedure waits for an answer"),
			 errhint("Do not catch query_canceled around calls of schema saga.")));
}

static void
departed(const Entry *from)
{
	const Jsonb *asked = from->requests[from->at - 1].asked;

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the durable procedure does not ask for what it asked for before"),
			 errdetail("Request %d was %s.", from->at,
					   JsonbToCString(NULL, (JsonbContainer *) &asked->root, VARSIZE(asked))),
			 errhint("What decides its requests must come from its arguments and from the answers it got.")));
}

static bool
same(const Jsonb *a, const Jsonb *b)
{
	return compareJsonbContainers((JsonbContainer *) &a->root,
								  (JsonbContainer *) &b->root) == 0;
}

static void
check_in_entry(void)
{
	if (entry == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this function can only be called in a durable procedure"),
				 errhint("Start one with saga.start_procedure().")));
	if (entry->departed)
		departed(entry);
	if (entry->suspended_for)
		suspend();
}

/*
 * The next iteration's answer, if an earlier entry has asked for it; else this
 * entry ends here.
 */
static Request *
ask(Jsonb *asked)
{
	Request    *known;

	if (entry->at == entry->nrequests)
	{
		MemoryContext old = MemoryContextSwitchTo(entry->context);

		entry->suspended_for = (Jsonb *) PG_DETOAST_DATUM_COPY(JsonbPGetDatum(asked));
		MemoryContextSwitchTo(old);
		suspend();
	}
	known = &entry->requests[entry->at++];
	if (!same(known->asked, asked))
	{
		entry->departed = true;
		departed(entry);
	}
	return known;
}

static char *
text_arg(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* run_step(name, action, args, server, compensation) */
Datum
saga_procedure_step(PG_FUNCTION_ARGS)
{
	char	   *name = text_arg(fcinfo, 0);
	char	   *action = text_arg(fcinfo, 1);
	char	   *server;
	Jsonb	   *args = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);
	Jsonb	   *answer;

	if (name == NULL || action == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("a step needs a name and an action")));
	if (name[0] == '\0' || strlen(name) > SAGA_MAX_STEP_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" cannot be the name of a step", name),
				 errdetail("It must have 1 to %d bytes.", SAGA_MAX_STEP_NAME)));
	if (args && !JB_ROOT_IS_OBJECT(args))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("args of step \"%s\" must be a JSON object", name)));
	check_in_entry();
	server = text_arg(fcinfo, 3);
	answer = ask(object_of((Field[]) {
		{"kind", json_string(server ? "remote" : "local")},
		{"name", json_string(name)}, {"action", json_string(action)}, {"args", args},
		{"server", json_string(server)},
		{"compensation", json_string(text_arg(fcinfo, 4))}
	}, 6))->answer;
	if (answer == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(answer);
}

/* sleep(duration): the time it ends is fixed when it is first asked for. */
Datum
saga_procedure_sleep(PG_FUNCTION_ARGS)
{
	Datum		text;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("duration must not be null")));
	text = DirectFunctionCall1(interval_out, PG_GETARG_DATUM(0));
	check_in_entry();
	(void) ask(object_of((Field[]) {
		{"kind", json_string("sleep")},
		{"duration", json_string(DatumGetCString(text))}
	}, 2));
	PG_RETURN_VOID();
}

/* The payload of the oldest signal of that name that nobody has had. */
static bool
take_mail(const char *signal, Jsonb **payload)
{
	for (int i = 0; i < entry->at; i++)
	{
		Request    *r = &entry->requests[i];
		char	   *name;

		if (r->taken || r->answer == NULL || !JB_ROOT_IS_OBJECT(r->answer) ||
			strcmp(saga_json_text(&r->asked->root, "kind"), "signal") != 0)
			continue;
		name = saga_json_text(&r->answer->root, "signal");
		if (name && strcmp(name, signal) == 0)
		{
			JsonbValue *v = saga_json_get(&r->answer->root, "payload");

			r->taken = true;
			*payload = v ? JsonbValueToJsonb(v) : NULL;
			return true;
		}
	}
	return false;
}

/*
 * await_signal(signal): each iteration brings the next signal, whatever its
 * name; those of other names are kept for who asks for them.
 */
Datum
saga_procedure_signal(PG_FUNCTION_ARGS)
{
	char	   *signal = text_arg(fcinfo, 0);
	Jsonb	   *payload;

	if (signal == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("signal must not be null")));
	check_in_entry();
	while (!take_mail(signal, &payload))
		(void) ask(object_of((Field[]) {
		{"kind", json_string("signal")},
			{"signal", json_string(signal)}
		}, 2));
	if (payload == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(payload);
}

/* ---- an entry ---- */

static Jsonb *
copy_jsonb(Datum value, bool isnull)
{
	return isnull ? NULL : (Jsonb *) PG_DETOAST_DATUM_COPY(value);
}

/* What was asked for before, oldest first. */
static void
load_requests(Datum saga_id)
{
	static const char *sql =
		"SELECT e.result, a.result"
		" FROM saga.log_record e"
		" JOIN saga.log_record a ON a.saga_id = e.saga_id"
		" AND a.step = pg_catalog.concat(e.result ->> 'kind', pg_catalog.substr(e.step, 6))"
		" WHERE e.saga_id = $1 AND e.kind = 'done' AND e.operation = 'action'"
		" AND e.step LIKE 'entry[%'"
		" AND a.kind IN ('done', 'skipped') AND a.operation = 'action'"
		" ORDER BY e.seq";
	Oid			types[] = {UUIDOID};
	SagaUserSwitch save;

	saga_as_extension_owner_begin(&save);
	if (SPI_execute_with_args(sql, 1, types, &saga_id, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the log");
	if (SPI_processed > INT_MAX / sizeof(Request))
		elog(ERROR, "too many requests");
	entry->nrequests = (int) SPI_processed;
	entry->requests = MemoryContextAllocZero(entry->context,
											 sizeof(Request) * Max(entry->nrequests, 1));
	for (int i = 0; i < entry->nrequests; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		MemoryContext old = MemoryContextSwitchTo(entry->context);
		bool		isnull;
		Datum		value;

		value = SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &isnull);
		entry->requests[i].asked = copy_jsonb(value, isnull);
		value = SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull);
		entry->requests[i].answer = copy_jsonb(value, isnull);
		MemoryContextSwitchTo(old);
	}
	SPI_freetuptable(SPI_tuptable);
	saga_as_extension_owner_end(&save);
}

/*
 * Call the procedure with those of its arguments that args has, by name.
 * Returns its result as JSON in the entry's context, or NULL.
 */
static Jsonb *
call_procedure(Oid procedure, Jsonb *args)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(procedure));
	Form_pg_proc proc;
	Oid		   *types;
	char	  **names;
	char	   *modes;
	int			n = get_func_arg_info(tuple, &types, &names, &modes);
	StringInfoData record;
	StringInfoData call;
	Oid		   *given_types = palloc(sizeof(Oid) * Max(n, 1));
	Datum	   *values = palloc0(sizeof(Datum) * Max(n, 1));
	char	   *nulls = palloc0(Max(n, 1));
	Oid			jsonb_type[] = {JSONBOID};
	Datum		args_value = JsonbPGetDatum(args);
	Jsonb	   *result = NULL;
	bool		is_procedure;
	bool		has_result;
	int			ngiven = 0;
	int			rc;

	proc = (Form_pg_proc) GETSTRUCT(tuple);
	is_procedure = proc->prokind == PROKIND_PROCEDURE;
	has_result = !is_procedure && proc->prorettype != VOIDOID;
	initStringInfo(&record);
	initStringInfo(&call);
	appendStringInfoString(&call, is_procedure ? "CALL " :
						   has_result ? "SELECT pg_catalog.to_jsonb(" : "SELECT ");
	appendStringInfo(&call, "%s(", quote_qualified_identifier(
						 get_namespace_name(proc->pronamespace), NameStr(proc->proname)));
	for (int i = 0; i < n; i++)
	{
		if (modes && modes[i] != PROARGMODE_IN && modes[i] != PROARGMODE_INOUT)
			continue;
		if (names == NULL || names[i][0] == '\0' ||
			saga_json_get(&args->root, names[i]) == NULL)
			continue;
		appendStringInfo(&record, "%s%s %s", ngiven ? ", " : "", quote_identifier(names[i]),
						 format_type_extended(types[i], -1, FORMAT_TYPE_FORCE_QUALIFY));
		appendStringInfo(&call, "%s%s => $%d", ngiven ? ", " : "", quote_identifier(names[i]),
						 ngiven + 1);
		given_types[ngiven++] = types[i];
	}
	appendStringInfoString(&call, has_result ? "))" : ")");
	ReleaseSysCache(tuple);

	if (ngiven > 0)
	{
		char	   *sql = psprintf("SELECT * FROM pg_catalog.jsonb_to_record($1) AS r(%s)", record.data);

		rc = SPI_execute_with_args(sql, 1, jsonb_type, &args_value, NULL, true, 1);
		if (rc != SPI_OK_SELECT || SPI_processed != 1)
			elog(ERROR, "could not read the arguments");
		for (int i = 0; i < ngiven; i++)
		{
			bool		isnull;

			values[i] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1, &isnull);
			nulls[i] = isnull ? 'n' : ' ';
		}
	}
	rc = SPI_execute_with_args(call.data, ngiven, given_types, values, nulls, false, 0);
	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the procedure could not be called"),
				 errdetail_internal("%s", SPI_result_code_string(rc))));
	if (has_result && SPI_processed == 1)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		MemoryContext old = MemoryContextSwitchTo(entry->context);

		result = copy_jsonb(value, isnull);
		MemoryContextSwitchTo(old);
	}
	return result;
}

/*
 * procedure_entry_(saga_id, procedure, source, args): {"kind": "done",
 * "result": ...}, effects kept, or the next request, nothing kept.
 */
Datum
saga_procedure_entry(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Oid			procedure = PG_GETARG_OID(1);
	char	   *source = text_to_cstring(PG_GETARG_TEXT_PP(2));
	Jsonb	   *args = PG_GETARG_JSONB_P(3);
	Jsonb	   *request;
	Entry		this;
	bool		keep;

	/* it reads the log of that saga: for nobody else */
	if (saga_local_action == NULL ||
		memcmp(&saga_local_action->saga_id, PG_GETARG_UUID_P(0), UUID_LEN) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this function is called by durable procedures only")));
	if (strcmp(source, source_hash(procedure)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source of durable procedure %s has changed since it was started",
						format_procedure(procedure)),
				 errhint("Restore it and call saga.retry_step(), or terminate the saga and start it anew.")));

	memset(&this, 0, sizeof(this));
	this.context = CurrentMemoryContext;
	this.procedure = procedure;
	entry = &this;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect failed");
		load_requests(PG_GETARG_DATUM(0));
		this.result = call_procedure(procedure, args);
		SPI_finish();
		keep = !this.suspended_for && !this.departed;
		if (keep)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		/* our subtransaction must not outlive us */
		entry = NULL;
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();

		/* if it asked for something, whatever it made of that error */
		if (!this.suspended_for && !this.departed)
			ReThrowError(error);
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
	entry = NULL;
	if (this.departed)
		departed(&this);
	if (this.suspended_for)
		request = this.suspended_for;
	else
		request = object_of((Field[]) {{"kind", json_string("done")}, {"result", this.result}}, 2);
	PG_RETURN_JSONB_P(request);
}

/* ---- starting one ---- */

/* The definition that every saga of a procedure is one of. */
static const char *const definition_sql =
"SELECT saga.define($1, ARRAY["
"  saga.loop_step('run', ARRAY["
"    saga.step('entry', 'SELECT saga.procedure_entry_(:saga_id, :procedure, :source, :args)',"
"              compensation => 'none'),"
"    saga.branch_step('request',"
"      saga.when(':entry.kind = ''local''', ARRAY[saga.step('local',"
"        'SELECT saga.procedure_run_(:entry, false, :saga_id, :step_name)',"
"        'SELECT saga.procedure_run_(:entry, true, :saga_id, :step_name)')]),"
"      saga.when(':entry.kind = ''remote''', ARRAY['{\"kind\": \"asked\", \"name\": \"remote\", \"by\": \"entry\"}'::pg_catalog.jsonb::saga.node]),"
"      saga.when(':entry.kind = ''sleep''', ARRAY[saga.sleep_step('sleep', ':entry.duration')]),"
"      saga.when(':entry.kind = ''signal''', ARRAY[saga.signal_step('signal', '*')]))],"
"    while => ':entry.kind IS DISTINCT FROM ''done''')],"
"  input => 'procedure pg_catalog.oid, source pg_catalog.text, args pg_catalog.jsonb',"
"  output => ':entry.result')";

/* Can it be called with these arguments? */
static void
check_call(Oid procedure, Jsonb *args)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(procedure));
	Form_pg_proc proc;
	Oid		   *types;
	char	  **names;
	char	   *modes;
	int			n;
	int			found = 0;
	int			input = 0;
	int			required;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("procedure with OID %u does not exist", procedure)));
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if ((proc->prokind != PROKIND_FUNCTION && proc->prokind != PROKIND_PROCEDURE) ||
		proc->proretset)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s cannot be a durable procedure", format_procedure(procedure)),
				 errdetail("It must be a procedure, or a function that returns one value.")));
	if (saga_proc_aclcheck(procedure, GetUserId()) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, proc->prokind == PROKIND_PROCEDURE ?
					   OBJECT_PROCEDURE : OBJECT_FUNCTION, NameStr(proc->proname));
	n = get_func_arg_info(tuple, &types, &names, &modes);
	required = proc->pronargs - proc->pronargdefaults;
	for (int i = 0; i < n; i++)
	{
		const char *name = names ? names[i] : "";

		if (modes && modes[i] != PROARGMODE_IN && modes[i] != PROARGMODE_INOUT)
			continue;
		if (name[0] != '\0' &&
			getKeyJsonValueFromContainer(&args->root, name, strlen(name), NULL))
			found++;
		else if (input < required)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 name[0] != '\0' ?
					 errmsg("args has no value for parameter \"%s\" of %s",
							name, format_procedure(procedure)) :
					 errmsg("parameter %d of %s has no name", i + 1,
							format_procedure(procedure)),
					 errhint("Arguments are given by name, as keys of a JSON object.")));
		input++;
	}
	if (found != (int) JB_ROOT_COUNT(args))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("args has keys that are no parameters of %s",
						format_procedure(procedure))));
	ReleaseSysCache(tuple);
}

/* start_procedure(procedure, args, key) */
Datum
saga_start_procedure(PG_FUNCTION_ARGS)
{
	Oid			procedure = PG_ARGISNULL(0) ? InvalidOid : PG_GETARG_OID(0);
	Jsonb	   *args;
	char	   *name;
	Oid			types[] = {TEXTOID, JSONBOID, TEXTOID};
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};
	bool		isnull;
	Datum		id;

	if (!OidIsValid(procedure))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("procedure must not be null")));
	args = PG_ARGISNULL(1) ?
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"))) :
		PG_GETARG_JSONB_P(1);
	if (!JB_ROOT_IS_OBJECT(args))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("args must be a JSON object")));
	check_call(procedure, args);

	/* each role has its own, since actions run as the definition's owner */
	name = psprintf("%s as %s", format_procedure_qualified(procedure),
					GetUserNameFromId(GetUserId(), false));
	if (strlen(name) > SAGA_MAX_DEFINITION_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("the name of %s is too long for a definition",
						format_procedure(procedure))));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	values[0] = CStringGetTextDatum(name);
	if (SPI_execute_with_args(definition_sql, 1, types, values, nulls, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not define the saga of a procedure");
	values[1] = JsonbPGetDatum(object_of((Field[]) {
		{"procedure", json_number(procedure)},
		{"source", json_string(source_hash(procedure))},
		{"args", args}
	}, 3));
	if (PG_ARGISNULL(2))
		nulls[2] = 'n';
	else
		values[2] = PG_GETARG_DATUM(2);
	if (SPI_execute_with_args("SELECT saga.start($1, $2, key => $3)",
							  3, types, values, nulls, false, 0) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not start the saga of a procedure");
	id = SPI_datumTransfer(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull),
						   false, UUID_LEN);
	SPI_finish();
	PG_RETURN_DATUM(id);
}
