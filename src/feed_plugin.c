/*
 * feed_plugin.c
 *		Output plugin callbacks: copies of changes to tracked tables.
 *
 * Called by logical decoding, in the context that feed.c made; anybody else is
 * refused.  Runs under a snapshot of the past, in a subtransaction that will be
 * rolled back: copies only, reads no table, allocates what lasts in the feed.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "replication/logical.h"
#include "replication/origin.h"
#include "replication/output_plugin.h"
#include "storage/ipc.h"
#include "storage/pmsignal.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "compat.h"
#include "feed_private.h"

#define INTERRUPTS_EVERY	1024	/* changes */

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *callbacks);

static SagaFeed *
feed_of(LogicalDecodingContext *ctx)
{
	return (SagaFeed *) ctx->output_plugin_private;
}

static void
startup(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init)
{
	if (!saga_feed_opening)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("output plugin \"%s\" serves the workers of saga only",
						SAGA_FEED_PLUGIN),
				 errhint("Use another output plugin, such as \"pgoutput\", or a projection or handler of saga.")));
	options->output_type = OUTPUT_PLUGIN_BINARY_OUTPUT;
	/* the rows of a rewritten table: all we hear of a rewrite */
	options->receive_rewrites = true;
}

/* Our own merges into read models. */
static bool
filter_by_origin(LogicalDecodingContext *ctx, RepOriginId origin)
{
	return origin == DoNotReplicateId;
}

static void
begin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	/* made with the first change that matters */
	feed_of(ctx)->state->number++;
}

static SagaFeedTxn *
current_txn(SagaFeed *feed)
{
	if (!feed->state->txn)
		feed->state->txn = saga_feed_txn_make(feed);
	return feed->state->txn;
}

static void
add_oid(SagaFeed *feed, List **list, Oid relid, uint64 *last)
{
	MemoryContext old;

	if (*last == feed->state->number)
		return;
	*last = feed->state->number;
	old = MemoryContextSwitchTo(feed->state->txns);
	*list = lappend_oid(*list, relid);
	MemoryContextSwitchTo(old);
}

static void
mark_incomplete(SagaFeed *feed, SagaFeedTable *table)
{
	SagaFeedTxn *txn = current_txn(feed);

	add_oid(feed, &txn->relids, table->relid, &table->noted);
	add_oid(feed, &txn->incomplete, table->relid, &table->spoilt);
}

static SagaFeedTable *
find_table(struct SagaFeedState *state, Oid relid)
{
	if (relid != state->last_relid)
	{
		state->last_table = hash_search(state->tables, &relid, HASH_FIND, NULL);
		state->last_relid = relid;
	}
	return state->last_table;
}

/* A definition may have changed: look at it again.  InvalidOid: all. */
void
saga_feed_forget_table_check(SagaFeed *feed, Oid relid)
{
	SagaFeedTable *table;
	HASH_SEQ_STATUS scan;

	if (OidIsValid(relid))
	{
		table = hash_search(feed->state->tables, &relid, HASH_FIND, NULL);
		if (table)
			table->checked = false;
		return;
	}
	hash_seq_init(&scan, feed->state->tables);
	while ((table = hash_seq_search(&scan)) != NULL)
		table->checked = false;
}

static SagaFeedImage
old_image(SagaFeedTable *table, Relation relation)
{
	Bitmapset  *key;
	bool		covered = true;

	if (relation->rd_rel->relreplident == REPLICA_IDENTITY_FULL)
		return SAGA_FEED_IMAGE_FULL;
	if (relation->rd_rel->relreplident == REPLICA_IDENTITY_NOTHING)
		return SAGA_FEED_IMAGE_NONE;
	key = RelationGetIdentityKeyBitmap(relation);
	if (!key)
		return SAGA_FEED_IMAGE_NONE;
	for (int i = 0; covered && i < table->desc->natts; i++)
		covered = !table->keep[i] ||
			bms_is_member(i + 1 - FirstLowInvalidHeapAttributeNumber, key);
	bms_free(key);
	return covered ? SAGA_FEED_IMAGE_KEY : SAGA_FEED_IMAGE_NONE;
}

