/*
 * log_read.c
 *		Reading back the durable side of a saga (see log.h): logs, and what a
 *		coordinator looks for at recovery and in its polls.
 *
 * Called by coordinators in a transaction that saga_worker_begin() began, and
 * by monitor.c.  Writes nothing.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "compat.h"
#include "log.h"

/* Run a read-only query with saved plan; results stay until SPI_finish(). */
static void
run_query(SPIPlanPtr *plan, const char *sql, int nargs, Oid *types,
		  Datum *values)
{
	if (*plan == NULL)
	{
		SPIPlanPtr	fresh = SPI_prepare(sql, nargs, types);

		if (fresh == NULL || SPI_keepplan(fresh) != 0)
			elog(ERROR, "could not prepare: %s", sql);
		*plan = fresh;
	}
	if (SPI_execute_plan(*plan, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run: %s", sql);
}

static Datum
bucket_array(uint64 buckets)
{
	Datum		list[SAGA_BUCKETS];
	int			n = 0;

	for (int b = 0; b < SAGA_BUCKETS; b++)
		if (buckets & (UINT64CONST(1) << b))
			list[n++] = Int16GetDatum(b);
	return PointerGetDatum(construct_array(list, n, INT2OID, 2, true, TYPALIGN_SHORT));
}

static Datum
column(int row, int col, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col, isnull);
}

static char *
text_column(MemoryContext context, int row, int col)
{
	bool		isnull;
	Datum		value = column(row, col, &isnull);
	MemoryContext old;
	char	   *result;

	if (isnull)
		return NULL;
	old = MemoryContextSwitchTo(context);
	result = TextDatumGetCString(value);
	MemoryContextSwitchTo(old);
	return result;
}

static Jsonb *
jsonb_column(MemoryContext context, int row, int col)
{
	bool		isnull;
	Datum		value = column(row, col, &isnull);
	MemoryContext old;
	Jsonb	   *result;

	if (isnull)
		return NULL;
	old = MemoryContextSwitchTo(context);
	result = DatumGetJsonbPCopy(value);
	MemoryContextSwitchTo(old);
	return result;
}

static void
read_record(MemoryContext context, int row, SagaLogEntry *entry)
{
	SagaRecord *r = &entry->record;
	bool		isnull;
	char	   *s;
	Datum		value;

	r->seq = DatumGetInt32(column(row, 1, &isnull));
	entry->at = DatumGetTimestampTz(column(row, 2, &isnull));
	r->kind = saga_record_from_name(text_column(context, row, 3));
	entry->step = text_column(context, row, 4);
	r->node = SAGA_NO_NODE;		/* known when the ones before it are folded */
	if ((s = text_column(context, row, 5)) != NULL)
		r->op = saga_op_from_name(s);
	value = column(row, 6, &isnull);
	r->attempt = isnull ? 0 : DatumGetInt32(value);
	if ((s = text_column(context, row, 7)) != NULL)
		r->answer = saga_answer_from_name(s);
	value = column(row, 8, &isnull);
	r->maybe = !isnull && DatumGetBool(value);
	if ((s = text_column(context, row, 9)) != NULL)
		r->state = saga_state_from_name(s);
	if ((s = text_column(context, row, 10)) != NULL)
		r->cause = saga_cause_from_name(s);
	if ((s = text_column(context, row, 11)) != NULL)
		r->reason = saga_stuck_reason_from_name(s);
	value = column(row, 12, &isnull);
	r->due = isnull ? 0 : DatumGetTimestampTz(value);
	if ((s = text_column(context, row, 13)) != NULL)
		strlcpy(entry->payload.sqlstate, s, sizeof(entry->payload.sqlstate));
	entry->payload.message = text_column(context, row, 14);
	entry->payload.result = jsonb_column(context, row, 15);
	entry->payload.actor = text_column(context, row, 16);
	entry->payload.note = text_column(context, row, 17);
	value = column(row, 18, &isnull);
	r->value = isnull ? 0 : DatumGetInt64(value);
}

List *
saga_log_read(const pg_uuid_t *id)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext context = CurrentMemoryContext;
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	List	   *entries = NIL;

	values[0] = UUIDPGetDatum(id);
	run_query(&plan,
			  "SELECT seq, at, kind, step, operation, attempt, outcome, maybe,"
			  " state, cause, reason, due, sqlstate, message, result, actor, note, value"
			  " FROM saga.log_record WHERE saga_id = $1 ORDER BY seq",
			  1, types, values);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		SagaLogEntry *entry = palloc0(sizeof(SagaLogEntry));

		entry->saga_id = *id;
		entries = lappend(entries, entry);
		MemoryContextSwitchTo(old);
		read_record(context, (int) i, entry);
	}
	SPI_freetuptable(SPI_tuptable);
	return entries;
}

