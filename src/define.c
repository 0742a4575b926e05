/*
 * define.c
 *		saga.define() and the other SQL functions that make, change and show
 *		definitions.
 *
 * Sessions only.  Writes saga.definition, as the extension's owner, after all
 * checks were made as the user.  Makers of versions of one name are
 * serialised by a lock on the name; readers are told by an invalidation.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "define.h"
#include "errors.h"
#include "guc.h"
#include "rights.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_node_in);
PG_FUNCTION_INFO_V1(saga_node_out);
PG_FUNCTION_INFO_V1(saga_define);
PG_FUNCTION_INFO_V1(saga_drop_definition);
PG_FUNCTION_INFO_V1(saga_pause_definition);
PG_FUNCTION_INFO_V1(saga_resume_definition);

/* ---- the type saga.node ---- */

Datum
saga_node_in(PG_FUNCTION_ARGS)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot accept a value of type %s", "saga.node"),
			 errhint("Build nodes with saga.step() and the other constructors.")));
}

Datum
saga_node_out(PG_FUNCTION_ARGS)
{
	return DirectFunctionCall1(jsonb_out, PG_GETARG_DATUM(0));
}

/* ---- faults ---- */

SagaFault *
saga_fault(SagaFaults *faults, const char *step, const char *hint,
		   const char *fmt,...)
{
	MemoryContext old = MemoryContextSwitchTo(faults->context);
	SagaFault  *fault = palloc0(sizeof(SagaFault));
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&text, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&text, needed);
	}
	fault->fault = text.data;
	fault->step = step ? pstrdup(step) : NULL;
	fault->hint = hint ? pstrdup(hint) : NULL;

	foreach(lc, faults->items)
	{
		SagaFault  *other = lfirst(lc);

		if (strcmp(other->fault, fault->fault) == 0 &&
			strcmp(other->step ? other->step : "", step ? step : "") == 0)
		{
			MemoryContextSwitchTo(old);
			return other;
		}
	}
	faults->items = lappend(faults->items, fault);
	MemoryContextSwitchTo(old);
	return fault;
}

static void
append_pair(StringInfo out, const char *key, const char *value)
{
	appendStringInfo(out, "\"%s\": ", key);
	if (value != NULL)
		escape_json(out, value);
	else
		appendStringInfoString(out, "null");
}

/* A JSON array, one fault a line. */
static char *
faults_json(const SagaFaults *faults)
{
	StringInfoData out;
	ListCell   *lc;

	initStringInfo(&out);
	foreach(lc, faults->items)
	{
		const SagaFault *fault = lfirst(lc);

		appendStringInfoString(&out, out.len == 0 ? "[{" : ",\n {");
		append_pair(&out, "step", fault->step);
		appendStringInfoString(&out, ", ");
		append_pair(&out, "fault", fault->fault);
		appendStringInfoString(&out, ", ");
		append_pair(&out, "hint", fault->hint);
		if (fault->sqlstate[0] != '\0')
		{
			appendStringInfoString(&out, ", ");
			append_pair(&out, "sqlstate", fault->sqlstate);
		}
		appendStringInfoChar(&out, '}');
	}
	appendStringInfoChar(&out, ']');
	return out.data;
}

void
saga_faults_raise(const SagaFaults *faults, const char *message)
{
	if (faults->items == NIL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_SAGA_DEFINITION),
			 errmsg_internal("%s", message),
			 errdetail_internal("%s", faults_json(faults)),
			 errhint("The detail lists every fault with its step and what to do.")));
}

/* ---- define ---- */