/* Compare the table as it was with the layout asked for. */
static void
check_table(struct SagaFeedState *state, SagaFeedTable *table, Relation relation)
{
	TupleDesc	past = RelationGetDescr(relation);
	int			nattrs = Max(past->natts, table->desc->natts);

	table->fits = true;
	table->whole = table->nkeep == table->desc->natts &&
		past->natts == table->desc->natts;
	for (int i = 0; i < Min(past->natts, table->desc->natts); i++)
	{
		Form_pg_attribute was = TupleDescAttr(past, i);
		Form_pg_attribute is = TupleDescAttr(table->desc, i);

		if (table->keep[i] &&
			(was->attisdropped || was->atttypid != is->atttypid ||
			 was->attlen != is->attlen || was->attbyval != is->attbyval ||
			 was->attalign != is->attalign))
			table->fits = false;
	}
	table->image = old_image(table, relation);

	if (nattrs > state->nattrs)
	{
		MemoryContext context = state->context;

		state->nattrs = 0;
		if (state->old_values)
		{
			pfree(state->old_values);
			pfree(state->new_values);
			pfree(state->old_nulls);
			pfree(state->new_nulls);
		}
		state->old_values = MemoryContextAlloc(context, nattrs * sizeof(Datum));
		state->new_values = MemoryContextAlloc(context, nattrs * sizeof(Datum));
		state->old_nulls = MemoryContextAlloc(context, nattrs * sizeof(bool));
		state->new_nulls = MemoryContextAlloc(context, nattrs * sizeof(bool));
		state->nattrs = nattrs;
	}
	table->checked = true;
}

/*
 * A value that needs no other memory or table.  On-disk pointers say "as
 * before"; what they point to may be gone, so the old image has to have it.
 */
static bool
settle_value(Datum *value, const Datum *before)
{
	struct varlena *attr = (struct varlena *) DatumGetPointer(*value);

	while (VARATT_IS_EXTERNAL(attr))
	{
		if (VARATT_IS_EXTERNAL_ONDISK(attr))
		{
			if (!before)
				return false;
			attr = (struct varlena *) DatumGetPointer(*before);
			before = NULL;
		}
		else if (VARATT_IS_EXTERNAL_INDIRECT(attr))
		{
			/* put together from the WAL by the reorder buffer */
			struct varatt_indirect redirect;

			VARATT_EXTERNAL_GET_POINTER(redirect, attr);
			attr = (struct varlena *) redirect.pointer;
		}
		else
			attr = detoast_external_attr(attr);
	}
	*value = PointerGetDatum(attr);
	return true;
}

/* Take a tuple apart, into the layout.  False if a value cannot be had. */
static bool
take_apart(SagaFeedTable *table, Relation relation, HeapTuple tuple,
		   Datum *values, bool *nulls,
		   const Datum *old_values, const bool *old_nulls)
{
	TupleDesc	past = RelationGetDescr(relation);

	heap_deform_tuple(tuple, past, values, nulls);
	for (int i = 0; i < table->desc->natts; i++)
	{
		if (!table->keep[i])
		{
			values[i] = (Datum) 0;
			nulls[i] = true;
		}
		else if (i >= past->natts)
			values[i] = getmissingattr(table->desc, i + 1, &nulls[i]);
		else if (!nulls[i] && TupleDescAttr(past, i)->attlen == -1 &&
				 !settle_value(&values[i],
							   old_values && !old_nulls[i] ? &old_values[i] : NULL))
			return false;
	}
	return true;
}

/* A tuple to be written: as it is, or its values. */
typedef struct TupleSource
{
	HeapTuple	whole;			/* to be copied as it is, or NULL */
	Datum	   *values;
	bool	   *nulls;
	bool		has_nulls;
	Size		header;			/* up to the data, from the length word */
	Size		data;
	Size		length;
} TupleSource;

static void
measure(SagaFeedTable *table, TupleSource *source)
{
	int			natts = table->desc->natts;

	if (source->whole)
	{
		source->length = source->whole->t_len - MINIMAL_TUPLE_OFFSET;
		return;
	}
	source->has_nulls = false;
	for (int i = 0; i < natts; i++)
		if (source->nulls[i])
		{
			source->has_nulls = true;
			break;
		}
	source->header = MAXALIGN(SizeofMinimalTupleHeader +
							  (source->has_nulls ? BITMAPLEN(natts) : 0));
	source->data = heap_compute_data_size(table->desc, source->values, source->nulls);
	source->length = source->header + source->data;
}

