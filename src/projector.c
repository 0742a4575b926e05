/*
 * projector.c
 *		The saga projector: one per database that has projections.
 *
 * Owns the replication slot and the life of projections: decodes ahead, calls
 * for a batch (projector_batch.c) when there is something to apply, starts the
 * filler of a new projection when its snapshot can be taken, confirms to the
 * slot what is durable, and gives up whatever would hold back the WAL too
 * long.  Sleeps without a timer's tick when nobody writes.
 *
 * An error that is no single projection's ends the process; the launcher
 * starts another one, which goes on from the stored snapshot.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "guc.h"
#include "projector.h"
#include "projection_stat.h"
#include "projection_view.h"
#include "quarantine.h"
#include "saga.h"
#include "spi_util.h"

#define DECODE_SLICE	200		/* ms of decoding between looks at the latch */
#define IDLE_POLL		1000	/* ms: a net under the wake-up at commit */
#define UNFLUSHED_POLL	20		/* ms: asynchronous commits become decodable */
#define JOIN_AGAIN		INT64CONST(200000)	/* us */
#define FIRST_RETRY		INT64CONST(50000)	/* us */
#define LAST_RETRY		INT64CONST(1000000)
#define SHORTEST_REST	INT64CONST(5000)	/* us between batches: each flushes the WAL
										 * once, which a lone writer would feel */

static SagaFeedShared *shared;
static SagaWorkerSlot *my_slot;
static SagaFeed *feed;
static SagaFeedRow row;
static uint32 seen_changes;		/* of shared->changed */
static bool loaded = false;
static XLogRecPtr last_commit = InvalidXLogRecPtr;	/* of a batch: not to be
													 * confirmed before it is
													 * flushed */
static TimestampTz rest_until = 0;
static TimestampTz join_at = 0; /* who could not join, for a lock, tries then */
static int	deferred_wait = 1;	/* ms */
static bool batch_asked = false;
static int	failures = 0;		/* batches in a row that came to nothing */
static TimestampTz retry_at = 0;
static TimestampTz filler_retry_at = 0;
static TimestampTz plain_look_at = 0;

static void
leave_shared(int code, Datum arg)
{
	shared->latch = NULL;
	ConditionVariableBroadcast(&shared->moved);
}

static void
hold(const char *why)
{
	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	strlcpy(my_slot->activity, why, sizeof(my_slot->activity));
	LWLockRelease(&SagaShmem->lock);
}

/* The extension is gone from this database: hold nothing back. */
void
saga_projector_leave(void)
{
	saga_feed_slot_drop(true);
	shared->wanted = false;
	proc_exit(0);
}

static void
begin(const char *activity)
{
	if (!saga_worker_begin(activity))
		saga_projector_leave();
}

/* ------------------------------------------------------------------- slot */

