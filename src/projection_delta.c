/*
 * projection_delta.c
 *		Deltas: the changed rows of a source, with weights, consolidated.
 *
 * The projector adds the old and new rows of the transactions of a batch; what
 * comes and goes within the batch cancels out, and so does an update of
 * columns that nobody uses.  Rows are compared by their binary image, with
 * toasted values made flat.  Statements rely on it: rows of one image come
 * once, or all with a weight of 1 in a batch of inserts alone.  So a batch
 * that does not fit into memory is written out in parts, by hash, and each
 * part is consolidated by itself.
 *
 * Reads no table and knows no statement.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "utils/memutils.h"

#include "compat.h"
#include "projection.h"

/* Rows held for consolidation, and then those of the tuplestore. */
#define DELTA_MEMORY_KB (64 * 1024)
#define DELTA_PARTS 64

/* A minimal tuple ends with saga_w: an aligned bigint, the last column. */
#define TUPLE_WEIGHT_SIZE sizeof(int64)
#define TUPLE_IMAGE(tuple) ((const unsigned char *) (tuple) + sizeof(uint32))
#define TUPLE_IMAGE_LENGTH(tuple) \
	((int) ((tuple)->t_len - sizeof(uint32) - TUPLE_WEIGHT_SIZE))

typedef struct DeltaRow
{
	MinimalTuple tuple;
	int64		weight;
	uint32		hash;
	char		status;
} DeltaRow;

static inline bool
same_image(MinimalTuple a, MinimalTuple b)
{
	return a->t_len == b->t_len &&
		memcmp(TUPLE_IMAGE(a), TUPLE_IMAGE(b), TUPLE_IMAGE_LENGTH(a)) == 0;
}

#define SH_PREFIX delta
#define SH_ELEMENT_TYPE DeltaRow
#define SH_KEY_TYPE MinimalTuple
#define SH_KEY tuple
#define SH_HASH_KEY(tb, key) \
	hash_bytes(TUPLE_IMAGE(key), TUPLE_IMAGE_LENGTH(key))
#define SH_EQUAL(tb, a, b) same_image(a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(tb, a) (a)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct SagaDeltaTable
{
	MemoryContext context;		/* of the rows, reset when they are written */
	TupleTableSlot *slot;
	int			ncolumns;		/* used columns, */
	int		   *columns;		/* from 0, */
	bool	   *varlena;		/* and which of them may be toasted */
	Datum	   *values;			/* of a row; unused columns are null for ever */
	bool	   *nulls;
	Size		size;			/* bytes of rows held */

	/* as long as rows only came, nothing can cancel out */
	MinimalTuple *added;
	int64		nadded;
	int64		max_added;

	delta_hash *rows;			/* afterwards */

	Tuplestorestate **parts;	/* written out: by hash, not yet consolidated */
};

/* Defaults, constraints and generation are the table's business, not ours. */
static TupleDesc
delta_desc(TupleDesc source)
{
	TupleDesc	desc = CreateTemplateTupleDesc(source->natts + 1);

	for (int i = 0; i < source->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(source, i);

		/* the number stays taken: a column that is always null */
		if (att->attisdropped)
			TupleDescInitEntry(desc, i + 1, NameStr(att->attname), INT4OID, -1, 0);
		else
			TupleDescCopyEntry(desc, i + 1, source, i + 1);
	}
	TupleDescInitEntry(desc, source->natts + 1, "saga_w", INT8OID, -1, 0);
	return desc;
}

SagaDelta *
saga_delta_begin(const SagaSource *source)
{
	SagaDelta  *delta = palloc0(sizeof(SagaDelta));
	struct SagaDeltaTable *table = palloc0(sizeof(struct SagaDeltaTable));
	int			natts = source->desc->natts;
	int			column = -1;

	delta->relid = source->relid;
	delta->desc = delta_desc(source->desc);
	delta->table = table;
	delta->store = tuplestore_begin_heap(false, false, DELTA_MEMORY_KB);

	table->context = AllocSetContextCreate(CurrentMemoryContext, "saga delta",
										   ALLOCSET_DEFAULT_SIZES);
	table->slot = MakeSingleTupleTableSlot(delta->desc, &TTSOpsMinimalTuple);
	table->columns = palloc(sizeof(int) * Max(natts, 1));
	table->varlena = palloc(sizeof(bool) * Max(natts, 1));
	table->values = palloc0(sizeof(Datum) * (natts + 1));
	table->nulls = palloc(sizeof(bool) * (natts + 1));
	memset(table->nulls, true, sizeof(bool) * natts);
	table->nulls[natts] = false;
	while ((column = bms_next_member(source->columns, column)) >= 0)
	{
		if (column < 1 || column > natts ||
			TupleDescAttr(source->desc, column - 1)->attisdropped)
			continue;
		table->varlena[table->ncolumns] =
			TupleDescAttr(source->desc, column - 1)->attlen == -1;
		table->columns[table->ncolumns++] = column - 1;
	}
	return delta;
}