/* Into zeroed room. */
static void
write_tuple(SagaFeedTable *table, TupleSource *source, char *room)
{
	MinimalTuple tuple = (MinimalTuple) room;

	if (source->whole)
		memcpy(room, (char *) source->whole->t_data + MINIMAL_TUPLE_OFFSET,
			   source->length);
	else
	{
		HeapTupleHeaderSetNatts(tuple, table->desc->natts);
		tuple->t_hoff = source->header + MINIMAL_TUPLE_OFFSET;
		heap_fill_tuple(table->desc, source->values, source->nulls,
						room + source->header, source->data,
						&tuple->t_infomask,
						source->has_nulls ? tuple->t_bits : NULL);
	}
	tuple->t_len = source->length;
}

static bool
can_copy_whole(SagaFeedTable *table, HeapTuple tuple)
{
	return table->whole && !HeapTupleHasExternal(tuple) &&
		HeapTupleHeaderGetNatts(tuple->t_data) == table->desc->natts;
}

static void
write_change(SagaFeed *feed, SagaFeedTable *table, SagaFeedOp op,
			 TupleSource *old, TupleSource *new)
{
	SagaFeedTxn *txn = current_txn(feed);
	Size		size = MAXALIGN(sizeof(SagaFeedRecord));
	SagaFeedRecord *record;
	char	   *room;
	char	   *old_room = NULL;
	char	   *new_room = NULL;

	if (old)
	{
		measure(table, old);
		size += MAXALIGN(old->length);
	}
	if (new)
	{
		measure(table, new);
		size += MAXALIGN(new->length);
	}
	room = saga_feed_txn_reserve(feed, txn, size);
	record = (SagaFeedRecord *) room;
	record->relid = table->relid;
	record->op = (uint8) op;
	record->has_old = old != NULL;
	record->has_new = new != NULL;
	room += MAXALIGN(sizeof(SagaFeedRecord));
	if (old)
	{
		old_room = room;
		write_tuple(table, old, room);
		room += MAXALIGN(old->length);
	}
	if (new)
	{
		new_room = room;
		write_tuple(table, new, room);
	}

	/* nothing that anybody reads has changed */
	if (old && new && !table->all_columns && old->length == new->length &&
		memcmp(old_room, new_room, old->length) == 0)
		return;

	add_oid(feed, &txn->relids, table->relid, &table->noted);
	saga_feed_txn_keep(feed, txn, size);
}

static void
copy_change(SagaFeed *feed, SagaFeedTable *table, Relation relation,
			SagaFeedOp op, HeapTuple old, HeapTuple new)
{
	struct SagaFeedState *state = feed->state;
	TupleSource old_source,
				new_source;

	if (!table->checked)
		check_table(state, table, relation);

	if (op == SAGA_FEED_UPDATE && !old && table->image == SAGA_FEED_IMAGE_KEY)
		return;					/* the key is all that is tracked */
	if (!table->fits ||
		(op != SAGA_FEED_DELETE && !new) ||
		(op != SAGA_FEED_INSERT &&
		 (!old || table->image == SAGA_FEED_IMAGE_NONE)))
	{
		mark_incomplete(feed, table);
		return;
	}

	if (op != SAGA_FEED_INSERT)
	{
		bool		take = true;

		old_source.values = state->old_values;
		old_source.nulls = state->old_nulls;
		old_source.whole = can_copy_whole(table, old) ? old : NULL;

		/* the new tuple may need its values */
		if (old_source.whole)
			take = new && HeapTupleHasExternal(new);
		if (take && !take_apart(table, relation, old, state->old_values,
								state->old_nulls, NULL, NULL))
		{
			mark_incomplete(feed, table);
			return;
		}
	}
	if (op != SAGA_FEED_DELETE)
	{
		bool		has_old = op == SAGA_FEED_UPDATE;

		new_source.values = state->new_values;
		new_source.nulls = state->new_nulls;
		new_source.whole = can_copy_whole(table, new) ? new : NULL;
		if (!new_source.whole &&
			!take_apart(table, relation, new, state->new_values,
						state->new_nulls, has_old ? state->old_values : NULL,
						state->old_nulls))
		{
			mark_incomplete(feed, table);
			return;
		}
	}
	write_change(feed, table, op,
				 op != SAGA_FEED_INSERT ? &old_source : NULL,
				 op != SAGA_FEED_DELETE ? &new_source : NULL);
}