static char *
optional_text(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

static Interval *
optional_interval(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : PG_GETARG_INTERVAL_P(n);
}

static void
read_steps(ArrayType *array, SagaDefineArgs *args)
{
	int16		len;
	bool		byval;
	char		align;

	get_typlenbyvalalign(ARR_ELEMTYPE(array), &len, &byval, &align);
	deconstruct_array(array, ARR_ELEMTYPE(array), len, byval, align,
					  &args->steps, &args->step_nulls, &args->nsteps);
}

/* A NULL in it is no protocol, and reported as that. */
static void
read_protocols(ArrayType *array, SagaDefineArgs *args)
{
	Datum	   *values;
	bool	   *nulls;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT,
					  &values, &nulls, &args->nprotocols);
	args->protocols = palloc(Max(1, args->nprotocols) * sizeof(char *));
	for (int i = 0; i < args->nprotocols; i++)
		args->protocols[i] = nulls[i] ? pstrdup("") : TextDatumGetCString(values[i]);
}

static void
read_arguments(FunctionCallInfo fcinfo, SagaDefineArgs *args)
{
	memset(args, 0, sizeof(*args));
	args->name = optional_text(fcinfo, 0);
	if (!PG_ARGISNULL(1))
		read_steps(PG_GETARG_ARRAYTYPE_P(1), args);
	args->input = optional_text(fcinfo, 2);
	args->output = optional_text(fcinfo, 3);
	args->deadline = optional_interval(fcinfo, 4);
	args->retention = optional_interval(fcinfo, 5);
	args->key_retention = optional_interval(fcinfo, 6);
	args->has_max_running = !PG_ARGISNULL(7);
	args->max_running = args->has_max_running ? PG_GETARG_INT32(7) : 0;
	args->has_priority = !PG_ARGISNULL(8);
	args->priority = args->has_priority ? PG_GETARG_INT32(8) : 0;
	args->protocol = optional_text(fcinfo, 9);
	if (!PG_ARGISNULL(10))
		read_protocols(PG_GETARG_ARRAYTYPE_P(10), args);
	args->compensation_order = optional_text(fcinfo, 11);
	args->on_completed = optional_text(fcinfo, 12);
	args->on_compensated = optional_text(fcinfo, 13);
	args->on_stuck = optional_text(fcinfo, 14);
}

static void
check_name(const char *name, SagaFaults *faults)
{
	const char *hint = "It is what saga.start() and saga.definitions call the definition.";

	if (name == NULL || name[0] == '\0')
		saga_fault(faults, NULL, hint, "the definition has no name");
	else if (strlen(name) > SAGA_MAX_DEFINITION_NAME)
		saga_fault(faults, NULL, hint,
				   "the definition's name is longer than %d bytes",
				   SAGA_MAX_DEFINITION_NAME);
	else
		for (const char *p = name; *p != '\0'; p++)
			if ((unsigned char) *p < ' ' || *p == 0x7f)
				saga_fault(faults, NULL, hint,
						   "the definition's name contains a control character");
}

static void
hash_part(pg_cryptohash_ctx *ctx, const char *text)
{
	/* with the final zero, so that parts do not run together */
	if (pg_cryptohash_update(ctx, (const uint8 *) text, strlen(text) + 1) < 0)
		elog(ERROR, "could not compute SHA-256 hash: %s",
			 pg_cryptohash_error(ctx));
}