static void
write_row(SagaDelta *delta, Tuplestorestate *store, MinimalTuple tuple,
		  int64 weight)
{
	memcpy((char *) tuple + tuple->t_len - TUPLE_WEIGHT_SIZE, &weight,
		   TUPLE_WEIGHT_SIZE);
	ExecStoreMinimalTuple(tuple, delta->table->slot, false);
	tuplestore_puttupleslot(store, delta->table->slot);
}

/* Nothing is held any more. */
static void
reset(struct SagaDeltaTable *table)
{
	ExecClearTuple(table->slot);
	MemoryContextReset(table->context);
	table->rows = NULL;
	table->added = NULL;
	table->nadded = table->max_added = 0;
	table->size = 0;
}

/* What is held is what remains: of the batch, or of a part of it. */
static void
write_result(SagaDelta *delta)
{
	struct SagaDeltaTable *table = delta->table;

	if (table->rows != NULL)
	{
		delta_iterator iterator;
		DeltaRow   *row;

		delta_start_iterate(table->rows, &iterator);
		while ((row = delta_iterate(table->rows, &iterator)) != NULL)
			if (row->weight != 0)
			{
				write_row(delta, delta->store, row->tuple, row->weight);
				delta->rows++;
			}
	}
	for (int64 i = 0; i < table->nadded; i++)
		write_row(delta, delta->store, table->added[i], 1);
	delta->rows += table->nadded;
	reset(table);
}

static Tuplestorestate *
part_of(SagaDelta *delta, uint32 hash)
{
	return delta->table->parts[hash % DELTA_PARTS];
}

/* Make room; rows that may still cancel out go to their part. */
static void
write_out(SagaDelta *delta)
{
	struct SagaDeltaTable *table = delta->table;
	delta_iterator iterator;
	DeltaRow   *row;

	if (table->rows == NULL && table->parts == NULL)
	{
		write_result(delta);
		return;
	}
	if (table->parts == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(delta));

		table->parts = palloc(sizeof(Tuplestorestate *) * DELTA_PARTS);
		for (int i = 0; i < DELTA_PARTS; i++)
			table->parts[i] = tuplestore_begin_heap(false, false,
													DELTA_MEMORY_KB / DELTA_PARTS);
		MemoryContextSwitchTo(old);
	}
	if (table->rows == NULL)
		return;
	delta_start_iterate(table->rows, &iterator);
	while ((row = delta_iterate(table->rows, &iterator)) != NULL)
		if (row->weight != 0)
			write_row(delta, part_of(delta, row->hash), row->tuple, row->weight);
	reset(table);
}

/* The tuple becomes the table's, or is freed. */
static void
weigh(struct SagaDeltaTable *table, MinimalTuple tuple, int64 weight)
{
	bool		found;
	DeltaRow   *row = delta_insert(table->rows, tuple, &found);

	if (found)
	{
		table->size -= GetMemoryChunkSpace(tuple);
		pfree(tuple);
		row->weight += weight;
	}
	else
	{
		table->size += sizeof(DeltaRow);
		row->weight = weight;
	}
}

static void
append(struct SagaDeltaTable *table, MinimalTuple tuple)
{
	if (table->nadded == table->max_added)
	{
		table->max_added = Max(table->max_added * 2, 1024);
		if (table->added == NULL)
			table->added = palloc(sizeof(MinimalTuple) * table->max_added);
		else
			table->added = repalloc_huge(table->added,
										 sizeof(MinimalTuple) * table->max_added);
	}
	table->added[table->nadded++] = tuple;
	table->size += sizeof(MinimalTuple);
}

/* The first row that went: from now on rows can cancel out. */
static void
start_weighing(struct SagaDeltaTable *table)
{
	table->rows = delta_create(table->context,
							   (uint32) Min(Max(table->nadded * 2, 1024), 1 << 20),
							   NULL);
	for (int64 i = 0; i < table->nadded; i++)
		weigh(table, table->added[i], 1);
	if (table->added != NULL)
		pfree(table->added);
	table->added = NULL;
	table->nadded = table->max_added = 0;
}

