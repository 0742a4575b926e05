/*
 * projector_set.c
 *		The projections of this database in the projector's memory: their rows,
 *		programs, and the tables that are decoded for them.
 *
 * Owns saga_projections and the table of tracked relations.  Called by the
 * projector and the filler, in a transaction with SPI connected.  Reads and
 * writes saga.projection; never storage.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#include "compat.h"
#include "projection_row.h"
#include "projector.h"
#include "saga.h"
#include "spi_util.h"

List	   *saga_projections = NIL;
bool		saga_projections_dirty = true;
bool		saga_views_dirty = false;
bool		saga_set_touched = false;
uint64		saga_set_first = 0;

static HTAB *tracked = NULL;
static MemoryContext track_context = NULL;

static const char *const state_names[] = {
	[SAGA_P_FILLING] = "filling",
	[SAGA_P_FOLLOWING] = "following",
	[SAGA_P_PAUSED] = "paused",
	[SAGA_P_PARKED] = "parked",
	[SAGA_P_REBUILDING] = "rebuilding",
};

static SagaProjectionState
state_from_name(const char *name)
{
	for (int i = 0; i < (int) lengthof(state_names); i++)
		if (strcmp(state_names[i], name) == 0)
			return (SagaProjectionState) i;
	elog(ERROR, "unexpected projection state \"%s\"", name);
}

/* ------------------------------------------------------------ snapshots */

Datum
saga_snapshot_copy(Datum snapshot, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Datum		copy = datumCopy(PointerGetDatum(PG_DETOAST_DATUM(snapshot)), false, -1);

	MemoryContextSwitchTo(old);
	return copy;
}

bool
saga_snapshot_sees(Datum snapshot, FullTransactionId xid)
{
	return DatumGetBool(DirectFunctionCall2(pg_visible_in_snapshot,
											FullTransactionIdGetDatum(xid),
											snapshot));
}

const char *
saga_sqlstate_text(int sqlerrcode)
{
	return pstrdup(unpack_sql_state(sqlerrcode));
}

/* --------------------------------------------------------------- digests */

/*
 * A digest of what a program was built on, so that any DDL that matters is
 * seen, also what was done while no projector ran: under a lock on the source,
 * before the batch's snapshot.
 */
static uint64
table_digest(Oid relid, const Bitmapset *columns, TupleDesc root,
				uint64 *files)
{
	Relation	rel = try_relation_open(relid, NoLock);
	uint64		h;

	if (rel == NULL)
		return 0;
	h = hash_bytes_uint32_extended(relid, rel->rd_rel->relkind);
	h = hash_combine64(h, hash_bytes_uint32_extended(rel->rd_rel->relpersistence, 1));
	h = hash_combine64(h, hash_bytes_uint32_extended(rel->rd_rel->relrowsecurity, 2));
	h = hash_combine64(h, hash_bytes_uint32_extended(rel->rd_rel->relforcerowsecurity, 3));
	h = hash_combine64(h, hash_bytes_uint32_extended(rel->rd_rel->relreplident, 4));
	(void) RelationGetIndexList(rel);	/* fills rd_pkindex, rd_replidindex */
	h = hash_combine64(h, hash_bytes_uint32_extended(rel->rd_pkindex, 5));
	h = hash_combine64(h, hash_bytes_uint32_extended(rel->rd_replidindex, 6));
	for (int i = -1; (i = bms_next_member(columns, i)) >= 0;)
	{
		const char *name = NameStr(TupleDescAttr(root, i - 1)->attname);
		AttrNumber	attno = get_attnum(relid, name);

		if (attno > 0 && attno <= RelationGetNumberOfAttributes(rel))
		{
			Form_pg_attribute a = TupleDescAttr(RelationGetDescr(rel), attno - 1);

			h = hash_combine64(h, hash_bytes_extended((const unsigned char *) name, strlen(name), 7));
			h = hash_combine64(h, hash_bytes_uint32_extended(a->atttypid, (uint64) attno));
			h = hash_combine64(h, hash_bytes_uint32_extended((uint32) a->atttypmod, a->attcollation));
			h = hash_combine64(h, hash_bytes_uint32_extended(a->attnotnull, a->attgenerated));
		}
		else
			h = hash_combine64(h, 8);
	}
	*files = hash_combine64(*files, hash_bytes_uint32_extended(rel->rd_rel->relfilenode, relid));
	relation_close(rel, NoLock);
	return h;
}

