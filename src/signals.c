/*
 * signals.c
 *		saga.signal() and saga.signal_key(): letters to a saga, and the locks
 *		by which none is lost.
 *
 * Called in sessions; coordinators and executors call saga_end_lock() before
 * they end a saga.  Writes saga.inbox and saga.kept_signal only.
 *
 * A signal takes the lock of its saga's end in a shared mode before it looks
 * whether the saga has ended, and keeps it until its row is committed.  Who
 * ends a saga takes it exclusively, without waiting, and looks for signals
 * after that.  So either the session sees the end and answers false, or the
 * signal is in the log before the end.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "definition.h"
#include "errors.h"
#include "guc.h"
#include "rights.h"
#include "rows.h"
#include "saga.h"
#include "signals.h"
#include "spi_util.h"
#include "verbs.h"

PG_FUNCTION_INFO_V1(saga_signal);
PG_FUNCTION_INFO_V1(saga_signal_key);

/* Locks of ours carry a field4 that no SQL function can produce. */
#define LOCK_OF_END		0x73616762
#define LOCK_OF_KEY		0x73616763
#define LOCK_FIELD4		77

/* Keys share so many locks, for a transaction may start any number of sagas. */
#define KEY_LOCKS		1024

#define MAX_SIGNAL_ID	1000

/* ---------------------------------------------------------------- locks */

static bool
lock_end(const pg_uuid_t *id, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, LOCK_OF_END,
						 hash_bytes(id->data, UUID_LEN), LOCK_FIELD4);
	return LockAcquire(&tag, mode, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

bool
saga_end_lock(const pg_uuid_t *id)
{
	return lock_end(id, ExclusiveLock, false);
}

bool
saga_end_allowed(const pg_uuid_t *id)
{
	static SPIPlanPtr plan = NULL;
	Datum		value = UUIDPGetDatum(id);

	if (!saga_end_lock(id))
		return false;
	if (plan == NULL)
	{
		Oid			types[1] = {UUIDOID};
		SPIPlanPtr	fresh = SPI_prepare("SELECT FROM saga.inbox WHERE saga_id = $1 AND verb = 'signal'",
										1, types);

		if (fresh == NULL || SPI_keepplan(fresh) != 0)
			elog(ERROR, "could not prepare the look for signals");
		plan = fresh;
	}
	/* not read-only: with a snapshot of its own */
	if (SPI_execute_plan(plan, &value, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for signals");
	SPI_freetuptable(SPI_tuptable);
	return SPI_processed == 0;
}

/* Starts do not wait for each other, nor do signals. */
static void
lock_key(const char *definition, text *key, LOCKMODE mode)
{
	LOCKTAG		tag;
	uint32		hash = hash_bytes((const unsigned char *) definition, (int) strlen(definition)) ^
		hash_bytes((const unsigned char *) VARDATA_ANY(key), (int) VARSIZE_ANY_EXHDR(key));

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, LOCK_OF_KEY, hash % KEY_LOCKS, LOCK_FIELD4);
	(void) LockAcquire(&tag, mode, false, false);
}

void
saga_kept_signals_lock(const char *definition, text *key)
{
	lock_key(definition, key, RowExclusiveLock);
}

void
saga_kept_signals_deliver(const char *definition, text *key, const pg_uuid_t *id)
{
	Oid			types[4] = {TEXTOID, TEXTOID, UUIDOID, INT2OID};
	Datum		values[4];

	values[0] = CStringGetTextDatum(definition);
	values[1] = PointerGetDatum(key);
	values[2] = UUIDPGetDatum(id);
	values[3] = Int16GetDatum(saga_bucket(id));
	/* the saga reads its inbox when it begins: nobody has to be woken */
	saga_spi_own("WITH kept AS (DELETE FROM saga.kept_signal WHERE name = $1 AND key = $2 RETURNING *)"
				 " INSERT INTO saga.inbox (saga_id, bucket, verb, step, result, actor, note, at)"
				 " SELECT $3, $4, 'signal', signal, payload, actor, signal_id, at FROM kept ORDER BY id",
				 4, types, values, NULL, NULL, NULL);
}

/* ------------------------------------------------------------- signals */

typedef struct Letter
{
	text	   *signal;
	Datum		payload;
	bool		no_payload;
	text	   *signal_id;		/* or NULL */
} Letter;

/* Arguments signal, payload, signal_id, from number 'first' on. */
static void
get_letter(FunctionCallInfo fcinfo, int first, Letter *letter)
{
	if (PG_ARGISNULL(first))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the name of the signal must not be null")));
	letter->signal = PG_GETARG_TEXT_PP(first);
	letter->no_payload = PG_ARGISNULL(first + 1);
	letter->payload = PG_GETARG_DATUM(first + 1);
	letter->signal_id = PG_ARGISNULL(first + 2) ? NULL : PG_GETARG_TEXT_PP(first + 2);
	if (!letter->no_payload &&
		VARSIZE_ANY(PG_GETARG_JSONB_P(first + 1)) > (Size) saga_max_payload)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_LIMIT),
				 errmsg("the payload of the signal is larger than %d bytes", saga_max_payload),
				 errhint("Send less, or increase saga.max_payload.")));
	if (letter->signal_id &&
		(VARSIZE_ANY_EXHDR(letter->signal_id) == 0 ||
		 VARSIZE_ANY_EXHDR(letter->signal_id) > MAX_SIGNAL_ID))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a signal's id must have 1 to %d bytes", MAX_SIGNAL_ID)));
}

static void
check_signal(const SagaDefinition *def, const Letter *letter)
{
	char	   *signal = text_to_cstring(letter->signal);

	for (int i = 0; def && i < def->graph->nsignals; i++)
		if (strcmp(def->graph->signals[i], signal) == 0)
			return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("saga \"%s\" waits for no signal \"%s\"", def ? def->name : "", signal),
			 errhint("The names are those of its saga.signal_step() nodes.")));
}