static void
read_feed_row(void)
{
	bool		isnull;
	Datum		value;
	HeapTuple	tuple;
	TupleDesc	desc;

	if (SPI_execute("SELECT slot, snapshot, position, batches, timeline, identity FROM saga.feed", false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read saga.feed");
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	memset(&row, 0, sizeof(row));
	value = SPI_getbinval(tuple, desc, 1, &isnull);
	if (!isnull)
		strlcpy(row.slot, TextDatumGetCString(value), NAMEDATALEN);
	value = SPI_getbinval(tuple, desc, 2, &isnull);
	row.snapshot = isnull ? (Datum) 0 : saga_snapshot_copy(value, TopMemoryContext);
	row.position = DatumGetLSN(SPI_getbinval(tuple, desc, 3, &isnull));
	row.batches = DatumGetInt64(SPI_getbinval(tuple, desc, 4, &isnull));
	row.timeline = DatumGetInt32(SPI_getbinval(tuple, desc, 5, &isnull));
	row.identity = MemoryContextStrdup(TopMemoryContext,
									   TextDatumGetCString(SPI_getbinval(tuple, desc, 6, &isnull)));
}

/*
 * Changes are missing: what stands in storage stays readable and is brought
 * to its query by difference.  The slot's name goes first, so that a slot
 * made for nothing after a crash is never taken for ours.
 */
static void
begin_anew(const char *why)
{
	Oid			type = TEXTOID;
	Datum		value;

	begin("giving up the slot");
	value = CStringGetTextDatum(why);
	(void) saga_spi_own("UPDATE saga.feed SET slot = NULL, identity = '', snapshot = NULL, position = '0/0'",
						0, NULL, NULL, NULL, NULL, NULL);
	(void) saga_spi_own("UPDATE saga.projection SET state = CASE WHEN filled THEN 'rebuilding' ELSE 'filling' END, "
						"stale = filled, reason = CASE WHEN filled THEN $1 END, sqlstate = NULL, "
						"snapshot = NULL, position = NULL, since = pg_catalog.clock_timestamp() "
						"WHERE state IN ('following', 'rebuilding') OR state = 'parked' AND NOT stale",
						1, &type, &value, NULL, NULL, NULL);
	(void) saga_spi_own("UPDATE saga.projection SET stale = true WHERE state = 'paused'",
						0, NULL, NULL, NULL, NULL, NULL);
	saga_worker_commit(true);
	saga_feed_slot_drop(true);
	ereport(LOG,
			(errmsg("projections of database %u are rebuilt: %s", MyDatabaseId, why)));
}

static void
make_slot(void)
{
	Oid			types[2] = {TEXTOID, INT4OID};
	Datum		values[2];
	NameData	name;

	hold("waiting for running transactions, to make the replication slot");
	if (!saga_worker_enter("making the replication slot"))
		saga_projector_leave();
	saga_feed_slot_drop(true);
	saga_feed_slot_create();
	saga_worker_leave(false);

	saga_feed_slot_name(&name);
	begin("making the replication slot");
	values[0] = CStringGetTextDatum(NameStr(name));
	values[1] = Int32GetDatum((int32) GetWALInsertionTimeLine());
	(void) saga_spi_own("UPDATE saga.feed SET slot = $1, timeline = $2, "
						"identity = pg_catalog.gen_random_uuid()::text, snapshot = NULL, position = '0/0', batches = 0",
						2, types, values, NULL, NULL, NULL);
	read_feed_row();
	saga_worker_commit(true);
	hold("");
}

/* Why the slot that saga.feed names cannot be gone on with, or NULL. */
static const char *
slot_fault(void)
{
	if (row.slot[0] == '\0')
		return NULL;
	if (!saga_feed_slot_exists())
		return "the replication slot is gone";
	if (row.timeline != (int32) GetWALInsertionTimeLine())
		return "the server was promoted or restored";
	return saga_feed_slot_fault();
}

static void
open_feed(void)
{
	const char *fault;

	begin("looking for the slot");
	read_feed_row();
	saga_worker_commit(false);
	fault = slot_fault();
	if (fault)
	{
		begin_anew(fault);
		row.slot[0] = '\0';
	}
	if (row.slot[0] == '\0')
		make_slot();

	if (!saga_worker_enter("opening the slot"))
		saga_projector_leave();
	feed = saga_feed_open();
	saga_worker_leave(false);
}

/* ------------------------------------------------------------- the set */

/*
 * Sessions set a state; which snapshot goes with it is for us to say, since a
 * batch may have been under way.  A row without a snapshot of its own stands
 * where the feed stands.
 */
static void
settle_states(void)
{
	saga_spi_own("UPDATE saga.projection p SET snapshot = f.snapshot, position = f.position, at = f.at "
				 "FROM saga.feed f WHERE p.snapshot IS NULL AND p.state IN ('paused', 'parked') "
				 "AND p.filled AND NOT p.stale",
				 0, NULL, NULL, NULL, NULL, NULL);
	saga_spi_own("UPDATE saga.projection SET stale = true, snapshot = NULL, position = NULL "
				 "WHERE state = 'rebuilding' AND NOT stale",
				 0, NULL, NULL, NULL, NULL, NULL);
}

/*
 * A projection that is to be filled: from here on its changes are kept.  Its
 * snapshot may be taken when all that was decoded before is visible.
 */
static void
register_fill(SagaProjection *p)
{
	p->tracked = true;
	p->first = saga_set_first;
	saga_projection_phase(p->id, SAGA_PHASE_WAITING, 1);
}

static bool
may_be_filled(const SagaProjection *p)
{
	dlist_iter	iter;

	dlist_foreach(iter, &feed->txns)
	{
		SagaFeedTxn *txn = dlist_container(SagaFeedTxn, node, iter.cur);

		if (txn->number >= p->first)
			break;
		if (TransactionIdIsInProgress(XidFromFullTransactionId(txn->xid)))
			return false;
	}
	return saga_feed_settled(feed);
}

static void
look_at_set(void)
{
	uint32		changes = pg_atomic_read_u32(&shared->changed);
	ListCell   *lc;
	bool		to_track = !loaded || changes != seen_changes;

	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		if ((p->state == SAGA_P_FILLING || p->state == SAGA_P_REBUILDING) && !p->tracked)
			to_track = true;
	}
	if (!to_track)
		return;
	seen_changes = changes;
	loaded = true;
	batch_asked = true;
	join_at = 0;
	begin("loading projections");
	(void) saga_projection_sweep();
	settle_states();
	saga_set_load_handlers(feed, &row);
	saga_set_load(feed);
	saga_set_start_handlers(feed, &row);
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		if ((p->state == SAGA_P_FILLING || p->state == SAGA_P_REBUILDING) &&
			!p->tracked && p->program != NULL)
			register_fill(p);
	}
	saga_worker_commit(true);
	if (saga_projections == NIL && saga_handlers == NIL)
	{
		/* the last one is gone: hold back nothing */
		begin("dropping the slot");
		(void) saga_spi_own("UPDATE saga.feed SET slot = NULL, identity = '', snapshot = NULL, position = '0/0'",
							0, NULL, NULL, NULL, NULL, NULL);
		saga_worker_commit(true);
		saga_feed_slot_drop(true);
		shared->wanted = pg_atomic_read_u32(&shared->changed) != seen_changes;
		proc_exit(0);
	}
}

