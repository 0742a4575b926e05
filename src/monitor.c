/*
 * monitor.c
 *		Set-returning functions behind the views, and the check that the log
 *		folds to the rows.  Reads only.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "definition.h"
#include "log.h"
#include "saga.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_workers);
PG_FUNCTION_INFO_V1(saga_participant_stats);
PG_FUNCTION_INFO_V1(saga_check_log);

static const char *const kind_names[] = {
	[SAGA_WORKER_NONE] = "",
	[SAGA_WORKER_LAUNCHER] = "launcher",
	[SAGA_WORKER_COORDINATOR] = "coordinator",
	[SAGA_WORKER_EXECUTOR] = "executor",
	[SAGA_WORKER_PROJECTOR] = "projector",
	[SAGA_WORKER_FILLER] = "filler",
};

/* () -> (kind, number, pid, started_at, turns, items, loaded, errors, activity) */
Datum
saga_workers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	if (!saga_preloaded())
		return (Datum) 0;
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot slot;
		Datum		v[9];
		bool		n[9] = {0};

		LWLockAcquire(&SagaShmem->lock, LW_SHARED);
		slot = SagaShmem->workers[i];
		LWLockRelease(&SagaShmem->lock);
		if (slot.kind == SAGA_WORKER_NONE || slot.dboid != MyDatabaseId)
			continue;
		v[0] = CStringGetTextDatum(kind_names[slot.kind]);
		v[1] = Int32GetDatum(slot.number);
		n[2] = slot.pid == 0;
		v[2] = Int32GetDatum((int32) slot.pid);
		v[3] = TimestampTzGetDatum(slot.started_at);
		v[4] = Int64GetDatum((int64) pg_atomic_read_u64(&slot.turns));
		v[5] = Int64GetDatum((int64) pg_atomic_read_u64(&slot.items));
		v[6] = Int64GetDatum((int64) pg_atomic_read_u64(&slot.loaded));
		v[7] = Int64GetDatum((int64) pg_atomic_read_u64(&slot.errors));
		v[8] = CStringGetTextDatum(slot.activity[0] ? slot.activity :
								   slot.ready ? "running" : "starting");
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, v, n);
	}
	return (Datum) 0;
}

/*
 * () -> (serverid, calls, done, declined, transient, broken, unknown,
 * latency_us, latency_max_us, connections, in_flight, queued, circuit, connects)
 */
Datum
saga_participant_stats(PG_FUNCTION_ARGS)
{
	static const char *const circuits[] = {"closed", "open", "half-open"};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	if (!saga_preloaded())
		return (Datum) 0;
	for (int i = 0; i < SAGA_MAX_PARTICIPANTS; i++)
	{
		SagaParticipantStat *s = &SagaShmem->participants[i];
		Datum		v[14];
		bool		n[14] = {0};

		if (!OidIsValid(s->serverid) || s->dboid != MyDatabaseId)
			continue;
		v[0] = ObjectIdGetDatum(s->serverid);
		v[1] = Int64GetDatum((int64) pg_atomic_read_u64(&s->calls));
		v[2] = Int64GetDatum((int64) pg_atomic_read_u64(&s->done));
		v[3] = Int64GetDatum((int64) pg_atomic_read_u64(&s->declined));
		v[4] = Int64GetDatum((int64) pg_atomic_read_u64(&s->transient));
		v[5] = Int64GetDatum((int64) pg_atomic_read_u64(&s->broken));
		v[6] = Int64GetDatum((int64) pg_atomic_read_u64(&s->unknown));
		v[7] = Int64GetDatum((int64) pg_atomic_read_u64(&s->latency_us));
		v[8] = Int64GetDatum((int64) pg_atomic_read_u64(&s->latency_max_us));
		v[9] = Int32GetDatum((int32) pg_atomic_read_u32(&s->connections));
		v[10] = Int32GetDatum((int32) pg_atomic_read_u32(&s->in_flight));
		v[11] = Int32GetDatum((int32) pg_atomic_read_u32(&s->queued));
		v[12] = CStringGetTextDatum(circuits[Min(pg_atomic_read_u32(&s->circuit), 2)]);
		v[13] = Int64GetDatum((int64) pg_atomic_read_u64(&s->connects));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, v, n);
	}
	return (Datum) 0;
}

/* -------------------------------------------------------- the log's fold */