void
saga_delta_add(SagaDelta *delta, const Datum *values, const bool *nulls,
			   int weight)
{
	struct SagaDeltaTable *table = delta->table;
	MemoryContext old;
	MinimalTuple tuple;
	bool		flattened = false;

	if (weight == 0)
		return;
	old = MemoryContextSwitchTo(table->context);
	for (int i = 0; i < table->ncolumns; i++)
	{
		int			column = table->columns[i];

		table->nulls[column] = nulls[column];
		if (nulls[column])
			continue;
		table->values[column] = values[column];
		if (table->varlena[i])
		{
			struct varlena *value = (struct varlena *) DatumGetPointer(values[column]);

			/* one image for one value, however it was stored */
			if (VARATT_IS_EXTERNAL(value) || VARATT_IS_COMPRESSED(value))
			{
				table->values[column] = PointerGetDatum(detoast_attr(value));
				flattened = true;
			}
		}
	}
	tuple = saga_form_minimal_tuple(delta->desc, table->values, table->nulls);
	if (flattened)
		for (int i = 0; i < table->ncolumns; i++)
		{
			int			column = table->columns[i];

			if (!nulls[column] && table->values[column] != values[column])
				pfree(DatumGetPointer(table->values[column]));
		}
	table->size += GetMemoryChunkSpace(tuple);

	if (table->rows == NULL && (weight != 1 || table->parts != NULL))
		start_weighing(table);
	if (table->rows != NULL)
		weigh(table, tuple, weight);
	else
		append(table, tuple);

	if (table->size > DELTA_MEMORY_KB * (Size) 1024)
		write_out(delta);
	MemoryContextSwitchTo(old);
}

/* Weigh the rows of a tuplestore, or deal them out to the parts. */
static void
take_back(SagaDelta *delta, Tuplestorestate *store, bool deal)
{
	struct SagaDeltaTable *table = delta->table;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(delta->desc,
													&TTSOpsMinimalTuple);

	while (tuplestore_gettupleslot(store, true, false, slot))
	{
		MinimalTuple tuple = ExecCopySlotMinimalTuple(slot);
		int64		weight;

		memcpy(&weight, (char *) tuple + tuple->t_len - TUPLE_WEIGHT_SIZE,
			   TUPLE_WEIGHT_SIZE);
		if (deal)
		{
			uint32		hash = hash_bytes(TUPLE_IMAGE(tuple), TUPLE_IMAGE_LENGTH(tuple));

			write_row(delta, part_of(delta, hash), tuple, weight);
			pfree(tuple);
		}
		else
		{
			table->size += GetMemoryChunkSpace(tuple);
			weigh(table, tuple, weight);
		}
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(store);
}

static Tuplestorestate *
new_store(SagaDelta *delta)
{
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(delta));
	Tuplestorestate *store = tuplestore_begin_heap(false, false, DELTA_MEMORY_KB);

	MemoryContextSwitchTo(old);
	return store;
}

/* Consolidate one part after the other; each is to fit into memory. */
static void
join_parts(SagaDelta *delta)
{
	struct SagaDeltaTable *table = delta->table;
	MemoryContext old = MemoryContextSwitchTo(table->context);

	write_out(delta);
	if (delta->rows > 0)
		take_back(delta, delta->store, true);	/* from before the first that went */
	else
		tuplestore_end(delta->store);
	delta->store = new_store(delta);
	delta->rows = 0;
	for (int i = 0; i < DELTA_PARTS; i++)
	{
		start_weighing(table);
		take_back(delta, table->parts[i], false);
		write_result(delta);
	}
	pfree(table->parts);
	table->parts = NULL;
	MemoryContextSwitchTo(old);
}

void
saga_delta_finish(SagaDelta *delta)
{
	if (delta->table->parts == NULL && delta->table->rows != NULL &&
		delta->rows > 0)
		write_out(delta);		/* they may cancel out rows written before */
	if (delta->table->parts != NULL)
		join_parts(delta);
	else
		write_result(delta);
}

void
saga_delta_end(SagaDelta *delta)
{
	ExecDropSingleTupleTableSlot(delta->table->slot);
	MemoryContextDelete(delta->table->context);
	tuplestore_end(delta->store);
	delta->store = NULL;
}