/* ------------------------------------------------------------------ fills */

/*
 * What has crashed its worker again and again is left alone; handlers have
 * negative numbers there.
 */
static void
quarantine(SagaLane lane)
{
	int64		suspect = saga_quarantine_suspect(lane);
	Oid			type = INT8OID;
	Datum		id = Int64GetDatum(Abs(suspect));

	if (suspect == 0)
		return;
	begin("parking what crashes");
	if (suspect > 0)
		(void) saga_spi_own("UPDATE saga.projection SET state = 'parked', stale = filled, snapshot = NULL, position = NULL, "
							"reason = 'its upkeep crashed the server process several times in a row', sqlstate = '58000', "
							"since = pg_catalog.clock_timestamp() WHERE id = $1",
							1, &type, &id, NULL, NULL, NULL);
	else
		(void) saga_spi_own("UPDATE saga.handler SET state = 'parked', "
							"reason = 'its calls crashed the server process several times in a row', sqlstate = '58000', "
							"since = pg_catalog.clock_timestamp() WHERE id = $1",
							1, &type, &id, NULL, NULL, NULL);
	saga_worker_commit(true);
}

static bool
filler_runs(void)
{
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
		if (SagaShmem->workers[i].kind == SAGA_WORKER_FILLER &&
			SagaShmem->workers[i].dboid == MyDatabaseId)
			return true;
	return false;
}

static bool
start_filler(SagaProjection *p)
{
	SagaWorkerSlot *slot = saga_slot_claim(SAGA_WORKER_FILLER, MyDatabaseId, (int) p->id);
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	if (slot == NULL)
		return false;
	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "saga", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "saga_filler_main", sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "saga filler of database %u", MyDatabaseId);
	strlcpy(worker.bgw_type, "saga filler", sizeof(worker.bgw_type));
	worker.bgw_main_arg = Int32GetDatum(saga_slot_index(slot));
	memcpy(worker.bgw_extra, &p->id, sizeof(p->id));
	worker.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		saga_slot_free(slot);
		return false;
	}
	pfree(handle);
	return true;
}

/* Start what may be filled now; returns ms until it is worth another look. */
static long
start_fills(TimestampTz now)
{
	ListCell   *lc;
	long		wait = -1;

	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		if ((p->state != SAGA_P_FILLING && p->state != SAGA_P_REBUILDING) ||
			!p->tracked || p->program == NULL)
			continue;
		if (filler_runs() || now < filler_retry_at)
		{
			wait = Max(wait, 100);
			continue;
		}
		if (may_be_filled(p))
			(void) start_filler(p);
		filler_retry_at = now + 500 * INT64CONST(1000);
		wait = Max(wait, 100);
	}
	return wait;
}

/* -------------------------------------------------------- slot and lag */

static void
confirm(void)
{
	XLogRecPtr	lsn = feed->decoded;

	if (last_commit > GetFlushRecPtr(NULL))
		return;
	if (!dlist_is_empty(&feed->txns))
		lsn = dlist_head_element(SagaFeedTxn, node, &feed->txns)->commit_lsn;
	if (lsn != InvalidXLogRecPtr)
		saga_feed_confirm(feed, lsn);
}

/* Drop what nobody needs any more. */
static void
forget_applied(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &feed->txns)
	{
		SagaFeedTxn *txn = dlist_container(SagaFeedTxn, node, iter.cur);

		if (!saga_set_keeps(row.snapshot, txn))
			saga_feed_forget(feed, txn);
	}
}

