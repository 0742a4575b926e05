/*
 * row_diff.c
 *		Which rows has this transaction changed since a snapshot (see
 *		row_diff.h).
 *
 * Called by dry_run.c.  Tables that were written are known by the locks that
 * this transaction holds on them.  Each is read twice: with the snapshot from
 * before, and with the same one moved to the present command: that sees what
 * we did and, as before, nothing of what others did meanwhile.  A row that
 * only one of them sees was written by us.  Pairs with the same key and the
 * same contents were restored.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "isolation.h"
#include "row_diff.h"

typedef struct Seen
{
	char	   *id;				/* key, or all of it, as text */
	char	   *text;			/* all of it */
	Jsonb	   *row;
	bool		before;
} Seen;

typedef struct SeenRows
{
	Seen	   *rows;
	int			n,
				max;
} SeenRows;

/* Tables of users on which we have a lock that writers take. */
static List *
written_tables(void)
{
	static SagaOwnQuery query = {
		NULL,
		"SELECT c.oid FROM pg_catalog.pg_class c JOIN (SELECT DISTINCT l.relation FROM pg_catalog.pg_locks l"
		" WHERE l.locktype = 'relation' AND l.granted AND l.pid = pg_catalog.pg_backend_pid()"
		" AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())"
		" AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareRowExclusiveLock',"
		" 'ExclusiveLock', 'AccessExclusiveLock')) l ON l.relation = c.oid"
		" JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
		" WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'saga')"
		" ORDER BY n.nspname, c.relname",
		0, {0}
	};
	MemoryContext context = CurrentMemoryContext;
	List	   *tables = NIL;
	uint64		n;

	SPI_connect();
	n = saga_own_query(&query, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			relid = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
														  SPI_tuptable->tupdesc, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(context);

		tables = lappend_oid(tables, relid);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return tables;
}

/* The file that held the table then; InvalidOid: there was no such table. */
static Oid
file_as_of(Oid relid, Snapshot snapshot)
{
	Relation	catalog = table_open(RelationRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			file = InvalidOid;

	ScanKeyInit(&key, Anum_pg_class_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(catalog, ClassOidIndexId, true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		file = ((Form_pg_class) GETSTRUCT(tuple))->relfilenode;
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return file;
}

static Jsonb *
row_as_json(TupleTableSlot *slot, TupleDesc desc)
{
	HeapTuple	tuple = ExecCopySlotHeapTuple(slot);
	Datum		row = heap_copy_tuple_as_datum(tuple, desc);
	Datum		json = DirectFunctionCall1(row_to_json, row);

	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(TextDatumGetCString(json))));
}

/* The values of the primary key; NULL if there is none. */
static Jsonb *
key_of(Jsonb *row, TupleDesc desc, Bitmapset *columns)
{
	JsonbParseState *ps = NULL;
	int			attnum = -1;

	if (bms_is_empty(columns))
		return NULL;
	pushJsonbValue(&ps, WJB_BEGIN_OBJECT, NULL);
	while ((attnum = bms_next_member(columns, attnum)) >= 0)
	{
		char	   *name = NameStr(TupleDescAttr(desc, attnum + FirstLowInvalidHeapAttributeNumber - 1)->attname);
		JsonbValue	k;
		JsonbValue *v = getKeyJsonValueFromContainer(&row->root, name, strlen(name), NULL);

		k.type = jbvString;
		k.val.string.val = name;
		k.val.string.len = strlen(name);
		pushJsonbValue(&ps, WJB_KEY, &k);
		pushJsonbValue(&ps, WJB_VALUE, v);
	}
	return JsonbValueToJsonb(pushJsonbValue(&ps, WJB_END_OBJECT, NULL));
}

static char *
json_text(Jsonb *value)
{
	return JsonbToCString(NULL, &value->root, VARSIZE(value));
}

/* Rows that one snapshot sees and the other does not. */
static void
read_rows(Relation rel, TupleDesc desc, Bitmapset *keys, Snapshot sees, Snapshot not,
		  bool before, SeenRows *out)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, sees, 0, NULL);

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		Seen	   *seen;
		Jsonb	   *key;

		CHECK_FOR_INTERRUPTS();
		if (table_tuple_satisfies_snapshot(rel, slot, not))
			continue;
		if (out->n == out->max)
		{
			out->max = out->max ? out->max * 2 : 64;
			out->rows = out->rows ? repalloc_huge(out->rows, sizeof(Seen) * out->max) :
				palloc(sizeof(Seen) * out->max);
		}
		seen = &out->rows[out->n++];
		seen->before = before;
		seen->row = row_as_json(slot, desc);
		seen->text = json_text(seen->row);
		key = key_of(seen->row, desc, keys);
		seen->id = key ? json_text(key) : seen->text;
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
}