/*
 * A name in the log means one run exactly; the machine takes a name without a
 * retake for the newest.
 */
static int32
exact_step(const SagaState *state, const char *name)
{
	int32		step = saga_machine_find_step(state, name);
	char		buf[SAGA_STEP_NAME_SIZE];

	if (step == SAGA_NO_NODE ||
		strcmp(saga_machine_step_name(state, step, buf, sizeof(buf)), name) == 0)
		return step;
	for (step = 0; step < state->nsteps; step++)
		if (strcmp(saga_machine_step_name(state, step, buf, sizeof(buf)), name) == 0)
			return step;
	return SAGA_NO_NODE;
}

bool
saga_log_apply(SagaState *state, SagaLogEntry *entry)
{
	if (entry->step == NULL)
		entry->record.node = SAGA_NO_NODE;
	else if (strcmp(entry->step, SAGA_END_NAME) == 0)
		entry->record.node = SAGA_NODE_END;
	else if (strcmp(entry->step, SAGA_ON_STUCK_NAME) == 0)
		entry->record.node = SAGA_NODE_ON_STUCK;
	else if ((entry->record.node = exact_step(state, entry->step)) == SAGA_NO_NODE)
		return false;
	return saga_machine_apply(state, &entry->record);
}

int32
saga_log_last_seq(const pg_uuid_t *id)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	bool		isnull;
	int32		seq;

	values[0] = UUIDPGetDatum(id);
	run_query(&plan, "SELECT coalesce(max(seq), 0) FROM saga.log_record WHERE saga_id = $1",
			  1, types, values);
	seq = DatumGetInt32(column(0, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return seq;
}

#define LIVE_AT_ONCE	5000

void
saga_log_read_live(uint64 buckets, bool pending_only,
				   void (*each) (const SagaLive *live))
{
	Oid			types[1] = {INT2ARRAYOID};
	Datum		values[1];
	Portal		portal;
	int			n;
	static const char *const all =
	"SELECT i.id, coalesce(w.due, CASE WHEN i.state = 'pending' THEN i.start_at END), i.priority"
	" FROM saga.instance i LEFT JOIN saga.wakeup w ON w.saga_id = i.id"
	" WHERE i.bucket = ANY ($1) AND i.ended_at IS NULL";
	static const char *const pending =
	"SELECT i.id, i.start_at, i.priority FROM saga.instance i"
	" WHERE i.bucket = ANY ($1) AND i.ended_at IS NULL AND i.state = 'pending'";

	values[0] = bucket_array(buckets);
	portal = SPI_cursor_open_with_args(NULL, pending_only ? pending : all,
									   1, types, values, NULL, true, 0);
	do
	{
		SPI_cursor_fetch(portal, true, LIVE_AT_ONCE);
		n = (int) SPI_processed;
		for (int i = 0; i < n; i++)
		{
			SagaLive	live;
			bool		isnull;
			Datum		due;

			live.id = *DatumGetUUIDP(column(i, 1, &isnull));
			due = column(i, 2, &isnull);
			live.due = isnull ? 0 : DatumGetTimestampTz(due);
			live.priority = DatumGetInt32(column(i, 3, &isnull));
			each(&live);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (n > 0);
	SPI_cursor_close(portal);
}

SagaOutcome *
saga_log_read_outcomes(uint64 buckets, const pg_uuid_t *only, int *n)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[2] = {INT2ARRAYOID, UUIDOID};
	Datum		values[2];
	char		nulls[3] = "  ";
	SagaOutcome *outcomes;
	MemoryContext context = CurrentMemoryContext;

	if (plan == NULL)
	{
		SPIPlanPtr	fresh = SPI_prepare("SELECT saga_id, node, operation, attempt, result"
										" FROM saga.local_outcome WHERE bucket = ANY ($1)"
										" AND ($2 IS NULL OR saga_id = $2)"
										/* the barrier of a call whose answer comes later */
										" AND NOT accepted", 2, types);

		if (fresh == NULL || SPI_keepplan(fresh) != 0)
			elog(ERROR, "could not prepare the outcome query");
		plan = fresh;
	}
	values[0] = bucket_array(buckets);
	values[1] = only ? UUIDPGetDatum(only) : (Datum) 0;
	nulls[1] = only ? ' ' : 'n';
	if (SPI_execute_plan(plan, values, nulls, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read saga.local_outcome");
	*n = (int) SPI_processed;
	outcomes = MemoryContextAllocZero(context, sizeof(SagaOutcome) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		bool		isnull;

		outcomes[i].key.saga_id = *DatumGetUUIDP(column(i, 1, &isnull));
		outcomes[i].key.node = DatumGetInt32(column(i, 2, &isnull));
		outcomes[i].key.op = DatumGetChar(column(i, 3, &isnull));
		outcomes[i].attempt = DatumGetInt32(column(i, 4, &isnull));
		outcomes[i].result = jsonb_column(context, i, 5);
	}
	SPI_freetuptable(SPI_tuptable);
	return outcomes;
}

char *
saga_log_read_spared(TimestampTz before)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext context = CurrentMemoryContext;
	Oid			types[1] = {TIMESTAMPTZOID};
	Datum		values[1];

	values[0] = TimestampTzGetDatum(before);
	run_query(&plan,
			  "SELECT coalesce(array_agg(id), '{}')::text FROM saga.instance"
			  " WHERE started_at < $1 AND (ended_at IS NULL OR ended_at >= $1)",
			  1, types, values);
	return text_column(context, 0, 1);
}

static SagaRingEntry *
inbox_entries(MemoryContext context, int *n)
{
	SagaRingEntry *entries;

	*n = (int) SPI_processed;
	entries = MemoryContextAllocHuge(context, sizeof(SagaRingEntry) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		bool		isnull;

		entries[i].saga_id = *DatumGetUUIDP(column(i, 1, &isnull));
		entries[i].inbox_id = DatumGetInt64(column(i, 2, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	return entries;
}

SagaRingEntry *
saga_log_list_inbox(uint64 buckets, int *n)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[1] = {INT2ARRAYOID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;

	values[0] = bucket_array(buckets);
	run_query(&plan, "SELECT saga_id, id FROM saga.inbox WHERE bucket = ANY ($1) ORDER BY id",
			  1, types, values);
	return inbox_entries(context, n);
}

SagaRingEntry *
saga_log_list_inbox_of(const pg_uuid_t *id, bool signals, int *n)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[2] = {UUIDOID, BOOLOID};
	Datum		values[2];
	MemoryContext context = CurrentMemoryContext;

	values[0] = UUIDPGetDatum(id);
	values[1] = BoolGetDatum(signals);
	run_query(&plan, "SELECT saga_id, id FROM saga.inbox"
			  " WHERE saga_id = $1 AND (NOT $2 OR verb = 'signal') ORDER BY id",
			  2, types, values);
	return inbox_entries(context, n);
}
