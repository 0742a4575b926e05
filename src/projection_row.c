/*
 * projection_row.c
 *		Rows of saga.projection and saga.feed as sessions read them (see
 *		projection_row.h).
 *
 * Reads below SQL: readers of a projection have no right to these tables.
 * Keeps one cache, of which views are projections, thrown away as a whole
 * when the table changes; writers announce that as an invalidation of it.
 * Writes nothing.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "compat.h"
#include "feed_shared.h"
#include "projection_row.h"
#include "rights.h"
#include "spi_util.h"

/* Columns of saga.projection that are read here. */
enum
{
	PRO_ID = 1,
	PRO_VIEW,
	PRO_OWNER,
	PRO_QUERY,
	PRO_SEARCH_PATH,
	PRO_CONSISTENCY,
	PRO_KEY,
	PRO_INDEXES,
	PRO_MAX_LAG,
	PRO_CLASS,
	PRO_SHAPE,
	PRO_STATE,
	PRO_REASON,
	PRO_SQLSTATE,
	PRO_SINCE,
	PRO_FILLED,
	PRO_STALE,
	PRO_PLAIN,
	PRO_IDENTITY,
	PRO_SNAPSHOT,
	PRO_POSITION,
	PRO_AT,
	PRO_FILL,
	PRO_CREATED_AT,
	PRO_REPLACES,
	PRO_STAGES,
	PRO_DETERMINISTIC,
	PRO_BUILT_ON,
	PRO_NCOLUMNS = PRO_BUILT_ON
};

/* Columns of saga.feed. */
enum
{
	FEED_ONLY_ONE = 1,
	FEED_SLOT,
	FEED_IDENTITY,
	FEED_TIMELINE,
	FEED_SNAPSHOT,
	FEED_POSITION,
	FEED_AT,
	FEED_BATCHES,
	FEED_NCOLUMNS = FEED_BATCHES
};

typedef struct ViewEntry
{
	Oid			view;			/* key */
	int64		id;
	bool		strict;
} ViewEntry;

static HTAB *views = NULL;
static uint64 views_read = 0;	/* what 'changes' was when they were read */
static uint64 changes = 1;		/* counts invalidations */
static bool strict_views = false;
static Oid	projection_relid = InvalidOid;	/* whose invalidations count */

/* ---- rows ---- */

static List *
text_list(Datum array)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *list = NIL;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
		if (!nulls[i])
			list = lappend(list, TextDatumGetCString(elems[i]));
	return list;
}

static void
read_row(HeapTuple tuple, TupleDesc desc, SagaProjectionRow *row)
{
	Datum		values[PRO_NCOLUMNS];
	bool		nulls[PRO_NCOLUMNS];

	heap_deform_tuple(tuple, desc, values, nulls);
	memset(row, 0, sizeof(*row));
	row->id = DatumGetInt64(values[PRO_ID - 1]);
	row->view = DatumGetObjectId(values[PRO_VIEW - 1]);
	row->owner = DatumGetObjectId(values[PRO_OWNER - 1]);
	row->query = TextDatumGetCString(values[PRO_QUERY - 1]);
	row->search_path = TextDatumGetCString(values[PRO_SEARCH_PATH - 1]);
	row->strict = strcmp(TextDatumGetCString(values[PRO_CONSISTENCY - 1]), "strict") == 0;
	row->key = nulls[PRO_KEY - 1] ? NIL : text_list(values[PRO_KEY - 1]);
	row->indexes = text_list(values[PRO_INDEXES - 1]);
	if (!nulls[PRO_MAX_LAG - 1])
	{
		row->max_lag = palloc(sizeof(Interval));
		*row->max_lag = *DatumGetIntervalP(values[PRO_MAX_LAG - 1]);
	}
	row->state = TextDatumGetCString(values[PRO_STATE - 1]);
	if (!nulls[PRO_REASON - 1])
		row->reason = TextDatumGetCString(values[PRO_REASON - 1]);
	row->since = DatumGetTimestampTz(values[PRO_SINCE - 1]);
	row->filled = DatumGetBool(values[PRO_FILLED - 1]);
	row->stale = DatumGetBool(values[PRO_STALE - 1]);
	row->plain = DatumGetBool(values[PRO_PLAIN - 1]);
	row->own = !nulls[PRO_SNAPSHOT - 1];
	if (!nulls[PRO_POSITION - 1])
		row->position = DatumGetLSN(values[PRO_POSITION - 1]);
	row->at = nulls[PRO_AT - 1] ? DT_NOBEGIN : DatumGetTimestampTz(values[PRO_AT - 1]);
	row->replaces = nulls[PRO_REPLACES - 1] ? 0 : DatumGetInt64(values[PRO_REPLACES - 1]);
}

