/*
 * feed.h
 *		Committed row changes, decoded from the WAL in this process.
 *
 * One logical slot, one decoding context for the worker's life; this library
 * is its own output plugin and refuses any other caller.  Decoding callbacks
 * only copy: transactions that touched tracked tables are appended, whole and
 * in commit order, to feed->txns.  Nothing here decides what is visible or
 * who gets a change (projector.c does), and nothing here reads a table.
 */
#ifndef SAGA_FEED_H
#define SAGA_FEED_H

#include "postgres.h"

#include "access/htup.h"
#include "access/transam.h"
#include "access/tupdesc.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "lib/ilist.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"

/* A committed transaction with changes to tracked tables. */
typedef struct SagaFeedTxn
{
	dlist_node	node;			/* in feed->txns, commit order */
	uint64		number;			/* 1.. of this context, ascending */
	FullTransactionId xid;		/* top-level */
	XLogRecPtr	commit_lsn;		/* begin of the commit record: confirming the
								 * slot up to here sends this one again */
	XLogRecPtr	end_lsn;
	TimestampTz commit_time;
	int64		changes;
	Size		size;			/* bytes in memory or spilled */
	List	   *relids;			/* of Oid: tracked tables it touched */
	List	   *truncated;		/* of Oid: tracked tables it truncated */
	List	   *incomplete;		/* of Oid: an old image was missing, or the
								 * tuple had another shape */
	struct SagaFeedBody *body;	/* private: where the changes are */
} SagaFeedTxn;

typedef enum SagaFeedOp
{
	SAGA_FEED_INSERT = 'i',
	SAGA_FEED_UPDATE = 'u',
	SAGA_FEED_DELETE = 'd',
} SagaFeedOp;

/* Tuples have the layout the table was tracked with; untracked columns null. */
typedef struct SagaFeedChange
{
	Oid			relid;
	SagaFeedOp	op;
	MinimalTuple old_tuple;		/* NULL for insert */
	MinimalTuple new_tuple;		/* NULL for delete */
} SagaFeedChange;

typedef struct SagaFeed
{
	dlist_head	txns;
	int64		ntxns;
	Size		memory;			/* changes of all transactions held, not spilled */
	XLogRecPtr	start;			/* the slot's confirmed position when opened:
								 * what committed before it never comes */
	XLogRecPtr	decoded;		/* end of the last record decoded */
	bool		invalidated;	/* the definition of a tracked table may have
								 * changed (DDL, also ANALYZE) since the caller
								 * cleared the flag; no cache is stale by it */
	struct SagaFeedState *state;	/* private */
} SagaFeed;

/*
 * The slot.  Name, and whether the administrator allows our plugin (newer
 * minor releases have output_plugin_libraries): 55000 with the line to set.
 */
extern void saga_feed_slot_name(Name name); /* saga_<dboid> */
extern bool saga_feed_slot_exists(void);
extern void saga_feed_slot_create(void);	/* in a transaction without writes;
											 * waits for running transactions */
extern void saga_feed_slot_drop(bool missing_ok);	/* closes the feed of this
													 * process, if any */

/* Why the slot cannot be used any more (invalidated, gone), or NULL. */
extern const char *saga_feed_slot_fault(void);

/*
 * Acquire the slot (waits for another holder) and make the decoding context;
 * inside a transaction.  One per process.
 */
extern SagaFeed *saga_feed_open(void);

/*
 * Release slot, context and all transactions.  Needed after an error came out
 * of saga_feed_decode(): the context is in an unknown state then, and refuses.
 */
extern void saga_feed_close(SagaFeed *feed);

/* Did an error come out of saga_feed_decode()? */
extern bool saga_feed_broken(const SagaFeed *feed);

/*
 * Which tables to copy, and which of their columns (attribute numbers from 1);
 * replaces what was said before for that table.  desc is the layout of the
 * tuples handed out.  Returns the number of the first transaction that will be
 * copied so: earlier ones lack columns that were not tracked then, and are
 * marked incomplete if they no longer fit the layout.
 */
extern uint64 saga_feed_track(SagaFeed *feed, Oid relid, TupleDesc desc,
							  Bitmapset *columns, bool all_columns);
extern void saga_feed_untrack(SagaFeed *feed, Oid relid);

/*
 * Has every transaction that was decoded and not kept become visible to new
 * snapshots?  A commit is in the WAL before it is visible (long before, with
 * synchronous standbys), so who fills a projection must, after tracking its
 * tables, see true here once before taking the snapshot to fill under: else
 * the changes of such a transaction are neither in it nor in feed->txns.
 */
extern bool saga_feed_settled(SagaFeed *feed);

/*
 * Decode until the end of a record is at or past 'until' (which must be
 * flushed, but need not be the end of a record), or max_ms have gone by (0: no
 * limit; one transaction is never cut).  Inside a transaction; needs no
 * snapshot.  Returns whether 'until' was reached.
 *
 * Caches: callbacks look at catalogs of the past.  What others changed between
 * there and now is dropped from the caches before and after, so callers need
 * not invalidate anything.  They must not hold relations open over the call
 * (they would be rebuilt as of the past), nor have done DDL in the transaction,
 * and must open tables with a lock, as anyone.
 */
extern bool saga_feed_decode(SagaFeed *feed, XLogRecPtr until, int max_ms);

/*
 * A fence: everything committed before it, once decoded up to it, has been
 * seen.  Writes a non-transactional message, flushes it, returns its end.  The
 * message is there to have a record end to flush and decode to (the insert
 * position may lie behind a page header not yet written); nobody reads it.
 */
extern XLogRecPtr saga_feed_fence(void);

/* Where WAL is flushed up to; maybe within a record, which decoding may be. */
extern XLogRecPtr saga_feed_flushed(void);

/*
 * Read the changes of a transaction, in order, as often as wanted.  Tuples
 * stay valid until the next call.  Tables in txn->incomplete are left out.
 */
typedef struct SagaFeedReader SagaFeedReader;
extern SagaFeedReader *saga_feed_read(SagaFeedTxn *txn);
extern bool saga_feed_next(SagaFeedReader *reader, SagaFeedChange *change);
extern void saga_feed_read_end(SagaFeedReader *reader);

/* Drop a transaction from feed->txns. */
extern void saga_feed_forget(SagaFeed *feed, SagaFeedTxn *txn);

/*
 * The slot may forget what lies before lsn; the caller knows that what it
 * covers is flushed.  May stay behind lsn for transactions not yet settled.
 * Writes the slot to disk only when it moved a lot.
 */
extern void saga_feed_confirm(SagaFeed *feed, XLogRecPtr lsn);

#endif							/* SAGA_FEED_H */