/* Whoever makes us hold back more WAL than allowed is given up. */
static void
limit_lag(void)
{
	SagaFeedTxn *oldest;
	bool		any = false;
	ListCell   *lc;

	if (dlist_is_empty(&feed->txns))
		return;
	oldest = dlist_head_element(SagaFeedTxn, node, &feed->txns);
	if (GetXLogInsertRecPtr() - oldest->commit_lsn < (uint64) saga_max_slot_lag * 1024 * 1024)
		return;
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		if (!saga_projection_keeps(p, oldest))
			continue;
		if (!any)
			begin("giving up a projection that lags");
		any = true;
		saga_set_snapshot(p, (Datum) 0, InvalidXLogRecPtr);
		saga_set_state(p, p->state == SAGA_P_PAUSED ? SAGA_P_PAUSED : SAGA_P_PARKED, p->filled,
					   "it held back more WAL than saga.max_slot_lag allows; "
					   "saga.resume_projection() rebuilds it", "SGL01");
	}
	foreach(lc, saga_handlers)
	{
		if (!saga_handler_keeps(lfirst(lc), oldest))
			continue;
		if (!any)
			begin("giving up a handler that lags");
		any = true;
		saga_handler_lose(lfirst(lc), "it held back more WAL than saga.max_slot_lag allows");
	}
	if (any)
	{
		saga_worker_commit(true);
		forget_applied();
	}
}

/* Has every snapshot ended that could see less than this transaction did? */
static bool
horizon_passed(TransactionId xid)
{
	Relation	rel;
	TransactionId horizon;

	begin("looking at the oldest snapshot");
	rel = table_open(saga_relation_oid("projection"), AccessShareLock);
	PopActiveSnapshot();
	horizon = GetOldestNonRemovableTransactionId(rel);
	PushActiveSnapshot(GetTransactionSnapshot());
	table_close(rel, AccessShareLock);
	saga_worker_commit(false);
	return TransactionIdFollowsOrEquals(horizon, xid);
}

/*
 * A view that still asks whether its storage is filled is replaced by one that
 * does not, once no snapshot is left that could be older than the contents.
 */
static void
make_views_plain(TimestampTz now)
{
	ListCell   *lc;

	if (now < plain_look_at)
		return;
	plain_look_at = now + USECS_PER_SEC;
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		if (p->plain || !p->filled || p->state != SAGA_P_FOLLOWING || p->snapshot != (Datum) 0)
			continue;
		if (!TransactionIdIsValid(p->plain_after))
		{
			p->plain_after = ReadNextTransactionId();
			continue;
		}
		if (horizon_passed(p->plain_after))
		{
			begin("replacing a view");
			p->plain = saga_projection_make_plain(p->id);
			saga_worker_commit(false);
		}
	}
}

/* ------------------------------------------------------------------- loop */

typedef enum Need
{
	NOTHING,
	DEFERRED,					/* all that is left is not visible yet */
	BATCH,
	BATCH_NOW,					/* somebody waits, or there is a lot */
} Need;

static Need
look_for_work(void)
{
	Need		need = NOTHING;
	int64		changes = 0;
	XLogRecPtr	reachable = GetXLogInsertRecPtr();
	dlist_iter	iter;
	ListCell   *lc;

	dlist_foreach(iter, &feed->txns)
	{
		SagaFeedTxn *txn = dlist_container(SagaFeedTxn, node, iter.cur);

		if (row.snapshot != (Datum) 0 && saga_snapshot_sees(row.snapshot, txn->xid))
			continue;
		if (TransactionIdIsInProgress(XidFromFullTransactionId(txn->xid)))
		{
			need = Max(need, DEFERRED);
			reachable = Min(reachable, txn->commit_lsn);
		}
		else
		{
			need = Max(need, BATCH);
			changes += txn->changes;
			if (changes >= saga_batch_rows)
				return BATCH_NOW;
		}
	}
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		if (p->state == SAGA_P_FOLLOWING && p->snapshot != (Datum) 0 && p->program != NULL &&
			saga_now() >= join_at)
			need = Max(need, BATCH);
	}
	if (saga_projections_dirty)
		need = Max(need, BATCH);
	if (batch_asked || saga_check_pending() ||
		(row.position < pg_atomic_read_u64(&shared->wanted_position) &&
		 row.position < reachable))
		need = BATCH_NOW;
	return need;
}