/* Of all that makes a version another one; who owns it does not. */
static char *
content_hash(Jsonb *body, const char *search_path)
{
	pg_cryptohash_ctx *ctx = pg_cryptohash_create(PG_SHA256);
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	char	   *hex = palloc(2 * PG_SHA256_DIGEST_LENGTH + 1);

	if (pg_cryptohash_init(ctx) < 0)
		elog(ERROR, "could not compute SHA-256 hash: %s",
			 pg_cryptohash_error(ctx));
	hash_part(ctx, JsonbToCString(NULL, &body->root, VARSIZE(body)));
	hash_part(ctx, search_path);
	if (pg_cryptohash_final(ctx, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute SHA-256 hash: %s",
			 pg_cryptohash_error(ctx));
	pg_cryptohash_free(ctx);
	hex_encode((const char *) digest, sizeof(digest), hex);
	hex[2 * PG_SHA256_DIGEST_LENGTH] = '\0';
	return hex;
}

static void
insert_version(const SagaDefinitionRow *row)
{
	Oid			types[6] = {TEXTOID, INT4OID, REGROLEOID,
	TEXTOID, JSONBOID, TEXTOID};
	Datum		values[6];

	values[0] = CStringGetTextDatum(row->name);
	values[1] = Int32GetDatum(row->version);
	values[2] = ObjectIdGetDatum(row->owner);
	values[3] = CStringGetTextDatum(row->hash);
	values[4] = JsonbPGetDatum(row->body);
	values[5] = CStringGetTextDatum(row->search_path);
	saga_spi_own("INSERT INTO saga.definition (name, version, owner, hash, body, search_path, paused) "
				 "SELECT $1, $2, $3, $4, $5, $6, "
				 "COALESCE((SELECT pg_catalog.bool_or(d.paused) FROM saga.definition d WHERE d.name OPERATOR(pg_catalog.=) $1), false)",
				 6, types, values, NULL, NULL, NULL);
	saga_definitions_changed();
}

/*
 * The newest version of the name, locked against other makers.  A version of
 * somebody else's definition is refused.
 */
static bool
find_newest(const char *name, SagaDefinitionRow *newest)
{
	saga_definition_lock_name(name);
	if (!saga_definition_newest(name, newest))
		return false;
	if (!saga_may_change(GetUserId(), newest->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of saga definition \"%s\"", name),
				 errdetail("It belongs to role \"%s\".",
						   GetUserNameFromId(newest->owner, true))));
	return true;
}

static void
check_body_size(const char *name, const Jsonb *body)
{
	if (VARSIZE(body) > (Size) saga_max_payload)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_LIMIT),
				 errmsg("definition of saga \"%s\" is too large", name),
				 errdetail("It has %zu bytes; saga.max_payload is %d.",
						   (Size) VARSIZE(body), saga_max_payload)));
}

/* saga.define(...) -> version */
Datum
saga_define(PG_FUNCTION_ARGS)
{
	SagaFaults	faults = {CurrentMemoryContext, NIL};
	SagaDefineArgs args;
	SagaDefinitionRow newest;
	SagaDefinitionRow row;
	SagaDefinition *def;
	bool		exists = false;

	memset(&row, 0, sizeof(row));
	read_arguments(fcinfo, &args);
	check_name(args.name, &faults);
	row.name = args.name ? args.name : pstrdup("");
	if (faults.items == NIL)
		exists = find_newest(row.name, &newest);

	/* who makes a version does not change whose definition it is */
	row.owner = exists ? newest.owner : GetUserId();
	row.search_path = pstrdup(GetConfigOption("search_path", false, false));
	row.body = saga_body_build(&args, &faults);
	check_body_size(row.name, row.body);

	def = saga_definition_compile(&row, &faults);
	saga_definition_check_calls(def, &faults);
	saga_definition_check_world(def, &faults);
	saga_faults_raise(&faults, psprintf("definition of saga \"%s\" is refused",
										row.name));

	row.hash = content_hash(row.body, row.search_path);
	if (exists && strcmp(row.hash, newest.hash) == 0)
		PG_RETURN_INT32(newest.version);
	row.version = exists ? newest.version + 1 : 1;
	insert_version(&row);
	PG_RETURN_INT32(row.version);
}

/* ---- changing and dropping ---- */

static void
set_paused(const char *name, bool paused)
{
	Oid			types[2] = {TEXTOID, BOOLOID};
	Datum		values[2];

	saga_definition_lock_name(name);
	if (saga_definition_name(name) == NULL)
		saga_no_such_definition(name);
	saga_require_privilege(name, "operate");
	values[0] = CStringGetTextDatum(name);
	values[1] = BoolGetDatum(paused);
	if (saga_spi_own("UPDATE saga.definition SET paused = $2 "
					 "WHERE name OPERATOR(pg_catalog.=) $1 AND paused OPERATOR(pg_catalog.<>) $2",
					 2, types, values, NULL, NULL, NULL) > 0)
		saga_definitions_changed();
}

