/*
 * projector_batch.c
 *		One batch: from what was decoded to read models that equal their
 *		queries at one snapshot.
 *
 * Called by projector.c, which decodes ahead.  In one REPEATABLE READ
 * transaction: lock the sources, so that no TRUNCATE or rewrite can come
 * between; take S; write a fence and decode up to it, so that all that S sees
 * has been decoded; apply exactly the transactions that S sees and the stored
 * snapshot did not; store S with the contents.  Commit order says nothing
 * here: a transaction can be durable, and decoded, long before it is visible.
 *
 * Owns saga.feed.  Storage is written by projection_apply.c only.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "guc.h"
#include "projection_stat.h"
#include "projector.h"
#include "quarantine.h"
#include "saga.h"
#include "spi_util.h"

/* Tests kill the worker here, or look at it. */
static void
at_step(const char *step)
{
	if (saga_test_delay > 0)
	{
		pgstat_report_activity(STATE_RUNNING, step);
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 saga_test_delay, saga_wait_event("SagaProjectorTest"));
		CHECK_FOR_INTERRUPTS();
	}
}

/* --------------------------------------------------------------- sources */

static List *blocked = NIL;		/* tables that somebody else has locked, in
								 * TopMemoryContext */

/*
 * Locks before the snapshot: what rewrites or truncates a source has then
 * either committed, and S sees it, or has to wait for our end.  A table that
 * is not to be had for half a second is left out, with the projections that
 * read it; those fall behind, and the others do not.
 */