static SagaDigest *
source_digest(const SagaSource *source)
{
	SagaDigest *digest = palloc0(sizeof(SagaDigest));
	List	   *tables = find_all_inheritors(source->relid, AccessShareLock, NULL);
	ListCell   *lc;

	list_sort(tables, list_oid_cmp);
	foreach(lc, tables)
		digest->definition = hash_combine64(digest->definition,
											table_digest(lfirst_oid(lc), source->columns,
														 source->desc, &digest->files));
	list_free(tables);
	return digest;
}

List *
saga_set_digests(const SagaProgram *program)
{
	SagaDigest *views = palloc0(sizeof(SagaDigest));
	List	   *digests = list_make1(views);
	ListCell   *lc;

	if (program->views != NIL)
		views->definition = hash_bytes_extended((const unsigned char *) program->live_query,
												strlen(program->live_query), 0);
	foreach(lc, program->sources)
		digests = lappend(digests, source_digest(lfirst(lc)));
	return digests;
}

bool
saga_digests_equal(List *a, List *b)
{
	if (list_length(a) != list_length(b))
		return false;
	for (int i = 0; i < list_length(a); i++)
		if (memcmp(list_nth(a, i), list_nth(b, i), sizeof(SagaDigest)) != 0)
			return false;
	return true;
}

static List *
copy_digests(List *digests)
{
	List	   *copy = NIL;
	ListCell   *lc;

	foreach(lc, digests)
	{
		SagaDigest *digest = palloc(sizeof(SagaDigest));

		*digest = *(SagaDigest *) lfirst(lc);
		copy = lappend(copy, digest);
	}
	return copy;
}

static Datum
digests_to_array(List *digests)
{
	Datum	   *elems = palloc(sizeof(Datum) * 2 * Max(1, list_length(digests)));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, digests)
	{
		SagaDigest *digest = lfirst(lc);

		elems[n++] = UInt64GetDatum(digest->definition);
		elems[n++] = UInt64GetDatum(digest->files);
	}
	return PointerGetDatum(construct_array(elems, n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static List *
digests_from_array(Datum array)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *digests = NIL;

	deconstruct_array(DatumGetArrayTypeP(array), INT8OID, sizeof(int64),
					  FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &elems, &nulls, &n);
	for (int i = 0; i + 1 < n; i += 2)
	{
		SagaDigest *digest = palloc(sizeof(SagaDigest));

		digest->definition = DatumGetUInt64(elems[i]);
		digest->files = DatumGetUInt64(elems[i + 1]);
		digests = lappend(digests, digest);
	}
	return digests;
}

static void
source_may_have_changed(Datum arg, Oid relid)
{
	ListCell   *lc;

	/* our own storage changes all the time, in its statistics if not else */
	if (!OidIsValid(relid) || (tracked != NULL && saga_set_tracked(relid) != NULL))
		saga_projections_dirty = true;
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		if (p->program != NULL && p->program->views != NIL &&
			(!OidIsValid(relid) || list_member_oid(p->program->views, relid)))
			saga_projections_dirty = saga_views_dirty = true;
	}
}

void
saga_set_init(void)
{
	CacheRegisterRelcacheCallback(source_may_have_changed, (Datum) 0);
}

/* --------------------------------------------------------------- programs */

static void
forget_program(SagaProjection *p)
{
	if (p->apply)
		saga_apply_free(p->apply);
	p->apply = NULL;
	p->program = NULL;
	p->built_on = NIL;
	if (p->program_context)
		MemoryContextDelete(p->program_context);
	p->program_context = NULL;
}

static void
build_program(void *arg)
{
	SagaProjection *p = arg;
	MemoryContext caller = MemoryContextSwitchTo(p->program_context);
	SagaUserSwitch save;
	SagaProgram *program;

	saga_run_as_begin(p->owner, p->search_path, &save);
	program = saga_program_build(p->query, p->id, p->key);
	saga_run_as_end(&save);
	p->built_on = saga_set_digests(program);
	p->apply = saga_apply_make(program, p->owner);
	p->program = program;
	MemoryContextSwitchTo(caller);
}