static void
change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, Relation relation,
	   ReorderBufferChange *what)
{
	SagaFeed   *feed = feed_of(ctx);
	struct SagaFeedState *state = feed->state;
	Oid			rewritten = relation->rd_rel->relrewrite;
	SagaFeedTable *table;

	if (++state->ncopied >= INTERRUPTS_EVERY)
	{
		state->ncopied = 0;
		CHECK_FOR_INTERRUPTS();
		if (!PostmasterIsAlive())
			proc_exit(1);
	}

	table = find_table(state, OidIsValid(rewritten) ? rewritten : RelationGetRelid(relation));
	if (!table || table->spoilt == state->number)
		return;
	if (OidIsValid(rewritten))
	{
		mark_incomplete(feed, table);
		return;
	}

	switch (what->action)
	{
		case REORDER_BUFFER_CHANGE_INSERT:
			copy_change(feed, table, relation, SAGA_FEED_INSERT, NULL,
						saga_change_tuple(what->data.tp.newtuple));
			break;
		case REORDER_BUFFER_CHANGE_UPDATE:
			copy_change(feed, table, relation, SAGA_FEED_UPDATE,
						saga_change_tuple(what->data.tp.oldtuple),
						saga_change_tuple(what->data.tp.newtuple));
			break;
		case REORDER_BUFFER_CHANGE_DELETE:
			copy_change(feed, table, relation, SAGA_FEED_DELETE,
						saga_change_tuple(what->data.tp.oldtuple), NULL);
			break;
		default:
			elog(ERROR, "unexpected kind %d of decoded change", (int) what->action);
	}
}

static void
truncate_tables(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
				int nrelations, Relation relations[],
				ReorderBufferChange *what)
{
	SagaFeed   *feed = feed_of(ctx);

	for (int i = 0; i < nrelations; i++)
	{
		SagaFeedTable *table = find_table(feed->state, RelationGetRelid(relations[i]));
		SagaFeedTxn *ours;

		if (!table)
			continue;
		ours = current_txn(feed);
		add_oid(feed, &ours->relids, table->relid, &table->noted);
		add_oid(feed, &ours->truncated, table->relid, &table->truncated);
	}
}

/* Kept nowhere; see saga_feed_settled(). */
static void
pass(struct SagaFeedState *state, TransactionId xid, XLogRecPtr commit_lsn)
{
	if (state->npassed == state->max_passed)
	{
		state->max_passed = Max(1024, state->max_passed * 2);
		if (state->passed)
			state->passed = repalloc(state->passed,
									 state->max_passed * sizeof(SagaFeedPassed));
		else
			state->passed = MemoryContextAlloc(state->context,
											   state->max_passed * sizeof(SagaFeedPassed));
	}
	state->passed[state->npassed].xid = xid;
	state->passed[state->npassed++].commit_lsn = commit_lsn;
}

static void
commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	SagaFeed   *feed = feed_of(ctx);
	struct SagaFeedState *state = feed->state;
	SagaFeedTxn *ours = state->txn;

	state->txn = NULL;
	if (ours && ours->relids == NIL)
	{
		saga_feed_txn_free(feed, ours);
		ours = NULL;
	}
	if (!ours)
	{
		pass(state, txn->xid, commit_lsn);
		return;
	}
	ours->number = state->number;
	ours->xid = FullTransactionIdFromU64(U64FromFullTransactionId(state->near_xid) +
										 (int32) (txn->xid - XidFromFullTransactionId(state->near_xid)));
	ours->commit_lsn = commit_lsn;
	ours->end_lsn = txn->end_lsn;
	ours->commit_time = txn->xact_time.commit_time;
	dlist_push_tail(&feed->txns, &ours->node);
	feed->ntxns++;
}

void
_PG_output_plugin_init(OutputPluginCallbacks *callbacks)
{
	callbacks->startup_cb = startup;
	callbacks->filter_by_origin_cb = filter_by_origin;
	callbacks->begin_cb = begin;
	callbacks->change_cb = change;
	callbacks->truncate_cb = truncate_tables;
	callbacks->commit_cb = commit;
}
