/*
 * projection_wait.c
 *		Reads that wait: saga.read_consistency and strict projections.
 *
 * An executor hook in every backend.  It costs one comparison unless the
 * setting asks for more than eventual or a strict projection exists.
 *
 * A plain SELECT in READ COMMITTED waits until the projector has published a
 * position at or past what the read requires, and then gets a new snapshot:
 * the position is published when the batch can be seen by all, so a snapshot
 * taken later sees it.  Queries that cannot get another snapshot (in
 * functions, cursors, EXPLAIN ANALYZE, REPEATABLE READ) wait too, and fail if
 * the contents that their snapshot sees are not those of now.
 *
 * Waiting inside a function of the view would not do: by then the query has
 * its snapshot.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/pquery.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "errors.h"
#include "feed_shared.h"
#include "guc.h"
#include "projection_read.h"
#include "projection_stat.h"

/* How long a projection that lags behind the others is left alone. */
#define LOOK_AGAIN_MS	10

/* How often a waiting session looks whether waiting has become vain. */
#define LOOK_AT_STATE_MS	500

typedef struct Wanted
{
	int64		id;
	SagaConsistency consistency;
} Wanted;

static ExecutorStart_hook_type prev_executor_start = NULL;

XLogRecPtr
saga_wal_end(void)
{
	XLogRecPtr	end = GetXLogInsertRecPtr();

	if (XLogSegmentOffset(end, wal_segment_size) == SizeOfXLogLongPHD)
		end -= SizeOfXLogLongPHD;
	else if (end % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		end -= SizeOfXLogShortPHD;
	return end;
}

/* ---- may it be waited for at all ---- */

void
saga_projection_require_upkeep(const SagaProjectionRow *row)
{
	if (row->filled && row->stale)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_NOT_CONSISTENT),
				 errmsg("projection \"%s\" is stale", saga_projection_name(row->view)),
				 row->reason ? errdetail_internal("%s", row->reason) : 0,
				 errhint("It shows old rows until it has been rebuilt; see saga.projections.")));
	if (strcmp(row->state, "paused") == 0 || strcmp(row->state, "parked") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_NOT_CONSISTENT),
				 errmsg("projection \"%s\" is %s", saga_projection_name(row->view), row->state),
				 row->reason ? errdetail_internal("%s", row->reason) : 0,
				 errhint("saga.resume_projection() lets it go on.")));
}

static void
late(const SagaProjectionRow *row)
{
	XLogRecPtr	position;

	ereport(ERROR,
			(errcode(ERRCODE_SAGA_CONSISTENCY_LATE),
			 errmsg("projection \"%s\" has not caught up in time",
					saga_projection_name(row->view)),
			 saga_projector_position(&position) ? 0 :
			 errdetail("No projector runs in this database now."),
			 errhint("Increase saga.read_timeout, or read with less consistency.")));
}

/* ---- waiting ---- */

static long
ms_until(TimestampTz end)
{
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
}

/*
 * Do the contents hold all commits before 'until', as far as the projection's
 * own row says?  The feed's position is known from shared memory.
 */
static bool
own_position_reached(const SagaProjectionRow *row, XLogRecPtr until)
{
	return !row->filled || !row->own || row->position >= until;
}

