/*
 * projection_view.c
 *		The public view of a projection and its storage, as objects of the
 *		database (see projection_view.h).
 *
 * Called by projection_define.c in sessions and by the projector.  Owns the
 * text of the views and the names under saga_data; reads no row of storage.
 *
 * Storage and view need no dependency on the extension of their own: storage
 * lies in a schema, and the view calls a function, that are members of it.  So
 * DROP EXTENSION needs CASCADE, and a dump has them like any table and view.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/tablecmds.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#include "compat.h"
#include "projection_row.h"
#include "projection_stat.h"
#include "projection_view.h"
#include "spi_util.h"

/* How long the projector lets readers of a view queue behind it. */
#define VIEW_LOCK_TIMEOUT	"100ms"

static void
run(const char *sql)
{
	int			rc = SPI_execute(sql, false, 0);

	if (rc < 0)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(rc));
}

/* ---- the text of the view ---- */

static void
append_columns(StringInfo sql, const SagaProgram *program, const char *alias)
{
	for (int i = 0; i < program->result->natts; i++)
		appendStringInfo(sql, "%s%s.%s", i ? ", " : "", alias,
						 quote_identifier(NameStr(TupleDescAttr(program->result, i)->attname)));
}

static char *
view_sql(const SagaProgram *program, const char *name, bool replace, bool plain)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "CREATE %sVIEW %s AS SELECT ",
					 replace ? "OR REPLACE " : "", name);
	append_columns(&sql, program, "s");
	appendStringInfo(&sql, " FROM (%s) s WHERE saga.%s(" INT64_FORMAT ")",
					 program->stored_query, plain ? "serves_" : "filled_",
					 program->id);
	if (!plain)
	{
		appendStringInfoString(&sql, " UNION ALL SELECT ");
		append_columns(&sql, program, "q");
		appendStringInfo(&sql, " FROM (%s) q WHERE NOT saga.filled_(" INT64_FORMAT ")",
						 program->live_query, program->id);
	}
	return sql.data;
}

void
saga_view_create(const SagaProgram *program, const char *name)
{
	int			nestlevel = NewGUCNestLevel();

	/* the texts are written for this path, whatever the user's is */
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	run(view_sql(program, name, false, false));
	SPI_finish();
	AtEOXact_GUC(false, nestlevel);
}

/* The rules of CREATE OR REPLACE VIEW, before anything is built. */
void
saga_view_require_columns(Oid view, const SagaProgram *program)
{
	Relation	rel = relation_open(view, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	const char *fault = NULL;

	if (program->result->natts < desc->natts)
		fault = psprintf("The projection has %d columns, the query %d.",
						 desc->natts, program->result->natts);
	for (int i = 0; i < desc->natts && fault == NULL; i++)
	{
		Form_pg_attribute had = TupleDescAttr(desc, i);
		Form_pg_attribute has = TupleDescAttr(program->result, i);

		if (strcmp(NameStr(had->attname), NameStr(has->attname)) != 0)
			fault = psprintf("Column %d is \"%s\" in the projection and \"%s\" in the query.",
							 i + 1, NameStr(had->attname), NameStr(has->attname));
		else if (had->atttypid != has->atttypid || had->atttypmod != has->atttypmod)
			fault = psprintf("Column \"%s\" is of type %s in the projection and %s in the query.",
							 NameStr(had->attname),
							 format_type_with_typemod(had->atttypid, had->atttypmod),
							 format_type_with_typemod(has->atttypid, has->atttypmod));
		else if (had->attcollation != has->attcollation)
			fault = psprintf("Column \"%s\" has another collation in the query.",
							 NameStr(had->attname));
	}
	relation_close(rel, NoLock);
	if (fault)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("the query has other columns than projection \"%s\"",
						saga_projection_name(view)),
				 errdetail_internal("%s", fault),
				 errhint("Columns may only be added at the end.  Else drop the projection and create it anew.")));
}

/* ---- storage ---- */

void
saga_storage_create(SagaProgram *program, List *indexes, Oid owner)
{
	SagaUserSwitch save;
	ListCell   *lc;

	saga_as_extension_owner_begin(&save);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	foreach(lc, saga_program_storage_ddl(program))
		run(lfirst(lc));
	foreach(lc, indexes)
		run(saga_program_index_ddl(program, lfirst(lc)));
	SPI_finish();
	saga_as_extension_owner_end(&save);
	saga_storage_set_owner(program->id, owner);
}

