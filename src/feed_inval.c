/*
 * feed_inval.c
 *		Catalog caches of a process that looks at the past and the present.
 *
 * Called by feed.c around decoding.  Decoding builds cache entries as of the
 * position decoded; SQL of the same process builds them as of now.  They differ
 * only by catalog changes that lie between, and of each of those a message is
 * sent after its commit record was written.  So: note what messages name, and
 * how far the WAL reached then.  Until decoding has passed that position, drop
 * these entries before decoding (they may be of now) and after it (they may be
 * of the past).  Dropping everything instead would cost all saved plans with
 * every batch.
 *
 * Of the system caches, decoding fills only those that opening tables and
 * indexes needs; pg_index is the one of them whose rows change.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/sinval.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "feed_private.h"

static SagaFeed *watching = NULL;

static void
note(struct SagaFeedState *state, int cacheid, uint32 value)
{
	state->heard_upto = GetXLogInsertRecPtr();
	if (state->heard_all)
		return;
	for (int i = 0; i < state->nheard; i++)
		if (state->heard[i].cacheid == cacheid && state->heard[i].value == value)
			return;
	if (value == 0 || state->nheard == SAGA_FEED_MAX_HEARD)
	{
		state->heard_all = true;
		return;
	}
	state->heard[state->nheard].cacheid = cacheid;
	state->heard[state->nheard++].value = value;
}

static void
relation_changed(Datum arg, Oid relid)
{
	struct SagaFeedState *state;

	if (!watching)
		return;
	state = watching->state;
	saga_feed_forget_table_check(watching, relid);
	if (state->quiet)
		return;
	note(state, -1, relid);
	if (!OidIsValid(relid) || hash_search(state->tables, &relid, HASH_FIND, NULL))
		watching->invalidated = true;
}

static void
index_row_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	if (watching && !watching->state->quiet)
		note(watching->state, cacheid, hashvalue);
}

void
saga_feed_watch(SagaFeed *feed)
{
	static bool registered = false;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(INDEXRELID, index_row_changed, (Datum) 0);
		registered = true;
	}
	watching = feed;

	/* what happened before we listened */
	note(feed->state, -1, InvalidOid);
}

void
saga_feed_unwatch(void)
{
	watching = NULL;
}

/* Before and after decoding. */
void
saga_feed_drop_stale(SagaFeed *feed)
{
	struct SagaFeedState *state = feed->state;

	/* none may come later that belongs to what we are about to rebuild */
	AcceptInvalidationMessages();
	state->quiet = true;
	if (state->heard_all)
		InvalidateSystemCaches();
	else
		for (int i = 0; i < state->nheard; i++)
		{
			SharedInvalidationMessage message;

			memset(&message, 0, sizeof(message));
			if (state->heard[i].cacheid < 0)
			{
				message.rc.id = SHAREDINVALRELCACHE_ID;
				message.rc.dbId = MyDatabaseId;
				message.rc.relId = state->heard[i].value;
			}
			else
			{
				message.cc.id = (int8) state->heard[i].cacheid;
				message.cc.dbId = MyDatabaseId;
				message.cc.hashValue = state->heard[i].value;
			}
			LocalExecuteInvalidationMessage(&message);
		}
	state->quiet = false;
}

/* After decoding: forget what has been passed. */
void
saga_feed_stale_done(SagaFeed *feed)
{
	struct SagaFeedState *state = feed->state;

	if (state->ctx->reader->EndRecPtr < state->heard_upto)
		return;
	state->heard_all = false;
	state->nheard = 0;
}