bool
saga_set_build(SagaProjection *p)
{
	ErrorData  *error;
	List	   *lacking;

	saga_set_touched = true;
	forget_program(p);
	p->program_context = AllocSetContextCreate(p->context, "saga program",
											   ALLOCSET_DEFAULT_SIZES);
	error = saga_in_subtransaction(build_program, p);
	if (error)
	{
		forget_program(p);
		saga_set_state(p, SAGA_P_PARKED, true, error->message,
					   saga_sqlstate_text(error->sqlerrcode));
		return false;
	}
	lacking = saga_tables_without_identity(p->program, NULL);
	if (lacking != NIL)
	{
		forget_program(p);
		saga_set_state(p, SAGA_P_PARKED, p->filled,
					   psprintf("the replica identity of table %s does not cover the columns used; "
								"set it to FULL, then call saga.resume_projection()",
								saga_projection_name(linitial_oid(lacking))), "55000");
		return false;
	}
	if (p->filled && strcmp(p->shape, p->program->shape) != 0)
	{
		forget_program(p);
		saga_set_state(p, SAGA_P_PARKED, true,
					   "a source was changed so that the query has other columns or types; "
					   "call saga.replace_projection()", NULL);
		return false;
	}
	return true;
}

/* ----------------------------------------------------------------- rows */

static SagaProjection *
projection_by_id(List *list, int64 id)
{
	ListCell   *lc;

	foreach(lc, list)
		if (((SagaProjection *) lfirst(lc))->id == id)
			return lfirst(lc);
	return NULL;
}

static Datum
column(HeapTuple row, int number, bool *isnull)
{
	return SPI_getbinval(row, SPI_tuptable->tupdesc, number, isnull);
}

static char *
text_column(HeapTuple row, int number, MemoryContext context)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? NULL : MemoryContextStrdup(context, TextDatumGetCString(value));
}

static List *
key_of(Datum value, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *key = NIL;

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
		if (!nulls[i])
			key = lappend(key, TextDatumGetCString(elems[i]));
	MemoryContextSwitchTo(old);
	return key;
}

static void
projection_free(SagaProjection *p)
{
	forget_program(p);
	MemoryContextDelete(p->context);
}

void
saga_set_discard(void)
{
	ListCell   *lc;

	foreach(lc, saga_projections)
		forget_program(lfirst(lc));
	saga_set_touched = false;
}

static SagaProjection *
projection_new(int64 id)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "saga projection",
												  ALLOCSET_DEFAULT_SIZES);
	SagaProjection *p = MemoryContextAllocZero(context, sizeof(SagaProjection));

	p->context = context;
	p->row_context = AllocSetContextCreate(context, "saga projection row",
										   ALLOCSET_SMALL_SIZES);
	p->id = id;
	return p;
}

static void
read_row(SagaProjection *p, HeapTuple row)
{
	bool		isnull;
	Datum		value;
	SagaProjectionState was = p->state;
	int64		fill;
	MemoryContext old;

	MemoryContextReset(p->row_context);
	p->view = DatumGetObjectId(column(row, 2, &isnull));
	p->owner = DatumGetObjectId(column(row, 3, &isnull));
	if (p->query == NULL)
	{
		p->query = text_column(row, 4, p->context);
		p->search_path = text_column(row, 5, p->context);
		value = column(row, 6, &isnull);
		p->key = isnull ? NIL : key_of(value, p->context);
	}
	p->shape = text_column(row, 7, p->row_context);
	p->state = state_from_name(TextDatumGetCString(column(row, 8, &isnull)));
	p->filled = DatumGetBool(column(row, 9, &isnull));
	p->stale = DatumGetBool(column(row, 10, &isnull));
	p->plain = DatumGetBool(column(row, 11, &isnull));
	fill = DatumGetInt64(column(row, 12, &isnull));
	value = column(row, 13, &isnull);
	p->snapshot = isnull ? (Datum) 0 : saga_snapshot_copy(value, p->row_context);
	value = column(row, 14, &isnull);
	p->position = isnull ? InvalidXLogRecPtr : DatumGetLSN(value);
	p->name = text_column(row, 15, p->row_context);
	if (p->name == NULL)
		p->name = "(dropped)";
	value = column(row, 16, &isnull);
	old = MemoryContextSwitchTo(p->row_context);
	p->filled_on = isnull ? NIL : digests_from_array(value);
	MemoryContextSwitchTo(old);
	if (fill != p->fill || p->state != was)
	{
		p->tracked = false;
		p->plain_after = InvalidTransactionId;
	}
	p->fill = fill;
}