/* Transactions that are decoded and not applied, for saga.stat_projections. */
static void
count_waiting(void)
{
	int64		unseen = 0;
	dlist_iter	iter;
	ListCell   *lc;

	dlist_foreach(iter, &feed->txns)
		if (!saga_snapshot_sees(row.snapshot, dlist_container(SagaFeedTxn, node, iter.cur)->xid))
			unseen++;
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);
		bool		own = p->state != SAGA_P_FOLLOWING || p->snapshot != (Datum) 0;

		pg_atomic_write_u64(&saga_projection_stat(p->id)->waiting,
							(uint64) (own ? feed->ntxns : unseen));
	}
}

static void
publish(void)
{
	pg_atomic_write_u64(&shared->position, row.position);
	ConditionVariableBroadcast(&shared->moved);
	pg_atomic_write_u64(&my_slot->turns, (uint64) row.batches);
}

static bool
batch(void)
{
	TimestampTz began = saga_now();
	TimestampTz ended;
	int64		cost;

	if (!saga_batch(feed, &row))
	{
		retry_at = saga_now() + Min(FIRST_RETRY << Min(failures, 10), LAST_RETRY);
		failures++;
		if (saga_set_touched)
		{
			/* what we remember of the projections was rolled back */
			saga_set_discard();
			loaded = false;
		}
		return false;
	}
	failures = 0;
	batch_asked = false;
	last_commit = Max(last_commit, XactLastCommitEnd);
	publish();
	count_waiting();
	deferred_wait = 1;
	ended = saga_now();
	join_at = ended + JOIN_AGAIN;
	cost = ended - began;
	rest_until = ended + Min(Max(cost, SHORTEST_REST),
							 (int64) saga_batch_time * 1000);
	return true;
}

static void
wait_for(long ms, bool asleep)
{
	if (asleep)
	{
		pg_atomic_write_u32(&shared->asleep, 1);
		pg_memory_barrier();
		/* a commit that came before the flag did is decoded now */
		if (saga_feed_flushed() > feed->decoded && ms > 1)
			ms = 1;
	}
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 ms, saga_wait_event("SagaProjectorMain"));
	pg_atomic_write_u32(&shared->asleep, 0);
	ResetLatch(MyLatch);
}

static void
turn(void)
{
	TimestampTz now;
	Need		need;
	long		fill_wait;
	long		handler_wait;
	long		wait;
	bool		all;
	bool		batched = false;

	saga_worker_interrupts();
	look_at_set();
	if (saga_feed_flushed() > feed->decoded)
	{
		if (!saga_worker_enter("decoding"))
			saga_projector_leave();
		all = saga_feed_decode(feed, saga_feed_flushed(), DECODE_SLICE);
		saga_worker_leave(false);
		if (feed->invalidated)
			saga_projections_dirty = true;
	}
	else
		all = true;
	now = saga_now();
	fill_wait = start_fills(now);
	limit_lag();
	need = look_for_work();
	if (now >= retry_at &&
		(need == BATCH_NOW || (need == BATCH && now >= rest_until)))
	{
		if (!batch())
			return;
		need = NOTHING;
		batched = true;
	}
	handler_wait = saga_handlers_follow(feed, &row, &last_commit);
	if (batched || handler_wait >= 0)
		forget_applied();
	confirm();
	make_views_plain(now);
	if (batched || handler_wait == 0)
		return;
	if (!all)
		return;
	if (need == BATCH || need == BATCH_NOW)
		wait_for(Max(1, (Max(retry_at, need == BATCH ? rest_until : 0) - now + 999) / 1000),
				 false);
	else
	{
		if (need == DEFERRED)
		{
			wait = deferred_wait;
			deferred_wait = Min(deferred_wait * 2, 200);
		}
		else if (GetXLogInsertRecPtr() > saga_feed_flushed() + SizeOfXLogLongPHD)
			wait = UNFLUSHED_POLL;
		else
		{
			wait = IDLE_POLL;
			pg_atomic_write_u64(&shared->looked_at, (uint64) now);
		}
		if (fill_wait >= 0)
			wait = Min(wait, fill_wait);
		if (handler_wait >= 0)
			wait = Min(wait, handler_wait);
		wait_for(wait, true);
	}
}

void
saga_projector_main(Datum main_arg)
{
	my_slot = saga_worker_start(main_arg, false);
	shared = saga_feed_shared(true);
	if (shared == NULL)
		proc_exit(0);
	shared->latch = MyLatch;
	shared->wanted = true;
	before_shmem_exit(leave_shared, (Datum) 0);
	saga_set_init();
	saga_quarantine_open();
	quarantine(SAGA_LANE_PROJECTOR);
	quarantine(SAGA_LANE_FILLER);
	open_feed();
	pg_atomic_write_u64(&shared->position, row.position);
	my_slot->ready = true;
	for (;;)
		turn();
}
