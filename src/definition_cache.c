/*
 * definition_cache.c
 *		Rows of saga.definition and saga.privilege, and what a process keeps of
 *		them.
 *
 * Called in sessions and workers.  Reads the tables below SQL: users have no
 * right to them.  Two caches: compiled definitions by id, which are immutable
 * but for owner and paused and are never freed (sagas in memory point into
 * them); and names, thrown away as a whole when either table changes.  Writers
 * (define.c, rights.c) announce a change as an invalidation of the table.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "define.h"
#include "errors.h"
#include "rights.h"
#include "spi_util.h"

/* Columns of saga.definition; 20_definitions.sql. */
enum
{
	DEF_ID = 1,
	DEF_NAME,
	DEF_VERSION,
	DEF_OWNER,
	DEF_HASH,
	DEF_BODY,
	DEF_SEARCH_PATH,
	DEF_CREATED_AT,
	DEF_PAUSED,
	DEF_NCOLUMNS = DEF_PAUSED
};

/* Columns of saga.privilege. */
enum
{
	PRIV_DEFINITION = 1,
	PRIV_GRANTEE,
	PRIV_PRIVILEGES,
	PRIV_NCOLUMNS = PRIV_PRIVILEGES
};

/* Locks that no SQL can take: on objects of class saga.definition. */
#define LOCK_ROW	0			/* objid: id of the row */
#define LOCK_NAME	1			/* objid: hash of the name */

typedef struct IdEntry
{
	int64		id;				/* key */
	uint64		checked;		/* owner and paused are those of this change */
	Oid			relid;			/* of the table it was read from: ids begin
								 * anew when the extension is created anew */
	SagaDefinition *def;
} IdEntry;

static HTAB *by_id = NULL;
static HTAB *by_name = NULL;
static MemoryContext name_context = NULL;
static bool names_valid = false;
static uint64 changes = 1;		/* counts invalidations seen */
static Oid	definition_relid = InvalidOid;
static Oid	privilege_relid = InvalidOid;

/* May run at any time and must not touch catalogs or free anything. */
static void
invalidate(Datum arg, Oid relid)
{
	if (OidIsValid(relid) && relid != definition_relid &&
		relid != privilege_relid)
		return;
	names_valid = false;
	changes++;
}