void
saga_projection_pause(void)
{
	saga_projector_kick();
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 LOOK_AGAIN_MS, saga_wait_event("SagaProjectionWait"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* False if nothing is to be waited for; raises if it would be in vain. */
static bool
may_be_waited_for(int64 id, SagaProjectionRow *row)
{
	if (!saga_projection_row(id, NULL, row))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the projection has been dropped or replaced")));
	if (!row->filled)
		return false;			/* readers run the query itself */
	saga_projection_require_upkeep(row);
	return true;
}

bool
saga_projection_wait(int64 id, XLogRecPtr until, TimestampTz end)
{
	SagaProjectionRow row;

	if (!may_be_waited_for(id, &row))
		return true;

	/* the projector reads flushed WAL only */
	XLogFlush(until);
	for (;;)
	{
		bool		published = saga_projector_wait(until,
													Min(LOOK_AT_STATE_MS, Max(0, ms_until(end))));

		if (!may_be_waited_for(id, &row) ||
			(published && own_position_reached(&row, until)))
			return true;
		if (ms_until(end) <= 0)
			return false;
		if (published)
			saga_projection_pause();
	}
}

/* ---- the hook ---- */

/* What the plan reads, and how strictly. */
static List *
wanted_of(const PlannedStmt *plan)
{
	List	   *wanted = NIL;
	ListCell   *lc;

	foreach(lc, plan->relationOids)
	{
		int64		id;
		bool		strict;
		SagaConsistency consistency = (SagaConsistency) saga_read_consistency;
		Wanted	   *w;

		if (!saga_projection_is_view(lfirst_oid(lc), &id, &strict))
			continue;
		if (strict)
			consistency = SAGA_READ_STRICT;
		if (consistency == SAGA_READ_EVENTUAL ||
			(consistency == SAGA_READ_SESSION && XactLastCommitEnd == InvalidXLogRecPtr))
			continue;			/* or: this session committed nothing yet */
		w = palloc(sizeof(Wanted));
		w->id = id;
		w->consistency = consistency;
		wanted = lappend(wanted, w);
	}
	return wanted;
}

static XLogRecPtr
required_by(const Wanted *w)
{
	if (w->consistency == SAGA_READ_SESSION)
		return XactLastCommitEnd;
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_NOT_CONSISTENT),
				 errmsg("a standby cannot know what was committed before"),
				 errhint("Read from the primary, or set saga.read_consistency to \"eventual\".")));
	return saga_wal_end();
}

/* Forget those that this snapshot shows as the live query. */
static List *
drop_unfilled(List *wanted, Snapshot snapshot)
{
	List	   *kept = NIL;
	ListCell   *lc;

	foreach(lc, wanted)
	{
		Wanted	   *w = lfirst(lc);
		bool		filled;
		bool		strict;

		if (saga_projection_filled_under(w->id, snapshot, &filled, &strict) && filled)
			kept = lappend(kept, w);
	}
	return kept;
}

/*
 * Is this the start of a plain SELECT of the client's, whose snapshot nobody
 * has used yet?  Then leaves no active snapshot.
 */
static bool
can_have_another_snapshot(QueryDesc *query)
{
	Portal		portal = ActivePortal;

	if (IsolationUsesXactSnapshot() || portal == NULL ||
		portal->strategy != PORTAL_ONE_SELECT ||
		list_length(portal->stmts) != 1 ||
		linitial(portal->stmts) != query->plannedstmt ||
		!ActiveSnapshotSet())
		return false;
	PopActiveSnapshot();
	if (!ActiveSnapshotSet())
		return true;

	/* there is an outer query */
	PushActiveSnapshot(query->snapshot);
	return false;
}

static void
wait_and_look_again(QueryDesc *query, List *wanted, TimestampTz end)
{
	ListCell   *lc;
	XLogRecPtr *required = palloc0(sizeof(XLogRecPtr) * list_length(wanted));
	bool		reached = false;

	foreach(lc, wanted)
		required[foreach_current_index(lc)] = required_by(lfirst(lc));

	/* do not hold back the horizon while waiting */
	UnregisterSnapshot(query->snapshot);
	query->snapshot = InvalidSnapshot;
	while (!reached)
	{
		foreach(lc, wanted)
		{
			Wanted	   *w = lfirst(lc);
			SagaProjectionRow row;

			if (!saga_projection_wait(w->id, required[foreach_current_index(lc)], end) &&
				saga_projection_row(w->id, NULL, &row))
				late(&row);
		}
		query->snapshot = RegisterSnapshot(GetTransactionSnapshot());

		/* one that stood where the feed stands may have fallen behind since */
		reached = true;
		foreach(lc, wanted)
		{
			Wanted	   *w = lfirst(lc);
			SagaProjectionRow row;

			reached = reached &&
				(!saga_projection_row(w->id, query->snapshot, &row) ||
				 own_position_reached(&row, required[foreach_current_index(lc)]));
		}
		if (!reached)
		{
			UnregisterSnapshot(query->snapshot);
			query->snapshot = InvalidSnapshot;
		}
	}
	PushActiveSnapshot(query->snapshot);
}