/* False if the saga has ended.  Rights were checked, or are now. */
static bool
send_letter(const pg_uuid_t *id, const Letter *letter)
{
	Oid			types[7] = {UUIDOID, INT2OID, TEXTOID, TEXTOID, JSONBOID, TEXTOID, TEXTOID};
	Datum		values[7];
	char		nulls[8] = "       ";
	Datum		inbox_id;
	bool		isnull;
	SagaLooked	saga;

	saga_look(id, "signal", &saga);
	(void) lock_end(id, ShareLock, true);
	if (!saga.ended)
		saga_look(id, "signal", &saga);	/* again, now that it cannot end */
	check_signal(saga_definition_by_id(saga.definition_id), letter);
	if (saga.ended)
		return false;
	values[0] = UUIDPGetDatum(id);
	values[1] = Int16GetDatum(saga_bucket(id));
	values[2] = CStringGetTextDatum("signal");
	values[3] = PointerGetDatum(letter->signal);
	values[4] = letter->payload;
	nulls[4] = letter->no_payload ? 'n' : ' ';
	values[5] = CStringGetTextDatum(saga_actor());
	values[6] = PointerGetDatum(letter->signal_id);
	nulls[6] = letter->signal_id ? ' ' : 'n';
	saga_spi_own("INSERT INTO saga.inbox (saga_id, bucket, verb, step, result, actor, note)"
				 " VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id",
				 7, types, values, nulls, &inbox_id, &isnull);
	saga_wake_at_commit(id, DatumGetInt64(inbox_id), 0);
	return true;
}

/* signal(id, signal, payload, signal_id) -> boolean */
Datum
saga_signal(PG_FUNCTION_ARGS)
{
	Letter		letter;

	saga_require_preload();
	PreventCommandIfReadOnly("saga.signal()");
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	get_letter(fcinfo, 1, &letter);
	PG_RETURN_BOOL(send_letter(PG_GETARG_UUID_P(0), &letter));
}

/* The saga that was started with a key, as committed now. */
static bool
find_by_key(const char *definition, text *key, pg_uuid_t *id)
{
	SagaTable  *table;
	Datum		keys[2];
	Datum		values[SAGA_MAX_COLUMNS];
	bool		nulls[SAGA_MAX_COLUMNS];
	bool		found;

	CommandCounterIncrement();	/* the caller's own statement may have */
	PushActiveSnapshot(GetLatestSnapshot());
	table = saga_table_open("instance_key", AccessShareLock);
	keys[0] = CStringGetTextDatum(definition);
	keys[1] = PointerGetDatum(key);
	found = saga_table_fetch(table, keys, values, nulls);
	if (found)
		*id = *DatumGetUUIDP(values[2]);
	saga_table_close(table);
	PopActiveSnapshot();
	return found;
}

static void
keep_letter(const char *definition, text *key, const Letter *letter)
{
	Oid			types[6] = {TEXTOID, TEXTOID, TEXTOID, JSONBOID, TEXTOID, TEXTOID};
	Datum		values[6];
	char		nulls[7] = "      ";

	values[0] = CStringGetTextDatum(definition);
	values[1] = PointerGetDatum(key);
	values[2] = PointerGetDatum(letter->signal);
	values[3] = letter->payload;
	nulls[3] = letter->no_payload ? 'n' : ' ';
	values[4] = PointerGetDatum(letter->signal_id);
	nulls[4] = letter->signal_id ? ' ' : 'n';
	values[5] = CStringGetTextDatum(saga_actor());
	saga_spi_own("INSERT INTO saga.kept_signal (name, key, signal, payload, signal_id, actor)"
				 " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
				 6, types, values, nulls, NULL, NULL);
}

/* signal_key(definition, key, signal, payload, signal_id, if_absent) -> boolean */
Datum
saga_signal_key(PG_FUNCTION_ARGS)
{
	char	   *definition;
	text	   *key;
	char	   *if_absent;
	Letter		letter;
	pg_uuid_t	id;

	saga_require_preload();
	PreventCommandIfReadOnly("saga.signal_key()");
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the definition and the key must not be null")));
	definition = text_to_cstring(PG_GETARG_TEXT_PP(0));
	key = PG_GETARG_TEXT_PP(1);
	if_absent = PG_ARGISNULL(5) ? "error" : text_to_cstring(PG_GETARG_TEXT_PP(5));
	if (strcmp(if_absent, "error") != 0 && strcmp(if_absent, "keep") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for if_absent: \"%s\"", if_absent),
				 errhint("Use 'error' or 'keep'.")));
	get_letter(fcinfo, 2, &letter);
	saga_require_privilege(definition, "signal");

	if (find_by_key(definition, key, &id))
		PG_RETURN_BOOL(send_letter(&id, &letter));
	if (strcmp(if_absent, "error") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("no saga \"%s\" was started with key \"%s\"",
						definition, text_to_cstring(key)),
				 errhint("With if_absent => 'keep' the signal waits for it.")));
	if (VARSIZE_ANY_EXHDR(key) == 0 || VARSIZE_ANY_EXHDR(key) > 1000)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a saga's key must have 1 to 1000 bytes")));
	check_signal(saga_definition_by_name(definition, 0), &letter);
	lock_key(definition, key, ShareLock);
	/* it may have been started meanwhile; from here on it cannot */
	if (find_by_key(definition, key, &id))
		PG_RETURN_BOOL(send_letter(&id, &letter));
	keep_letter(definition, key, &letter);
	PG_RETURN_BOOL(true);
}