static void *
arena_alloc(SagaArena *arena, size_t size)
{
	return palloc0(size);
}

/* What is wrong with one saga's log against its row, or NULL. */
static char *
check_one(const pg_uuid_t *id, int64 definition_id, const char *state,
		  const char *direction, const char *cause, bool two_phase)
{
	SagaDefinition *def = saga_definition_by_id(definition_id);
	SagaArena	arena = {arena_alloc, NULL};
	SagaState  *fold;
	List	   *entries;
	ListCell   *cell;
	const char *fold_cause;

	if (def == NULL)
		return psprintf("definition " INT64_FORMAT " does not exist", definition_id);
	if (two_phase)
		def = def->two_phase;
	fold = saga_machine_create(def->graph, SAGA_NEVER, &arena);
	entries = saga_log_read(id);
	foreach(cell, entries)
	{
		SagaLogEntry *entry = lfirst(cell);

		if (entry->record.seq != foreach_current_index(cell) + 1)
			return psprintf("record %d stands where %d is expected",
							entry->record.seq, foreach_current_index(cell) + 1);
		if (!saga_log_apply(fold, entry))
			return psprintf("record %d cannot follow the ones before it", entry->record.seq);
	}
	fold_cause = fold->cause == SAGA_CAUSE_NONE ? NULL : saga_cause_name(fold->cause);
	if (strcmp(saga_state_name(fold->state), state) != 0)
		return psprintf("the row says %s, the log %s", state, saga_state_name(fold->state));
	if (strcmp(fold->direction == SAGA_FORWARD ? "forward" : "undo", direction) != 0)
		return psprintf("the row says %s, the log does not", direction);
	if ((fold_cause == NULL) != (cause == NULL) ||
		(cause && strcmp(fold_cause, cause) != 0))
		return psprintf("the row says cause %s, the log %s", cause ? cause : "none",
						fold_cause ? fold_cause : "none");
	return NULL;
}

/* check_log(id or null) -> (saga_id, problem) */
Datum
saga_check_log(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	char		nulls[2] = " ";
	Portal		portal;
	SagaUserSwitch saved;
	MemoryContext per_saga;

	InitMaterializedSRF(fcinfo, 0);
	values[0] = PG_GETARG_DATUM(0);
	nulls[0] = PG_ARGISNULL(0) ? 'n' : ' ';
	SPI_connect();
	saga_as_extension_owner_begin(&saved);
	per_saga = AllocSetContextCreate(CurrentMemoryContext, "saga check", ALLOCSET_DEFAULT_SIZES);
	portal = SPI_cursor_open_with_args(NULL,
									   "SELECT id, definition_id, state, direction, cause, protocol = 'two_phase' FROM saga.instance"
									   " WHERE id = $1 OR $1 IS NULL",
									   1, types, values, nulls, true, 0);
	for (;;)
	{
		SPITupleTable *table;
		uint64		n;

		SPI_cursor_fetch(portal, true, 500);
		table = SPI_tuptable;
		n = SPI_processed;
		if (n == 0)
			break;
		for (uint64 i = 0; i < n; i++)
		{
			MemoryContext old = MemoryContextSwitchTo(per_saga);
			HeapTuple	row = table->vals[i];
			bool		isnull;
			pg_uuid_t	id = *DatumGetUUIDP(SPI_getbinval(row, table->tupdesc, 1, &isnull));
			char	   *problem;

			CHECK_FOR_INTERRUPTS();
			problem = check_one(&id, DatumGetInt64(SPI_getbinval(row, table->tupdesc, 2, &isnull)),
								SPI_getvalue(row, table->tupdesc, 3),
								SPI_getvalue(row, table->tupdesc, 4),
								SPI_getvalue(row, table->tupdesc, 5),
								DatumGetBool(SPI_getbinval(row, table->tupdesc, 6, &isnull)));
			if (problem)
			{
				Datum		v[2];
				bool		isnulls[2] = {0};

				v[0] = UUIDPGetDatum(&id);
				v[1] = CStringGetTextDatum(problem);
				tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, v, isnulls);
			}
			MemoryContextSwitchTo(old);
			MemoryContextReset(per_saga);
		}
		SPI_freetuptable(table);
	}
	SPI_cursor_close(portal);
	saga_as_extension_owner_end(&saved);
	SPI_finish();
	return (Datum) 0;
}
