/*
 * rows.c
 *		Rows of our own tables by primary key, below SQL (see rows.h).
 *
 * Called by log.c and instance.c.  Built from the same calls COPY and logical
 * replication use: multi-insert with its index entries, index look-up, simple
 * update and delete.  Knows no column of any table.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "executor/executor.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "rows.h"

/* Rows held back before they are written as one. */
#define MAX_BUFFERED	256

struct SagaTable
{
	Relation	rel;
	LOCKMODE	lockmode;
	EState	   *estate;
	ResultRelInfo *result_rel;
	Relation	pkey;			/* opened at the first look-up */
	TupleTableSlot *found;
	TupleTableSlot *work;
	TupleTableSlot *buffered[MAX_BUFFERED];
	int			nslots;
	int			nbuffered;
	MemoryContext rows;			/* copies of buffered values */
	MemoryContext context;
};

SagaTable *
saga_table_open_oid(Oid relid, LOCKMODE lockmode)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "saga table",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	SagaTable  *table = palloc0(sizeof(SagaTable));

	table->context = context;
	table->rel = table_open(relid, lockmode);
	table->lockmode = lockmode;
	table->rows = AllocSetContextCreate(context, "saga buffered rows",
										ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(old);
	return table;
}

SagaTable *
saga_table_open(const char *name, LOCKMODE lockmode)
{
	Oid			schema = get_namespace_oid("saga", false);
	Oid			relid = get_relname_relid(name, schema);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"saga.%s\" does not exist", name),
				 errhint("Run ALTER EXTENSION saga UPDATE, or create the extension again.")));
	return saga_table_open_oid(relid, lockmode);
}

/* What writing needs; look-ups alone do without. */
static void
prepare_writing(SagaTable *table)
{
	MemoryContext old;

	if (table->estate)
		return;
	old = MemoryContextSwitchTo(table->context);
	table->estate = CreateExecutorState();
	table->result_rel = makeNode(ResultRelInfo);
	InitResultRelInfo(table->result_rel, table->rel, 0, NULL, 0);
	ExecOpenIndices(table->result_rel, false);
	table->estate->es_output_cid = GetCurrentCommandId(true);
	MemoryContextSwitchTo(old);
}

void
saga_table_close(SagaTable *table)
{
	saga_table_flush(table);
	for (int i = 0; i < table->nslots; i++)
		ExecDropSingleTupleTableSlot(table->buffered[i]);
	if (table->found)
		ExecDropSingleTupleTableSlot(table->found);
	if (table->work)
		ExecDropSingleTupleTableSlot(table->work);
	if (table->pkey)
		index_close(table->pkey, AccessShareLock);
	if (table->estate)
	{
		ExecCloseIndices(table->result_rel);
		FreeExecutorState(table->estate);
	}
	/* the lock stays until the transaction ends */
	table_close(table->rel, NoLock);
	MemoryContextDelete(table->context);
}

static void
insert_index_entries(SagaTable *table, TupleTableSlot *slot)
{
	if (table->result_rel->ri_NumIndices == 0)
		return;
	list_free(saga_ExecInsertIndexTuples(table->result_rel, slot, table->estate));
	ResetPerTupleExprContext(table->estate);
}

void
saga_table_flush(SagaTable *table)
{
	if (table->nbuffered == 0)
		return;
	table_multi_insert(table->rel, table->buffered, table->nbuffered,
					   GetCurrentCommandId(true), 0, NULL);
	for (int i = 0; i < table->nbuffered; i++)
	{
		insert_index_entries(table, table->buffered[i]);
		ExecClearTuple(table->buffered[i]);
	}
	table->nbuffered = 0;
	MemoryContextReset(table->rows);
}

void
saga_table_insert(SagaTable *table, const Datum *values, const bool *nulls)
{
	TupleDesc	desc = RelationGetDescr(table->rel);
	TupleTableSlot *slot;
	MemoryContext old;

	prepare_writing(table);
	if (table->nbuffered == table->nslots)
	{
		old = MemoryContextSwitchTo(table->context);
		table->buffered[table->nslots++] = table_slot_create(table->rel, NULL);
		MemoryContextSwitchTo(old);
	}
	slot = table->buffered[table->nbuffered++];
	ExecClearTuple(slot);
	old = MemoryContextSwitchTo(table->rows);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		slot->tts_isnull[i] = nulls[i];
		slot->tts_values[i] = nulls[i] ? (Datum) 0 :
			datumCopy(values[i], att->attbyval, att->attlen);
	}
	MemoryContextSwitchTo(old);
	ExecStoreVirtualTuple(slot);
	if (table->nbuffered == MAX_BUFFERED)
		saga_table_flush(table);
}

