/*
 * projector_handlers.c
 *		When handlers run: after a batch, each in transactions of its own.
 *
 * Called by projector.c.  What a handler is, and how it is called, is
 * handler.h's; here is only the list of them in the projector's memory.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "projector.h"
#include "saga.h"

List	   *saga_handlers = NIL;

static TimestampTz again_at = 0;

void
saga_set_load_handlers(SagaFeed *feed, const SagaFeedRow *row)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	ListCell   *lc;

	saga_handlers = saga_handler_load(saga_handlers);
	MemoryContextSwitchTo(old);
	foreach(lc, saga_handlers)
	{
		SagaHandler *h = lfirst(lc);

		if (h->state != SAGA_H_STARTING && !h->lost &&
			strcmp(h->identity, row->identity) != 0)
			saga_handler_lose(h, "the replication slot was lost");
	}
}

void
saga_set_start_handlers(SagaFeed *feed, const SagaFeedRow *row)
{
	ListCell   *lc;

	foreach(lc, saga_handlers)
	{
		SagaHandler *h = lfirst(lc);

		if (h->state == SAGA_H_STARTING)
			saga_handler_start(h, row->identity, feed->decoded);
	}
}

/* Has it something to do?  A pause of AGAIN is the same for all. */
static bool
behind(const SagaHandler *h, SagaFeed *feed, Datum snapshot)
{
	dlist_iter	iter;

	if (h->state != SAGA_H_FOLLOWING)
		return false;
	dlist_foreach(iter, &feed->txns)
	{
		SagaFeedTxn *txn = dlist_container(SagaFeedTxn, node, iter.cur);

		if (!saga_snapshot_sees(snapshot, txn->xid))
			return false;
		if (saga_handler_keeps(h, txn))
			return true;
	}
	return false;
}

long
saga_handlers_follow(SagaFeed *feed, const SagaFeedRow *row, XLogRecPtr *commit)
{
	long		wait = -1;
	ListCell   *lc;
	TimestampTz now = GetCurrentTimestamp();

	if (row->snapshot == (Datum) 0)
		return -1;
	foreach(lc, saga_handlers)
	{
		SagaHandler *h = lfirst(lc);
		SagaHandlerOutcome outcome;

		if (!behind(h, feed, row->snapshot))
			continue;
		if (now < again_at)
			return 50;
		if (!saga_worker_enter("running handlers"))
			saga_projector_leave();
		PushActiveSnapshot(GetTransactionSnapshot());
		outcome = saga_handler_follow(h, feed, row->snapshot);
		PopActiveSnapshot();
		saga_worker_leave(false);
		LockReleaseAll(USER_LOCKMETHOD, true);
		*commit = Max(*commit, XactLastCommitEnd);
		if (outcome == SAGA_HANDLER_MORE)
			wait = 0;
		else if (outcome == SAGA_HANDLER_AGAIN)
		{
			again_at = GetCurrentTimestamp() + 50 * INT64CONST(1000);
			wait = wait == 0 ? 0 : 50;
		}
	}
	return wait;
}