/* saga.pause_definition(name text) */
Datum
saga_pause_definition(PG_FUNCTION_ARGS)
{
	set_paused(text_to_cstring(PG_GETARG_TEXT_PP(0)), true);
	PG_RETURN_VOID();
}

/* saga.resume_definition(name text) */
Datum
saga_resume_definition(PG_FUNCTION_ARGS)
{
	set_paused(text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	PG_RETURN_VOID();
}

/* One version, and the sagas of it that have ended; 55006 while some live. */
static void
drop_version(const char *name, int32 version, int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(id)};
	Datum		live;
	bool		isnull;

	/* waits for transactions that have started one and not ended yet */
	saga_definition_lock_for_drop(id);
	saga_spi_own("SELECT pg_catalog.count(*) FROM saga.instance "
				 "WHERE definition_id OPERATOR(pg_catalog.=) $1 AND ended_at IS NULL",
				 1, types, values, NULL, &live, &isnull);
	if (DatumGetInt64(live) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("version %d of saga \"%s\" is in use", version, name),
				 errdetail_plural("%lld saga of it has not ended.",
								  "%lld sagas of it have not ended.",
								  (unsigned long) DatumGetInt64(live),
								  (long long) DatumGetInt64(live)),
				 errhint("Wait for them, or end them with saga.cancel() or saga.terminate().")));
	/* what they left is of no use without it, and their keys are free again */
	saga_spi_own("WITH gone AS (DELETE FROM saga.instance"
				 " WHERE definition_id OPERATOR(pg_catalog.=) $1 RETURNING id),"
				 " keys AS (DELETE FROM saga.instance_key k USING gone"
				 " WHERE k.saga_id OPERATOR(pg_catalog.=) gone.id)"
				 " DELETE FROM saga.log_record l USING gone"
				 " WHERE l.saga_id OPERATOR(pg_catalog.=) gone.id",
				 1, types, values, NULL, NULL, NULL);
	saga_spi_own("DELETE FROM saga.definition WHERE id OPERATOR(pg_catalog.=) $1",
				 1, types, values, NULL, NULL, NULL);
}

/* Without its definition, a name grants nothing. */
static void
drop_privileges(const char *name)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(name)};

	if (saga_spi_own("DELETE FROM saga.privilege p WHERE p.definition OPERATOR(pg_catalog.=) $1 AND NOT EXISTS "
					 "(SELECT FROM saga.definition d WHERE d.name OPERATOR(pg_catalog.=) $1)",
					 1, types, values, NULL, NULL, NULL) > 0)
		saga_privileges_changed();
}

/* saga.drop_definition(name text, version integer) -> versions dropped */
Datum
saga_drop_definition(PG_FUNCTION_ARGS)
{
	char	   *name;
	int32		first = PG_ARGISNULL(1) ? 1 : PG_GETARG_INT32(1);
	int32		last = first;
	int			dropped = 0;
	const SagaNameEntry *entry;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	saga_definition_lock_name(name);
	entry = saga_definition_name(name);
	if (entry == NULL)
		saga_no_such_definition(name);
	if (!saga_may_change(GetUserId(), entry->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of saga definition \"%s\"", name)));
	if (PG_ARGISNULL(1))
		last = entry->version;

	for (int32 version = first; version <= last; version++)
	{
		int64		id = saga_definition_id(name, version);

		if (id == 0)
			continue;
		drop_version(name, version, id);
		dropped++;
	}
	if (dropped == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("version %d of saga definition \"%s\" does not exist",
						first, name)));
	saga_definitions_changed();
	drop_privileges(name);
	PG_RETURN_INT32(dropped);
}
