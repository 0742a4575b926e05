/*
 * start.c
 *		Sessions start sagas: saga.start(), saga.start_many(), keys and ids.
 *
 * A start is part of the caller's transaction and writes exactly one row (two
 * with a key); the coordinator hears of it at commit.  Nothing else of a saga
 * is ever written by a session, but commands in the inbox (verbs.c).
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "definition.h"
#include "errors.h"
#include "guc.h"
#include "log.h"
#include "rights.h"
#include "rows.h"
#include "saga.h"
#include "signals.h"
#include "spi_util.h"
#include "start.h"

PG_FUNCTION_INFO_V1(saga_start);
PG_FUNCTION_INFO_V1(saga_start_many);
PG_FUNCTION_INFO_V1(saga_installed);

/* ---------------------------------------------------------------- ids */

static void
random_bytes(uint8 *out, int n)
{
	static uint8 pool[1024];
	static int	left = 0;

	if (left < n)
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		left = sizeof(pool);
	}
	memcpy(out, pool + sizeof(pool) - left, n);
	left -= n;
}

/*
 * UUIDv7 (RFC 9562, 5.7, method 3 of 6.2): milliseconds of Unix time, twelve
 * bits of their fraction, the rest random.  Ascending within a session.
 */
void
saga_new_id(pg_uuid_t *id)
{
	static uint64 last = 0;
	int64		us = GetCurrentTimestamp() +
		((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)) * USECS_PER_DAY;
	uint64		stamp = ((uint64) (us / 1000) << 12) |
		(uint64) ((us % 1000) * 4096 / 1000);

	if (stamp <= last)
		stamp = last + 1;
	last = stamp;
	for (int i = 0; i < 6; i++)
		id->data[i] = (uint8) (stamp >> (52 - 8 * i));
	id->data[6] = 0x70 | (uint8) ((stamp >> 8) & 0x0f);
	id->data[7] = (uint8) stamp;
	random_bytes(id->data + 8, 8);
	id->data[8] = 0x80 | (id->data[8] & 0x3f);
}

/* -------------------------------------------------------------- starting */

static void
warn_if_no_worker(void)
{
	static TimestampTz warned = 0;

	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		if (SagaShmem->databases[i].dboid == MyDatabaseId &&
			SagaShmem->databases[i].no_slot &&
			GetCurrentTimestamp() > warned + 60 * USECS_PER_SEC)
		{
			warned = GetCurrentTimestamp();
			ereport(WARNING,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("sagas are accepted but no worker process is free to run them"),
					 errhint("Increase max_worker_processes (now %d) and restart the server.",
							 max_worker_processes)));
		}
}

static SagaOnConflict
parse_on_conflict(const char *s)
{
	if (strcmp(s, "return") == 0)
		return SAGA_CONFLICT_RETURN;
	if (strcmp(s, "error") == 0)
		return SAGA_CONFLICT_ERROR;
	if (strcmp(s, "restart_if_ended") == 0)
		return SAGA_CONFLICT_RESTART;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for on_conflict: \"%s\"", s),
			 errhint("Use 'return', 'error' or 'restart_if_ended'.")));
}

/* The protocol asked for, if the definition allows it. */
static SagaProtocol
parse_protocol(const SagaDefinition *def, const char *s)
{
	SagaProtocol protocol;

	if (strcmp(s, "saga") == 0)
		protocol = SAGA_PROTOCOL_SAGA;
	else if (strcmp(s, "two_phase") == 0)
		protocol = SAGA_PROTOCOL_TWO_PHASE;
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for protocol: \"%s\"", s),
				 errhint("Use 'saga' or 'two_phase'.")));
	if ((def->protocols & (1 << protocol)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("saga \"%s\" cannot be run by protocol '%s'", def->name, s),
				 errhint("Define it with protocols => '{saga,two_phase}'.")));
	return protocol;
}

SagaDefinition *
saga_definition_to_start(const char *name, int version)
{
	SagaDefinition *def;

	saga_require_preload();
	PreventCommandIfReadOnly("saga.start()");
	def = saga_definition_for_start(name, version);
	if (def == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 version == 0 ? errmsg("saga \"%s\" is not defined", name) :
				 errmsg("version %d of saga \"%s\" is not defined", version, name),
				 errhint("Define it with saga.define(); saga.definitions lists those you may see.")));
	if (!saga_has_privilege(def->name, GetUserId(), "start"))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to start saga \"%s\"", def->name),
				 errhint("Its owner can run SELECT saga.grant(%s, ...).",
						 quote_literal_cstr(def->name))));
	warn_if_no_worker();
	return def;
}