static void
load(int64 only)
{
	Oid			type = INT8OID;
	Datum		arg = Int64GetDatum(only);
	List	   *kept = NIL;
	ListCell   *lc;
	SPITupleTable *table;
	uint64		n;

	/* not read-only: what this transaction wrote before is to be seen */
	if (SPI_execute_with_args("SELECT p.id, p.view::oid, p.owner::oid, p.query, p.search_path, p.key, p.shape, p.state, "
					"p.filled, p.stale, p.plain, p.fill, p.snapshot, p.position, "
					"(SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c "
					"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p.view), p.built_on "
					"FROM saga.projection p WHERE $1 IN (0, p.id) ORDER BY p.id",
							  1, &type, &arg, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read projections");
	table = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		HeapTuple	row = table->vals[i];
		int64		id;
		SagaProjection *p;
		MemoryContext old;

		SPI_tuptable = table;
		id = DatumGetInt64(column(row, 1, &isnull));
		p = projection_by_id(saga_projections, id);
		if (p == NULL)
			p = projection_new(id);
		read_row(p, row);
		old = MemoryContextSwitchTo(TopMemoryContext);
		kept = lappend(kept, p);
		MemoryContextSwitchTo(old);
	}
	foreach(lc, saga_projections)
		if (!list_member_ptr(kept, lfirst(lc)))
			projection_free(lfirst(lc));
	list_free(saga_projections);
	saga_projections = kept;

	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);

		/* one that is parked as stale has nothing to be done for it */
		if (p->program == NULL && !(p->state == SAGA_P_PARKED && p->stale))
			(void) saga_set_build(p);
	}
}

void
saga_set_load(SagaFeed *feed)
{
	load(0);
	saga_set_track(feed);
}

void
saga_set_load_one(int64 id)
{
	load(id);
}

void
saga_set_state(SagaProjection *p, SagaProjectionState state, bool stale,
			   const char *reason, const char *sqlstate)
{
	Oid			types[5] = {INT8OID, TEXTOID, BOOLOID, TEXTOID, TEXTOID};
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};

	saga_set_touched = true;
	values[0] = Int64GetDatum(p->id);
	values[1] = CStringGetTextDatum(state_names[state]);
	values[2] = BoolGetDatum(stale);
	values[3] = reason ? CStringGetTextDatum(reason) : (Datum) 0;
	values[4] = sqlstate ? CStringGetTextDatum(sqlstate) : (Datum) 0;
	nulls[3] = reason ? ' ' : 'n';
	nulls[4] = sqlstate ? ' ' : 'n';
	saga_spi_own("UPDATE saga.projection SET state = $2, stale = $3, reason = $4, sqlstate = $5, "
				 "since = pg_catalog.clock_timestamp() WHERE id = $1",
				 5, types, values, nulls, NULL, NULL);
	p->state = state;
	p->stale = stale;
	if (state == SAGA_P_PARKED)
		ereport(LOG,
				(errmsg("projection %s is parked: %s", p->name, reason)));
}

void
saga_set_snapshot(SagaProjection *p, Datum snapshot, XLogRecPtr position)
{
	Oid			types[3] = {INT8OID, PG_SNAPSHOTOID, PG_LSNOID};
	Datum		values[3];
	char		nulls[3] = {' ', ' ', ' '};

	saga_set_touched = true;
	values[0] = Int64GetDatum(p->id);
	values[1] = snapshot;
	values[2] = LSNGetDatum(position);
	if (snapshot == (Datum) 0)
		nulls[1] = nulls[2] = 'n';
	saga_spi_own("UPDATE saga.projection SET snapshot = $2, position = $3, "
				 "at = CASE WHEN $2 IS NOT NULL THEN pg_catalog.now() END WHERE id = $1",
				 3, types, values, nulls, NULL, NULL);
	if (p->snapshot != (Datum) 0)
		pfree(DatumGetPointer(p->snapshot));
	p->snapshot = snapshot == (Datum) 0 ? (Datum) 0 :
		saga_snapshot_copy(snapshot, p->row_context);
	p->position = position;
}

void
saga_set_filled_on(SagaProjection *p, List *digests)
{
	Oid			types[2] = {INT8OID, INT8ARRAYOID};
	Datum		values[2];
	MemoryContext old;

	saga_set_touched = true;
	values[0] = Int64GetDatum(p->id);
	values[1] = digests_to_array(digests);
	saga_spi_own("UPDATE saga.projection SET built_on = $2 WHERE id = $1",
				 2, types, values, NULL, NULL, NULL);
	old = MemoryContextSwitchTo(p->row_context);
	list_free_deep(p->filled_on);
	p->filled_on = copy_digests(digests);
	MemoryContextSwitchTo(old);
}