static void
lock_sources(List *tables)
{
	List	   *still = NIL;
	int			patience = 50;
	ListCell   *lc;
	MemoryContext old;

	foreach(lc, tables)
	{
		Oid			relid = lfirst_oid(lc);
		bool		locked;

		while (!(locked = ConditionalLockRelationOid(relid, AccessShareLock)) &&
			   patience-- > 0 && !list_member_oid(blocked, relid))
		{
			CHECK_FOR_INTERRUPTS();
			pg_usleep(10000);
		}
		if (!locked)
		{
			old = MemoryContextSwitchTo(TopMemoryContext);
			still = lappend_oid(still, relid);
			MemoryContextSwitchTo(old);
		}
	}
	list_free(blocked);
	blocked = still;
	/* partitions made since, and storage: nobody waits for long */
	(void) set_config_option("lock_timeout", "1000", PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

static bool
is_blocked(const SagaProjection *p)
{
	ListCell   *lc;

	if (blocked == NIL)
		return false;
	foreach(lc, p->program->sources)
		if (list_member_oid(blocked, ((SagaSource *) lfirst(lc))->relid))
			return true;
	return saga_projection_reads(p, blocked);
}

/* Has what a program or contents came from changed?  TRUNCATE is no change. */
static bool
digests_differ(const SagaProjection *p, List *old, List *new, List *truncated,
			   bool *files)
{
	*files = false;
	if (list_length(old) != list_length(new))
		return true;
	for (int i = 0; i < list_length(new); i++)
	{
		const SagaDigest *was = list_nth(old, i);
		const SagaDigest *is = list_nth(new, i);

		if (was->definition != is->definition)
			return true;
		if (was->files != is->files &&
			!list_member_oid(truncated, ((SagaSource *) list_nth(p->program->sources, i - 1))->relid))
			*files = true;
	}
	return false;
}

/*
 * What DDL did to the sources of a projection since its program was built, and
 * since its contents were computed, which may be longer ago.  Where a source
 * has another shape, or other files without a TRUNCATE to explain them, the
 * contents are computed anew.
 */
static void
look_at_sources_of(SagaProjection *p, List *truncated, bool views)
{
	List	   *now;
	bool		files = false;
	bool		altered;
	bool		rebuilt = false;

	if (views && p->program->views != NIL)
	{
		uint64		before = ((SagaDigest *) linitial(p->built_on))->definition;

		if (!saga_set_build(p))
			return;				/* parked */
		rebuilt = ((SagaDigest *) linitial(p->built_on))->definition != before;
	}
	now = saga_set_digests(p->program);
	if (digests_differ(p, p->built_on, now, truncated, &files))
	{
		if (!saga_set_build(p))
			return;
		rebuilt = true;
		now = saga_set_digests(p->program);
	}
	if (p->state == SAGA_P_FILLING || p->state == SAGA_P_REBUILDING)
	{
		if (rebuilt)
			p->tracked = false; /* the fill begins again */
		return;
	}
	if (!p->filled || p->stale)
		return;
	altered = p->filled_on != NIL &&
		digests_differ(p, p->filled_on, now, truncated, &files);
	if (altered || files)
	{
		saga_set_snapshot(p, (Datum) 0, InvalidXLogRecPtr);
		saga_set_state(p, p->state == SAGA_P_PAUSED ? SAGA_P_PAUSED : SAGA_P_REBUILDING,
					   true, altered ? "a source or a view was altered" : "a source was rewritten",
					   NULL);
		p->tracked = false;
	}
	else if (!saga_digests_equal(p->filled_on, now))
		saga_set_filled_on(p, now);
}

/* Those that cannot be locked now are looked at when they can. */
static void
look_at_sources(List *truncated)
{
	bool		dirty = saga_projections_dirty;
	bool		views = saga_views_dirty;
	ListCell   *lc;

	saga_projections_dirty = saga_views_dirty = false;
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		if (p->program == NULL || (p->state == SAGA_P_PARKED && p->stale) ||
			!(dirty || p->unseen))
			continue;
		if (is_blocked(p))
		{
			p->unseen = true;
			continue;
		}
		look_at_sources_of(p, truncated, views || p->unseen);
		p->unseen = false;
	}
}

/* ---------------------------------------------------------------- deltas */

/* What changed of the sources of one group of projections. */
typedef struct Deltas
{
	List	   *sources;		/* of SagaSource *: one each, columns of all */
	List	   *deltas;			/* of SagaDelta *, parallel; NULL: untouched */
	List	   *recompute;		/* of Oid: roots that were truncated */
	List	   *incomplete;		/* of Oid: roots whose old rows the WAL lacks */
} Deltas;

static void
add_source(Deltas *d, const SagaSource *source)
{
	ListCell   *lc;
	SagaSource *mine;

	foreach(lc, d->sources)
	{
		mine = lfirst(lc);
		if (mine->relid == source->relid)
		{
			mine->columns = bms_add_members(mine->columns, source->columns);
			return;
		}
	}
	mine = palloc(sizeof(SagaSource));
	*mine = *source;
	mine->columns = bms_copy(source->columns);
	d->sources = lappend(d->sources, mine);
	d->deltas = lappend(d->deltas, NULL);
}

static int
source_index(const Deltas *d, Oid root)
{
	for (int i = 0; i < list_length(d->sources); i++)
		if (((SagaSource *) list_nth(d->sources, i))->relid == root)
			return i;
	return -1;
}

static List *
add_roots(List *roots, List *relids)
{
	ListCell   *lc;

	foreach(lc, relids)
	{
		SagaTracked *t = saga_set_tracked(lfirst_oid(lc));
		ListCell   *lr;

		if (t != NULL)
			foreach(lr, t->roots)
				roots = list_append_unique_oid(roots, ((SagaTrackedRoot *) lfirst(lr))->root);
	}
	return roots;
}

static void
add_tuple(Deltas *d, SagaTracked *t, MinimalTuple tuple, int weight,
		  Datum *values, bool *nulls)
{
	HeapTupleData wrap;
	ListCell   *lr;

	wrap.t_len = tuple->t_len + MINIMAL_TUPLE_OFFSET;
	wrap.t_data = (HeapTupleHeader) ((char *) tuple - MINIMAL_TUPLE_OFFSET);
	heap_deform_tuple(&wrap, t->desc, values, nulls);
	foreach(lr, t->roots)
	{
		SagaTrackedRoot *root = lfirst(lr);
		int			i = source_index(d, root->root);
		SagaDelta  *delta;

		if (i < 0)
			continue;
		delta = list_nth(d->deltas, i);
		if (delta == NULL)
		{
			delta = saga_delta_begin(list_nth(d->sources, i));
			list_nth_cell(d->deltas, i)->ptr_value = delta;
		}
		if (root->map == NULL)
			saga_delta_add(delta, values, nulls, weight);
		else
		{
			int			n = root->map->maplen;
			Datum	   *v = palloc(sizeof(Datum) * n);
			bool	   *isnull = palloc(sizeof(bool) * n);

			for (int k = 0; k < n; k++)
			{
				AttrNumber	from = root->map->attnums[k];

				isnull[k] = from == 0 || nulls[from - 1];
				v[k] = isnull[k] ? (Datum) 0 : values[from - 1];
			}
			saga_delta_add(delta, v, isnull, weight);
			pfree(v);
			pfree(isnull);
		}
	}
}

static void
add_transaction(Deltas *d, SagaFeedTxn *txn, Datum *values, bool *nulls)
{
	SagaFeedReader *reader;
	SagaFeedChange change;

	d->recompute = add_roots(d->recompute, txn->truncated);
	d->incomplete = add_roots(d->incomplete, txn->incomplete);
	reader = saga_feed_read(txn);
	while (saga_feed_next(reader, &change))
	{
		SagaTracked *t = saga_set_tracked(change.relid);

		CHECK_FOR_INTERRUPTS();
		if (t == NULL)
			continue;
		if (change.old_tuple)
			add_tuple(d, t, change.old_tuple, -1, values, nulls);
		if (change.new_tuple)
			add_tuple(d, t, change.new_tuple, 1, values, nulls);
	}
	saga_feed_read_end(reader);
}

static void
finish_deltas(Deltas *d)
{
	ListCell   *lc;

	foreach(lc, d->deltas)
		if (lfirst(lc) != NULL)
			saga_delta_finish(lfirst(lc));
}

/* ------------------------------------------------------------ projections */

typedef struct ApplyArg
{
	SagaProjection *p;
	List	   *deltas;
	Bitmapset  *recompute;
} ApplyArg;

static void
apply(void *arg)
{
	ApplyArg   *a = arg;
	SagaApplyResult result = {0};
	TimestampTz began = GetCurrentTimestamp();

	saga_quarantine_enter(SAGA_LANE_PROJECTOR, a->p->id);
	saga_apply_deltas(a->p->apply, a->deltas, a->recompute, &result);
	saga_projection_count(a->p->id, result.statements, result.rows_in,
						  result.rows_out, result.recomputed,
						  GetCurrentTimestamp() - began);
}

/* Apply to one projection in a subtransaction; the error, or NULL. */
static ErrorData *
apply_one(SagaProjection *p, Deltas *d)
{
	ApplyArg	arg = {p, NIL, NULL};
	ErrorData  *error;

	for (int i = 0; i < list_length(p->program->sources); i++)
	{
		SagaSource *source = list_nth(p->program->sources, i);
		int			k = source_index(d, source->relid);
		SagaDelta  *delta = k < 0 ? NULL : list_nth(d->deltas, k);

		if (list_member_oid(d->recompute, source->relid))
			arg.recompute = bms_add_member(arg.recompute, i);
		if (delta != NULL && delta->rows > 0)
			arg.deltas = lappend(arg.deltas, delta);
	}
	if (arg.deltas == NIL && arg.recompute == NULL)
		return NULL;
	error = saga_in_subtransaction(apply, &arg);
	saga_quarantine_leave(SAGA_LANE_PROJECTOR);
	return error;
}

/* An error of no projection's making: the batch is tried again, or we leave. */
bool
saga_error_is_transient(const ErrorData *error)
{
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE):
		case ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES):
		case ERRCODE_TO_CATEGORY(ERRCODE_ADMIN_SHUTDOWN):
		case ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR):
			return true;
		default:
			return error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE;
	}
}