static Relation
open_own(const char *name)
{
	return table_open(saga_relation_oid(name), AccessShareLock);
}

static Oid
primary_key(Relation rel)
{
	list_free(RelationGetIndexList(rel));	/* sets rd_pkindex */
	return rel->rd_pkindex;
}

/* A scan of all rows, or by id if that is not 0. */
static SysScanDesc
begin_scan(Relation rel, int64 id, Snapshot snapshot)
{
	ScanKeyData key;

	ScanKeyInit(&key, PRO_ID, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	return systable_beginscan(rel, id ? primary_key(rel) : InvalidOid, id != 0,
							  snapshot, id ? 1 : 0, &key);
}

bool
saga_projection_row(int64 id, Snapshot snapshot, SagaProjectionRow *row)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	if (id == 0)
		return false;
	rel = open_own("projection");
	scan = begin_scan(rel, id, snapshot);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
		read_row(tuple, RelationGetDescr(rel), row);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/* The one of this view, or (replaces) the one that shall replace that one. */
static bool
search(Oid view, int64 replaces, SagaProjectionRow *row)
{
	Relation	rel = open_own("projection");
	SysScanDesc scan = begin_scan(rel, 0, NULL);
	HeapTuple	tuple;
	bool		found = false;

	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		read_row(tuple, RelationGetDescr(rel), row);
		found = row->replaces == replaces &&
			(!OidIsValid(view) || row->view == view);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

bool
saga_projection_row_of_view(Oid view, SagaProjectionRow *row)
{
	return search(view, 0, row);
}

bool
saga_projection_replacement(int64 id, SagaProjectionRow *row)
{
	return search(InvalidOid, id, row);
}

bool
saga_projection_filled_under(int64 id, Snapshot snapshot, bool *filled,
							 bool *strict)
{
	Relation	rel = open_own("projection");
	SysScanDesc scan = begin_scan(rel, id, snapshot);
	HeapTuple	tuple = systable_getnext(scan);
	bool		found = HeapTupleIsValid(tuple);
	bool		isnull;

	if (found)
	{
		TupleDesc	desc = RelationGetDescr(rel);
		text	   *consistency = DatumGetTextPP(heap_getattr(tuple, PRO_CONSISTENCY, desc, &isnull));

		*strict = VARDATA_ANY(consistency)[0] == 's';
		*filled = DatumGetBool(heap_getattr(tuple, PRO_FILLED, desc, &isnull));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

bool
saga_feed_stand(Snapshot snapshot, SagaFeedStand *stand)
{
	Relation	rel = open_own("feed");
	SysScanDesc scan = systable_beginscan(rel, primary_key(rel), true, snapshot, 0, NULL);
	HeapTuple	tuple = systable_getnext(scan);
	bool		found = HeapTupleIsValid(tuple);

	if (found)
	{
		Datum		values[FEED_NCOLUMNS];
		bool		nulls[FEED_NCOLUMNS];

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		stand->position = DatumGetLSN(values[FEED_POSITION - 1]);
		stand->at = nulls[FEED_AT - 1] ? DT_NOBEGIN : DatumGetTimestampTz(values[FEED_AT - 1]);
		stand->batches = DatumGetInt64(values[FEED_BATCHES - 1]);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/* ---- by name ---- */

char *
saga_projection_name(Oid view)
{
	char	   *name = get_rel_name(view);

	if (name == NULL)
		return psprintf("%u", view);
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(view)), name);
}

static void
by_name(const char *name, SagaProjectionRow *row)
{
	List	   *parts = textToQualifiedNameList(cstring_to_text(name));
	Oid			relid = RangeVarGetRelid(makeRangeVarFromNameList(parts), NoLock, true);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("projection \"%s\" does not exist", name)));
	if (!saga_projection_row_of_view(relid, row))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a projection", name)));
}

void
saga_projection_to_read(const char *name, SagaProjectionRow *row)
{
	by_name(name, row);
	if (!saga_may_change(GetUserId(), row->owner) &&
		pg_class_aclcheck(row->view, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_VIEW, get_rel_name(row->view));
}

void
saga_projection_lock(int64 id)
{
	/* the class is our table, so no SQL can take or meet this lock */
	LockDatabaseObject(saga_relation_oid("projection"), (Oid) id, 0, ExclusiveLock);
}

void
saga_projection_to_change(const char *name, SagaProjectionRow *row)
{
	int64		id;

	by_name(name, row);
	for (;;)
	{
		if (!saga_may_change(GetUserId(), row->owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("must be owner of projection \"%s\"", name)));
		id = row->id;
		saga_projection_lock(id);
		/* who had the lock may have dropped, renamed or replaced it */
		by_name(name, row);
		if (row->id == id)
			break;
	}
}

/* ---- which views are projections ---- */

/* May run at any time and must not touch catalogs or free anything. */
static void
invalidate_views(Datum arg, Oid relid)
{
	/* while there is no table, the next relation that comes may be it */
	if (!OidIsValid(relid) || !OidIsValid(projection_relid) ||
		relid == projection_relid)
		changes++;
}

static void
read_views(void)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	uint64		as_of = changes;
	Oid			schema;

	if (views)
		hash_destroy(views);
	views = NULL;
	strict_views = false;
	schema = get_namespace_oid("saga", true);
	projection_relid = OidIsValid(schema) ?
		get_relname_relid("projection", schema) : InvalidOid;

	if (!OidIsValid(projection_relid))
	{
		views_read = as_of;
		return;
	}

	/*
	 * Whoever drops the extension holds the table, and no query of this
	 * database shall wait for him.
	 */
	if (!ConditionalLockRelationOid(projection_relid, AccessShareLock))
		return;
	rel = try_table_open(projection_relid, NoLock);
	if (rel == NULL)
		return;
	as_of = changes;
	scan = begin_scan(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;
		Oid			view;
		ViewEntry  *entry;
		text	   *consistency;

		(void) heap_getattr(tuple, PRO_REPLACES, desc, &isnull);
		if (!isnull)
			continue;
		if (views == NULL)
		{
			HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(ViewEntry)};

			views = hash_create("saga projections", 64, &ctl, HASH_ELEM | HASH_BLOBS);
		}
		view = DatumGetObjectId(heap_getattr(tuple, PRO_VIEW, desc, &isnull));
		entry = hash_search(views, &view, HASH_ENTER, NULL);
		entry->id = DatumGetInt64(heap_getattr(tuple, PRO_ID, desc, &isnull));
		consistency = DatumGetTextPP(heap_getattr(tuple, PRO_CONSISTENCY, desc, &isnull));
		entry->strict = VARDATA_ANY(consistency)[0] == 's';
		strict_views |= entry->strict;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	views_read = as_of;
}

bool
saga_projection_views(bool *any_strict)
{
	static bool registered = false;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(invalidate_views, (Datum) 0);
		registered = true;
	}
	if (views_read != changes)
		read_views();
	*any_strict = strict_views;
	return views != NULL;
}

bool
saga_projection_is_view(Oid relid, int64 *id, bool *strict)
{
	ViewEntry  *entry = views ? hash_search(views, &relid, HASH_FIND, NULL) : NULL;

	if (entry == NULL)
		return false;
	*id = entry->id;
	*strict = entry->strict;
	return true;
}

void
saga_projections_changed(void)
{
	CacheInvalidateRelcacheByRelid(saga_relation_oid("projection"));
	saga_projector_wake_at_commit();
}