/* OIDs of the tables of one projection, locked. */
static List *
storage_of(int64 id, LOCKMODE lockmode)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	MemoryContext context = CurrentMemoryContext;
	List	   *tables = NIL;
	ListCell   *lc;

	values[0] = CStringGetTextDatum(psprintf("p" INT64_FORMAT "\\_%%", id));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("SELECT c.oid FROM pg_catalog.pg_class c "
							  "JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace "
							  "WHERE n.nspname OPERATOR(pg_catalog.=) '" SAGA_DATA_SCHEMA "' "
							  "AND c.relkind OPERATOR(pg_catalog.=) 'r' "
							  "AND c.relname OPERATOR(pg_catalog.~~) $1 ORDER BY c.oid",
							  1, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not list storage tables");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		oid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		MemoryContext old = MemoryContextSwitchTo(context);

		tables = lappend_oid(tables, DatumGetObjectId(oid));
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	foreach(lc, tables)
		LockRelationOid(lfirst_oid(lc), lockmode);
	return tables;
}

void
saga_storage_drop(int64 id)
{
	ObjectAddresses *objects = new_object_addresses();
	ListCell   *lc;

	foreach(lc, storage_of(id, AccessExclusiveLock))
	{
		ObjectAddress table;

		ObjectAddressSet(table, RelationRelationId, lfirst_oid(lc));
		add_exact_object_address(&table, objects);
	}
	performMultipleDeletions(objects, DROP_RESTRICT, PERFORM_DELETION_INTERNAL);
	free_object_addresses(objects);
	CommandCounterIncrement();
}

void
saga_storage_set_owner(int64 id, Oid owner)
{
	ListCell   *lc;

	/* "recursing": without a check of the current user's rights */
	foreach(lc, storage_of(id, AccessExclusiveLock))
		ATExecChangeOwner(lfirst_oid(lc), owner, true, AccessExclusiveLock);
	CommandCounterIncrement();
}

/*
 * Give the view another text.  The plain one reads storage alone, and so does
 * not depend on the sources: they may be altered or dropped like any table,
 * and the projection is then rebuilt or parked.
 */
static void
replace_view(const SagaProgram *program, Oid view, bool plain)
{
	SagaUserSwitch save;

	saga_as_extension_owner_begin(&save);
	run(view_sql(program, saga_projection_name(view), true, plain));
	saga_as_extension_owner_end(&save);
	CommandCounterIncrement();
}

/* ---- the projector's part ---- */

static SagaProgram *
program_of(const SagaProjectionRow *row)
{
	SagaUserSwitch save;
	SagaProgram *program;

	saga_run_as_begin(row->owner, row->search_path, &save);
	program = saga_program_build(row->query, row->id, row->key);
	saga_run_as_end(&save);
	return program;
}

/* One statement on our table, about one row. */
static void
update_row(const char *sql, int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1];

	values[0] = Int64GetDatum(id);
	saga_spi_own(sql, 1, types, values, NULL, NULL, NULL);
}

/*
 * Lock the view, and see whether the row is still as it was read: it may have
 * been dropped or replaced meanwhile.
 */
static bool
lock_view(const SagaProjectionRow *row)
{
	SagaProjectionRow now;

	LockRelationOid(row->view, AccessExclusiveLock);
	return get_rel_relkind(row->view) == RELKIND_VIEW &&
		saga_projection_row(row->id, NULL, &now) &&
		now.filled && now.replaces == row->replaces;
}

static void
make_plain(void *arg)
{
	const SagaProjectionRow *row = arg;
	SagaProgram *program = program_of(row);

	if (!lock_view(row))
		return;
	replace_view(program, row->view, true);
	update_row("UPDATE saga.projection SET plain = true WHERE id = $1", row->id);
}

/*
 * The view is replaced by the one with both branches, for snapshots older
 * than the fill: they see no filled row and run the query.
 */
static void
take_place(void *arg)
{
	const SagaProjectionRow *row = arg;
	SagaProgram *program = program_of(row);

	/* the order that saga_projection_to_change() and dropping the view have */
	saga_projection_lock(row->replaces);
	if (!lock_view(row))
		return;
	replace_view(program, row->view, false);
	saga_storage_drop(row->replaces);
	update_row("DELETE FROM saga.projection WHERE id = $1", row->replaces);
	update_row("UPDATE saga.projection SET replaces = NULL, plain = false WHERE id = $1", row->id);
	saga_projections_changed();
}

static void
sweep_one(void *arg)
{
	int64		id = *(int64 *) arg;

	saga_storage_drop(id);
	update_row("DELETE FROM saga.projection WHERE id = $1 OR replaces = $1", id);
	saga_projections_changed();
}