static void
park(SagaProjection *p, const ErrorData *error, const SagaFeedRow *row)
{
	char	   *reason = error->message;

	if (error->detail)
		reason = psprintf("%s: %s", reason, error->detail);
	if (error->context)
		ereport(LOG,
				(errmsg("projection %s could not follow: %s", p->name, error->message),
				 errcontext("%s", error->context)));
	pg_atomic_fetch_add_u64(&saga_projection_stat(p->id)->errors, 1);
	if (p->snapshot == (Datum) 0)
		saga_set_snapshot(p, row->snapshot, row->position);
	saga_set_state(p, SAGA_P_PARKED, false, reason,
				   saga_sqlstate_text(error->sqlerrcode));
}

/* Those that stand where the feed stands, or are to join it. */
static bool
is_joined(const SagaProjection *p)
{
	return p->state == SAGA_P_FOLLOWING && p->snapshot == (Datum) 0 &&
		p->program != NULL && !p->stale;
}

static bool
is_joining(const SagaProjection *p)
{
	return p->state == SAGA_P_FOLLOWING && p->snapshot != (Datum) 0 &&
		p->program != NULL && !p->stale;
}

/* The source whose old rows are missing, or NULL. */
static const SagaSource *
incomplete_source(const SagaProjection *p, const Deltas *d)
{
	ListCell   *lc;

	foreach(lc, p->program->sources)
		if (list_member_oid(d->incomplete, ((SagaSource *) lfirst(lc))->relid))
			return lfirst(lc);
	return NULL;
}