static void
init_caches(void)
{
	HASHCTL		ctl;

	if (by_id != NULL)
		return;
	CacheRegisterRelcacheCallback(invalidate, (Datum) 0);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(int64);
	ctl.entrysize = sizeof(IdEntry);
	by_id = hash_create("saga definitions", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	name_context = AllocSetContextCreate(CacheMemoryContext,
										 "saga definition names",
										 ALLOCSET_SMALL_SIZES);
}

/* Throw the names away if something changed since they were read. */
static void
refresh_names(void)
{
	HASHCTL		ctl;

	if (names_valid)
		return;
	by_name = NULL;
	MemoryContextReset(name_context);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = SAGA_MAX_DEFINITION_NAME + 1;
	ctl.entrysize = sizeof(SagaNameEntry);
	ctl.hcxt = name_context;
	by_name = hash_create("saga definition names", 64, &ctl,
						  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	names_valid = true;
}

/*
 * Opening the table processes invalidations, so the caches must be looked at
 * after it, and its oid must be known before it.
 */
static Relation
open_definition(void)
{
	init_caches();
	definition_relid = saga_relation_oid("definition");
	return table_open(definition_relid, AccessShareLock);
}

/* ---- rows ---- */

static Oid
find_index(Relation rel, bool primary)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;
	Oid			found = InvalidOid;

	foreach(lc, indexes)
		if ((lfirst_oid(lc) == rel->rd_pkindex) == primary)
			found = lfirst_oid(lc);
	list_free(indexes);
	if (!OidIsValid(found))
		elog(ERROR, "an index of \"%s\" is missing", RelationGetRelationName(rel));
	return found;
}

static void
read_row(HeapTuple tuple, TupleDesc desc, SagaDefinitionRow *row)
{
	Datum		values[DEF_NCOLUMNS];
	bool		nulls[DEF_NCOLUMNS];

	heap_deform_tuple(tuple, desc, values, nulls);
	row->id = DatumGetInt64(values[DEF_ID - 1]);
	row->name = TextDatumGetCString(values[DEF_NAME - 1]);
	row->version = DatumGetInt32(values[DEF_VERSION - 1]);
	row->owner = DatumGetObjectId(values[DEF_OWNER - 1]);
	row->hash = TextDatumGetCString(values[DEF_HASH - 1]);
	row->body = DatumGetJsonbPCopy(values[DEF_BODY - 1]);
	row->search_path = TextDatumGetCString(values[DEF_SEARCH_PATH - 1]);
	row->paused = DatumGetBool(values[DEF_PAUSED - 1]);
}

/* As the table is now: what this transaction wrote is seen too. */
static Snapshot
current_snapshot(void)
{
	return RegisterSnapshot(GetLatestSnapshot());
}

static bool
fetch_by_id(Relation rel, int64 id, SagaDefinitionRow *row)
{
	Snapshot	snapshot = current_snapshot();
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	ScanKeyInit(&key, DEF_ID, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(id));
	scan = systable_beginscan(rel, find_index(rel, true), true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
		read_row(tuple, RelationGetDescr(rel), row);
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return found;
}

static void
name_key(ScanKeyData *key, AttrNumber column, const char *name)
{
	ScanKeyInit(key, column, BTEqualStrategyNumber, F_TEXTEQ,
				CStringGetTextDatum(name));
	key->sk_collation = DEFAULT_COLLATION_OID;
}

/* Version 0: the newest. */
static bool
fetch_by_name(Relation rel, const char *name, int32 version,
			  SagaDefinitionRow *row)
{
	Snapshot	snapshot = current_snapshot();
	Relation	index = index_open(find_index(rel, false), AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	name_key(&keys[0], DEF_NAME, name);
	ScanKeyInit(&keys[1], DEF_VERSION, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(version));
	scan = systable_beginscan_ordered(rel, index, snapshot,
									  version == 0 ? 1 : 2, keys);
	tuple = systable_getnext_ordered(scan, BackwardScanDirection);
	found = HeapTupleIsValid(tuple);
	if (found)
		read_row(tuple, RelationGetDescr(rel), row);
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	UnregisterSnapshot(snapshot);
	return found;
}

bool
saga_definition_newest(const char *name, SagaDefinitionRow *row)
{
	Relation	rel = open_definition();
	bool		found = fetch_by_name(rel, name, 0, row);

	table_close(rel, AccessShareLock);
	return found;
}

int64
saga_definition_id(const char *name, int32 version)
{
	Relation	rel = open_definition();
	SagaDefinitionRow row;
	bool		found = fetch_by_name(rel, name, version, &row);

	table_close(rel, AccessShareLock);
	return found ? row.id : 0;
}

/* ---- definitions by id ---- */

/*
 * A failed compilation becomes SGD01, whatever it fails with: the definition
 * was good when it was made, so the world around it has changed.
 */
static SagaDefinition *
compile_row(const SagaDefinitionRow *row)
{
	MemoryContext old = CurrentMemoryContext;
	SagaFaults	faults = {old, NIL};
	SagaDefinition *volatile def = NULL;

	PG_TRY();
	{
		def = saga_definition_compile(row, &faults);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(old);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_DEFINITION),
				 errmsg("version %d of saga \"%s\" can no longer be used",
						row->version, row->name),
				 errdetail_internal("%s", error->message),
				 errhint("Make what it needs again, or define a new version.")));
	}
	PG_END_TRY();

	saga_faults_raise(&faults,
					  psprintf("version %d of saga \"%s\" can no longer be used",
							   row->version, row->name));
	MemoryContextSetParent(def->context, CacheMemoryContext);
	return def;
}

/* The compiled form of a row that was read when 'changes' stood at 'as_of'. */
static SagaDefinition *
keep(const SagaDefinitionRow *row, uint64 as_of)
{
	IdEntry    *entry;
	bool		found;

	entry = hash_search(by_id, &row->id, HASH_FIND, NULL);
	if (entry == NULL || entry->relid != definition_relid)
	{
		Oid			relid = definition_relid;
		SagaDefinition *def = compile_row(row);

		entry = hash_search(by_id, &row->id, HASH_ENTER, &found);
		entry->def = def;
		entry->relid = relid;
	}
	entry->checked = as_of;
	entry->def->owner = row->owner;
	entry->def->paused = row->paused;
	if (entry->def->two_phase)
	{
		entry->def->two_phase->owner = row->owner;
		entry->def->two_phase->paused = row->paused;
	}
	return entry->def;
}

SagaDefinition *
saga_definition_by_id(int64 id)
{
	IdEntry    *entry;
	Relation	rel;
	SagaDefinitionRow row;
	uint64		as_of;
	bool		found;

	init_caches();
	entry = hash_search(by_id, &id, HASH_FIND, NULL);
	if (entry != NULL &&
		(entry->checked == changes || !IsTransactionState()))
		return entry->def;

	rel = open_definition();
	as_of = changes;
	found = fetch_by_id(rel, id, &row);
	table_close(rel, AccessShareLock);
	return found ? keep(&row, as_of) : NULL;
}

/* ---- names ---- */

