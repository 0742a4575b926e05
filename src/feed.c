/*
 * feed.c
 *		The slot and the decoding context: open, track, decode, confirm.
 *
 * Called by the projector only.  The context is made inside a transaction: made
 * outside one, the process would be taken for a walsender, and others would
 * not see its transactions as running.  It lives as long as the process or
 * until saga_feed_close(); transactions come and go around it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogutils.h"
#include "miscadmin.h"
#include "replication/decode.h"
#include "replication/logical.h"
#include "replication/message.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/pmsignal.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "compat.h"
#include "feed_private.h"

#define RECORDS_PER_LOOK	64	/* at the clock and the postmaster */
#define SAVE_AFTER_BYTES	(1024 * 1024)
#define SAVE_AFTER_MS		10000

bool		saga_feed_opening = false;

static SagaFeed *the_feed = NULL;

/* ---- the slot ---- */

void
saga_feed_slot_name(Name name)
{
	memset(name, 0, sizeof(*name));
	snprintf(NameStr(*name), NAMEDATALEN, "saga_%u", MyDatabaseId);
}

bool
saga_feed_slot_exists(void)
{
	NameData	name;

	saga_feed_slot_name(&name);
	return SearchNamedReplicationSlot(NameStr(name), true) != NULL;
}

const char *
saga_feed_slot_fault(void)
{
	NameData	name;
	ReplicationSlot *slot;
	const char *fault = NULL;

	saga_feed_slot_name(&name);
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	slot = SearchNamedReplicationSlot(NameStr(name), false);
	if (!slot)
		fault = "it does not exist";
	else
	{
		SpinLockAcquire(&slot->mutex);
		if (slot->data.database != MyDatabaseId)
			fault = "it belongs to another database";
		else if (strcmp(NameStr(slot->data.plugin), SAGA_FEED_PLUGIN) != 0)
			fault = "it is of another output plugin";
		else if (slot->data.persistency != RS_PERSISTENT)
			fault = "it is temporary";
		else if (saga_slot_invalidated(slot))
			fault = "the server invalidated it: what it needs has been removed";
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(ReplicationSlotControlLock);
	return fault;
}

/*
 * Newer minor releases let the administrator say which libraries may decode.
 * The list is theirs: we say what to add, and never set it.
 */
static void
check_plugin_allowed(void)
{
	const char *setting = GetConfigOption("output_plugin_libraries", true, false);
	List	   *names;
	ListCell   *lc;

	if (!setting)
		return;
	if (SplitGUCList(pstrdup(setting), ',', &names))
		foreach(lc, names)
			if (strcmp((char *) lfirst(lc), SAGA_FEED_PLUGIN) == 0)
				return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("output plugin \"%s\" is not allowed on this server",
					SAGA_FEED_PLUGIN),
			 errdetail("\"output_plugin_libraries\" is \"%s\".", setting),
			 errhint("Put this line into postgresql.conf and reload the configuration: output_plugin_libraries = '%s%s%s'",
					 setting, setting[0] ? ", " : "", SAGA_FEED_PLUGIN)));
}

/* What both ways to make a context need. */
static void
require_plain_transaction(void)
{
	if (!IsTransactionState())
		elog(ERROR, "a decoding context is made in a transaction only");
	if (MyReplicationSlot)
		elog(ERROR, "replication slot \"%s\" is held already",
			 NameStr(MyReplicationSlot->data.name));
	check_plugin_allowed();
	CheckLogicalDecodingRequirements();
}

void
saga_feed_slot_create(void)
{
	NameData	name;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;

	require_plain_transaction();
	saga_feed_slot_name(&name);
	saga_slot_create(NameStr(name));
	context = AllocSetContextCreate(CurrentMemoryContext, "saga slot creation",
									ALLOCSET_DEFAULT_SIZES);
	PG_TRY();
	{
		LogicalDecodingContext *ctx;

		MemoryContextSwitchTo(context);
		saga_feed_opening = true;
		ctx = CreateInitDecodingContext(SAGA_FEED_PLUGIN, NIL, false,
										InvalidXLogRecPtr,
										XL_ROUTINE(.page_read = read_local_xlog_page,
												   .segment_open = wal_segment_open,
												   .segment_close = wal_segment_close),
										NULL, NULL, NULL);
		saga_feed_opening = false;
		MemoryContextSwitchTo(ctx->context);
		DecodingContextFindStartpoint(ctx);
		MemoryContextSwitchTo(caller);
		FreeDecodingContext(ctx);
		ReplicationSlotPersist();
	}
	PG_CATCH();
	{
		/* not persistent yet: releasing drops it */
		saga_feed_opening = false;
		ReplicationSlotRelease();
		PG_RE_THROW();
	}
	PG_END_TRY();
	ReplicationSlotRelease();
	MemoryContextDelete(context);
}