/*
 * Bring the given projections, which all stand at the snapshot 'from', to S:
 * decoded transactions are read once for all of them.
 */
static void
bring_forward(SagaFeed *feed, List *projections, Datum from, Datum to,
			  const SagaFeedRow *row, bool joining)
{
	Deltas		d = {NIL, NIL, NIL, NIL};
	int			natts = Max(saga_set_widest(), 1);
	Datum	   *values = palloc(sizeof(Datum) * natts);
	bool	   *nulls = palloc(sizeof(bool) * natts);
	dlist_iter	iter;
	ListCell   *lc;

	foreach(lc, projections)
	{
		ListCell   *ls;

		foreach(ls, ((SagaProjection *) lfirst(lc))->program->sources)
			add_source(&d, lfirst(ls));
	}
	dlist_foreach(iter, &feed->txns)
	{
		SagaFeedTxn *txn = dlist_container(SagaFeedTxn, node, iter.cur);

		if (saga_snapshot_sees(to, txn->xid) &&
			!(from != (Datum) 0 && saga_snapshot_sees(from, txn->xid)))
			add_transaction(&d, txn, values, nulls);
	}
	finish_deltas(&d);
	at_step("apply");
	foreach(lc, projections)
	{
		SagaProjection *p = lfirst(lc);
		const SagaSource *lacking = incomplete_source(p, &d);
		ErrorData  *error;

		if (lacking != NULL)
		{
			saga_set_snapshot(p, (Datum) 0, InvalidXLogRecPtr);
			saga_set_state(p, SAGA_P_PARKED, true,
						   psprintf("table %s was changed while its replica identity was not FULL; "
									"set it, then call saga.resume_projection()", lacking->name),
						   "55000");
			continue;
		}
		error = apply_one(p, &d);
		if (error != NULL && saga_error_is_transient(error))
			ReThrowError(error);
		if (error != NULL)
			park(p, error, row);
		else if (joining)
		{
			saga_set_snapshot(p, (Datum) 0, InvalidXLogRecPtr);
			p->plain_after = InvalidTransactionId;
			saga_projection_phase(p->id, SAGA_PHASE_NONE, 0);
		}
	}
	foreach(lc, d.deltas)
		if (lfirst(lc) != NULL)
			saga_delta_end(lfirst(lc));
}

static void
store_position(SagaFeedRow *row, Datum snapshot, XLogRecPtr position)
{
	Oid			types[2] = {PG_SNAPSHOTOID, PG_LSNOID};
	Datum		values[2];

	values[0] = snapshot;
	values[1] = LSNGetDatum(position);
	saga_spi_own("UPDATE saga.feed SET snapshot = $1, position = $2, at = pg_catalog.now(), batches = batches + 1",
				 2, types, values, NULL, NULL, NULL);
}

/* saga.check_batches: what this batch made of each, under S. */
static void
check_all(const SagaFeedRow *row)
{
	ListCell   *lc;

	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);
		int64		missing = 0;
		int64		extra = 0;

		if (!is_joined(p))
			continue;
		saga_apply_check(p->apply, &missing, &extra);
		if (missing != 0 || extra != 0)
			saga_set_state(p, SAGA_P_PARKED, true,
						   psprintf("its contents differ from the query: " INT64_FORMAT " rows missing, "
									INT64_FORMAT " too many, after batch " INT64_FORMAT,
									missing, extra, row->batches + 1), "XX001");
	}
}