static void
sweep_owner(void *arg)
{
	const SagaProjectionRow *row = arg;
	Oid			types[2] = {INT8OID, REGROLEOID};
	Datum		values[2];

	saga_storage_set_owner(row->id, row->owner);
	values[0] = Int64GetDatum(row->id);
	values[1] = ObjectIdGetDatum(row->owner);
	saga_spi_own("UPDATE saga.projection SET owner = $2 WHERE id = $1",
				 2, types, values, NULL, NULL, NULL);
	saga_projections_changed();
}

typedef struct ShortLocks
{
	void		(*fn) (void *arg);
	void	   *arg;
} ShortLocks;

static void
call_with_short_locks(void *arg)
{
	ShortLocks *call = arg;

	/* the subtransaction's end undoes it */
	(void) set_config_option("lock_timeout", VIEW_LOCK_TIMEOUT, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	call->fn(call->arg);
	SPI_finish();
}

/*
 * Call fn in a subtransaction, waiting shortly for locks.  False if one was
 * not to be had; other errors are raised.
 */
static bool
with_short_locks(void (*fn) (void *arg), void *arg)
{
	ShortLocks	call = {fn, arg};
	ErrorData  *error = saga_in_subtransaction(call_with_short_locks, &call);

	if (error != NULL && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE &&
		error->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED)
		ReThrowError(error);
	return error == NULL;
}

bool
saga_projection_make_plain(int64 id)
{
	SagaProjectionRow row;

	if (!saga_projection_row(id, NULL, &row) || row.plain || row.replaces != 0)
		return true;
	if (!row.filled || get_rel_relkind(row.view) != RELKIND_VIEW)
		return false;
	return with_short_locks(make_plain, &row);
}

bool
saga_projection_filled(int64 id)
{
	SagaProjectionRow row;

	if (!saga_projection_row(id, NULL, &row) || row.replaces == 0)
		return true;
	if (strcmp(row.state, "paused") == 0 || strcmp(row.state, "parked") == 0)
		return true;			/* resuming it leads here again */

	/* readers must not be thrown back: it has to have caught up */
	if (!row.filled || row.own || get_rel_relkind(row.view) != RELKIND_VIEW)
		return false;
	if (!with_short_locks(take_place, &row))
		return false;
	saga_projection_stat_forget(row.replaces);
	return true;
}

/* Ids as the query gives them, in the caller's memory context. */
static List *
ids_of(const char *sql)
{
	MemoryContext context = CurrentMemoryContext;
	SagaUserSwitch save;
	List	   *ids = NIL;

	saga_as_extension_owner_begin(&save);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(sql, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look for projections to sweep");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;
		Datum		id = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		MemoryContext old = MemoryContextSwitchTo(context);
		int64	   *copy = palloc(sizeof(int64));

		*copy = DatumGetInt64(id);
		ids = lappend(ids, copy);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	saga_as_extension_owner_end(&save);
	return ids;
}

bool
saga_projection_sweep(void)
{
	bool		any = false;
	ListCell   *lc;

	/* rows without a view; storage without a row */
	foreach(lc, ids_of("SELECT p.id FROM saga.projection p "
					   "WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = p.view) "
					   "OR p.replaces IS NOT NULL AND NOT EXISTS (SELECT FROM saga.projection o WHERE o.id = p.replaces) "
					   "UNION "
					   "SELECT substring(c.relname, '^p([0-9]{1,18})_')::bigint FROM pg_class c "
					   "JOIN pg_namespace n ON n.oid = c.relnamespace "
					   "WHERE n.nspname = '" SAGA_DATA_SCHEMA "' AND c.relkind = 'r' "
					   "AND c.relname ~ '^p[0-9]{1,18}_' AND NOT EXISTS (SELECT FROM saga.projection p "
					   "WHERE p.id = substring(c.relname, '^p([0-9]{1,18})_')::bigint)"))
	{
		if (!with_short_locks(sweep_one, lfirst(lc)))
			continue;
		saga_projection_stat_forget(*(int64 *) lfirst(lc));
		any = true;
	}

	/* ALTER VIEW ... OWNER TO, REASSIGN OWNED */
	foreach(lc, ids_of("SELECT p.id FROM saga.projection p JOIN pg_class c ON c.oid = p.view "
					   "WHERE c.relowner <> p.owner"))
	{
		SagaProjectionRow row;
		Relation	view;

		if (!saga_projection_row(*(int64 *) lfirst(lc), NULL, &row) ||
			(view = try_relation_open(row.view, AccessShareLock)) == NULL)
			continue;
		row.owner = view->rd_rel->relowner;
		relation_close(view, NoLock);
		any |= with_short_locks(sweep_owner, &row);
	}
	return any;
}