/*
 * Is what the snapshot sees of the projection what a new one would see?  The
 * feed moves on in batches that have nothing for this one, too.
 */
static bool
same_contents(int64 id, Snapshot snapshot)
{
	uint64		changed_after = pg_atomic_read_u64(&saga_projection_stat(id)->changed_after);
	SagaProjectionRow seen;
	SagaProjectionRow latest;
	SagaFeedStand seen_feed;
	SagaFeedStand latest_feed;

	if (!saga_projection_row(id, snapshot, &seen) ||
		!saga_projection_row(id, NULL, &latest) ||
		!saga_feed_stand(snapshot, &seen_feed) ||
		!saga_feed_stand(NULL, &latest_feed) ||
		seen.since != latest.since || seen.own != latest.own)
		return false;			/* filled, rebuilt, paused, ... meanwhile */
	if (seen.own)
		return seen.position == latest.position && seen.at == latest.at;
	return seen_feed.batches == latest_feed.batches ||
		(changed_after != SAGA_CHANGED_UNKNOWN &&
		 seen_feed.position > changed_after);
}

/* Wait, but keep the snapshot: it must see what a new one would. */
static void
wait_and_compare(QueryDesc *query, List *wanted, TimestampTz end)
{
	ListCell   *lc;

	foreach(lc, wanted)
	{
		Wanted	   *w = lfirst(lc);
		XLogRecPtr	required = required_by(w);
		SagaProjectionRow row;

		if (!saga_projection_row(w->id, NULL, &row))
			continue;
		if (w->consistency == SAGA_READ_STRICT && IsolationUsesXactSnapshot())
			ereport(ERROR,
					(errcode(ERRCODE_SAGA_NOT_CONSISTENT),
					 errmsg("projection \"%s\" cannot be read strictly in this isolation level",
							saga_projection_name(row.view)),
					 errdetail("The snapshot of the transaction is older than the read."),
					 errhint("Call saga.wait_for_projection() before the transaction, and read with saga.read_consistency = eventual; or use READ COMMITTED.")));
		if (!saga_projection_wait(w->id, required, end))
			late(&row);
		if (!same_contents(w->id, query->snapshot))
			ereport(ERROR,
					(errcode(ERRCODE_SAGA_CONSISTENCY_LATE),
					 errmsg("the query's snapshot is older than the contents of projection \"%s\" that it requires",
							saga_projection_name(row.view)),
					 errhint("Only a SELECT that the client sends by itself can wait for them; or call saga.wait_for_projection() before.")));
	}
}

/* Returns whether another snapshot was made the active one. */
static void
read_consistently(QueryDesc *query)
{
	List	   *wanted = wanted_of(query->plannedstmt);
	TimestampTz end;

	if (wanted != NIL)
		wanted = drop_unfilled(wanted, query->snapshot);
	if (wanted == NIL)
		return;
	saga_require_preload();
	end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), saga_read_timeout);
	if (can_have_another_snapshot(query))
		wait_and_look_again(query, wanted, end);
	else
		wait_and_compare(query, wanted, end);
}

static void
executor_start(QueryDesc *query, int eflags)
{
	bool		any_strict;

	/* a projection is a view, so a plan that reads one has relations */
	if (!(eflags & EXEC_FLAG_EXPLAIN_ONLY) &&
		query->plannedstmt->relationOids != NIL &&
		query->snapshot != InvalidSnapshot && IsMVCCSnapshot(query->snapshot) &&
		!IsParallelWorker() &&
		saga_projection_views(&any_strict) &&
		(any_strict || saga_read_consistency != SAGA_READ_EVENTUAL))
		read_consistently(query);
	if (prev_executor_start)
		prev_executor_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
}

void
saga_projection_wait_init(void)
{
	prev_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
}