static TimestampTz
deadline_of(const SagaStartOptions *o, TimestampTz now)
{
	TimestampTz from = Max(o->start_at, now);

	if (o->deadline_at != 0)
		return o->deadline_at;
	if (o->deadline)
		return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(from),
													   IntervalPGetDatum(o->deadline)));
	return o->def->deadline == SAGA_NEVER ? DT_NOEND : from + o->def->deadline;
}

void
saga_start_insert(SagaTable *table, const SagaStartOptions *o,
				  const pg_uuid_t *id, Jsonb *input, text *key)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz deadline = deadline_of(o, now);
	Datum		v[26];
	bool		n[26];

	memset(n, true, sizeof(n));
#define SET(i, datum) (v[i] = (datum), n[i] = false)
	SET(0, UUIDPGetDatum(id));
	SET(1, Int16GetDatum(saga_bucket(id)));
	SET(2, Int64GetDatum(o->def->id));
	SET(3, CStringGetTextDatum("pending"));
	SET(4, CStringGetTextDatum("forward"));
	if (key)
		SET(6, PointerGetDatum(key));
	SET(7, JsonbPGetDatum(input));
	if (o->correlation)
		SET(12, PointerGetDatum(o->correlation));
	if (o->labels)
		SET(13, JsonbPGetDatum(o->labels));
	SET(14, Int32GetDatum(o->priority));
	SET(15, ObjectIdGetDatum(o->started_by));
	SET(16, TimestampTzGetDatum(now));
	if (o->start_at != 0)
		SET(17, TimestampTzGetDatum(o->start_at));
	if (deadline != DT_NOEND)
		SET(18, TimestampTzGetDatum(deadline));
	SET(20, Int32GetDatum(saga_origin()));
	if (o->parent_id)
		SET(21, UUIDPGetDatum(o->parent_id));
	if (o->parent_step)
		SET(22, CStringGetTextDatum(o->parent_step));
	SET(23, Int32GetDatum(o->depth));
	if (o->copy_of)
		SET(24, UUIDPGetDatum(o->copy_of));
	SET(25, CStringGetTextDatum(o->protocol == SAGA_PROTOCOL_TWO_PHASE ?
								"two_phase" : "saga"));
#undef SET
	saga_table_insert(table, v, n);
	saga_wake_at_commit(id, 0, o->priority);
}

/* What stands under a key already. */
typedef struct Holder
{
	pg_uuid_t	id;
	bool		exists;			/* the instance row is still there */
	bool		ended;
	bool		same_input;
} Holder;

static void
look_at_holder(const char *name, text *key, Jsonb *input, Holder *holder)
{
	Oid			types[3] = {TEXTOID, TEXTOID, JSONBOID};
	Datum		values[3];
	bool		isnull;

	values[0] = CStringGetTextDatum(name);
	values[1] = PointerGetDatum(key);
	values[2] = JsonbPGetDatum(input);
	if (SPI_execute_with_args("SELECT k.saga_id, i.ended_at IS NOT NULL, i.input = $3, i.id IS NOT NULL"
							  " FROM saga.instance_key k LEFT JOIN saga.instance i ON i.id = k.saga_id"
							  " WHERE k.name = $1 AND k.key = $2",
							  3, types, values, NULL, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the key was taken and given up by concurrent transactions"),
				 errhint("Try again.")));
	holder->id = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	holder->ended = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	holder->same_input = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3, &isnull));
	if (isnull)
		holder->same_input = false;
	holder->exists = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4, &isnull));
}

/*
 * Claim a key for a new id.  True: go on with *id.  False: the saga that has
 * it is in *id.
 */
