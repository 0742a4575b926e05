/*
 * filler.c
 *		The saga filler: gives one projection its contents, at a snapshot of
 *		its own, while the projector keeps the others going.
 *
 * Started by the projector once the changes of the projection's sources are
 * kept from a point before any snapshot that is taken here.  Contents and
 * snapshot commit together; what the snapshot did not see comes from the
 * projector afterwards.  Ends after one projection.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "replication/origin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "projection_stat.h"
#include "projection_view.h"
#include "projector.h"
#include "quarantine.h"
#include "saga.h"
#include "spi_util.h"

static SagaProjection *
wanted(int64 id)
{
	ListCell   *lc;

	foreach(lc, saga_projections)
		if (((SagaProjection *) lfirst(lc))->id == id)
			return lfirst(lc);
	return NULL;
}

static void
store(SagaProjection *p, Datum snapshot)
{
	Oid			types[2] = {INT8OID, PG_SNAPSHOTOID};
	Datum		values[2] = {Int64GetDatum(p->id), snapshot};

	(void) saga_spi_own("UPDATE saga.projection p SET state = CASE WHEN p.state IN ('filling', 'rebuilding') THEN 'following' ELSE p.state END, "
						"filled = true, stale = false, "
						"reason = NULL, sqlstate = NULL, snapshot = $2, position = f.position, at = pg_catalog.now(), "
						"identity = f.identity, since = pg_catalog.clock_timestamp() FROM saga.feed f WHERE p.id = $1",
						2, types, values, NULL, NULL, NULL);
}

/* Everything at one snapshot; an error goes to the caller. */
static void
fill(int64 id)
{
	SagaApplyResult result = {0};
	SagaProjection *p;
	ListCell   *lc;
	Datum		snapshot;

	if (!saga_worker_enter("filling a projection"))
		proc_exit(0);
	XactIsoLevel = XACT_REPEATABLE_READ;

	/* the same lock order as everybody's: sources by OID, then the snapshot */
	p = wanted(id);
	foreach(lc, p->program->sources)
		(void) find_all_inheritors(((SagaSource *) lfirst(lc))->relid, AccessShareLock, NULL);
	if ((p->program->views != NIL ||
		 !saga_digests_equal(p->built_on, saga_set_digests(p->program))) &&
		!saga_set_build(p))
	{
		/* parked: it was altered since */
		saga_projector_wake_at_commit();
		saga_worker_leave(true);
		proc_exit(0);
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	snapshot = DirectFunctionCall1(pg_current_snapshot, (Datum) 0);
	saga_projection_phase(id, p->filled ? SAGA_PHASE_COMPARING : SAGA_PHASE_FILLING,
						  list_length(p->program->stages));
	saga_quarantine_enter(SAGA_LANE_FILLER, id);
	if (p->filled)
		saga_apply_diff(p->apply, &result);
	else
		saga_apply_fill(p->apply, &result);
	saga_quarantine_leave(SAGA_LANE_FILLER);
	saga_projection_phase(id, SAGA_PHASE_CATCHING_UP, 0);
	replorigin_session_origin = DoNotReplicateId;
	store(p, snapshot);
	saga_set_filled_on(p, p->built_on);
	replorigin_session_origin = InvalidRepOriginId;
	saga_projector_wake_at_commit();
	PopActiveSnapshot();
	saga_worker_leave(true);
}

/* One that replaces another takes its place now, or when it can be locked. */
static void
take_place(int64 id)
{
	bool		done = false;

	while (!done)
	{
		if (!saga_worker_begin("replacing a projection"))
			proc_exit(0);
		done = saga_projection_filled(id);
		saga_worker_commit(true);
		if (!done)
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 1000, saga_wait_event("SagaFillerMain"));
		ResetLatch(MyLatch);
		saga_worker_interrupts();
	}
}

void
saga_filler_main(Datum main_arg)
{
	MemoryContext context;
	int64		id;
	SagaProjection *p;

	(void) saga_worker_start(main_arg, false);
	memcpy(&id, MyBgworkerEntry->bgw_extra, sizeof(id));
	saga_set_init();
	saga_quarantine_open();

	if (!saga_worker_begin("loading projections"))
		proc_exit(0);
	saga_set_load_one(id);
	saga_worker_commit(true);
	p = wanted(id);
	if (p == NULL || p->program == NULL ||
		(p->state != SAGA_P_FILLING && p->state != SAGA_P_REBUILDING))
		proc_exit(0);

	context = CurrentMemoryContext;
	PG_TRY();
	{
		fill(id);
		take_place(id);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		saga_quarantine_leave(SAGA_LANE_FILLER);
		replorigin_session_origin = InvalidRepOriginId;
		if (saga_error_is_transient(error))
			PG_RE_THROW();		/* the projector starts another one */
		EmitErrorReport();
		FlushErrorState();
		saga_worker_abort();
		if (!saga_worker_begin("parking a projection"))
			proc_exit(0);
		saga_set_state(p, SAGA_P_PARKED, p->filled, error->message,
					   saga_sqlstate_text(error->sqlerrcode));
		saga_projector_wake_at_commit();
		saga_worker_commit(true);
	}
	PG_END_TRY();
	proc_exit(0);
}