void
saga_feed_slot_drop(bool missing_ok)
{
	NameData	name;

	if (the_feed)
		saga_feed_close(the_feed);
	if (missing_ok && !saga_feed_slot_exists())
		return;
	saga_feed_slot_name(&name);
	ReplicationSlotDrop(NameStr(name), true);
}

/* ---- the context ---- */

/*
 * Read a page unless the record wanted is not flushed yet.  The server's own
 * reader would wait for it, which may be until somebody commits.
 */
static int
read_flushed_page(XLogReaderState *reader, XLogRecPtr page, int wanted,
				  XLogRecPtr record, char *buffer)
{
	LogicalDecodingContext *ctx = reader->private_data;
	SagaFeed   *feed = ctx->output_plugin_private;
	XLogRecPtr	flushed = GetFlushRecPtr(NULL);

	if (page + wanted > flushed)
	{
		feed->state->refused = flushed;
		return -1;
	}
	return read_local_xlog_page(reader, page, wanted, record, buffer);
}

static SagaFeed *
make_feed(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "saga feed",
												  ALLOCSET_DEFAULT_SIZES);
	SagaFeed   *feed = MemoryContextAllocZero(context, sizeof(SagaFeed));
	struct SagaFeedState *state = MemoryContextAllocZero(context, sizeof(*state));
	HASHCTL		ctl;

	feed->state = state;
	dlist_init(&feed->txns);
	state->context = context;
	state->txns = AllocSetContextCreate(context, "saga feed transactions",
										ALLOCSET_DEFAULT_SIZES);
	state->work = AllocSetContextCreate(context, "saga feed decoding",
										ALLOCSET_DEFAULT_SIZES);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(SagaFeedTable);
	ctl.hcxt = context;
	state->tables = hash_create("saga feed tables", 64, &ctl,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	return feed;
}

SagaFeed *
saga_feed_open(void)
{
	NameData	name;
	const char *fault;
	SagaFeed   *feed;
	struct SagaFeedState *state;
	MemoryContext caller = CurrentMemoryContext;

	if (the_feed)
		elog(ERROR, "the change feed is open already");
	require_plain_transaction();
	saga_feed_slot_name(&name);
	fault = saga_feed_slot_fault();
	if (fault)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot read changes from replication slot \"%s\"", NameStr(name)),
				 errdetail_internal("Of the slot: %s.", fault)));
	saga_slot_acquire(NameStr(name));

	the_feed = feed = make_feed();
	state = feed->state;
	PG_TRY();
	{
		MemoryContextSwitchTo(state->context);
		saga_feed_opening = true;
		state->ctx = CreateDecodingContext(InvalidXLogRecPtr, NIL, false,
										   XL_ROUTINE(.page_read = read_flushed_page,
													  .segment_open = wal_segment_open,
													  .segment_close = wal_segment_close),
										   NULL, NULL, NULL);
		saga_feed_opening = false;
		if (MyProc->statusFlags & PROC_IN_LOGICAL_DECODING)
			elog(ERROR, "this process is taken for a walsender");
		state->ctx->output_plugin_private = feed;
		XLogBeginRead(state->ctx->reader, MyReplicationSlot->data.restart_lsn);
		feed->start = MyReplicationSlot->data.confirmed_flush;
		feed->decoded = feed->start;
		state->confirmed = state->saved = feed->start;
		saga_feed_watch(feed);
	}
	PG_CATCH();
	{
		saga_feed_opening = false;
		MemoryContextSwitchTo(caller);
		saga_feed_close(feed);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return feed;
}