static int
by_id(const void *a, const void *b)
{
	const Seen *x = a;
	const Seen *y = b;
	int			order = strcmp(x->id, y->id);

	return order ? order : (int) y->before - (int) x->before;
}

static void
compare_table(Relation rel, Snapshot before, Snapshot now,
			  void (*found) (void *arg, const SagaRowChange *change), void *arg)
{
	Bitmapset  *keys = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_PRIMARY_KEY);
	TupleDesc	desc = CreateTupleDescCopy(RelationGetDescr(rel));
	SeenRows	seen = {0};
	int			i = 0;

	desc = BlessTupleDesc(desc);
	read_rows(rel, desc, keys, before, now, true, &seen);
	read_rows(rel, desc, keys, now, before, false, &seen);
	if (seen.n > 1)
		qsort(seen.rows, seen.n, sizeof(Seen), by_id);
	while (i < seen.n)
	{
		SagaRowChange change = {.relid = RelationGetRelid(rel)};
		int			end = i;
		int			middle;

		while (end < seen.n && strcmp(seen.rows[end].id, seen.rows[i].id) == 0)
			end++;
		for (middle = i; middle < end && seen.rows[middle].before; middle++)
			;

		/* one of each with a key; without, as many as there are of equal ones */
		for (int k = 0; k < Max(middle - i, end - middle); k++)
		{
			Seen	   *old = k < middle - i ? &seen.rows[i + k] : NULL;
			Seen	   *new = k < end - middle ? &seen.rows[middle + k] : NULL;

			if (old && new && strcmp(old->text, new->text) == 0)
				continue;
			change.before = old ? old->row : NULL;
			change.after = new ? new->row : NULL;
			change.key = key_of(old ? old->row : new->row, desc, keys);
			found(arg, &change);
		}
		i = end;
	}
}

void
saga_row_diff(Snapshot before, Oid role,
			  void (*found) (void *arg, const SagaRowChange *change), void *arg)
{
	List	   *tables = written_tables();
	Snapshot	now;
	ListCell   *lc;

	/* the same, but for what this transaction has done since */
	CommandCounterIncrement();
	PushCopiedSnapshot(before);
	UpdateActiveSnapshotCommandId();
	now = RegisterSnapshot(GetActiveSnapshot());
	foreach(lc, tables)
	{
		SagaRowChange change = {.relid = lfirst_oid(lc)};
		Relation	rel = table_open(lfirst_oid(lc), AccessShareLock);
		Oid			file = file_as_of(change.relid, before);

		if (!OidIsValid(file))
			change.note = "the table is new";
		else if (file != rel->rd_rel->relfilenode)
			change.note = "the table was truncated or rewritten: its rows are not compared";
		else if (pg_class_aclcheck(change.relid, role, ACL_SELECT) != ACLCHECK_OK ||
				 check_enable_rls(change.relid, role, true) == RLS_ENABLED)
			change.note = "the definition's owner may not read the table: its rows are not compared";
		if (change.note)
			found(arg, &change);
		else
			compare_table(rel, before, now, found, arg);
		table_close(rel, AccessShareLock);
	}
	UnregisterSnapshot(now);
	PopActiveSnapshot();
}