static bool
claim_key(SagaTable *table, const SagaStartOptions *o, text *key, Jsonb *input,
		  pg_uuid_t *id)
{
	Oid			types[3] = {TEXTOID, TEXTOID, UUIDOID};
	Datum		values[3];
	Holder		holder;
	SagaUserSwitch saved;
	bool		claimed;

	values[0] = CStringGetTextDatum(o->def->name);
	values[1] = PointerGetDatum(key);
	values[2] = UUIDPGetDatum(id);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	saga_as_extension_owner_begin(&saved);
	SPI_execute_with_args("INSERT INTO saga.instance_key (name, key, saga_id) VALUES ($1, $2, $3)"
						  " ON CONFLICT (name, key) DO NOTHING",
						  3, types, values, NULL, false, 0);
	claimed = SPI_processed == 1;
	if (!claimed)
	{
		/* the holder may be of this very call */
		saga_table_flush(table);
		look_at_holder(o->def->name, key, input, &holder);
		if (!holder.exists || (o->on_conflict == SAGA_CONFLICT_RESTART && holder.ended))
		{
			SPI_execute_with_args("UPDATE saga.instance_key SET saga_id = $3 WHERE name = $1 AND key = $2",
								  3, types, values, NULL, false, 0);
			claimed = true;
		}
		else if (o->on_conflict == SAGA_CONFLICT_ERROR)
			ereport(ERROR,
					(errcode(ERRCODE_UNIQUE_VIOLATION),
					 errmsg("saga \"%s\" was already started with key \"%s\"",
							o->def->name, text_to_cstring(key))));
		else if (!holder.same_input && o->on_conflict == SAGA_CONFLICT_RETURN)
			ereport(ERROR,
					(errcode(ERRCODE_SAGA_KEY_REUSE),
					 errmsg("saga \"%s\" was already started with key \"%s\" and another input",
							o->def->name, text_to_cstring(key)),
					 errdetail("It is saga %s.",
							   DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&holder.id)))),
					 errhint("Use a new key, or the same input.")));
		else
			*id = holder.id;
	}
	saga_as_extension_owner_end(&saved);
	SPI_finish();
	return claimed;
}

bool
saga_start_one(SagaTable *table, const SagaStartOptions *o, Jsonb *input,
			   text *key, pg_uuid_t *id)
{
	Jsonb	   *checked = saga_definition_check_input(o->def, input);
	bool		waits = o->def->graph->nsignals > 0;

	saga_new_id(id);
	if (key)
	{
		if (VARSIZE_ANY_EXHDR(key) == 0 || VARSIZE_ANY_EXHDR(key) > 1000)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a saga's key must have 1 to 1000 bytes")));
		if (waits)
			saga_kept_signals_lock(o->def->name, key);
		if (!claim_key(table, o, key, checked, id))
			return false;
		if (waits)
			saga_kept_signals_deliver(o->def->name, key, id);
	}
	saga_start_insert(table, o, id, checked, key);
	return true;
}

static void
check_start_at(TimestampTz at)
{
	/* infinity is: not before somebody acts */
	if (TIMESTAMP_IS_NOBEGIN(at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("start_at must not be -infinity")));
}

static Interval *
check_deadline(Interval *deadline)
{
	Interval	zero = {0};

	if (DatumGetInt32(DirectFunctionCall2(interval_cmp, IntervalPGetDatum(deadline),
										  IntervalPGetDatum(&zero))) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the deadline must be longer than nothing"),
				 errhint("It is counted from the start.")));
	return deadline;
}

static Jsonb *
check_labels(Jsonb *labels)
{
	if (!JB_ROOT_IS_OBJECT(labels))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("labels must be a JSON object")));
	if (VARSIZE(labels) > (Size) saga_max_payload)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_LIMIT),
				 errmsg("the labels are too large"),
				 errdetail("They have %zu bytes; saga.max_payload is %d.",
						   (Size) VARSIZE(labels), saga_max_payload)));
	return labels;
}

/* start(definition, input, key, start_at, on_conflict, version, priority,
 * deadline, correlation, labels, protocol) */