/* --------------------------------------------------------------- tracking */

SagaTracked *
saga_set_tracked(Oid relid)
{
	return tracked ? hash_search(tracked, &relid, HASH_FIND, NULL) : NULL;
}

/* One physical table of a source. */
static void
track_table(Oid relid, const SagaSource *source)
{
	Relation	rel = try_relation_open(relid, AccessShareLock);
	SagaTracked *t;
	SagaTrackedRoot *root = palloc0(sizeof(SagaTrackedRoot));
	bool		found;

	if (rel == NULL)
		return;
	root->root = source->relid;
	t = hash_search(tracked, &relid, HASH_ENTER, &found);
	if (!found)
	{
		t->desc = CreateTupleDescCopyConstr(RelationGetDescr(rel));
		t->columns = NULL;
		t->all_columns = false;
		t->roots = NIL;
	}
	if (relid != source->relid)
		root->map = saga_attrmap_by_name(t->desc, source->desc);
	for (int i = -1; (i = bms_next_member(source->columns, i)) >= 0;)
	{
		AttrNumber	attno = root->map ? root->map->attnums[i - 1] : i;

		if (attno > 0)
			t->columns = bms_add_member(t->columns, attno);
	}
	if (rel->rd_rel->relkind == RELKIND_RELATION)
		t->roots = lappend(t->roots, root);
	relation_close(rel, NoLock);
}

static bool
needs_changes(const SagaProjection *p)
{
	return p->program != NULL && !(p->state == SAGA_P_PARKED && p->stale);
}

static bool
is_root_of(const SagaTracked *t, Oid root)
{
	ListCell   *lc;

	foreach(lc, t->roots)
		if (((SagaTrackedRoot *) lfirst(lc))->root == root)
			return true;
	return false;
}

/* Handlers are shown whole rows, of partitions as rows of the root. */
static void
track_handlers(void)
{
	MemoryContext old = MemoryContextSwitchTo(track_context);
	ListCell   *lc;

	foreach(lc, saga_handlers)
	{
		SagaHandler *h = lfirst(lc);
		SagaSource	source = {0};
		Relation	root;
		ListCell   *lt;

		if (h->lost)
			continue;
		root = try_relation_open(h->source, AccessShareLock);
		if (root == NULL)
			continue;
		source.relid = h->source;
		source.desc = RelationGetDescr(root);
		foreach(lt, find_all_inheritors(h->source, AccessShareLock, NULL))
		{
			SagaTracked *t = saga_set_tracked(lfirst_oid(lt));

			if (t == NULL || !is_root_of(t, h->source))
				track_table(lfirst_oid(lt), &source);
			t = saga_set_tracked(lfirst_oid(lt));
			if (t != NULL)
				t->all_columns = true;
		}
		relation_close(root, NoLock);
	}
	MemoryContextSwitchTo(old);
}

void
saga_set_track(SagaFeed *feed)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid),.entrysize = sizeof(SagaTracked)};
	HTAB	   *before = tracked;
	MemoryContext context_before = track_context;
	MemoryContext old;
	HASH_SEQ_STATUS seq;
	SagaTracked *t;
	ListCell   *lc;

	track_context = AllocSetContextCreate(TopMemoryContext, "saga tracked tables",
										  ALLOCSET_DEFAULT_SIZES);
	ctl.hcxt = track_context;
	tracked = hash_create("saga tracked tables", 64, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	old = MemoryContextSwitchTo(track_context);
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);
		ListCell   *ls;

		if (!needs_changes(p))
			continue;
		foreach(ls, p->program->sources)
		{
			SagaSource *source = lfirst(ls);
			ListCell   *lt;

			foreach(lt, find_all_inheritors(source->relid, AccessShareLock, NULL))
			{
				t = saga_set_tracked(lfirst_oid(lt));
				if (t == NULL || !is_root_of(t, source->relid))
					track_table(lfirst_oid(lt), source);
				else
				{
					/* another query over the same table may use more of it */
					SagaTrackedRoot *root = NULL;
					ListCell   *lr;

					foreach(lr, t->roots)
						if (((SagaTrackedRoot *) lfirst(lr))->root == source->relid)
							root = lfirst(lr);
					for (int i = -1; (i = bms_next_member(source->columns, i)) >= 0;)
					{
						AttrNumber	attno = root->map ? root->map->attnums[i - 1] : i;

						if (attno > 0)
							t->columns = bms_add_member(t->columns, attno);
					}
				}
			}
		}
	}
	MemoryContextSwitchTo(old);

	track_handlers();

	if (feed)
	{
		hash_seq_init(&seq, tracked);
		while ((t = hash_seq_search(&seq)) != NULL)
		{
			uint64		first = saga_feed_track(feed, t->relid, t->desc,
												t->columns, t->all_columns);

			saga_set_first = Max(saga_set_first, first);
		}
		if (before)
		{
			hash_seq_init(&seq, before);
			while ((t = hash_seq_search(&seq)) != NULL)
				if (saga_set_tracked(t->relid) == NULL)
					saga_feed_untrack(feed, t->relid);
		}
	}
	if (context_before)
		MemoryContextDelete(context_before);
	saga_projections_dirty = true;
}