static void
fetch_grants(SagaNameEntry *entry)
{
	Relation	rel;
	Snapshot	snapshot;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	int			max = 0;

	privilege_relid = saga_relation_oid("privilege");
	rel = table_open(privilege_relid, AccessShareLock);
	snapshot = current_snapshot();
	name_key(&key, PRIV_DEFINITION, entry->name);
	scan = systable_beginscan(rel, find_index(rel, true), true, snapshot, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		values[PRIV_NCOLUMNS];
		bool		nulls[PRIV_NCOLUMNS];
		SagaGrant  *grant;

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		if (entry->ngrants == max)
		{
			max = Max(4, 2 * max);
			if (entry->grants == NULL)
				entry->grants = palloc(max * sizeof(SagaGrant));
			else
				entry->grants = repalloc(entry->grants, max * sizeof(SagaGrant));
		}
		grant = &entry->grants[entry->ngrants++];
		grant->grantee = DatumGetObjectId(values[PRIV_GRANTEE - 1]);
		grant->privileges =
			saga_privilege_mask(DatumGetArrayTypeP(values[PRIV_PRIVILEGES - 1]));
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

/*
 * A new entry is complete before it enters the cache, and does not enter it
 * if an invalidation came while it was read.
 */
const SagaNameEntry *
saga_definition_name(const char *name)
{
	SagaNameEntry *entry;
	SagaNameEntry fresh;
	SagaDefinitionRow row;
	uint64		before;
	bool		found;

	if (strlen(name) > SAGA_MAX_DEFINITION_NAME)
		return NULL;
	if (names_valid)
	{
		entry = hash_search(by_name, name, HASH_FIND, NULL);
		if (entry != NULL)
			return entry;
	}

	do
	{
		Relation	rel = open_definition();

		before = changes;
		memset(&fresh, 0, sizeof(fresh));
		strlcpy(fresh.name, name, sizeof(fresh.name));
		if (!fetch_by_name(rel, name, 0, &row))
		{
			table_close(rel, AccessShareLock);
			return NULL;
		}
		table_close(rel, AccessShareLock);
		fresh.id = row.id;
		fresh.version = row.version;
		fresh.owner = row.owner;
		fetch_grants(&fresh);
	} while (before != changes);

	refresh_names();
	entry = hash_search(by_name, name, HASH_ENTER, &found);
	*entry = fresh;
	if (fresh.ngrants > 0)
	{
		entry->grants = MemoryContextAlloc(name_context,
										   fresh.ngrants * sizeof(SagaGrant));
		memcpy(entry->grants, fresh.grants, fresh.ngrants * sizeof(SagaGrant));
	}
	return entry;
}

SagaDefinition *
saga_definition_by_name(const char *name, int32 version)
{
	const SagaNameEntry *entry;
	Relation	rel;
	SagaDefinitionRow row;
	uint64		as_of;
	bool		found;

	entry = saga_definition_name(name);
	if (entry == NULL)
		return NULL;
	if (version == 0 || version == entry->version)
		return saga_definition_by_id(entry->id);

	rel = open_definition();
	as_of = changes;
	found = fetch_by_name(rel, name, version, &row);
	table_close(rel, AccessShareLock);
	return found ? keep(&row, as_of) : NULL;
}

/* ---- changes and locks ---- */

void
saga_definitions_changed(void)
{
	CacheInvalidateRelcacheByRelid(saga_relation_oid("definition"));
	CommandCounterIncrement();
}

void
saga_privileges_changed(void)
{
	CacheInvalidateRelcacheByRelid(saga_relation_oid("privilege"));
	CommandCounterIncrement();
}

void
saga_definition_lock_name(const char *name)
{
	LockDatabaseObject(saga_relation_oid("definition"),
					   hash_bytes((const unsigned char *) name, strlen(name)),
					   LOCK_NAME, AccessExclusiveLock);
}

void
saga_definition_lock_for_drop(int64 id)
{
	LockDatabaseObject(saga_relation_oid("definition"), (Oid) id, LOCK_ROW,
					   AccessExclusiveLock);
}

/* The lock processes invalidations, so what it protects is looked up again. */
SagaDefinition *
saga_definition_for_start(const char *name, int32 version)
{
	SagaDefinition *def = saga_definition_by_name(name, version);

	while (def != NULL)
	{
		int64		locked = def->id;
		Oid			relid = saga_relation_oid("definition");

		LockDatabaseObject(relid, (Oid) locked, LOCK_ROW, AccessShareLock);
		def = saga_definition_by_name(name, version);
		if (def != NULL && def->id == locked)
			break;
		UnlockDatabaseObject(relid, (Oid) locked, LOCK_ROW, AccessShareLock);
	}
	return def;
}

void
saga_no_such_definition(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("saga definition \"%s\" does not exist", name),
			 errhint("saga.definitions lists those you may see.")));
}