/* Requests for a comparison, answered under S with this batch's contents. */
static void
answer_checks(XLogRecPtr position)
{
	SagaCheckTicket ticket;

	while (saga_check_take(&ticket))
	{
		SagaProjection *p = NULL;
		int64		missing = 0;
		int64		extra = 0;
		ListCell   *lc;

		foreach(lc, saga_projections)
			if (((SagaProjection *) lfirst(lc))->id == ticket.id)
				p = lfirst(lc);
		if (p == NULL || !is_joined(p))
		{
			saga_check_answer(&ticket, 0, 0, position, GetCurrentTimestamp(),
							  "the projection is not being followed");
			continue;
		}
		saga_apply_check(p->apply, &missing, &extra);
		saga_check_answer(&ticket, missing, extra, position, GetCurrentTimestamp(), NULL);
	}
}

/* ------------------------------------------------------------------ batch */

/* Roots that a decoded TRUNCATE speaks for. */
static List *
truncated_roots(SagaFeed *feed)
{
	List	   *roots = NIL;
	dlist_iter	iter;

	dlist_foreach(iter, &feed->txns)
		roots = add_roots(roots, dlist_container(SagaFeedTxn, node, iter.cur)->truncated);
	return roots;
}

static void
run_batch(SagaFeed *feed, SagaFeedRow *row, Datum *snapshot, XLogRecPtr *position)
{
	List	   *joined = NIL;
	List	   *joining = NIL;
	XLogRecPtr	fence;
	dlist_iter	iter;
	ListCell   *lc;

	lock_sources(saga_set_tables());
	at_step("locked");
	PushActiveSnapshot(GetTransactionSnapshot());
	*snapshot = DirectFunctionCall1(pg_current_snapshot, (Datum) 0);
	at_step("snapshot");

	fence = saga_feed_fence();
	(void) saga_feed_decode(feed, fence, 0);
	if (feed->invalidated)
		saga_projections_dirty = true;
	feed->invalidated = false;
	at_step("decoded");

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	look_at_sources(truncated_roots(feed));
	*position = fence;
	dlist_foreach(iter, &feed->txns)
	{
		SagaFeedTxn *txn = dlist_container(SagaFeedTxn, node, iter.cur);

		if (!saga_snapshot_sees(*snapshot, txn->xid))
			*position = Min(*position, txn->commit_lsn);
	}
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		if (is_joined(p) && !is_blocked(p))
			joined = lappend(joined, p);
		else if (is_joined(p))
			saga_set_snapshot(p, row->snapshot, row->position);
		else if (is_joining(p) && !is_blocked(p))
			joining = lappend(joining, p);
	}
	if (joined)
		bring_forward(feed, joined, row->snapshot, *snapshot, row, false);
	foreach(lc, joining)
	{
		SagaProjection *p = lfirst(lc);

		bring_forward(feed, list_make1(p), p->snapshot, *snapshot, row, true);
	}
	at_step("applied");
	replorigin_session_origin = DoNotReplicateId;
	store_position(row, *snapshot, *position);
	replorigin_session_origin = InvalidRepOriginId;
	if (saga_check_batches)
		check_all(row);
	answer_checks(*position);
	SPI_finish();
	PopActiveSnapshot();
	at_step("stored");
}

bool
saga_batch(SagaFeed *feed, SagaFeedRow *row)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "saga batch",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Datum		snapshot = 0;
	XLogRecPtr	position = InvalidXLogRecPtr;
	volatile bool done = false;

	saga_set_touched = false;
	PG_TRY();
	{
		if (!saga_worker_enter("applying a batch"))
			saga_projector_leave();
		XactIsoLevel = XACT_REPEATABLE_READ;
		MemoryContextSwitchTo(context);
		run_batch(feed, row, &snapshot, &position);
		MemoryContextSwitchTo(context);
		saga_worker_leave(false);
		MemoryContextSwitchTo(context);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		replorigin_session_origin = InvalidRepOriginId;
		if (!saga_error_is_transient(error) || error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			saga_feed_broken(feed))
			PG_RE_THROW();
		/* somebody's lock, or somebody changed a row of ours: again, soon */
		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			EmitErrorReport();
		FlushErrorState();
		saga_worker_abort();
		saga_projections_dirty = true;
	}
	PG_END_TRY();

	MemoryContextSwitchTo(old);
	if (done)
	{
		if (row->snapshot != (Datum) 0)
			pfree(DatumGetPointer(row->snapshot));
		row->snapshot = saga_snapshot_copy(snapshot, TopMemoryContext);
		row->position = position;
		row->batches++;
	}
	MemoryContextDelete(context);
	return done;
}