List *
saga_set_tables(void)
{
	List	   *tables = NIL;
	HASH_SEQ_STATUS seq;
	SagaTracked *t;
	ListCell   *lc;

	if (tracked != NULL)
	{
		hash_seq_init(&seq, tracked);
		while ((t = hash_seq_search(&seq)) != NULL)
			tables = lappend_oid(tables, t->relid);
	}
	foreach(lc, saga_projections)
	{
		SagaProjection *p = lfirst(lc);
		ListCell   *ls;

		if (!needs_changes(p))
			continue;
		foreach(ls, p->program->sources)
			tables = list_append_unique_oid(tables, ((SagaSource *) lfirst(ls))->relid);
	}
	list_sort(tables, list_oid_cmp);
	return tables;
}

int
saga_set_widest(void)
{
	HASH_SEQ_STATUS seq;
	SagaTracked *t;
	int			widest = 0;

	if (tracked != NULL)
	{
		hash_seq_init(&seq, tracked);
		while ((t = hash_seq_search(&seq)) != NULL)
			widest = Max(widest, t->desc->natts);
	}
	return widest;
}

/* Does it read one of these physical tables? */
bool
saga_projection_reads(const SagaProjection *p, List *relids)
{
	ListCell   *lc;

	if (p->program == NULL)
		return false;
	foreach(lc, relids)
	{
		SagaTracked *t = saga_set_tracked(lfirst_oid(lc));
		ListCell   *lr;

		if (t == NULL)
			continue;
		foreach(lr, t->roots)
		{
			ListCell   *ls;

			foreach(ls, p->program->sources)
				if (((SagaSource *) lfirst(ls))->relid == ((SagaTrackedRoot *) lfirst(lr))->root)
					return true;
		}
	}
	return false;
}

/*
 * Must this transaction be kept for it beyond the batch?  A projection that
 * stands where the feed stands got it, or will, with the others.
 */
bool
saga_projection_keeps(const SagaProjection *p, SagaFeedTxn *txn)
{
	bool		filling = p->state == SAGA_P_FILLING || p->state == SAGA_P_REBUILDING;

	if (!needs_changes(p) || (!filling && p->snapshot == (Datum) 0))
		return false;
	if (!filling && saga_snapshot_sees(p->snapshot, txn->xid))
		return false;
	return saga_projection_reads(p, txn->relids) ||
		saga_projection_reads(p, txn->truncated) ||
		saga_projection_reads(p, txn->incomplete);
}

bool
saga_set_keeps(Datum snapshot, SagaFeedTxn *txn)
{
	ListCell   *lc;

	if (snapshot == (Datum) 0 || !saga_snapshot_sees(snapshot, txn->xid))
		return true;
	foreach(lc, saga_projections)
		if (saga_projection_keeps(lfirst(lc), txn))
			return true;
	foreach(lc, saga_handlers)
		if (saga_handler_keeps(lfirst(lc), txn))
			return true;
	return false;
}

void
saga_projector_if_needed(void)
{
	SagaFeedShared *feed;
	bool		isnull;
	Datum		any;

	if (SPI_execute("SELECT EXISTS (SELECT FROM saga.projection) OR EXISTS (SELECT FROM saga.handler)", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for projections");
	any = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (!DatumGetBool(any) || (feed = saga_feed_shared(true)) == NULL)
		return;
	feed->wanted = true;
	saga_wake_launcher();
}