/* Find by primary key into table->found. */
static bool
look_up(SagaTable *table, const Datum *key)
{
	ScanKeyData scankey[4];
	IndexScanDesc scan;
	int			nkeys;
	bool		found;

	if (table->pkey == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(table->context);

		(void) RelationGetIndexList(table->rel);	/* sets rd_pkindex */
		table->pkey = index_open(table->rel->rd_pkindex, AccessShareLock);
		table->found = table_slot_create(table->rel, NULL);
		MemoryContextSwitchTo(old);
	}
	nkeys = IndexRelationGetNumberOfKeyAttributes(table->pkey);
	Assert(nkeys <= (int) lengthof(scankey));
	for (int i = 0; i < nkeys; i++)
	{
		Oid			opfamily = table->pkey->rd_opfamily[i];
		Oid			type = table->pkey->rd_opcintype[i];
		Oid			op = get_opfamily_member(opfamily, type, type,
											 BTEqualStrategyNumber);

		ScanKeyEntryInitialize(&scankey[i], 0, i + 1, BTEqualStrategyNumber,
							   type, table->pkey->rd_indcollation[i],
							   get_opcode(op), key[i]);
	}
	scan = index_beginscan(table->rel, table->pkey, GetActiveSnapshot(), nkeys, 0);
	index_rescan(scan, scankey, nkeys, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, table->found);
	if (found)
		ExecMaterializeSlot(table->found);
	index_endscan(scan);
	return found;
}

bool
saga_table_fetch(SagaTable *table, const Datum *key, Datum *values, bool *nulls)
{
	if (!look_up(table, key))
		return false;
	slot_getallattrs(table->found);
	memcpy(values, table->found->tts_values,
		   sizeof(Datum) * table->found->tts_nvalid);
	memcpy(nulls, table->found->tts_isnull,
		   sizeof(bool) * table->found->tts_nvalid);
	return true;
}

bool
saga_table_fetched_is_ours(SagaTable *table)
{
	bool		isnull;
	Datum		xmin = slot_getsysattr(table->found,
									   MinTransactionIdAttributeNumber, &isnull);

	return !isnull &&
		TransactionIdIsCurrentTransactionId(DatumGetTransactionId(xmin));
}

bool
saga_table_update(SagaTable *table, const Datum *key, const Datum *values,
				  const bool *nulls, const bool *replace)
{
	TupleDesc	desc = RelationGetDescr(table->rel);
	ItemPointerData tid;

	prepare_writing(table);
	saga_table_flush(table);
	if (!look_up(table, key))
		return false;
	if (table->work == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(table->context);

		table->work = table_slot_create(table->rel, NULL);
		MemoryContextSwitchTo(old);
	}
	slot_getallattrs(table->found);
	ExecClearTuple(table->work);
	for (int i = 0; i < desc->natts; i++)
	{
		table->work->tts_values[i] = replace[i] ? values[i] : table->found->tts_values[i];
		table->work->tts_isnull[i] = replace[i] ? nulls[i] : table->found->tts_isnull[i];
	}
	ExecStoreVirtualTuple(table->work);
	tid = table->found->tts_tid;
	saga_simple_update(table->rel, &tid, table->work, GetActiveSnapshot(),
					   insert_index_entries(table, table->work));
	return true;
}

bool
saga_table_delete(SagaTable *table, const Datum *key)
{
	ItemPointerData tid;
	TM_FailureData failure;
	TM_Result	result;

	saga_table_flush(table);
	if (!look_up(table, key))
		return false;
	tid = table->found->tts_tid;
	result = table_tuple_delete(table->rel, &tid, GetCurrentCommandId(true),
								GetActiveSnapshot(), InvalidSnapshot, true,
								&failure, false);
	/* a row deleted twice in one transaction is gone all the same */
	if (result != TM_Ok && result != TM_SelfModified && result != TM_Deleted)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("a row of relation \"%s\" was changed by another transaction",
						RelationGetRelationName(table->rel)),
				 errhint("Only saga itself may write its tables.")));
	return result == TM_Ok;
}