Datum
saga_start(PG_FUNCTION_ARGS)
{
	SagaStartOptions o = {0};
	SagaTable  *table;
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	Jsonb	   *input = PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1);
	text	   *key = PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2);

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the definition to start must not be null")));
	o.def = saga_definition_to_start(text_to_cstring(PG_GETARG_TEXT_PP(0)),
								PG_ARGISNULL(5) ? 0 : PG_GETARG_INT32(5));
	o.on_conflict = PG_ARGISNULL(4) ? SAGA_CONFLICT_RETURN :
		parse_on_conflict(text_to_cstring(PG_GETARG_TEXT_PP(4)));
	if (!PG_ARGISNULL(3))
	{
		o.start_at = PG_GETARG_TIMESTAMPTZ(3);
		check_start_at(o.start_at);
	}
	o.priority = PG_ARGISNULL(6) ? o.def->priority : PG_GETARG_INT32(6);
	o.deadline = PG_ARGISNULL(7) ? NULL : check_deadline(PG_GETARG_INTERVAL_P(7));
	o.correlation = PG_ARGISNULL(8) ? NULL : PG_GETARG_TEXT_PP(8);
	o.labels = PG_ARGISNULL(9) ? NULL : check_labels(PG_GETARG_JSONB_P(9));
	o.protocol = PG_ARGISNULL(10) ? o.def->protocol :
		parse_protocol(o.def, text_to_cstring(PG_GETARG_TEXT_PP(10)));
	o.started_by = GetUserId();

	table = saga_table_open("instance", RowExclusiveLock);
	(void) saga_start_one(table, &o, input, key, id);
	saga_table_close(table);
	PG_RETURN_UUID_P(id);
}

/* The key of one input: a scalar member of it. */
static text *
key_of(Jsonb *input, text *field, int ordinal)
{
	JsonbValue *value = getKeyJsonValueFromContainer(&input->root,
													 VARDATA_ANY(field),
													 VARSIZE_ANY_EXHDR(field), NULL);

	if (value && value->type == jbvString)
		return cstring_to_text_with_len(value->val.string.val, value->val.string.len);
	if (value && value->type == jbvNumeric)
		return cstring_to_text(DatumGetCString(DirectFunctionCall1(numeric_out,
																   NumericGetDatum(value->val.numeric))));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("input %d has no text or number in field \"%s\" to be its key",
					ordinal, text_to_cstring(field))));
}

/* start_many(definition, inputs, key_field) -> (ordinal, id, created) */
Datum
saga_start_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SagaStartOptions o = {0};
	SagaTable  *table;
	Jsonb	   *inputs;
	text	   *field = PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2);
	JsonbIterator *it;
	JsonbValue	value;
	JsonbIteratorToken token;
	int			ordinal = 0;
	MemoryContext per_row;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the definition and the inputs must not be null")));
	inputs = PG_GETARG_JSONB_P(1);
	if (!JB_ROOT_IS_ARRAY(inputs) || JB_ROOT_IS_SCALAR(inputs))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the inputs must be a JSON array of objects")));
	o.def = saga_definition_to_start(text_to_cstring(PG_GETARG_TEXT_PP(0)), 0);
	o.priority = o.def->priority;
	o.started_by = GetUserId();
	o.protocol = o.def->protocol;

	per_row = AllocSetContextCreate(CurrentMemoryContext, "saga start_many",
									ALLOCSET_DEFAULT_SIZES);
	table = saga_table_open("instance", RowExclusiveLock);
	it = JsonbIteratorInit(&inputs->root);
	(void) JsonbIteratorNext(&it, &value, true);	/* the array */
	while ((token = JsonbIteratorNext(&it, &value, true)) == WJB_ELEM)
	{
		MemoryContext old = MemoryContextSwitchTo(per_row);
		Jsonb	   *input = JsonbValueToJsonb(&value);
		pg_uuid_t	id;
		Datum		v[3];
		bool		n[3] = {0};

		CHECK_FOR_INTERRUPTS();
		ordinal++;
		if (!JB_ROOT_IS_OBJECT(input))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("input %d is not an object", ordinal)));
		v[0] = Int32GetDatum(ordinal);
		v[2] = BoolGetDatum(saga_start_one(table, &o, input,
									  field ? key_of(input, field, ordinal) : NULL, &id));
		v[1] = UUIDPGetDatum(&id);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, v, n);
		MemoryContextSwitchTo(old);
		MemoryContextReset(per_row);
	}
	saga_table_close(table);
	return (Datum) 0;
}

/* Last statement of the install script. */
Datum
saga_installed(PG_FUNCTION_ARGS)
{
	saga_installed_at_commit();
	PG_RETURN_VOID();
}