void
saga_feed_close(SagaFeed *feed)
{
	saga_feed_unwatch();
	the_feed = NULL;
	saga_feed_txns_close(feed);
	if (MyReplicationSlot)
	{
		if (feed->state->ctx)
			FreeDecodingContext(feed->state->ctx);
		ReplicationSlotRelease();
	}
	else if (feed->state->ctx && feed->state->ctx->reader->seg.ws_file >= 0)
	{
		/* error recovery released the slot, which freeing the context needs */
		wal_segment_close(feed->state->ctx->reader);
	}
	MemoryContextDelete(feed->state->context);
}

/* ---- tables ---- */

static void
forget_layout(SagaFeedTable *table)
{
	if (!table->desc)
		return;
	FreeTupleDesc(table->desc);
	pfree(table->keep);
	table->desc = NULL;
	table->keep = NULL;
}

/* Are copies made in the old layout readable in the new one? */
static bool
still_fits(SagaFeedTable *table, TupleDesc desc)
{
	for (int i = 0; i < table->desc->natts; i++)
	{
		Form_pg_attribute was = TupleDescAttr(table->desc, i);

		if (!table->keep[i])
			continue;
		if (i >= desc->natts || TupleDescAttr(desc, i)->attisdropped ||
			TupleDescAttr(desc, i)->atttypid != was->atttypid)
			return false;
	}
	return true;
}

uint64
saga_feed_track(SagaFeed *feed, Oid relid, TupleDesc desc,
				Bitmapset *columns, bool all_columns)
{
	struct SagaFeedState *state = feed->state;
	MemoryContext old;
	bool		found;
	SagaFeedTable *table = hash_search(state->tables, &relid, HASH_ENTER, &found);

	if (!found)
		memset((char *) table + sizeof(Oid), 0, sizeof(*table) - sizeof(Oid));
	state->last_relid = InvalidOid;
	state->last_table = NULL;

	old = MemoryContextSwitchTo(state->txns);
	if (table->desc && !still_fits(table, desc))
	{
		dlist_iter	i;

		dlist_foreach(i, &feed->txns)
		{
			SagaFeedTxn *txn = dlist_container(SagaFeedTxn, node, i.cur);

			if (list_member_oid(txn->relids, relid))
				txn->incomplete = list_append_unique_oid(txn->incomplete, relid);
		}
	}
	forget_layout(table);
	MemoryContextSwitchTo(state->context);
	table->keep = palloc0(Max(desc->natts, 1) * sizeof(bool));
	table->desc = CreateTupleDescCopyConstr(desc);
	MemoryContextSwitchTo(old);

	table->nkeep = 0;
	for (int i = 0; i < desc->natts; i++)
	{
		table->keep[i] = !TupleDescAttr(desc, i)->attisdropped &&
			(all_columns || bms_is_member(i + 1, columns));
		table->nkeep += table->keep[i];
	}
	table->all_columns = all_columns;
	table->checked = false;
	return state->number + 1;
}

void
saga_feed_untrack(SagaFeed *feed, Oid relid)
{
	SagaFeedTable *table = hash_search(feed->state->tables, &relid, HASH_FIND, NULL);

	feed->state->last_relid = InvalidOid;
	feed->state->last_table = NULL;
	if (!table)
		return;
	forget_layout(table);
	hash_search(feed->state->tables, &relid, HASH_REMOVE, NULL);
}

/* Drop those that have become visible; keeps the order. */
static void
prune_passed(struct SagaFeedState *state)
{
	int			n = 0;

	for (int i = 0; i < state->npassed; i++)
		if (TransactionIdIsInProgress(state->passed[i].xid))
			state->passed[n++] = state->passed[i];
	state->npassed = n;
}

bool
saga_feed_settled(SagaFeed *feed)
{
	prune_passed(feed->state);
	return feed->state->npassed == 0;
}

/* ---- decoding ---- */

/* The loop of saga_feed_decode(). */
static bool
decode_records(struct SagaFeedState *state, XLogRecPtr until, int max_ms)
{
	LogicalDecodingContext *ctx = state->ctx;
	ResourceOwner owner = CurrentResourceOwner;
	TimestampTz begun = max_ms > 0 ? GetCurrentTimestamp() : 0;
	int			records = 0;

	while (ctx->reader->EndRecPtr < until)
	{
		XLogRecord *record;
		char	   *problem = NULL;

		CHECK_FOR_INTERRUPTS();
		if (++records >= RECORDS_PER_LOOK)
		{
			records = 0;
			if (!PostmasterIsAlive())
				proc_exit(1);
			if (max_ms > 0 &&
				TimestampDifferenceExceeds(begun, GetCurrentTimestamp(), max_ms))
				return false;
		}

		/* the reader makes its buffers when it first needs them */
		MemoryContextSwitchTo(ctx->context);
		state->refused = InvalidXLogRecPtr;
		record = XLogReadRecord(ctx->reader, &problem);
		if (!record && !problem && !XLogRecPtrIsInvalid(state->refused))
		{
			/* the next record is not flushed: all before it have been seen */
			if (until <= state->refused)
				return true;
			if (until > GetFlushRecPtr(NULL))
				return false;
			continue;
		}
		if (!record)
			elog(ERROR, "could not read the WAL at %X/%X: %s",
				 LSN_FORMAT_ARGS(ctx->reader->EndRecPtr),
				 problem ? problem : "no record");
		MemoryContextSwitchTo(state->work);
		LogicalDecodingProcessRecord(ctx, ctx->reader);
		CurrentResourceOwner = owner;
	}
	return true;
}

/* Functions that users may call take slots, too, and release them. */
static void
check_slot_held(struct SagaFeedState *state)
{
	if (MyReplicationSlot == state->ctx->slot)
		return;
	state->broken = true;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the replication slot is no longer held by this process")));
}

bool
saga_feed_broken(const SagaFeed *feed)
{
	return feed->state->broken;
}

bool
saga_feed_decode(SagaFeed *feed, XLogRecPtr until, int max_ms)
{
	struct SagaFeedState *state = feed->state;
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	bool		reached;

	if (!IsTransactionState() || MyProc->statusFlags & PROC_IN_LOGICAL_DECODING)
		elog(ERROR, "changes are decoded in a transaction only");
	if (state->broken)
		elog(ERROR, "decoding failed before: the change feed must be closed");
	check_slot_held(state);
	if (state->ctx->reader->EndRecPtr >= until)
		return true;

	state->near_xid = ReadNextFullTransactionId();
	state->broken = true;
	PG_TRY();
	{
		saga_feed_drop_stale(feed);
		reached = decode_records(state, until, max_ms);
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
		saga_feed_drop_stale(feed);
	}
	PG_CATCH();
	{
		/* nothing of the past may stay */
		CurrentResourceOwner = owner;
		InvalidateSystemCaches();
		PG_RE_THROW();
	}
	PG_END_TRY();
	state->broken = false;
	saga_feed_stale_done(feed);
	MemoryContextReset(state->work);
	feed->decoded = Max(feed->decoded, state->ctx->reader->EndRecPtr);

	if (state->npassed >= Max(state->prune_at, 4096))
	{
		prune_passed(state);
		state->prune_at = state->npassed * 2;
	}
	return reached;
}

XLogRecPtr
saga_feed_fence(void)
{
	XLogRecPtr	end = saga_log_message("saga", "", 0);

	XLogFlush(end);
	return end;
}

XLogRecPtr
saga_feed_flushed(void)
{
	return GetFlushRecPtr(NULL);
}

void
saga_feed_confirm(SagaFeed *feed, XLogRecPtr lsn)
{
	struct SagaFeedState *state = feed->state;
	TimestampTz now;

	lsn = Min(lsn, feed->decoded);
	if (lsn <= state->confirmed)
		return;

	/* those are in no snapshot yet that somebody may fill under after a restart */
	prune_passed(state);
	if (state->npassed > 0)
		lsn = Min(lsn, state->passed[0].commit_lsn);
	if (lsn <= state->confirmed)
		return;

	check_slot_held(state);

	/* writes the slot itself when restart_lsn or catalog_xmin move */
	LogicalConfirmReceivedLocation(lsn);
	state->confirmed = lsn;
	ReplicationSlotMarkDirty(); /* for the next checkpoint */
	now = GetCurrentTimestamp();
	if (lsn - state->saved > SAVE_AFTER_BYTES &&
		TimestampDifferenceExceeds(state->saved_at, now, SAVE_AFTER_MS))
	{
		ReplicationSlotSave();
		state->saved = lsn;
		state->saved_at = now;
	}
}
